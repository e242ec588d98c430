"""The file format of LeRobotDataset v3.0: names, feature tables, Arrow schemas, and safe reading and writing of single files.

It holds what the reader and the writer must agree on, and the three traps of the format: `datasets` finds images through schema
metadata, pandas finds the task strings in the index, and a depth map is marked in one of several places. Read `lerobot.py` next,
which reads and writes whole datasets.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from worldsim.data.video import PIXEL_FORMAT

VERSION = "v3.0"
INFO, STATS, TASKS = Path("meta/info.json"), Path("meta/stats.json"), Path("meta/tasks.parquet")
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000
NUMBERS = {"bool", "float16", "float32", "float64", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}
LABELS = ("next.success", "success", "progress")  # features that a dataset lacks where nobody judged
# What each frame has beside state, action and cameras; the last five are LeRobot's own bookkeeping.
SCALARS = {
    "next.reward": "float32",
    "next.done": "bool",
    "next.success": "bool",
    "success": "bool",
    "progress": "float32",
    "source": "string",
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}

Features = dict[str, dict[str, Any]]


def camera_key(camera: str) -> str:
    """Feature key of a camera."""
    return f"observation.images.{camera}"


def camera_name(key: str) -> str:
    """Camera of a feature key; single-camera datasets by others use `observation.image`."""
    return key.removeprefix("observation.images.").removeprefix("observation.")


def new_info(
    *,
    fps: int,
    robot_type: str,
    state_names: Sequence[str],
    action_names: Sequence[str],
    cameras: Mapping[str, tuple[int, int]],
    storage: Literal["image", "video"],
    judged: bool,
) -> dict[str, Any]:
    """`info.json` of a dataset without episodes; `cameras` maps names to (height, width), `judged` says whether it has `LABELS`."""
    video = {"video.codec": "av1", "video.pix_fmt": PIXEL_FORMAT, "video.fps": fps, "video.channels": 3}
    features: Features = {
        "observation.state": {"dtype": "float32", "shape": [len(state_names)], "names": list(state_names)},
        "action": {"dtype": "float32", "shape": [len(action_names)], "names": list(action_names)},
    }
    for camera, (height, width) in cameras.items():
        feature = {"dtype": storage, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if storage == "video":
            size = {"video.height": height, "video.width": width}
            feature["info"] = {**size, **video, "video.is_depth_map": False, "has_audio": False}
        features[camera_key(camera)] = feature
    scalars = {key: dtype for key, dtype in SCALARS.items() if judged or key not in LABELS}
    features |= {key: {"dtype": dtype, "shape": [1], "names": None} for key, dtype in scalars.items()}
    return {
        "codebase_version": VERSION,
        "robot_type": robot_type,
        "total_episodes": 0,
        "total_frames": 0,
        "total_tasks": 0,
        "chunks_size": FILES_PER_CHUNK,
        "data_files_size_in_mb": 100,
        "video_files_size_in_mb": 200,
        "fps": fps,
        "splits": {},
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if storage == "video" else None,
        "features": features,
    }


def arrow_schema(features: Features) -> pa.Schema:
    """Schema of a data file: shape [1] is a scalar, a longer vector a fixed-size list, an image {bytes, path}, a video absent.

    The `huggingface` metadata tells `datasets` which structs are images.
    """
    fields, kinds = [], {}
    for key, feature in features.items():
        if feature["dtype"] == "image":
            fields.append(pa.field(key, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
            kinds[key] = {"_type": "Image"}
        elif feature["dtype"] != "video":
            dtype, (length,) = feature["dtype"], feature["shape"]
            scalar = {"bool": pa.bool_(), "string": pa.string(), "float32": pa.float32(), "int64": pa.int64()}[dtype]
            value = {"dtype": dtype, "_type": "Value"}
            fields.append(pa.field(key, scalar if length == 1 else pa.list_(scalar, length)))
            kinds[key] = value if length == 1 else {"feature": value, "length": length, "_type": "Sequence"}
    return pa.schema(fields, metadata={"huggingface": json.dumps({"info": {"features": kinds}})})


def read_info(root: Path) -> dict[str, Any]:
    """`info.json` of a dataset.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if it is damaged, has another version or lacks state or action.
    """
    if not (root / INFO).is_file():
        raise FileNotFoundError(f"no LeRobot dataset at {root}: {INFO} is missing; check the path or record one first")
    info = read_json(root / INFO)
    if (version := info.get("codebase_version")) != VERSION:
        raise ValueError(f"{root} has codebase_version {version}, expected {VERSION}; convert it with LeRobot")
    if missing := {"observation.state", "action"} - info["features"].keys():
        there = ", ".join(info["features"])
        raise ValueError(f"{root} lacks the feature {' and '.join(sorted(missing))}; rename one of {there}")
    return info


def data_file(root: Path, info: Mapping[str, Any], row: Mapping[str, Any]) -> Path:
    """The data file of an episode, by its row of `meta/episodes`."""
    template = info.get("data_path") or DATA_PATH  # LeRobot's default, too
    return root / template.format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def video_file(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> Path:
    """The video of camera `key` that holds an episode, by its row of `meta/episodes`."""
    template = info.get("video_path") or VIDEO_PATH
    file = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    return root / template.format(video_key=key, **file)


def is_rgb(feature: Mapping[str, Any]) -> bool:
    """Whether a feature is a camera and no depth map, which recorders of different ages mark in different places."""
    marks = [feature, feature.get("info") or {}, feature.get("video_info") or {}]
    depth = any(mark.get(name) for mark in marks for name in ("is_depth_map", "video.is_depth_map"))
    return feature["dtype"] in ("image", "video") and not depth


def resolution(key: str, feature: Mapping[str, Any]) -> tuple[int, int]:
    """(height, width) of a camera, whose channels are its last or, in some datasets, its first number.

    Raises:
        ValueError: if the shape is not that of RGB or grey pictures.
    """
    shape = tuple(feature["shape"])
    for channels in (3, 1):
        if len(shape) == 3 and shape[2] == channels:
            return shape[0], shape[1]
        if len(shape) == 3 and shape[0] == channels:
            return shape[1], shape[2]
    raise ValueError(
        f"{key} has shape {list(shape)}, expected [height, width, 3]; correct it in {INFO}, or mark a depth map there with "
        '"info": {"is_depth_map": true}'
    )


def dimension_names(feature: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of a vector's dimensions, which others nest in a dictionary or leave out; numbers where there are none."""
    names, width = feature.get("names") or (), feature["shape"][0]
    if isinstance(names, Mapping):
        names = [*chain.from_iterable(value if isinstance(value, list) else [key] for key, value in names.items())]
    return tuple(names) if len(names) == width else tuple(str(i) for i in range(width))


