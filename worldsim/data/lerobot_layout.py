"""Where the parts of a LeRobot dataset lie, by the age of its layout, which is the major number of its version.

v3.x keeps many episodes in a file, and who lies where in the parquet files of `meta/episodes`; v2.x has a file for each episode and
camera, and lists them in `meta/episodes.jsonl`. Whoever reads episodes knows neither. Read `contents.py` next.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldsim.data import damaged
from worldsim.data import lerobot_format as fmt

EPISODE_LINES, TASK_LINES = Path("meta/episodes.jsonl"), Path("meta/tasks.jsonl")


@dataclass(frozen=True, eq=False)
class EpisodeFiles:
    """An episode, or the part of one that is under one task, by what `meta/` says of it.

    Attributes:
        index: its number.
        length: frames.
        data: its data file.
        videos: its video files and when it begins in them [s], by feature.
        metadata: the file that says so.
        tasks: how many sentences that file gives it; None if it says nothing of them.
        first: frames of the episode before this part.
        whole: frames of all of the episode.
    """

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    metadata: Path
    tasks: int | None
    first: int
    whole: int

    @property
    def files(self) -> tuple[Path, ...]:
        """All of them."""
        return (self.data, self.metadata, *(video for video, _ in self.videos.values()))


def episodes(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> list[EpisodeFiles]:
    """All that `meta/` names, counted or not, in the order of their numbers, with the files of these video features.

    Raises:
        FileNotFoundError: if the list of a v2.x dataset is missing.
        ValueError: if a list is damaged.
    """
    listed = _from_lines if fmt.major(info) == 2 else _from_tables
    found = {episode.index: episode for episode in listed(root, info, videos)}
    return [found[index] for index in sorted(found)]


def tasks_file(info: Mapping[str, Any]) -> Path:
    """The file that names the tasks, relative to the dataset."""
    return TASK_LINES if fmt.major(info) == 2 else fmt.TASKS


def tasks(root: Path, info: Mapping[str, Any]) -> dict[int, str]:
    """The sentences by their number, in the order of the numbers, which may have gaps.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged, numbers two sentences alike, or holds what is no number or no sentence.
    """
    path = root / tasks_file(info)
    if fmt.major(info) == 2:
        return _numbered(path, [(row.get("task_index"), row.get("task")) for row in json_lines(path)])
    return _from_table(root)


def _from_table(root: Path) -> dict[int, str]:
    """Those of `tasks.parquet`."""
    names = fmt.open_parquet(root / fmt.TASKS, ["task_index"]).schema_arrow.names
    column = "task" if "task" in names else "__index_level_0__"
    if column not in names:
        raise ValueError(f"{root / fmt.TASKS} has no column task; write it with the task string as the pandas index")
    rows = fmt.read_parquet(root / fmt.TASKS, ["task_index", column]).to_pydict()
    return _numbered(root / fmt.TASKS, [*zip(rows["task_index"], rows[column], strict=True)])


def _numbered(path: Path, tasks: Sequence[tuple[Any, Any]]) -> dict[int, str]:
    """Sentences by number, in order; ValueError if one is none, or two have one number."""
    for number, sentence in tasks:
        if not fmt.is_count(number) or not isinstance(sentence, str):
            expected = "a whole number from 0 and a sentence"
            raise ValueError(f"{path} has task {number!r}, {sentence!r}, expected {expected}; copy the dataset again")
    if len({number for number, _ in tasks}) < len(tasks):
        numbers = sorted(number for number, _ in tasks)
        raise ValueError(f"{path} gives one number to several tasks, {numbers}; copy the dataset again")
    return dict(sorted(tasks))


def _from_tables(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> Iterator[EpisodeFiles]:
    wholes = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    wholes += [f"videos/{key}/{column}" for key in videos for column in ("chunk_index", "file_index")]
    starts = [f"videos/{key}/from_timestamp" for key in videos]
    for path in fmt.visible(root, "meta/episodes/*/*.parquet"):
        names = ["tasks"] if "tasks" in fmt.open_parquet(path).schema_arrow.names else []
        for row in fmt.read_parquet(path, [*wholes, *starts, *names]).to_pylist():
            _check_row(path, row, wholes, starts)
            where = {key: (fmt.video_file(root, info, row, key), float(row[f"videos/{key}/from_timestamp"])) for key in videos}
            yield _episode(row, fmt.data_file(root, info, row), where, path)


def _from_lines(root: Path, info: Mapping[str, Any], videos: Sequence[str]) -> Iterator[EpisodeFiles]:
    path = root / EPISODE_LINES
    for row in json_lines(path):
        _check_row(path, row, ["episode_index", "length"], [])
        place = {
            "episode_index": row["episode_index"],
            "episode_chunk": row["episode_index"] // info.get("chunks_size", fmt.FILES_PER_CHUNK),
        }
        data = root / fmt.template(info, "data_path").format(**place)
        where = {key: (root / fmt.template(info, "video_path").format(video_key=key, **place), 0.0) for key in videos}
        yield _episode(row, data, where, path)


def _episode(row: Mapping[str, Any], data: Path, videos: dict[str, tuple[Path, float]], metadata: Path) -> EpisodeFiles:
    named = row.get("tasks")
    return EpisodeFiles(
        index=row["episode_index"],
        length=row["length"],
        data=data,
        videos=videos,
        metadata=metadata,
        tasks=len({*named}) if isinstance(named, list) else None,
        first=0,
        whole=row["length"],
    )


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file with one on each line, blank lines aside.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if a line holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the dataset again, completely")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")  # sentences may hold what else breaks lines
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error}); copy the dataset again") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path} is not valid JSON in line {number} ({error}); {damaged.remedy(path)}") from error
        if not isinstance(row, dict):
            raise ValueError(f"{path} holds a {type(row).__name__} in line {number}, expected an object; copy the dataset again")
        yield row


def _check_row(path: Path, row: Mapping[str, Any], wholes: Sequence[str], starts: Sequence[str]) -> None:
    """ValueError if what `meta/` says of an episode has a place or length that is none."""
    odd = [(name, "a whole number from 0") for name in wholes if not fmt.is_count(row.get(name))]
    odd += [(name, "seconds from 0") for name in starts if not _is_time(row[name])]
    for name, expected in odd:
        found, episode = row.get(name), row.get("episode_index")
        raise ValueError(f"{path} has {name} {found!r} of episode {episode!r}, expected {expected}; copy or record it again")


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf
