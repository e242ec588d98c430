"""Look at the museum: build each case, ask doctor and reader of worldsim about it, and judge what they say.

`python tests/museum/visit.py FOLDER OUT`, by whatever worldsim is on the path, looks at the datasets below a folder and writes what
it saw; `compare.py` does that with an older one. `worldsim doctor museum=true` prints `visit`.
"""

import pickle
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot_reader import Dataset

GOOD = ("found", "fine")
COMPARED = 50  # frames of each episode


@dataclass
class Seen:
    """What worldsim said of a dataset.

    Attributes:
        faults: kind, severity, what was found and the remedy, of each fault.
        doctor: what it raised, as "Type: message", or "".
        reader: the same of reading.
        episodes: what was read, by episode: state, action, instruction and pictures of the first camera.
    """

    faults: list[tuple[str, str, str, str]] = field(default_factory=list)
    doctor: str = ""
    reader: str = ""
    episodes: list[dict[str, Any]] = field(default_factory=list)


def look(root: Path) -> Seen:
    """Ask doctor and reader about a dataset. All that they raise is what is looked for, whatever it is."""
    seen = Seen()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            seen.faults = [(fault.kind, fault.severity, fault.found, fault.remedy) for fault in dataset_faults(root)]
        except Exception as error:
            seen.doctor = f"{type(error).__name__}: {error}"
        try:
            for episode in Dataset(root).episodes():
                pictures = next(iter(episode.images.values()), np.empty(0))
                numbers = {"state": episode.state, "action": episode.action, "pictures": pictures}
                seen.episodes.append({"task": episode.instruction, **{name: np.array(value) for name, value in numbers.items()}})
        except Exception as error:
            seen.reader = f"{type(error).__name__}: {error}"
    return seen


def judge(expected: str, truth: list | None, seen: Seen) -> str:
    """A verdict on what was seen, one of `GOOD` if it is what a case expects.

    Args:
        expected: as in `Case`.
        truth: the episodes that must be read, as `recorder.Take`; None where nobody can say.
        seen: of the dataset.
    """
    severity, _, word = expected.partition(" ")
    for raised in (seen.doctor, seen.reader):
        if raised and (raised.split(":")[0] not in ("ValueError", "FileNotFoundError") or "\n" in raised):
            return "traceback"
    errors = [fault for fault in seen.faults if fault[1] == "error"]
    if not all(found and remedy and "\n" not in found + remedy for _, _, found, remedy in seen.faults):
        return "a fault without a remedy, or of several lines"
    if severity == "refused":
        said = [raised for raised in (seen.doctor, seen.reader) if word in raised]
        return "found" if len(said) == 2 else "silent" if not (seen.doctor or seen.reader) else "refused in other words"
    if severity == "error":
        if seen.doctor:
            return "refused needlessly"
        if not errors:
            return "only the reader" if seen.reader else "silent"
        return "found" if any(fault[0] == word for fault in errors) else "another error"
    if errors or seen.doctor or seen.reader:
        return "refused needlessly"
    if truth is not None and (other := differs(truth, seen.episodes)):
        return f"wrong values ({other})"
    kinds = {fault[0] for fault in seen.faults}
    if severity == "fine":
        return "cries wolf" if kinds else "fine"
    return "found" if word in kinds else "another warning" if kinds else "silent"


def differs(truth: list, episodes: list[dict[str, Any]]) -> str:
    """In what episodes are others than they should be; "" if they are not.

    Pictures of a video are never the same; they must be more like their own frame than like another.
    """
    if len(truth) != len(episodes):
        return f"{len(episodes)} episodes instead of {len(truth)}"
    for take, episode in zip(truth, episodes, strict=True):
        if take.task != episode["task"]:
            return "instruction"
        for name, true in (("state", take.state), ("action", take.action[:-1])):
            if true.shape != episode[name].shape or not np.allclose(true, episode[name], atol=1e-6):
                return name
        if len(shown := episode["pictures"]):
            if take.pictures.shape != shown.shape:
                return "size of pictures"
            true, shown = (
                pictures[:COMPARED].reshape(-1, take.pictures[0].size).astype(float) for pictures in (take.pictures, shown)
            )
            apart = np.abs(shown[:, None] - true[None]).mean(axis=2)
            if (apart.diagonal() > apart.min(axis=1) + 1).any():
                return "pictures"
    return ""


def visit(console: Console | None = None) -> int:
    """Build, look at and judge every case; print a table. Returns how many verdicts are not good."""
    from museum.cases import cases  # here, as an older worldsim only looks

    console = console or Console()
    table, bad = Table("case", "expected", "found", "verdict", title="Museum of datasets", title_justify="left"), 0
    with tempfile.TemporaryDirectory() as folder:
        for case in cases():
            root = Path(folder) / case.name
            truth, seen = case.build(root), look(root)
            bad += (verdict := judge(case.expected, truth, seen)) not in GOOD
            said = (
                seen.doctor or "\n".join(f"{severity} {kind}: {found}" for kind, severity, found, _ in seen.faults) or seen.reader
            )
            colour = "green" if verdict in GOOD else "red"
            table.add_row(case.name, case.expected, escape(said.replace(f"{root}/", "")), f"[{colour}]{verdict}[/]")
    console.print(table)
    console.print(f"{len(cases())} cases, {bad} not as expected")
    return bad


if __name__ == "__main__":
    found = {root.name: look(root) for root in sorted(Path(sys.argv[1]).iterdir()) if root.is_dir()}
    Path(sys.argv[2]).write_bytes(pickle.dumps({name: vars(seen) for name, seen in found.items()}))