def read_tasks(root: Path) -> dict[int, str]:
    """The sentences of `tasks.parquet` by their number, in the order of the numbers, which may have gaps.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or numbers two sentences alike.
    """
    file = open_parquet(root / TASKS, ["task_index"])
    column = "task" if "task" in file.schema_arrow.names else "__index_level_0__"
    if column not in file.schema_arrow.names:
        raise ValueError(f"{root / TASKS} has no column task; write it with the task string as the pandas index")
    table = file.read().sort_by("task_index")
    numbers = table["task_index"].to_pylist()
    if len(set(numbers)) < len(numbers):
        raise ValueError(f"{root / TASKS} gives one number to several tasks, {numbers}; copy the dataset again")
    return dict(zip(numbers, table[column].to_pylist(), strict=True))


def tasks_table(tasks: Mapping[int, str]) -> pa.Table:
    """`tasks.parquet`: the task strings are the pandas index, which LeRobot looks them up in by position."""
    columns = [("task_index", "int64", "int64"), ("task", "unicode", "object")]
    described = [
        {"name": name, "field_name": name, "pandas_type": pandas, "numpy_type": numpy, "metadata": None}
        for name, pandas, numpy in columns
    ]
    pandas = {"index_columns": ["task"], "column_indexes": [], "columns": described, "pandas_version": "2.0.0"}
    table = pa.table({"task_index": pa.array(tasks, pa.int64()), "task": pa.array(tasks.values(), pa.string())})
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def vectors(table: pa.Table, key: str, width: int) -> np.ndarray:
    """Scalar or list column `key` as a writable array [n, width].

    Raises:
        ValueError: if it holds another number of values.
    """
    array = table[key].combine_chunks()
    flat = array.flatten() if pa.types.is_nested(array.type) else array
    if len(flat) != len(array) * width or flat.null_count:
        raise ValueError(
            f"column {key} holds {len(flat)} values in {len(array)} rows, expected {width} per row; the data file is damaged"
        )
    return flat.to_numpy(zero_copy_only=False).reshape(-1, width).copy()


def label(table: pa.Table, key: str) -> np.ndarray:
    """Column `key` of success or progress as float32 [n], NaN where nobody knows: a null, NaN, or no such column."""
    if key not in table.column_names:
        return np.full(table.num_rows, np.nan, np.float32)
    column = table[key].combine_chunks()
    flat = column.flatten() if pa.types.is_nested(column.type) else column
    return flat.cast(pa.float32()).to_numpy(zero_copy_only=False).astype(np.float32)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or ValueError if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); copy the dataset again") from error


def open_parquet(path: Path, columns: Sequence[str] = ()) -> pq.ParquetFile:
    """A parquet file that has `columns`.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged or lacks a column.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; copy the dataset again, completely")
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}); copy it again") from error
    if missing := [column for column in columns if column not in file.schema_arrow.names]:
        raise ValueError(f"{path} lacks the column {missing[0]}, has {', '.join(file.schema_arrow.names)}; copy or record it again")
    return file


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, complete and on disk, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    yield temporary
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, path)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a JSON file atomically; arrays become lists."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=4, default=lambda array: array.tolist()))
