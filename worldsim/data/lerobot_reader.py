"""Reading LeRobot datasets, v2.0 to v3.x: episodes, tasks and statistics of a dataset on disk, ours or anyone's.

It is apart from the writer so that training, which only reads, needs no encoder and holds nothing but open files.
Read `lerobot.py` next: it explains how an episode becomes rows, and when they count.
"""

import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property, partial
from hashlib import sha256
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import UInt8

from worldsim.core.cores import cores
from worldsim.core.spec import Spec
from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data import lerobot_layout
from worldsim.data.adoption import open_info
from worldsim.data.columns import WRONG, joined, label, pictures, vectors, wrong_rows
from worldsim.data.contents import Contents, counter_faults
from worldsim.data.dataset_spec import read_spec
from worldsim.data.journal import NEW_FILES
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.stats import NAMES, Stats, merge_statistics, statistics
from worldsim.data.timing import in_order, timing
from worldsim.data.video import decode_images, video_frames

NUM_THREADS = min(4, cores())
CLIP = 64  # frames that are decoded at a time


class Dataset:
    """A LeRobot dataset on disk, ours or anyone's, or an adopted one (`adoption.py`). Opening reads metadata and counts rows;
    `episodes` reads frames.

    Datasets by others may lack what an `Episode` has: reward is then 0, success that of `next.success`, what nobody judged is NaN,
    and the source "unknown". Their last action is dropped, because n frames have n - 1 transitions, and its reward with it; a
    success that it alone has brought is taken to be the last frame's. Actions keep their units.

    Episodes are counted by position: their numbers, and those of the tasks, may have gaps. One whose task changes is read as
    several, because all learners take all frames of an episode, with success and progress, to be under its one instruction. What
    has a single frame, and thus no action, is left out with a warning. What would be a wrong label in silence is refused: values
    that are not finite, success that is neither 0 nor 1, progress outside [0, 1], frames out of order, steps that are not 1/fps
    long, and a video at another rate.

    Attributes:
        root: the dataset's folder.
        place: the folder of its files, which of an adopted dataset is another one.
        info: the contents of `meta/info.json`, with worldsim's names of features.
        features: its feature table.
        cameras: (height, width) by camera name; `observation.images.top` is camera "top". Depth maps are left out.
        state_names: one name per dimension of the state.
        action_names: one name per dimension of the action.
        tasks: the instructions, in the order of their numbers.
        fps: frames per second.
        num_episodes: committed episodes, as they are read.
        num_frames: their frames.
        episode_indices: their numbers, of which those of an episode of several tasks come as often.
        task_of: the instructions by their numbers.

    Args:
        root: the dataset's folder.
        cameras: which cameras to read, all by default.
        info: what to take `info.json` to say, before it is replaced; by default what it says.

    Raises:
        FileNotFoundError: if there is no dataset, or a part of it is missing.
        ValueError: if it has another version, lacks a feature or camera, is damaged, or if its files hold more or less than
            `info.json` counts and no journal of a killed recording names the rest.
    """

    def __init__(self, root: str | Path, *, cameras: Sequence[str] | None = None, info: dict[str, Any] | None = None) -> None:
        self.root = Path(root)
        self.place, found = open_info(self.root)
        self.info = info or found
        self.features: fmt.Features = self.info["features"]
        self.state_names, self.action_names = (fmt.dimension_names(self.features[key]) for key in ("observation.state", "action"))
        keys = {fmt.camera_name(key): key for key, feature in self.features.items() if fmt.is_rgb(feature)}
        if missing := set(cameras or ()) - keys.keys():
            raise ValueError(f"{self.root} has no camera {', '.join(sorted(missing))}; choose among {', '.join(keys) or 'none'}")
        self._camera_keys = {camera: keys[camera] for camera in (keys if cameras is None else cameras)}
        self.cameras = {camera: fmt.resolution(key, self.features[key]) for camera, key in self._camera_keys.items()}
        self.fps: float = self.info["fps"]
        self._video_keys = [key for key in self._camera_keys.values() if self.features[key]["dtype"] == "video"]
        wanted = ["observation.state", "action", "next.reward", *fmt.LABELS, "source", "timestamp", "frame_index"]
        numbers = [column for key in wanted if key in self.features for column in fmt.columns(self.features, key)]
        pictures_there = [key for key in self._camera_keys.values() if self.features[key]["dtype"] == "image"]
        self._columns = [*dict.fromkeys([*numbers, "episode_index", "task_index", *pictures_there])]
        self._doctor = f"worldsim doctor data={self.root} lists all faults"
        self._open_file: _DataFile | None = None
        self._tasks_of: tuple[Path, np.ndarray, np.ndarray] | None = None
        self._contents = Contents(self.root, videos=self._video_keys, info=self.info)
        self._check_counters()
        self._changed = {path: path.stat().st_mtime_ns for path in {episode.data for episode in self._contents.held}}
        self.task_of = self._read_tasks()
        self.tasks = tuple(self.task_of.values())
        self._episodes = self._readable()
        self.num_episodes, self.num_frames = len(self._episodes), sum(self.lengths)
        self.episode_indices = [episode.index for episode in self._episodes]

    @cached_property
    def spec(self) -> Spec:
        """What the numbers mean: all cameras, depth maps too, and the statistics that are stored (`dataset_spec.py`)."""
        return read_spec(self.root, self.info, self.cameras)

    @cached_property
    def stats(self) -> dict[str, Stats]:
        """Statistics by feature and key (min, max, mean, std, count, q01 ... q99); images in [0, 1], shape [3, 1, 1].

        Those of `meta/stats.json`; where that file counts other frames than are committed, as after a run was killed between
        its last two renames, they are computed again from the data.
        """
        if (stored := self.stored_stats()) is not None:
            return stored
        if not self.num_episodes:
            return {}
        return {key: statistics(values) for key, values in self.read_values().items()} | self.image_stats()

    def stored_stats(self) -> dict[str, Stats] | None:
        """The contents of `meta/stats.json`; None if there are none, or if they count other frames than are committed."""
        stored = fmt.read_statistics(self.place, self.info["total_frames"])
        return stored and {key: {name: np.array(value) for name, value in stats.items()} for key, stats in stored.items()}

    @property
    def lengths(self) -> list[int]:
        """Frames of each episode."""
        return [episode.length for episode in self._episodes]

    def sources(self, camera: str) -> list[str]:
        """What the frames of each episode are decoded from: a hash of its file's name, size and time of change and of its place."""
        key = self._camera_keys[camera]
        in_video = key in self._video_keys
        files = [(e.videos[key] if in_video else (e.data, (e.index, e.first) if e.first else e.index)) for e in self._episodes]
        stats = {path: (self._contents.name(path), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files}
        named = [(*stats[path], place, length) for (path, place), length in zip(files, self.lengths, strict=True)]
        return [sha256(repr(values).encode()).hexdigest()[:32] for values in named]

    def clips(self, camera: str, index: int) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        """All frames of the episode at `index`, a few at a time, so that its length costs no memory.

        Raises:
            FileNotFoundError: if a data or video file is missing.
            ValueError: if one is damaged.
        """
        episode, key = self._episodes[index], self._camera_keys[camera]
        table = pa.table({}) if key in self._video_keys else self._rows(episode)
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            yield from self._clips(key, episode, table, pool)

    def episodes(self, indices: Sequence[int] | None = None) -> Iterator[Episode]:
        """The episodes at `indices`, in that order; by default all of them.

        Raises:
            IndexError: at once, if an index is not in [0, num_episodes).
            FileNotFoundError: while reading, if a data or video file is missing.
            ValueError: while reading, if a file is damaged or an episode is refused for what the class says.
        """
        indices = range(self.num_episodes) if indices is None else indices
        if wrong := [i for i in indices if not 0 <= i < self.num_episodes]:
            raise IndexError(f"{self.root} has no episode {wrong[0]}; it has {self.num_episodes} episodes, counted from 0")
        return self._iterate(indices)

    def read_values(self) -> dict[str, np.ndarray]:
        """All committed values of every scalar or vector feature of numbers, [num_frames, d]."""
        widths = fmt.number_features(self.features)
        parts = {key: [np.empty((0, width), self.features[key]["dtype"])] for key, width in widths.items()}
        for path, table in self._committed_rows([column for key in widths for column in fmt.columns(self.features, key)]):
            for key in widths:
                parts[key].append(joined(path, table, fmt.columns(self.features, key)))
        return {key: np.concatenate(part) for key, part in parts.items()}

    def judged_share(self) -> dict[str, float]:
        """Share of all frames of which somebody said "success" and "progress"."""
        there = [key for key in fmt.LABELS if key in self.features]
        columns = {key: next(iter(fmt.columns(self.features, key))) for key in there}
        tables = list(self._committed_rows([*columns.values()])) if there else []
        known = {key: sum(int(np.isfinite(label(path, table, c)).sum()) for path, table in tables) for key, c in columns.items()}
        success = known.get("success", known.get("next.success", 0))
        return {name: n / max(1, self.num_frames) for name, n in (("success", success), ("progress", known.get("progress", 0)))}

    def _committed_rows(self, columns: list[str]) -> Iterator[tuple[Path, pa.Table]]:
        """Each data file and `columns` of it, without rows that are not committed."""
        committed = np.array(self.episode_indices)
        for path in dict.fromkeys(episode.data for episode in self._episodes):
            table = fmt.read_parquet(path, [*dict.fromkeys([*columns, "episode_index"])])
            yield path, table.filter(pa.array(np.isin(vectors(path, table, "episode_index", 1)[:, 0], committed)))

    def image_stats(self) -> dict[str, Stats]:
        """Statistics of the cameras, merged from those that every committed episode carries; none of v2.x."""
        if fmt.major(self.info) == 2:
            return {}  # whose episodes carry none that could be merged
        columns = {key: {name: f"stats/{key}/{name}" for name in NAMES} for key in self._camera_keys.values()}
        wanted = ["episode_index", *chain.from_iterable(names.values() for names in columns.values())]
        committed, rows = set(self.episode_indices), []
        for path in dict.fromkeys(episode.metadata for episode in self._episodes):
            rows += [row for row in fmt.read_parquet(path, wanted).to_pylist() if row["episode_index"] in committed]
        parts = {key: [{name: np.array(row[c]) for name, c in names.items()} for row in rows] for key, names in columns.items()}
        return {key: merge_statistics(part) for key, part in parts.items() if part}

    def files(self) -> set[Path]:
        """The data, video and episode-metadata files that hold committed episodes."""
        return {path for episode in self._episodes for path in episode.files}

    def _check_counters(self) -> None:
        """ValueError or FileNotFoundError if `info.json`, `meta/episodes` and the files disagree, by the rows that files have."""
        for fault in counter_faults(self._contents):
            raise ValueError(f"{self.root}: {fault.found}; worldsim doctor data={self.root} says how to mend it")
        if uncounted := [path for path in self._contents.strays if path.match(NEW_FILES[0])]:
            raise ValueError(f"{self.place / uncounted[0]} holds frames that {fmt.INFO} does not count; {self._doctor}")
        lengths: dict[Path, int] = {}
        for episode in self._contents.held:
            lengths[episode.data] = lengths.get(episode.data, 0) + episode.length
            for video in (video for video, _ in episode.videos.values() if not video.is_file()):
                raise FileNotFoundError(f"video file {video} is missing; copy the dataset again with its videos/ folder")
        for path, length in lengths.items():
            if (rows := fmt.open_parquet(path, self._columns).metadata.num_rows) != length:
                raise ValueError(f"{path} has {rows} rows, its episodes in meta/episodes {length}; copy it again, {self._doctor}")

    def _read_tasks(self) -> dict[int, str]:
        if not self._contents.held:
            return {}
        tasks, counted = lerobot_layout.tasks(self.place, self.info), self.info["total_tasks"]
        if len(tasks) < counted:
            held = f"{fmt.INFO} counts {counted} tasks, {lerobot_layout.tasks_file(self.info)} holds {len(tasks)}"
            raise ValueError(f"{self.root}: {held}; worldsim doctor data={self.root} says how to mend it")
        return dict([*tasks.items()][:counted])

    def _readable(self) -> list[EpisodeFiles]:
        """The episodes that are read, one for each task of an episode; those of a single frame are left out."""
        episodes = [part for episode in self._contents.held for part in self._by_task(episode)]
        if short := [episode for episode in episodes if episode.length < 2]:
            some = ", ".join(str(episode.index) for episode in short[:3]) + (", ..." if len(short) > 3 else "")
            warnings.warn(
                f"{self.root}: {len(short)} episodes, or parts of one under a task of their own, have a single frame and thus no "
                f"action; they are left out: {some}",
                stacklevel=4,
            )
        return [episode for episode in episodes if episode.length > 1]

    def _by_task(self, episode: EpisodeFiles) -> Iterator[EpisodeFiles]:
        """The parts of an episode that are under one task each."""
        if episode.tasks == 1:
            yield episode
            return
        index, task = self._tasks_in(episode.data)
        task = task[index == episode.index]
        starts = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), episode.length]
        for first, end in pairwise(starts) if len(task) == episode.length else [(0, episode.length)]:
            videos = {key: (path, start_s + first / self.fps) for key, (path, start_s) in episode.videos.items()}
            yield replace(episode, first=first, length=end - first, videos=videos)

    def _tasks_in(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        """The episode and the task of each row of a data file; those of the last one are kept."""
        if self._tasks_of is None or self._tasks_of[0] != path:
            table = fmt.read_parquet(path, ["episode_index", "task_index"])
            index, task = (vectors(path, table, key, 1)[:, 0] for key in ("episode_index", "task_index"))
            self._tasks_of = (path, index, task)
        return self._tasks_of[1:]

    def _rows(self, episode: EpisodeFiles) -> pa.Table:
        """The rows of an episode; ValueError if there are others than `meta/` says, or if they have changed meanwhile."""
        path = episode.data
        if path.stat().st_mtime_ns != self._changed[path]:
            raise ValueError(f"{path} has changed while {self.root} was read; wait until nobody writes it, and begin again")
        table = self._file(path).rows(episode.index)
        if table.num_rows != episode.whole:
            raise ValueError(f"{path} has {table.num_rows} rows of episode {episode.index}, not {episode.whole}; copy it again")
        return table.slice(episode.first, episode.length)

    def _iterate(self, indices: Sequence[int]) -> Iterator[Episode]:
        uneven: dict[int, float] = {}
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            for episode in (self._episodes[index] for index in indices):
                table = self._rows(episode)
                uneven |= self._check_rows(episode, table)
                yield self._episode(episode, table, pool)
        if uneven:
            warnings.warn(
                f"{self.root}: the time stamps of {len(uneven)} of {len(indices)} episodes are uneven, by up to "
                f"{1000 * max(uneven.values()):.1f} ms; every step is taken to last {1000 / self.fps:.1f} ms",
                stacklevel=2,
            )

    def _file(self, path: Path) -> "_DataFile":
        """A data file; the last one stays open."""
        if self._open_file is None or self._open_file.path != path:
            self._open_file = _DataFile(path, self._columns)
        return self._open_file

    def _check_rows(self, episode: EpisodeFiles, table: pa.Table) -> dict[int, float]:
        """ValueError if the rows of an episode are damaged or mean something else than an `Episode` can say.

        Returns:
            {number: seconds} if its time stamps are uneven, but not enough for an error.
        """
        name, path, length = f"episode {episode.index} of {self.root}", episode.data, episode.length
        numbers = np.unique(vectors(path, table, "task_index", 1)).tolist()
        if len(numbers) > 1:
            said = f"{self._contents.name(episode.metadata)} gives it one"
            raise ValueError(f"{name} has {len(numbers)} tasks, {numbers}, while {said}; correct that, or copy the dataset again")
        if numbers[0] not in self.task_of:
            raise ValueError(f"{name} has task_index {numbers[0]}, but the tasks are {[*self.task_of]}; {self._doctor}")
        for key in (key for key in WRONG if key in self.features):
            if broken := int(wrong_rows(key, self._values(path, table, key)).sum()):
                rows = f"{broken} of {length} rows of {key} {WRONG[key]} in episode {episode.index}"
                raise ValueError(f"{path}: {rows}; delete or record the episode again, {self._doctor}")
        if "frame_index" in table.column_names and not in_order(vectors(path, table, "frame_index", 1)[:, 0]):
            raise ValueError(f"{path}: frame_index does not rise in the rows of episode {episode.index}; sort them, {self._doctor}")
        if "timestamp" not in table.column_names:
            return {}
        times = timing(vectors(path, table, "timestamp", 1)[:, 0], self.fps)
        if times.broken:
            off = f"is {1000 * times.worst_s:.0f} ms, half a frame or more, from its place at {self.fps} frames per second"
            raise ValueError(
                f"{path}: a time stamp of episode {episode.index} {off}; record it again with steps of equal length, {self._doctor}"
            )
        return {} if times.even else {episode.index: times.worst_s}

    def _values(self, path: Path, table: pa.Table, key: str) -> np.ndarray:
        """A feature of numbers, [n, d]; what nobody judged is NaN."""
        columns = fmt.columns(self.features, key) if key in self.features else {key: 1}
        return label(path, table, *columns)[:, None] if key in fmt.LABELS else joined(path, table, columns)

    def _episode(self, episode: EpisodeFiles, table: pa.Table, pool: Executor) -> Episode:
        path, length = episode.data, episode.length
        reward = self._values(path, table, "next.reward")[:-1, 0] if "next.reward" in self.features else np.zeros(length - 1)
        success = self._values(path, table, "success")[:, 0]
        if "success" not in self.features:  # nobody judged the first frame
            success = np.append(np.float32(np.nan), self._values(path, table, "next.success")[:-1, 0])
            if "next.success" in self.features and self._values(path, table, "next.success")[-1, 0] == 1:
                success[-1] = 1  # as recorders say it who say it once: what their last action brought has no frame
        return Episode(
            images={
                camera: torch.from_numpy(np.concatenate([*self._clips(key, episode, table, pool)]))
                for camera, key in self._camera_keys.items()
            },
            state=torch.from_numpy(self._values(path, table, "observation.state").astype(np.float32)),
            action=torch.from_numpy(self._values(path, table, "action")[:-1].astype(np.float32)),
            reward=torch.from_numpy(reward.astype(np.float32)),
            success=torch.from_numpy(success),
            progress=torch.from_numpy(self._values(path, table, "progress")[:, 0]),
            instruction=self.task_of[table["task_index"][0].as_py()],
            source=table["source"][0].as_py() if "source" in table.column_names else "unknown",
        )

    def _clips(self, key: str, episode: EpisodeFiles, table: pa.Table, pool: Executor) -> Iterator[UInt8[np.ndarray, "n h w 3"]]:
        if key in self._video_keys:
            path, start_s = episode.videos[key]
            frames = video_frames(path, start_s=start_s, num_frames=episode.length, fps=self.fps)
            while clip := [*islice(frames, CLIP)]:
                yield np.stack(clip)
            return
        size, encoded = fmt.resolution(key, self.features[key]), pictures(episode.data, table, key)
        decode, share = partial(decode_images, episode.data, key, size), -(-CLIP // NUM_THREADS)
        for first in range(0, len(encoded), CLIP):
            part = encoded[first : first + CLIP]
            yield np.stack([*chain(*pool.map(decode, [part[i : i + share] for i in range(0, len(part), share)]))])


class _DataFile:
    """One open data file; of an episode, only the row groups that hold it are read, and the last ones read are kept."""

    def __init__(self, path: Path, columns: list[str]) -> None:
        self.path, self._columns = path, columns
        self._read: tuple[list[int] | None, pa.Table, np.ndarray] = (None, pa.table({}), np.empty(0))
        self._file = fmt.open_parquet(path, columns)
        groups = [self._file.metadata.row_group(i) for i in range(self._file.num_row_groups)]
        paths = [groups[0].column(j).path_in_schema for j in range(groups[0].num_columns)] if groups else []
        stats = [group.column(paths.index("episode_index")).statistics for group in groups]
        self._ranges = [
            range(s.min, s.max + 1) if s is not None and s.has_min_max and isinstance(s.min, int) else None for s in stats
        ]

    def rows(self, episode_index: int) -> pa.Table:
        """The rows of an episode, or ValueError if they are damaged."""
        groups = [i for i, episodes in enumerate(self._ranges) if episodes is None or episode_index in episodes]
        if groups != self._read[0]:
            try:
                table = self._file.read_row_groups(groups, self._columns)
            except (pa.ArrowInvalid, OSError) as error:
                raise fmt.unreadable(self.path, error) from error
            self._read = (groups, table, vectors(self.path, table, "episode_index", 1)[:, 0])
        _, table, index = self._read
        return table.filter(pa.array(index == episode_index))
