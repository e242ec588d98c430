"""Recordings of a robot as a LeRobot v3 dataset: what a robot saw and did becomes something to train on.

A robot records plain files, because it has neither torch nor pyarrow (`worldsim/robot/recording.py`); this is the other half, on
the side of training. Read `lerobot.py` next for the dataset that comes out.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter
from worldsim.robot.recording import FORMAT_VERSION, META, ROWS, stream_dtype, stream_file


def convert_robot_log(log: Path, root: Path, *, robot_type: str, storage: Literal["image", "video"] = "image") -> int:
    """Append a recording to a LeRobot v3 dataset; returns the number of episodes it became.

    An episode is a stretch of consecutive policy steps; where rows were dropped, the robot did not answer or its state was not
    finite, the next one begins.
    Nobody judged success on the robot: the reward is 0, success and progress are unknown, and the dataset has no such features. A
    recording that a crash cut short ends with its last complete row.

    Args:
        log: the recorder's folder.
        root: the dataset, created if missing, continued if its settings are the same.
        robot_type: name of the robot.
        storage: of the pictures, see `DatasetWriter`.

    Raises:
        FileNotFoundError: if `log` is no recording.
        ValueError: if it is damaged, or holds no two consecutive rows.
    """
    log = Path(log)
    meta = _read_meta(log)
    rows = _read_rows(log)
    cameras = {name: (int(size[0]), int(size[1])) for name, size in meta["cameras"].items()}
    shapes = {"state": (len(meta["state_names"]),), "action": (len(meta["action_names"]),)}
    shapes |= {f"camera_{name}": (*size, 3) for name, size in cameras.items()}
    streams = {name: _open_stream(log, name, shape) for name, shape in shapes.items()}
    complete = min(len(rows), *(len(stream) for stream in streams.values()))
    usable = np.all(np.isfinite(streams["state"][:complete]), axis=1)
    stretches = [
        part for part in _stretches([row["step"] for row in rows[:complete]], usable.tolist()) if part.stop - part.start > 1
    ]
    if not stretches:
        raise ValueError(f"{log} holds no two consecutive steps, only {complete} rows; record for longer")
    settings = {name: meta[name] for name in ("fps", "state_names", "action_names")}
    with DatasetWriter(root, robot_type=robot_type, cameras=cameras, storage=storage, judged=False, **settings) as writer:
        for part in stretches:  # one at a time: pictures of an hour do not fit into memory
            writer.add([_episode({name: stream[part] for name, stream in streams.items()}, list(cameras), meta["instruction"])])
    return len(stretches)


def _episode(streams: dict[str, np.ndarray], cameras: list[str], instruction: str) -> Episode:
    arrays = {name: torch.from_numpy(np.array(stream)) for name, stream in streams.items()}
    t = len(arrays["state"]) - 1  # the last command has no observation after it
    return Episode(
        images={name: arrays[f"camera_{name}"] for name in cameras},
        state=arrays["state"],
        action=arrays["action"][:t],
        reward=torch.zeros(t),
        success=torch.full((t + 1,), torch.nan),
        progress=torch.full((t + 1,), torch.nan),
        instruction=instruction,
        source="robot",
    )


def _read_meta(log: Path) -> dict[str, Any]:
    if not (log / META).is_file():
        raise FileNotFoundError(f"no recording in {log} ({META} is missing); record one with worldsim.robot.run --log")
    try:
        meta = json.loads((log / META).read_text())
    except ValueError as error:
        raise ValueError(f"{log / META} is damaged ({error}); nothing can be read without it") from error
    if meta.get("format_version") != FORMAT_VERSION:
        raise ValueError(f"{log} has format version {meta.get('format_version')}, this worldsim reads {FORMAT_VERSION}")
    return meta


def _read_rows(log: Path) -> list[dict[str, Any]]:
    rows = []
    for line in (log / ROWS).read_bytes().splitlines(keepends=True):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            if line.endswith(b"\n"):
                raise ValueError(f"{log / ROWS} is damaged in row {len(rows)} ({error}); cut the file before it") from error
    return rows


def _open_stream(log: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    path, dtype = log / stream_file(name), stream_dtype(name)
    rows = path.stat().st_size // (int(np.prod(shape)) * dtype.itemsize)
    return np.memmap(path, dtype, mode="r", shape=(rows, *shape)) if rows else np.empty((0, *shape), dtype)


def _stretches(steps: list[int], usable: Sequence[bool]) -> Iterator[slice]:
    """Slices of consecutive numbers; a row that is not usable is a slice of its own."""
    start = 0
    for i in range(1, len(steps) + 1):
        if i == len(steps) or steps[i] != steps[i - 1] + 1 or not (usable[i - 1] and usable[i]):
            yield slice(start, i)
            start = i
