"""Small LeRobot datasets for the museum, written without worldsim: a two-jointed arm that a camera looks at.

A writer of its own, because what is read by worldsim must not have been written by it, and because the museum needs the formats of
other years. Read `cases.py` next, which breaks what is written here, one thing at a time.
"""

import json
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

FPS, SIZE, FRAMES = 10, 32, 40
NAMES = ["shoulder", "elbow"]
CAMERA = "observation.images.front"
DATA, EPISODES = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"
VIDEO = f"videos/{CAMERA}/chunk-000/file-000.mp4"
QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}


@dataclass(frozen=True)
class Take:
    """One episode of n frames.

    Attributes:
        state: [n, 2], the joints [rad].
        action: [n, 2], where the joints shall be in the next frame [rad].
        pictures: uint8 [n, 32, 32, 3].
        task: its sentence.
        success: [n], 1 in the last three frames.
        progress: [n], from 0 to 1.
    """

    state: np.ndarray
    action: np.ndarray
    pictures: np.ndarray
    task: str
    success: np.ndarray
    progress: np.ndarray


def takes(number: int = 4, frames: int = FRAMES) -> list[Take]:
    """Episodes in which the joints move now faster and now slower, so that one frame is not like the next."""
    made = []
    for seed in range(number):
        chance = np.random.default_rng(seed)
        speed = np.repeat(chance.choice([0.03, 0.3], frames // 4 + 1), 4)[: frames + 1] * chance.uniform(0.5, 1, frames + 1)
        path = np.cumsum(speed)[:, None] + chance.uniform(0, 6, 2)
        joints = (np.sin(path * [1.0, 1.3]) + 0.01 * chance.standard_normal((frames + 1, 2))).astype(np.float32)
        success = (np.arange(frames) >= frames - 3).astype(np.float32)
        progress = np.linspace(0, 1, frames, dtype=np.float32)
        task = f"reach for the {('red', 'blue')[seed % 2]} disc"
        made.append(Take(joints[:-1], joints[1:], draw(joints[:-1]), task, success, progress))
    return made


def draw(joints: np.ndarray) -> np.ndarray:
    """A bright disc where the joints point, on a background that is none of one colour: [n, 2] to uint8 [n, 32, 32, 3]."""
    y, x = np.mgrid[:SIZE, :SIZE]
    floor = np.stack([60 + 2 * x, 60 + 2 * y, 90 + 0 * x], axis=-1)
    centre = SIZE / 2 + SIZE / 3 * joints[:, :, None, None]
    inside = (x - centre[:, 0]) ** 2 + (y - centre[:, 1]) ** 2 < 30
    return np.where(inside[..., None], (250, 220, 40), floor).astype(np.uint8)


def described(values: np.ndarray) -> dict[str, list]:
    """Statistics of rows [n, d], in LeRobot's words."""
    values = values.reshape(len(values), -1).astype(float)
    moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = {name: np.quantile(values, share, axis=0) for name, share in QUANTILES.items()}
    return {**{name: value.tolist() for name, value in {**moments, **quantiles}.items()}, "count": [len(values)]}


def feature(dtype: str, shape: list[int], names: Any = None) -> dict[str, Any]:
    """A feature's description in `info.json`."""
    return {"dtype": dtype, "shape": shape, "names": names}


def columns(made: list[Take], numbers: list[int]) -> tuple[dict[str, dict], dict[str, np.ndarray]]:
    """Features and columns of all frames; tasks are numbered in the order in which they come."""
    tasks = [*dict.fromkeys(take.task for take in made)]
    lengths = [len(take.state) for take in made]
    rows = {
        "observation.state": (feature("float32", [2], NAMES), np.concatenate([t.state for t in made])),
        "action": (feature("float32", [2], NAMES), np.concatenate([t.action for t in made])),
        "success": (feature("float32", [1]), np.concatenate([t.success for t in made])),
        "progress": (feature("float32", [1]), np.concatenate([t.progress for t in made])),
        "timestamp": (feature("float32", [1]), np.concatenate([np.arange(n, dtype=np.float32) / FPS for n in lengths])),
        "frame_index": (feature("int64", [1]), np.concatenate([np.arange(n) for n in lengths])),
        "episode_index": (feature("int64", [1]), np.repeat(numbers, lengths)),
        "index": (feature("int64", [1]), np.arange(sum(lengths))),
        "task_index": (feature("int64", [1]), np.repeat([tasks.index(t.task) for t in made], lengths)),
    }
    return {key: said for key, (said, _) in rows.items()}, {key: values for key, (_, values) in rows.items()}


def encode(path: Path, pictures: np.ndarray, *, codec: str = "libx264", fps: float = FPS) -> None:
    """An mp4 in which picture i is shown at i / fps seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            codec,
            rate=Fraction(fps).limit_denominator(1000),
            options={"g": "2", "crf": "12", "threads": "1", "x265-params": "log-level=none"},
        )
        stream.width, stream.height, stream.pix_fmt = pictures.shape[2], pictures.shape[1], "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def png(picture: np.ndarray) -> dict[str, Any]:
    """A picture as LeRobot keeps it in a data file."""
    return {"bytes": cv2.imencode(".png", picture[..., ::-1])[1].tobytes(), "path": None}


def write(
    root: Path,
    made: list[Take],
    *,
    storage: str = "image",
    codec: str = "libx264",
    numbers: list[int] | None = None,
    files: int = 1,
    extra: dict[str, tuple[dict, list]] | None = None,
) -> list[Take]:
    """A dataset of LeRobot v3.0; gives back what it was given.

    Args:
        root: of the dataset.
        made: its episodes.
        storage: "image" or "video".
        codec: of videos.
        numbers: of the episodes.
        files: data files.
        extra: further features, with a value for each frame.
    """
    numbers = [*range(len(made))] if numbers is None else numbers
    features, data = columns(made, numbers)
    pictures = np.concatenate([take.pictures for take in made])
    features[CAMERA] = feature(storage, [*pictures.shape[1:]], ["height", "width", "channels"])
    table = {key: pa.array(values.tolist() if values.ndim > 1 else values) for key, values in data.items()}
    table["observation.state"], table["action"] = (vector(data[key]) for key in ("observation.state", "action"))
    ends = np.cumsum([len(take.state) for take in made]).tolist()
    starts = [0, *ends[:-1]]
    episodes: dict[str, list] = {
        "episode_index": numbers,
        "tasks": [[take.task] for take in made],
        "length": [len(take.state) for take in made],
        "dataset_from_index": starts,
        "dataset_to_index": ends,
        "data/chunk_index": [0] * len(made),
        "data/file_index": [i * files // len(made) for i in range(len(made))],
    }
    if storage == "image":
        table[CAMERA] = pa.array([png(picture) for picture in pictures])
    else:
        encode(root / VIDEO, pictures, codec=codec)
        features[CAMERA]["info"] = {"video.fps": FPS, "video.codec": codec.removeprefix("lib"), "video.pix_fmt": "yuv420p"}
        episodes |= {f"videos/{CAMERA}/{name}": [0] * len(made) for name in ("chunk_index", "file_index")}
        episodes |= {
            f"videos/{CAMERA}/from_timestamp": [i / FPS for i in starts],
            f"videos/{CAMERA}/to_timestamp": [i / FPS for i in ends],
        }
    for key in ("observation.state", "action"):
        parts = [described(data[key][a:b]) for a, b in zip(starts, ends, strict=True)]
        episodes |= {f"stats/{key}/{name}": [part[name] for part in parts] for name in parts[0]}
    for key, (said, values) in (extra or {}).items():
        features[key], table[key] = said, pa.array(values)
    for number in range(files):
        first, last = (episodes["data/file_index"].index(number), len(made) - episodes["data/file_index"][::-1].index(number))
        part = pa.table(table).slice(starts[first], ends[last - 1] - starts[first])
        save(root / f"data/chunk-000/file-{number:03d}.parquet", part)
    save(root / EPISODES, pa.table(episodes))
    tasks = [*dict.fromkeys(take.task for take in made)]
    save(root / "meta/tasks.parquet", pa.table({"task_index": [*range(len(tasks))], "task": tasks}))
    write_json(root / "meta/stats.json", {key: described(data[key]) for key in ("observation.state", "action")})
    paths = {"data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"}
    if storage == "video":
        paths["video_path"] = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    write_info(root, "v3.0", made, features, paths)
    return made


def write_v2(root: Path, made: list[Take], *, version: str = "v2.1", storage: str = "video") -> list[Take]:
    """The same of LeRobot v2.0 or v2.1: a data file and a video for each episode, and meta in lines of JSON."""
    features, data = columns(made, [*range(len(made))])
    features[CAMERA] = feature(storage, [SIZE, SIZE, 3], ["height", "width", "channel"])
    tasks = [*dict.fromkeys(take.task for take in made)]
    start = 0
    for i, take in enumerate(made):
        part = {key: values[start : start + len(take.state)] for key, values in data.items()}
        table = {key: vector(values) if values.ndim > 1 else pa.array(values) for key, values in part.items()}
        if storage == "image":
            table[CAMERA] = pa.array([png(picture) for picture in take.pictures])
        else:
            encode(root / f"videos/chunk-000/{CAMERA}/episode_{i:06d}.mp4", take.pictures)
        save(root / f"data/chunk-000/episode_{i:06d}.parquet", pa.table(table))
        start += len(take.state)
    rows = [{"episode_index": i, "tasks": [take.task], "length": len(take.state)} for i, take in enumerate(made)]
    write_lines(root / "meta/episodes.jsonl", rows)
    write_lines(root / "meta/tasks.jsonl", [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    if version == "v2.0":
        write_json(root / "meta/stats.json", {key: described(data[key]) for key in ("observation.state", "action")})
    else:
        stats = [
            {"episode_index": i, "stats": {"observation.state": described(take.state), "action": described(take.action)}}
            for i, take in enumerate(made)
        ]
        write_lines(root / "meta/episodes_stats.jsonl", stats)
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    write_info(root, version, made, features, paths)
    return made


def write_info(root: Path, version: str, made: list[Take], features: dict[str, dict], paths: dict[str, str]) -> None:
    """`info.json`."""
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "total_episodes": len(made),
        "total_frames": sum(len(take.state) for take in made),
        "total_tasks": len({take.task for take in made}),
        "chunks_size": 1000,
        "fps": FPS,
        "splits": {"train": f"0:{len(made)}"},
        **paths,
        "features": features,
    }
    write_json(root / "meta/info.json", info)


def vector(values: np.ndarray) -> pa.Array:
    """Rows [n, d] as a column of lists of d numbers."""
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])


def save(path: Path, table: pa.Table) -> None:
    """A parquet file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def write_json(path: Path, content: Any) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1))


def write_lines(path: Path, rows: list[dict]) -> None:
    """A file with a line of JSON for each row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def changed(made: list[Take], index: int, **changes: Any) -> list[Take]:
    """The episodes, with other values in one of them."""
    return [replace(take, **changes) if i == index else take for i, take in enumerate(made)]
