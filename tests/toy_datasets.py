"""Small datasets for tests: episodes of noise that we record, a dataset as others write it, and ways to damage them."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.video import as_scheduled, encode_png

SETTINGS: dict[str, Any] = {
    "fps": 10,
    "robot_type": "pusher",
    "state_names": ["x", "y", "z"],
    "action_names": ["dx", "dy"],
    "cameras": {"top": (16, 24), "wrist": (8, 8)},
}
DATA_FILE, EPISODE_FILE = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


def random_episode(seed: int, t: int = 5, instruction: str = "push the block") -> Episode:
    g = torch.Generator().manual_seed(seed)
    cameras = SETTINGS["cameras"].items()
    return Episode(
        images={name: torch.randint(0, 256, (t + 1, *size, 3), dtype=torch.uint8, generator=g) for name, size in cameras},
        state=torch.randn(t + 1, 3, generator=g),
        action=torch.rand(t, 2, generator=g) * 2 - 1,
        reward=torch.randn(t, generator=g),
        success=(torch.rand(t + 1, generator=g) > 0.5).float(),
        progress=torch.rand(t + 1, generator=g),
        instruction=instruction,
        source="expert" if seed % 2 else "policy",
    )


def smooth_episode(seed: int, t: int = 11, size: tuple[int, int] = (64, 64)) -> Episode:
    """Frames of slow colour waves, which a video codec keeps well; each episode has another phase."""
    episode = random_episode(seed, t)
    phase = torch.arange(t + 1).view(-1, 1, 1, 1) / 10 + 2 * seed
    grid = torch.linspace(0, 2, size[1]).view(1, 1, -1, 1) + torch.linspace(0, 1, size[0]).view(1, -1, 1, 1)
    waves = (127 + 100 * torch.sin(grid + phase + torch.arange(3))).to(torch.uint8)
    return replace(episode, images=dict.fromkeys(episode.images, waves))


def write(root: Path, *flushes: list[Episode], **settings: Any) -> Dataset:
    with DatasetWriter(root, **{**SETTINGS, **settings}) as writer:
        for flush in flushes:
            writer.add(flush)
    return Dataset(root)


def foreign_dataset(
    root: Path,
    *,
    tasks_column: str = "__index_level_0__",
    features: dict[str, dict[str, Any]] | None = None,
    indices: tuple[int, int] = (0, 1),
    tasks: tuple[int, int] = (0, 1),
    **extra: Any,
) -> np.ndarray:
    """A dataset as others write it: two episodes of 3 and 4 frames in one file and one row group, without our own columns.

    Args:
        root: of the dataset.
        tasks_column: where the task strings stand.
        features: further features, and other descriptions of those that are there.
        indices: numbers of the episodes.
        tasks: numbers of the tasks "push" and "lift".
        extra: further columns, 7 values each.

    Returns:
        The frames of camera "image".
    """
    frames = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    rows = {
        "observation.state": np.arange(14, dtype=np.float32).reshape(7, 2).tolist(),
        "action": [i / 10 for i in range(7)],
        "observation.image": [{"bytes": png, "path": None} for png in encode_png(frames)],
        "task_index": [tasks[1]] * 3 + [tasks[0]] * 4,
        "episode_index": [indices[0]] * 3 + [indices[1]] * 4,
        **extra,
    }
    described = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        "observation.image": {"dtype": "image", "shape": [3, 8, 8], "names": ["channels", "height", "width"]},
        **{key: {"dtype": "int64", "shape": [1], "names": None} for key in ("task_index", "episode_index")},
    }
    described = {key: {"dtype": "float32", "shape": [1], "names": None} for key in extra} | described | (features or {})
    counts = {"total_episodes": 2, "total_frames": 7, "total_tasks": 2}
    fmt.write_json(root / fmt.INFO, {"codebase_version": "v3.0", "fps": 5, **counts, "features": described})
    episodes = {"episode_index": [*indices][::-1], "length": [4, 3], "data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    tables = {
        DATA_FILE: rows,
        EPISODE_FILE: episodes,
        "meta/tasks.parquet": {"task_index": [*tasks][::-1], tasks_column: ["lift", "push"]},
    }
    for path, columns in tables.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / path)
    return frames


def as_v2(source: Path, root: Path, *, version: str = "v2.1") -> None:
    """A dataset of ours, recorded with one flush per episode, in LeRobot's older layout: a file for each episode and camera, its
    episodes and tasks in lines of JSON, without statistics, and with the names of vectors nested as some recorders do."""
    info, table = fmt.read_json(source / fmt.INFO), pq.read_table(sorted((source / "data").rglob("*.parquet")))
    paths = {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    videos = [key for key, feature in info["features"].items() if feature["dtype"] == "video"]
    lines = []
    for index in range(info["total_episodes"]):
        rows, place = table.filter(pc.equal(table["episode_index"], index)), {"episode_chunk": 0, "episode_index": index}
        target = root / paths["data_path"].format(**place)
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, target)
        for key in videos:
            target = root / paths["video_path"].format(video_key=key, **place)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / fmt.VIDEO_PATH.format(video_key=key, chunk_index=0, file_index=index), target)
        numbers = pc.unique(rows["task_index"]).to_pylist()
        lines.append({"episode_index": index, "tasks": [Dataset(source).task_of[n] for n in numbers], "length": len(rows)})
    features = info["features"] | {
        key: {**info["features"][key], "names": [info["features"][key]["names"]]} for key in ("observation.state", "action")
    }
    tasks = [{"task_index": number, "task": task} for number, task in Dataset(source).task_of.items()]
    (root / "meta").mkdir()
    for name, rows in (("episodes", lines), ("tasks", tasks)):
        (root / f"meta/{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fmt.write_json(root / fmt.INFO, {**info, **paths, "codebase_version": version, "features": features})


def edit_info(root: Path, **changes: Any) -> None:
    fmt.write_json(root / fmt.INFO, {**fmt.read_json(root / fmt.INFO), **changes})


def edit_column(path: Path, column: str, changes: dict[int, Any]) -> None:
    """Other values in some rows of a parquet file."""
    table = pq.read_table(path)
    values = table[column].to_pylist()
    for row, value in changes.items():
        values[row] = value
    array = pa.array(values, table.schema.field(column).type)
    pq.write_table(table.set_column(table.schema.get_field_index(column), table.schema.field(column), array), path)


def drop_column(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


def encode(path: Path, times: Sequence[float], *, rate: int) -> None:
    """A video whose frame i has the grey value 20 * i and is shown at times[i] seconds."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libsvtav1", rate=rate, options={"g": "2", "crf": "30", "preset": "12"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        with as_scheduled():
            stream.codec_context.open()
        for i, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(1000 * time), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def files(root: Path) -> dict[str, bytes]:
    """The contents of every file under `root`, by its relative path."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
