"""Where success and progress come from: what was recorded, how demonstrations end, or what somebody wrote down.

Few recordings of robots say whether they succeeded. A label says it of the frames of a store, and what it does not know stays
unknown. Each is one class here and one file in `configs/label/`. Read `training/supervised/data.py` next, whose modules ask one.
"""

import csv
import math
from abc import ABC, abstractmethod
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.data.lerobot_reader import Dataset
from worldsim.data.store import FrameStore

COLUMNS = ("episode", "first_frame", "last_frame", "success", "progress")


class Label(ABC):
    """Says success and progress of frames, NaN where it does not know."""

    @abstractmethod
    def __call__(self, table: FrameStore) -> FrameStore:
        """The same frames with other labels."""


class Outcome(Label):
    """What the dataset recorded, by the task's truth or a person; unknown stays unknown."""

    def __call__(self, table: FrameStore) -> FrameStore:
        return table


class DemoEnd(Label):
    """Episodes are demonstrations that end when the task is done: the last `seconds` show it done, what is before does not.

    That is false where people stop early, give up, or go on after success: compare it with something that was judged.
    Progress stays what was recorded.

    Args:
        seconds: at the end of each episode, but one frame at least and half of the episode at most.
    """

    def __init__(self, seconds: float = 0.3):
        if not 0 < seconds < math.inf:
            raise ValueError(f"label.seconds must be above 0, got {seconds}; 0.3 takes the last third of a second of each episode")
        self.seconds = seconds

    def __call__(self, table: FrameStore) -> FrameStore:
        row, length = torch.arange(len(table.last)), table.last - table.first + 1
        frames = torch.full_like(length, max(1, round(self.seconds * table.spec.fps))).minimum((length // 2).clamp(min=1))
        return replace(table, success=(table.last - row < frames).float())


class TimeToGo(DemoEnd):
    """As `DemoEnd`, with progress = 1 - (time to the episode's end) / horizon, not below 0.

    A time, and not a share of the episode, so that a slow demonstration is as far as a fast one when both have as long to go
    (as values of time to success: pi*0.6, arXiv:2511.14759, normalises them by the task's longest episode).

    Args:
        seconds: as `DemoEnd`.
        horizon_s: that long before the end nothing has been achieved; null: the longest episode of the first frames that are asked
            about, which are those to learn from.
    """

    def __init__(self, seconds: float = 0.3, horizon_s: float | None = None):
        super().__init__(seconds)
        if horizon_s is not None and not 0 < horizon_s < math.inf:
            raise ValueError(f"label.horizon_s must be above 0, got {horizon_s}; null takes the longest episode")
        self.horizon_s = horizon_s

    def __call__(self, table: FrameStore) -> FrameStore:
        left_s = (table.last - torch.arange(len(table.last))).float() / table.spec.fps
        if self.horizon_s is None:
            self.horizon_s = float((table.last - table.first).max()) / table.spec.fps
        progress = (1 - left_s / self.horizon_s).clamp(min=0)
        return replace(super().__call__(table), progress=progress)


class Human(Label):
    """What a person wrote into a CSV file beside each dataset; frames that no line names are unknown.

    Columns: episode (its position in the dataset, from 0), first_frame and last_frame (both meant, from 0; empty: the first and the
    last), success (1, 0 or empty) and progress (0 to 1 or empty). Later lines win.

    Args:
        file: relative to each dataset's folder.

    Raises:
        FileNotFoundError: when asked, if no dataset has one.
        ValueError: when asked, if a line says what is not there.
    """

    def __init__(self, file: str = "labels.csv"):
        self.file = file

    def __call__(self, table: FrameStore) -> FrameStore:
        success, progress = (torch.full_like(table.success, torch.nan) for _ in range(2))
        first: dict[tuple[str, int], list[int]] = {}
        for origin, row in zip(table.origin, table.first.unique().tolist(), strict=True):
            first.setdefault(origin, []).append(row)  # of a dataset that is named twice, twice
        files = {root: Path(root) / self.file for root, _ in table.origin}
        there = {root: path for root, path in files.items() if path.is_file()}
        if not there:
            raise FileNotFoundError(
                f"{next(iter(files.values()))} is missing; write there {','.join(COLUMNS)}, a line for each span"
            )
        for root, path in there.items():
            episodes = Dataset(root, cameras=[]).num_episodes
            for number, line in enumerate(_lines(path), start=2):
                where = f"{path}, line {number}"
                episode = _count(where, "episode", line["episode"], 0, episodes)
                for start in first.get((root, episode), ()):  # others are held out, or learned from
                    length = int(table.last[start]) - start + 1
                    low = _count(where, "first_frame", line["first_frame"] or "0", 0)
                    high = _count(where, "last_frame", line["last_frame"] or str(length - 1), low, length)
                    span = slice(start + low, start + high + 1)
                    success[span] = _share(where, "success", line["success"], success[span])
                    progress[span] = _share(where, "progress", line["progress"], progress[span])
        return replace(table, success=success, progress=progress)


def _lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            raise ValueError(f"{path} has no column {missing[0]}, expected {','.join(COLUMNS)}; add it to the first line")
        return [{name: (line[name] or "").strip() for name in COLUMNS} for line in reader]


def _count(where: str, name: str, said: str, low: int, high: float = math.inf) -> int:
    if not said.isdigit() or not low <= int(said) < high:
        top = "" if high == math.inf else f" to {high - 1:g}"
        raise ValueError(f"{where}: {name} is {said!r}, expected a whole number from {low}{top}; correct it there")
    return int(said)


def _share(where: str, name: str, said: str, before: Tensor) -> Float[Tensor, " n"] | float:
    if not said:
        return before
    try:
        value = float(said)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1 or (name == "success" and value not in (0, 1)):
        raise ValueError(
            f"{where}: {name} is {said!r}, expected {'1, 0' if name == 'success' else '0 to 1'} or nothing; correct it"
        )
    return value
