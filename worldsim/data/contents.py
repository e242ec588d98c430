"""What the files of a LeRobot v3.0 dataset hold, whatever `info.json` counts: the ground on which a dataset is checked and mended.

It is apart from `Dataset`, which reads what is counted and refuses what disagrees, while a check must see all of it, and say so.
Read `counters.py` next: it compares the two.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from worldsim.data import journal
from worldsim.data import lerobot_format as fmt


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


@dataclass(frozen=True, eq=False)
class EpisodeFiles:
    """An episode by its row of `meta/episodes`.

    Attributes:
        index: its number.
        length: frames.
        data: its data file.
        videos: its video files and when it begins in them [s], by feature.
        metadata: the file that holds the row.
    """

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    metadata: Path


class Contents:
    """The episodes that the files hold, in the order of their numbers. Everything but `info.json` is read when it is asked for.

    Attributes:
        root: the dataset's folder.
        info: the contents of `meta/info.json`.
        features: its feature table.
        counted: episodes that it counts; of those that the files hold, the first ones.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if `info.json` is damaged, of another version or lacks state or action.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.info = root, fmt.read_info(root)
        self.features: fmt.Features = self.info["features"]
        self.counted: int = self.info["total_episodes"]

    @cached_property
    def episodes(self) -> list[EpisodeFiles]:
        """All episodes in `meta/episodes`; ValueError or FileNotFoundError if one of its files is damaged."""
        videos = [key for key, feature in self.features.items() if feature["dtype"] == "video"]
        place = ("chunk_index", "file_index", "from_timestamp")
        names = ["episode_index", "length", "data/chunk_index", "data/file_index"]
        names += [f"videos/{key}/{column}" for key in videos for column in place]
        found: dict[int, EpisodeFiles] = {}
        for path in sorted(self.root.glob("meta/episodes/*/*.parquet")):
            for row in fmt.open_parquet(path, names).read(names).to_pylist():
                where = {
                    key: (fmt.video_file(self.root, self.info, row, key), row[f"videos/{key}/from_timestamp"]) for key in videos
                }
                data = fmt.data_file(self.root, self.info, row)
                found[row["episode_index"]] = EpisodeFiles(row["episode_index"], row["length"], data, where, path)
        return [found[index] for index in sorted(found)]

    @cached_property
    def tasks(self) -> dict[int, str]:
        """The sentences by their number; none if nothing was recorded yet."""
        return fmt.read_tasks(self.root) if self.episodes or (self.root / fmt.TASKS).is_file() else {}

    @cached_property
    def frames(self) -> dict[Path, dict[int, int]]:
        """Rows of each episode in each data file that exists."""
        held: dict[Path, dict[int, int]] = {}
        for path in self.data_files:
            index = fmt.open_parquet(path, ["episode_index"]).read(["episode_index"])["episode_index"].to_numpy()
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
    def leftovers(self) -> list[Path]:
        """Files of a killed recording that the writer's journal names, relative to `root`."""
        return journal.leftovers(self.root)

    @cached_property
    def strays(self) -> list[Path]:
        """Files, relative to `root`, that look like a recording's and that neither an episode nor the journal names."""
        known = {path for e in self.episodes for path in (e.data, e.metadata, *(video for video, _ in e.videos.values()))}
        known |= {self.root / path for path in self.leftovers}
        there = {path for pattern in journal.NEW_FILES for path in (*self.root.glob(pattern), *self.root.glob(f"{pattern}.tmp"))}
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
        """The values of a scalar or vector feature, [n, d], of each episode whose data file is there and has that column."""
        width = self.features[key]["shape"][0]
        for path in self.data_files:
            file = fmt.open_parquet(path, ["episode_index"])
            if key not in file.schema_arrow.names:
                continue
            table = file.read(["episode_index", key])
            index = table["episode_index"].to_numpy()
            values = fmt.label(table, key)[:, None] if key in fmt.LABELS else fmt.vectors(table, key, width)
            order = np.argsort(index, kind="stable")
            for episode in (e for e in self.episodes if e.data == path):
                low, high = np.searchsorted(index[order], [episode.index, episode.index + 1])
                if low < high:
                    yield episode, values[order[low:high]]

    def name(self, path: Path) -> str:
        """A file relative to `root`."""
        return path.relative_to(self.root).as_posix()
