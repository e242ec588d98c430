"""LeRobotDataset v3.0, written and read with pyarrow and PyAV.

Demonstrations, policy rollouts and dreams all live in this one format, so that LeRobot's tools open what worldsim records and
worldsim learns from what others recorded; lerobot itself is not imported, because no release of it installs beside our torch.
Read `lerobot_reader.py` for `Dataset`, `lerobot_format.py` for single files, `stats.py` and `video.py` for numbers and pixels.

A row is a frame. An episode of t actions has t+1 rows: row i holds observation i, action i and what that action brought
(`next.reward`, `next.success`); the last row repeats the last action, has reward 0 and carries `next.done`. `success` and
`progress` are those of the frame itself, so that reading gives back exactly the episode that was written.

Every flush names its files in a journal (`journal.py`), writes them under temporary names, renames them, and replaces
`meta/info.json` last: that is the commit. `Dataset` ignores what the journal names and `info.json` does not count, so a run killed
at any moment leaves a readable dataset.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from typing_extensions import Self

from worldsim.core.types import Episode
from worldsim.data import journal
from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import adoption
from worldsim.data.columns import wrong_rows
from worldsim.data.contents import Contents
from worldsim.data.counters import check_counters
from worldsim.data.lerobot_reader import NUM_THREADS, Dataset
from worldsim.data.stats import NAMES, Stats, image_statistics, merge_statistics, statistics
from worldsim.data.video import MIN_SIDE, encode_png, write_video

__all__ = ["Dataset", "DatasetWriter"]

STATISTICS_FRAMES = 16  # frames per episode that image statistics look at, evenly spaced
# Of what a dataset without info.json may have left, each is enough not to write there.
REMAINS = ("*/*/*.parquet", "meta/episodes/*/*.parquet", "videos/*/*/*.mp4", str(fmt.TASKS), str(fmt.STATS), str(journal.JOURNAL))


class DatasetWriter:
    """Writes episodes as a LeRobot v3.0 dataset, one set of files per flush. A context manager; it locks the folder until `close`.

    An existing dataset with the same settings is continued: `num_episodes` says where, and files that an interrupted flush left
    behind move to `.orphans`. Nothing is ever deleted or written over, and a dataset that holds anything else that `info.json`
    does not count is refused. Statistics are kept exact over all frames (min, max, mean, std, count and quantiles of every vector
    and scalar, held in memory for that); those of images come from 16 frames per episode, their quantiles are averaged over
    episodes as in LeRobot.

    Args:
        root: the dataset's folder, created if missing.
        fps: frames per second.
        robot_type: name of the robot.
        state_names: one name per dimension of the state.
        action_names: one name per dimension of the action.
        cameras: (height, width) by camera name.
        storage: "image" is lossless PNG inside the data files; "video" is lossy AV1 and far smaller.
        judged: somebody says success and progress of every frame. A dataset of which nobody does has no such features, because a
            recorded False would be learned from.

    Attributes:
        root: the dataset's folder.
        num_episodes: committed episodes.

    Raises:
        ValueError: if the settings are not possible, or differ from those of the dataset that is already there, if that
            dataset's files and its `info.json` disagree, or if somebody else is recording into it.
        OSError: if the folder may not be written.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        fps: int,
        robot_type: str,
        state_names: Sequence[str],
        action_names: Sequence[str],
        cameras: Mapping[str, tuple[int, int]],
        storage: Literal["image", "video"] = "image",
        judged: bool = True,
    ) -> None:
        self.root, self._fps, self._storage, self._cameras, self._judged = Path(root), fps, storage, dict(cameras), judged
        self._widths = (len(state_names), len(action_names))
        self._check_settings(state_names=state_names, action_names=action_names)
        self._info = fmt.new_info(
            fps=fps,
            robot_type=robot_type,
            state_names=state_names,
            action_names=action_names,
            cameras=cameras,
            storage=storage,
            judged=judged,
        )
        self._schema = fmt.arrow_schema(self._info["features"])
        if (adopted := adoption(self.root)) is not None:
            raise ValueError(f"{self.root} adopts another dataset, {adopted.dataset}; record into another folder")
        with ExitStack() as lock:
            lock.enter_context(journal.alone(self.root))
            self._open()
            self._lock = lock.pop_all()

    def _open(self) -> None:
        """Begin a dataset, or take up the one that is there; ValueError if that cannot be continued."""
        if (self.root / fmt.INFO).exists():
            self._check_same(fmt.read_info(self.root))
            check_counters(self.root)
            self._check_statistics()
            journal.set_aside(self.root, Contents(self.root).leftovers)
        elif found := next(chain.from_iterable(map(self.root.glob, REMAINS)), None):
            name = found.relative_to(self.root)
            raise ValueError(f"{self.root} holds {name} but no {fmt.INFO}; choose an empty folder, or restore that file")
        else:
            fmt.write_json(self.root / fmt.INFO, self._info)
        committed = Dataset(self.root)
        self._info = committed.info
        self._task_of = committed.task_of
        self._next_episode = max(committed.episode_indices, default=-1) + 1
        self._values = {key: [values] for key, values in committed.read_values().items()}
        self._image_stats = committed.image_stats()
        self._num_files = max((_file_number(path) + 1 for path in committed.files()), default=0)
        self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(NUM_THREADS)

    @property
    def num_episodes(self) -> int:
        return self._info["total_episodes"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the encoder threads and the folder. Everything added is already committed; may be called twice."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        self._lock.close()

    def add(self, episodes: Sequence[Episode]) -> None:
        """Commit `episodes` as one flush: after an error or a kill, either all of them are in the dataset or none is.

        Raises:
            ValueError: if an episode does not fit the dataset or has a value that is not finite, if the writer is closed, or if
                somebody else has written into the folder.
            OSError: if the disk is full or may not be written; the writer goes on once it is.
        """
        if self._pool is None:
            raise ValueError(f"the writer of {self.root} is closed; open another DatasetWriter to continue")
        for i, episode in enumerate(episodes):
            self._check_episode(episode, f"episode {i} of this flush")
        if not episodes:
            return
        task_of = dict(self._task_of)
        numbers = {sentence: number for number, sentence in task_of.items()}
        starts = np.cumsum([self._info["total_frames"], *(len(episode) + 1 for episode in episodes)]).tolist()
        values = []
        for i, episode in enumerate(episodes):
            number = numbers.setdefault(episode.instruction, max(task_of, default=-1) + 1)
            task_of[number] = episode.instruction
            values.append(self._frame_values(episode, self._next_episode + i, starts[i], number))
        image_stats = [{fmt.camera_key(name): _sampled_statistics(e.images[name]) for name in self._cameras} for e in episodes]
        chunk_index, file_index = divmod(self._num_files, fmt.FILES_PER_CHUNK)
        file = {"chunk_index": chunk_index, "file_index": file_index}

        files = self._check_folder(file)
        try:
            journal.begin(self.root, total_episodes=self.num_episodes, files=files)
            if self._storage == "video":
                self._write_videos(episodes, file)
            self._write_data(episodes, values, file)
            with fmt.replacing(self.root / fmt.EPISODES_PATH.format(**file)) as path:
                rows = [self._episode_row(*row, file, starts[0]) for row in zip(episodes, values, image_stats, strict=True)]
                pq.write_table(pa.Table.from_pylist(rows), path)
            self._commit(values, image_stats, task_of, total_frames=starts[-1])
        except OSError as error:
            lost = f"{len(episodes)} episodes could not be written ({error.strerror or error}), all before them are there"
            raise OSError(error.errno, f"{self.root}: {lost}; make room, or make it writable, and record them again") from error
        journal.end(self.root)

    def _check_folder(self, file: Mapping[str, int]) -> list[Path]:
        """The files that a flush adds, relative to the dataset's folder, after what a failed one left has been set aside.

        Raises:
            ValueError: if somebody else has written here, who does not ask for the lock.
        """
        info, files = fmt.read_info(self.root), self._new_files(file)
        if info != self._info:
            raise ValueError(f"{self.root / fmt.INFO} is not as this writer left it; open another DatasetWriter to continue")
        if (self.root / journal.JOURNAL).is_file():
            journal.set_aside(self.root, Contents(self.root).leftovers)
        if there := [path for path in files if (self.root / path).exists()]:
            raise ValueError(
                f"{self.root / there[0]} is there already, expected nothing where the next episodes go; end the program that wrote "
                f"it, and see what worldsim doctor data={self.root} says"
            )
        return files

    def _commit(
        self,
        values: Sequence[dict[str, np.ndarray]],
        image_stats: Sequence[dict[str, Stats]],
        task_of: dict[int, str],
        *,
        total_frames: int,
    ) -> None:
        """Replace tasks, statistics and, last, `info.json`: from then on the new episodes count."""
        with fmt.replacing(self.root / fmt.TASKS) as path:
            pq.write_table(fmt.tasks_table(task_of), path)
        all_values = {key: [np.concatenate([*parts, *(v[key] for v in values)])] for key, parts in self._values.items()}
        known = [self._image_stats] if self._image_stats else []
        all_images = {key: merge_statistics([part[key] for part in [*known, *image_stats]]) for key in image_stats[0]}
        fmt.write_json(self.root / fmt.STATS, {key: statistics(value) for key, (value,) in all_values.items()} | all_images)
        total = self.num_episodes + len(values)
        counts = {
            "total_episodes": total,
            "total_frames": total_frames,
            "total_tasks": len(task_of),
            "splits": {"train": f"0:{total}"},
        }
        info = self._info | counts
        fmt.write_json(self.root / fmt.INFO, info)
        self._info, self._task_of, self._values, self._image_stats = info, task_of, all_values, all_images
        self._next_episode, self._num_files = self._next_episode + len(values), self._num_files + 1

    def _new_files(self, file: Mapping[str, int]) -> list[Path]:
        """The files that a flush adds, relative to the dataset's folder."""
        videos = [fmt.VIDEO_PATH.format(video_key=fmt.camera_key(camera), **file) for camera in self._cameras]
        names = [fmt.DATA_PATH.format(**file), fmt.EPISODES_PATH.format(**file), *(videos if self._storage == "video" else ())]
        return [Path(name) for name in names]

    def _frame_values(self, episode: Episode, episode_index: int, start: int, task_index: int) -> dict[str, np.ndarray]:
        """Every scalar and vector feature but `source`, [t+1, d]."""
        frame = np.arange(len(episode) + 1)
        success, action = episode.success.numpy() == 1, episode.action.numpy()
        columns = {
            "observation.state": episode.state.numpy(),
            "action": np.concatenate([action, action[-1:]]),
            "next.reward": np.append(episode.reward.numpy(), 0),
            "next.done": frame == len(episode),
            "next.success": np.append(success[1:], success[-1]),
            "success": success,
            "progress": episode.progress.numpy(),
            "timestamp": frame / self._fps,
            "frame_index": frame,
            "episode_index": np.full_like(frame, episode_index),
            "index": start + frame,
            "task_index": np.full_like(frame, task_index),
        }
        features = self._info["features"]  # without labels where nobody judged
        return {k: v.reshape(len(frame), -1).astype(features[k]["dtype"]) for k, v in columns.items() if k in features}

    def _write_data(self, episodes: Sequence[Episode], values: Sequence[dict[str, np.ndarray]], file: dict[str, int]) -> None:
        path = self.root / fmt.DATA_PATH.format(**file)
        with fmt.replacing(path) as temporary, pq.ParquetWriter(temporary, self._schema, use_dictionary=False) as writer:
            for episode, columns in zip(episodes, values, strict=True):
                arrays = [self._arrow(field, episode, columns) for field in self._schema]
                writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))  # one row group per episode

    def _arrow(self, field: pa.Field, episode: Episode, columns: Mapping[str, np.ndarray]) -> pa.Array:
        if field.name == "source":
            return pa.array([episode.source] * (len(episode) + 1))
        if pa.types.is_struct(field.type):
            frames = episode.images[fmt.camera_name(field.name)].numpy()
            assert self._pool is not None
            png = [*chain.from_iterable(self._pool.map(encode_png, np.array_split(frames, NUM_THREADS)))]
            no_path = pa.nulls(len(png), pa.string())
            return pa.StructArray.from_arrays([pa.array(png, pa.binary()), no_path], fields=list(field.type))
        flat = pa.array(columns[field.name].ravel())
        return pa.FixedSizeListArray.from_arrays(flat, type=field.type) if pa.types.is_nested(field.type) else flat

    def _write_videos(self, episodes: Sequence[Episode], file: dict[str, int]) -> None:
        for camera, (height, width) in self._cameras.items():
            with fmt.replacing(self.root / fmt.VIDEO_PATH.format(video_key=fmt.camera_key(camera), **file)) as path:
                frames = chain.from_iterable(episode.images[camera].numpy() for episode in episodes)
                write_video(path, frames, fps=self._fps, height=height, width=width)

    def _episode_row(
        self,
        episode: Episode,
        values: Mapping[str, np.ndarray],
        image_stats: Mapping[str, Stats],
        file: dict[str, int],
        flush_start: int,
    ) -> dict[str, Any]:
        start, end = int(values["index"][0, 0]), int(values["index"][-1, 0]) + 1
        row = {"episode_index": int(values["episode_index"][0, 0]), "tasks": [episode.instruction], "length": end - start}
        row |= {"dataset_from_index": start, "dataset_to_index": end}
        row |= {f"{part}/{name}": value for part in ("data", "meta/episodes") for name, value in file.items()}
        if self._storage == "video":
            span = {"from_timestamp": (start - flush_start) / self._fps, "to_timestamp": (end - flush_start) / self._fps}
            row |= {f"videos/{fmt.camera_key(camera)}/{name}": v for camera in self._cameras for name, v in (file | span).items()}
        stats = {key: statistics(value) for key, value in values.items()} | dict(image_stats)
        return row | {f"stats/{key}/{name}": value.tolist() for key, part in stats.items() for name, value in part.items()}

    def _check_settings(self, **names: Sequence[str]) -> None:
        if self._storage not in ("image", "video"):
            raise ValueError(f"storage must be 'image' or 'video', got {self._storage!r}")
        if self._fps != int(self._fps) or self._fps < 1:
            raise ValueError(f"fps must be a positive whole number, as LeRobot requires, got {self._fps}; round it")
        if 0 in self._widths:
            raise ValueError("state_names and action_names must not be empty; give one name per dimension")
        for key, value in names.items():
            if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
                raise ValueError(f"{key} is {value!r}, expected one name per dimension; give a flat list of strings")
        for camera in self._cameras:
            if not camera or set(camera) & set("/."):
                raise ValueError(f"camera name {camera!r} must not be empty or contain '/' or '.'; rename the camera")
            if self._storage == "video" and min(self._cameras[camera]) < MIN_SIDE:
                size = " x ".join(map(str, self._cameras[camera]))
                raise ValueError(f"camera {camera} has {size} pixels, a video needs {MIN_SIDE} x {MIN_SIDE}; use storage='image'")

    def _check_same(self, existing: Mapping[str, Any]) -> None:
        """ValueError naming what differs, if an existing dataset has other settings than this writer."""

        def settings(info: Mapping[str, Any]) -> dict[str, Any]:
            paths = {"data_path": info.get("data_path") or fmt.DATA_PATH, "video_path": info.get("video_path") or fmt.VIDEO_PATH}
            features = {key: _description(feature) for key, feature in info["features"].items()}
            return {key: info.get(key) for key in ("codebase_version", "fps", "robot_type")} | paths | features

        old, new = settings(existing), settings(self._info)
        if different := [key for key in (old | new) if old.get(key) != new.get(key)]:
            lines = "; ".join(f"{key} is {old.get(key)} there, {new.get(key)} here" for key in different)
            raise ValueError(f"{self.root} was recorded with other settings: {lines}; use the same settings or another folder")

    def _check_statistics(self) -> None:
        """ValueError if the episodes that are there have fewer statistics than ours: LeRobot reads all of one kind or none."""
        ours = {f"stats/{key}/{name}" for key in self._info["features"] if key != "source" for name in NAMES}
        for path in sorted(self.root.glob(journal.NEW_FILES[1])):
            if lacking := sorted(ours - {*fmt.open_parquet(path).schema_arrow.names}):
                raise ValueError(
                    f"{path} lacks {len(lacking)} statistics of the episodes recorded now, such as {lacking[0]}, as those of older "
                    "LeRobot do; record into another folder"
                )

    def _check_episode(self, episode: Episode, name: str) -> None:
        t, (s, ad) = len(episode), self._widths
        if t < 1:
            raise ValueError(f"{name} has no action; leave it out")
        if episode.images.keys() != self._cameras.keys():
            got, expected = (", ".join(sorted(cameras)) or "none" for cameras in (episode.images, self._cameras))
            raise ValueError(f"{name} has the cameras {got}, expected {expected}; record exactly those")
        expected_shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
            "state": (episode.state, (t + 1, s)),
            "action": (episode.action, (t, ad)),
            "reward": (episode.reward, (t,)),
            "success": (episode.success, (t + 1,)),
            "progress": (episode.progress, (t + 1,)),
            **{f"camera {camera}": (episode.images[camera], (t + 1, *size, 3)) for camera, size in self._cameras.items()},
        }
        for field, (tensor, shape) in expected_shapes.items():
            if tuple(tensor.shape) != shape:
                raise ValueError(f"{name}: {field} has shape {tuple(tensor.shape)}, expected {shape} for {t} actions")
            if field in ("success", "progress"):
                known = int(tensor.isfinite().sum())
                if (odd := tensor[torch.from_numpy(wrong_rows(field, tensor.numpy()[:, None]))]).numel():
                    expected = "0 or 1" if field == "success" else "a share from 0 to 1"
                    raise ValueError(f"{name}: {field} is {odd[0]:.3g} in a frame, expected {expected}; NaN says that nobody knows")
                if known != self._judged * (t + 1):
                    there = "says it of all" if self._judged else "does not"
                    raise ValueError(
                        f"{name}: {field} is known of {known} of {t + 1} frames, while this dataset {there}; record what is judged "
                        "(judged=True) and what is not (judged=False) into two datasets"
                    )
            elif tensor.is_floating_point() and not tensor.isfinite().all():
                raise ValueError(f"{name}: {field} has a value that is not finite; leave the episode out")
        for camera, frames in episode.images.items():
            if frames.dtype != torch.uint8:
                raise ValueError(f"{name}: camera {camera} has dtype {frames.dtype}, expected torch.uint8 in 0..255; convert it")


def _description(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of a feature for two recordings to go together; others nest the names of a vector."""
    names = fmt.dimension_names(feature) if feature.get("names") and len(feature["shape"]) == 1 else feature.get("names")
    return {"dtype": feature["dtype"], "shape": feature["shape"], "names": names}


def _file_number(path: Path) -> int:
    """Position of chunk-<c>/file-<f> in the sequence of files."""
    return int(path.parent.name.removeprefix("chunk-")) * fmt.FILES_PER_CHUNK + int(path.stem.removeprefix("file-"))


def _sampled_statistics(frames: Tensor) -> Stats:
    chosen = np.unique(np.linspace(0, len(frames) - 1, STATISTICS_FRAMES).round().astype(int))
    return image_statistics(frames.numpy()[chosen])
