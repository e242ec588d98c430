"""The verb `doctor`, apart from the others: it answers where torch does not import. Read `worldsim/report/doctor.py` next."""

from typing import Any

from training.app.cli import VERBS
from worldsim.report.doctor import examine


def doctor(cfg: dict[str, Any]) -> None:
    """What this machine can run, and what is missing; with `data=ROOT` what is wrong with a dataset, with `check=` see its file."""
    if not isinstance(cfg["mend"], bool):  # "no" is a word to Hydra
        raise ValueError(f"mend is {cfg['mend']!r}, expected true or false; write mend=true or leave it out")
    needs = {name: verb.needs for name, verb in VERBS.items()}
    examine(cfg["data"], mend=cfg["mend"], needs=needs, check=cfg["check"])
