"""The verb `doctor`, apart from the others: it answers where torch does not import. Read `worldsim/report/doctor.py` next."""

import sys
from importlib import import_module
from typing import Any

from training.app.cli import VERBS
from worldsim.core.installation import shipped
from worldsim.report.doctor import examine


def doctor(cfg: dict[str, Any]) -> None:
    """What this machine can run, and what is missing; with `data=ROOT` what is wrong with a dataset, others see its file."""
    for key in ("mend", "museum"):
        if not isinstance(cfg[key], bool):  # "no" is a word to Hydra
            raise ValueError(f"{key} is {cfg[key]!r}, expected true or false; write {key}=true or leave it out")
    if not cfg["museum"]:
        needs = {name: verb.needs for name, verb in VERBS.items()}
        examine(cfg["data"], mend=cfg["mend"], needs=needs, check=cfg["check"], out=cfg["out"])
    elif cfg["mend"] or any(cfg[key] is not None for key in ("data", "check", "out")):
        raise ValueError("museum=true looks at datasets of its own; leave out data, mend, check and out")
    else:
        _show_museum()


def _show_museum() -> None:
    """ValueError if a dataset of the museum is not judged as it should be, after the table, or if there is no museum."""
    tests = shipped("configs").parent / "tests"
    if not (tests / "museum").is_dir():
        raise ValueError("museum=true needs a checkout, where tests/museum lies; clone the repository and run it there")
    sys.path.append(str(tests))
    if bad := import_module("museum.visit").visit():
        raise ValueError(f"{bad} datasets of the museum are not judged as they should be; see the table above")
