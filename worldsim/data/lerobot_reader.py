"""Reading LeRobotDataset v3.0: episodes, tasks and statistics of a dataset on disk, ours or anyone's.

It is apart from the writer so that training, which only reads, needs no encoder and holds nothing but open files.
Read `lerobot.py` next: it explains how an episode becomes rows, and when they count.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from worldsim.data import lerobot_format as fmt
from worldsim.data.stats import NAMES, Stats, merge_statistics, statistics
from worldsim.data.video import decode_images, read_video
from worldsim.types import Episode

NUM_THREADS = min(4, os.cpu_count() or 1)


class Dataset:
    """A LeRobot v3.0 dataset on disk, ours or anyone's. Opening reads metadata only; `episodes` reads frames.

    Datasets by others may lack what an `Episode` has: reward is then 0, success is `next.success` or False, progress 0 (NaN too)
    and the source "unknown". Their last action is dropped, because n frames have n - 1 transitions. Actions keep their units.

    Attributes:
        root: the dataset's folder.
        info: the contents of `meta/info.json`.
        features: its feature table.
        cameras: (height, width) by camera name; `observation.images.top` is camera "top". Depth maps are left out.
        state_names: one name per dimension of the state.
        action_names: one name per dimension of the action.
        tasks: the instructions, by task index.
        fps: frames per second.
        num_episodes: committed episodes.
        num_frames: their frames.

    Args:
        root: the dataset's folder.
        cameras: which cameras to read, all by default.

    Raises:
        FileNotFoundError: if there is no dataset, or a part of it is missing.
        ValueError: if it has another version, lacks a feature or camera, or is damaged.
    """

    def __init__(self, root: str | Path, *, cameras: Sequence[str] | None = None) -> None:
        self.root = Path(root)
        if not (self.root / fmt.INFO).is_file():
            raise FileNotFoundError(f"no LeRobot dataset at {self.root}: {fmt.INFO} is missing; check the path or record one first")
        self.info = fmt.read_json(self.root / fmt.INFO)
        if (version := self.info.get("codebase_version")) != fmt.VERSION:
            raise ValueError(f"{self.root} has codebase_version {version}, expected {fmt.VERSION}; convert it with LeRobot")
        self.features: fmt.Features = self.info["features"]
        if missing := {"observation.state", "action"} - self.features.keys():
            there = ", ".join(self.features)
            raise ValueError(f"{self.root} lacks the feature {' and '.join(sorted(missing))}; rename one of {there}")
        self.state_names, self.action_names = (_names(self.features[key]) for key in ("observation.state", "action"))
        keys = {fmt.camera_name(key): key for key, feature in self.features.items() if _is_rgb(feature)}
        if missing := set(cameras or ()) - keys.keys():
            raise ValueError(f"{self.root} has no camera {', '.join(sorted(missing))}; choose among {', '.join(keys) or 'none'}")
        self._camera_keys = {camera: keys[camera] for camera in (keys if cameras is None else cameras)}
        self.cameras = {camera: _resolution(self.features[key]) for camera, key in self._camera_keys.items()}
        self.fps, self.num_episodes, self.num_frames = (self.info[key] for key in ("fps", "total_episodes", "total_frames"))
        self._video_keys = [key for key in self._camera_keys.values() if self.features[key]["dtype"] == "video"]
        columns = ("chunk_index", "file_index", "from_timestamp")
        video_columns = [f"videos/{key}/{column}" for key in self._video_keys for column in columns]
        self._episode_files: set[Path] = set()
        self._episodes = self._read_episode_rows(["length", "data/chunk_index", "data/file_index", *video_columns])
        self.tasks = self._read_tasks()

    @cached_property
    def stats(self) -> dict[str, Stats]:
        """Statistics by feature and key (min, max, mean, std, count, q01 ... q99); images in [0, 1], shape [3, 1, 1].

        Those of `meta/stats.json`; where that file counts other frames than are committed, as after a run was killed between
        its last two renames, they are computed again from the data.
        """
        stored = fmt.read_json(self.root / fmt.STATS) if (self.root / fmt.STATS).is_file() else {}
        if stored.get("action", {}).get("count") == [self.num_frames]:
            return {key: {name: np.array(value) for name, value in stats.items()} for key, stats in stored.items()}
        if not self.num_episodes:
            return {}
        return {key: statistics(values) for key, values in self.read_values().items()} | self.image_stats()

    def episodes(self, indices: Sequence[int] | None = None) -> Iterator[Episode]:
        """The episodes at `indices`, in that order; by default all of them.

        Raises:
            IndexError: at once, if an index is not in [0, num_episodes).
            FileNotFoundError: while reading, if a data or video file is missing.
            ValueError: while reading, if a file is damaged or an episode has a single frame.
        """
        indices = range(self.num_episodes) if indices is None else indices
        if wrong := [i for i in indices if not 0 <= i < self.num_episodes]:
            raise IndexError(f"{self.root} has no episode {wrong[0]}; it has {self.num_episodes} episodes, counted from 0")
        return self._iterate(indices)

    def read_values(self) -> dict[str, np.ndarray]:
        """All committed values of every scalar or vector feature, [num_frames, d]."""
        kinds = {k: f for k, f in self.features.items() if f["dtype"] not in ("string", "image", "video") and len(f["shape"]) == 1}
        parts: dict[str, list[np.ndarray]] = {key: [np.empty((0, f["shape"][0]), f["dtype"])] for key, f in kinds.items()}
        for path in dict.fromkeys(self._data_path(row) for row in self._episodes):
            table = fmt.open_parquet(path, list(kinds)).read(list(kinds))
            table = table.filter(pa.array(table["episode_index"].to_numpy() < self.num_episodes))
            for key, feature in kinds.items():
                parts[key].append(fmt.vectors(table, key, feature["shape"][0]))
        return {key: np.concatenate(part) for key, part in parts.items()}

    def image_stats(self) -> dict[str, Stats]:
        """Statistics of the cameras, merged from those that every committed episode carries."""
        columns = {key: {name: f"stats/{key}/{name}" for name in NAMES} for key in self._camera_keys.values()}
        rows = self._read_episode_rows([column for names in columns.values() for column in names.values()])
        parts = {key: [{name: np.array(row[c]) for name, c in names.items()} for row in rows] for key, names in columns.items()}
        return {key: merge_statistics(part) for key, part in parts.items() if part}

    def files(self) -> set[Path]:
        """The data, video and episode-metadata files that hold committed episodes."""
        videos = {self._video_path(key, row) for key in self._video_keys for row in self._episodes}
        return {self._data_path(row) for row in self._episodes} | videos | self._episode_files

    def _read_episode_rows(self, columns: list[str]) -> list[dict[str, Any]]:
        """`columns` of meta/episodes, one dictionary per committed episode."""
        rows: dict[int, dict[str, Any]] = {}
        for path in sorted(self.root.glob("meta/episodes/*/*.parquet")):
            names = ["episode_index", *columns]
            part = fmt.open_parquet(path, names).read(names).to_pylist()
            committed = {row["episode_index"]: row for row in part if row["episode_index"] < self.num_episodes}
            self._episode_files |= {path} if committed else set()
            rows |= committed
        if missing := [i for i in range(self.num_episodes) if i not in rows]:
            raise ValueError(
                f"{self.root}/meta/episodes lacks episode {missing[0]} of {self.num_episodes}; copy the dataset again, completely"
            )
        return [rows[i] for i in range(self.num_episodes)]

    def _read_tasks(self) -> tuple[str, ...]:
        if not self.num_episodes:
            return ()
        file = fmt.open_parquet(self.root / fmt.TASKS, ["task_index"])
        column = "task" if "task" in file.schema_arrow.names else "__index_level_0__"
        if column not in file.schema_arrow.names:
            raise ValueError(f"{self.root / fmt.TASKS} has no column task; write it with the task string as the pandas index")
        num_tasks = self.info["total_tasks"]
        table = file.read().sort_by("task_index").slice(0, num_tasks)
        if table["task_index"].to_pylist() != list(range(num_tasks)):
            raise ValueError(f"{self.root / fmt.TASKS} must number its tasks from 0 to {num_tasks - 1}; copy the dataset again")
        return tuple(table[column].to_pylist())

    def _data_path(self, row: Mapping[str, Any]) -> Path:
        return self.root / self.info["data_path"].format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])

    def _video_path(self, key: str, row: Mapping[str, Any]) -> Path:
        file = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        return self.root / self.info["video_path"].format(video_key=key, **file)

    def _iterate(self, indices: Sequence[int]) -> Iterator[Episode]:
        wanted = ["observation.state", "action", "next.reward", "next.success", "success", "progress", "source"]
        columns = [key for key in wanted if key in self.features] + ["episode_index", "task_index"]
        columns += [key for key in self._camera_keys.values() if self.features[key]["dtype"] == "image"]
        file = None
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for index in indices:
                path = self._data_path(self._episodes[index])
                if file is None or file.path != path:
                    file = _DataFile(path, columns)
                yield self._episode(self._episodes[index], file.rows(index), pool)

    def _episode(self, row: Mapping[str, Any], table: pa.Table, pool: Executor) -> Episode:
        index, length = row["episode_index"], row["length"]
        if table.num_rows != length:
            raise ValueError(f"{self._data_path(row)} has {table.num_rows} rows of episode {index}, not {length}; copy it again")
        if length < 2:
            raise ValueError(f"episode {index} of {self.root} has one frame and thus no action; leave it out of `indices`")

        if not 0 <= (task_index := table["task_index"][0].as_py()) < len(self.tasks):
            raise ValueError(f"episode {index} of {self.root} has task_index {task_index}, but there are {len(self.tasks)} tasks")

        def read(key: str, width: int = 1) -> np.ndarray:
            return fmt.vectors(table, key, width) if key in table.column_names else np.zeros((length, width), np.float32)

        success = read("success") if "success" in table.column_names else np.roll(read("next.success"), 1, axis=0)
        if "success" not in table.column_names:
            success[0] = False  # nobody recorded whether the first frame was a success
        return Episode(
            images={camera: torch.from_numpy(self._images(key, row, table, pool)) for camera, key in self._camera_keys.items()},
            state=torch.from_numpy(read("observation.state", len(self.state_names)).astype(np.float32)),
            action=torch.from_numpy(read("action", len(self.action_names))[:-1].astype(np.float32)),
            reward=torch.from_numpy(read("next.reward")[:-1, 0].astype(np.float32)),
            success=torch.from_numpy(success[:, 0].astype(bool)),
            progress=torch.from_numpy(np.nan_to_num(read("progress")[:, 0].astype(np.float32))),
            instruction=self.tasks[task_index],
            source=table["source"][0].as_py() if "source" in table.column_names else "unknown",
        )

    def _images(self, key: str, row: Mapping[str, Any], table: pa.Table, pool: Executor) -> np.ndarray:
        if key in self._video_keys:
            start_s = row[f"videos/{key}/from_timestamp"]
            return read_video(self._video_path(key, row), start_s=start_s, num_frames=row["length"], fps=self.fps)
        encoded = table[key].combine_chunks().field("bytes").to_pylist()
        share = -(-len(encoded) // NUM_THREADS)
        return np.stack([*chain(*pool.map(decode_images, [encoded[i : i + share] for i in range(0, len(encoded), share)]))])


class _DataFile:
    """One open data file; of an episode, only the row groups that hold it are read, and the last ones read are kept."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self._columns, self._table = path, columns, (range(0), pa.table({}))
        self._file = fmt.open_parquet(path, columns)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        paths = [groups[0].column(j).path_in_schema for j in range(groups[0].num_columns)] if groups else []
        stats = [group.column(paths.index("episode_index")).statistics for group in groups]
        self._ranges = [range(s.min, s.max + 1) if s is not None and s.has_min_max else None for s in stats]

    def rows(self, episode_index: int) -> pa.Table:
        """The rows of an episode, or ValueError if they are damaged."""
        groups = [i for i, episodes in enumerate(self._ranges) if episodes is None or episode_index in episodes]
        if groups != self._table[0]:
            try:
                self._table = (groups, self._file.read_row_groups(groups, self._columns))
            except (pa.ArrowInvalid, OSError) as error:
                raise ValueError(f"{self.path} cannot be read ({str(error).splitlines()[0]}); copy it again") from error
        table = self._table[1]
        return table.filter(pa.array(table["episode_index"].to_numpy() == episode_index))


def _is_rgb(feature: Mapping[str, Any]) -> bool:
    info = feature.get("info") or {}
    depth = info.get("is_depth_map") or info.get("video.is_depth_map")
    return feature["dtype"] in ("image", "video") and not depth


def _resolution(feature: Mapping[str, Any]) -> tuple[int, int]:
    shape = tuple(feature["shape"])  # some datasets list channels first
    return (shape[0], shape[1]) if shape[2] == 3 else (shape[1], shape[2])


def _names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a vector's dimensions, which others nest in a dictionary or leave out; numbers where there are none."""
    names, width = feature.get("names") or (), feature["shape"][0]
    if isinstance(names, Mapping):
        names = [*chain.from_iterable(value if isinstance(value, list) else [key] for key, value in names.items())]
    return tuple(names) if len(names) == width else tuple(str(i) for i in range(width))
