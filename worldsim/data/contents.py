"""What the files of a LeRobot dataset hold, whatever `info.json` counts: the ground on which a dataset is checked and mended.

It is apart from `Dataset`, which reads what is counted and refuses what disagrees, while a check must see all of it, and say so.
Read `counters.py` next: it compares the two.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from worldsim.data import journal, lerobot_layout
from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import open_info
from worldsim.data.columns import joined, label, vectors
from worldsim.data.lerobot_layout import EpisodeFiles


@dataclass(frozen=True)
class Fault:
    """Something that is wrong with a dataset.

    Attributes:
        kind: what it is about, in a word or two.
        severity: "error" if worldsim refuses to read or to continue the dataset; "warning" if a user may want to go on.
        found: what was found, in numbers.
        remedy: what to do about it.
    """

    kind: str
    severity: Literal["error", "warning"]
    found: str
    remedy: str


class Contents:
    """The episodes that the files hold, in the order of their numbers. Everything but `info.json` is read when it is asked for.

    Attributes:
        root: the folder of its files.
        given: the folder that was asked for, which of an adopted dataset is another one.
        info: the contents of `meta/info.json`, with worldsim's names of features.
        features: its feature table.
        counted: episodes that it counts; of those that the files hold, the first ones.
        damages: what `values` could not read so far.

    Args:
        root: the dataset's folder.
        videos: of which video features to look at the files; of all by default.
        info: what to take `info.json` to say, before it is replaced; by default what it says.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if `info.json` is damaged, of another version or lacks state or action.
    """

    def __init__(self, root: Path, *, videos: Sequence[str] | None = None, info: dict[str, Any] | None = None) -> None:
        self.given = root
        self.root, found = open_info(root)
        self.info = info or found
        self.features: fmt.Features = self.info["features"]
        self.counted: int = self.info["total_episodes"]
        self.damages: list[ValueError] = []
        there = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        self._videos = there if videos is None else [*videos]

    @cached_property
    def episodes(self) -> list[EpisodeFiles]:
        """All episodes that `meta/` lists; ValueError or FileNotFoundError if one of its files is damaged."""
        return lerobot_layout.episodes(self.root, self.info, self._videos)

    @cached_property
    def held(self) -> list[EpisodeFiles]:
        """The episodes without those of a killed recording that the journal names."""
        return [episode for episode in self.episodes if not self.is_leftover(episode)]

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The sentences by their number; none if nothing was recorded yet."""
        there = self.episodes or (self.root / lerobot_layout.tasks_file(self.info)).is_file()
        return lerobot_layout.tasks(self.root, self.info) if there else {}

    @cached_property
    def frames(self) -> dict[Path, dict[int, int]]:
        """Rows of each episode in each data file that exists."""
        held: dict[Path, dict[int, int]] = {}
        for path in self.data_files:
            index = vectors(path, fmt.read_parquet(path, ["episode_index"]), "episode_index", 1)[:, 0]
            numbers, counts = np.unique(index, return_counts=True)
            held[path] = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
        return held

    @cached_property
    def task_numbers(self) -> dict[int, set[int]]:
        """The tasks that the rows of each episode name, by its number."""
        if "task_index" not in self.features:
            return {}
        return {episode.index: {int(task) for task in np.unique(values)} for episode, values in self.values("task_index")}

    @cached_property
    def data_files(self) -> list[Path]:
        """The data files of the episodes, as far as they exist."""
        return [path for path in dict.fromkeys(episode.data for episode in self.episodes) if path.is_file()]

    @cached_property
    def of_file(self) -> dict[Path, list[EpisodeFiles]]:
        """The episodes in each data and video file."""
        held: dict[Path, list[EpisodeFiles]] = {}
        for episode in self.episodes:
            for path in {episode.data, *(video for video, _ in episode.videos.values())}:
                held.setdefault(path, []).append(episode)
        return held

    @cached_property
    def leftovers(self) -> list[Path]:
        """Files of a killed recording that the writer's journal names, relative to `root`."""
        committed = {path: episode.index for episode in self.episodes[: self.counted] for path in episode.files}
        return journal.leftovers(self.root, total_episodes=self.counted, committed=committed)

    @cached_property
    def strays(self) -> list[Path]:
        """Files, relative to `root`, that look like a recording's and that neither an episode nor the journal names."""
        known = {path for episode in self.episodes for path in episode.files}
        known |= {self.root / path for path in self.leftovers}
        patterns = [pattern + end for pattern in journal.NEW_FILES for end in ("", ".tmp")]
        there = {path for pattern in patterns for path in fmt.visible(self.root, pattern)}
        return sorted(path.relative_to(self.root) for path in there - known)

    def is_leftover(self, episode: EpisodeFiles) -> bool:
        """Whether the row of an episode stands in a file that a killed recording left behind."""
        return episode.metadata.relative_to(self.root) in self.leftovers

    def what_lacks(self, episode: EpisodeFiles) -> str:
        """Why an episode is not whole, or "" if it is: its rows are all there, and its videos."""
        if not episode.data.is_file():
            return f"its data file {self.name(episode.data)} is missing"
        if (rows := self.frames[episode.data].get(episode.index, 0)) != episode.length:
            return f"{self.name(episode.data)} holds {rows} of its {episode.length} rows"
        lost = [path for path, _ in episode.videos.values() if not path.is_file()]
        return f"its video {self.name(lost[0])} is missing" if lost else ""

    def values(self, key: str) -> Iterator[tuple[EpisodeFiles, np.ndarray]]:
        """The values of a scalar or vector feature, [n, d], of each episode whose data file is there and has that column.

        A file or column that cannot be read is left out and noted in `damages`, so that it hides nothing of the others.
        """
        for path in self.data_files:
            try:
                index, values = self._column(path, key)
            except ValueError as error:
                self.damages.append(error)
                continue
            order = np.argsort(index, kind="stable")
            for episode in self.of_file[path]:
                low, high = np.searchsorted(index[order], [episode.index, episode.index + 1])
                if low < high:
                    yield episode, values[order[low:high]]

    def _column(self, path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
        """The episode of each row of a data file, [n], and the values of a feature, [n, d]; no rows if it lacks that column."""
        columns, there = fmt.columns(self.features, key), fmt.open_parquet(path).schema_arrow.names
        if not {*columns} <= {*there}:
            return np.empty(0), np.empty((0, sum(columns.values())))
        table = fmt.read_parquet(path, [*dict.fromkeys(["episode_index", *columns])])
        values = label(path, table, *columns)[:, None] if key in fmt.LABELS else joined(path, table, columns)
        return vectors(path, table, "episode_index", 1)[:, 0], values

    def name(self, path: Path) -> str:
        """A file relative to `root`."""
        return path.relative_to(self.root).as_posix()


def counter_faults(contents: Contents) -> Iterator[Fault]:
    """Where `info.json` counts other episodes or frames than `meta/episodes` has. No data file is opened for it."""
    info, held, mend = contents.info, contents.held, f"worldsim doctor data={contents.root} mend=true"
    if len(held) != contents.counted:
        found = f"{fmt.INFO} counts {contents.counted} episodes, the files hold {len(held)}"
        again = "copy the dataset again if some are missing; " if len(held) < contents.counted else ""
        yield Fault("counters", "error", found, f"{again}{mend} counts what is there")
    elif (frames := sum(episode.length for episode in held)) != info["total_frames"]:
        found = f"{fmt.INFO} counts {info['total_frames']} frames, its {contents.counted} episodes have {frames}"
        yield Fault("counters", "error", found, f"{mend} counts them")
