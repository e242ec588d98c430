"""The file format of LeRobotDataset v3.0: names, feature tables, Arrow schemas, and safe reading and writing of single files.

It holds what the reader and the writer must agree on, and the three traps of the format: `datasets` finds images through schema
metadata, pandas finds the task strings in the index, and a depth map is marked in one of several places. Read `lerobot.py` next,
which reads and writes whole datasets.
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from worldsim.data import damaged
from worldsim.data.video import PIXEL_FORMAT

VERSION = "v3.0"
INFO, STATS, TASKS = Path("meta/info.json"), Path("meta/stats.json"), Path("meta/tasks.parquet")
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
FILES_PER_CHUNK = 1000
# What may stand in the paths of a dataset, and those that LeRobot takes where `info.json` says none, by major version.
PLACES = {
    2: {"episode_chunk": 0, "episode_index": 0},
    3: {"chunk_index": 0, "file_index": 0},
}
TEMPLATES = {
    2: {
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    },
    3: {"data_path": DATA_PATH, "video_path": VIDEO_PATH},
}
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
    labels: Mapping[str, bool],
) -> dict[str, Any]:
    """`info.json` of a dataset without episodes.

    `cameras` maps names to (height, width), `labels` those of `LABELS` that it has to whether they are known of every frame: others
    are numbers, NaN where nobody knows.
    """
    video = {"video.codec": "av1", "video.pix_fmt": PIXEL_FORMAT, "video.fps": fps, "video.channels": 3}
    features: Features = {
        "observation.state": {"dtype": "float32", "shape": [len(state_names)], "names": list(state_names)},
        "action": {"dtype": "float32", "shape": [len(action_names)], "names": list(action_names)},
    }
    for camera, (height, width) in cameras.items():
        feature = {"dtype": storage, "shape": [height, width, 3], "names": ["height", "width", "channels"]}
        if storage == "video":
            size = {"video.height": height, "video.width": width}
            feature["info"] = {**size, **video, "is_depth_map": False, "has_audio": False}
        features[camera_key(camera)] = feature
    known = dict.fromkeys(SCALARS.keys() - {*LABELS}, True) | dict(labels)
    scalars = {key: dtype if known[key] else "float32" for key, dtype in SCALARS.items() if key in known}
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


def read_info(root: Path, names: Mapping[str, Sequence[str]] | None = None) -> dict[str, Any]:
    """`info.json` of a dataset.

    Args:
        root: the dataset's folder.
        names: features of the dataset that make up one of worldsim's, by worldsim's name; none for a state that there is not.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if it is damaged, has another version, lacks state or action or says something that has no meaning.
    """
    if not (root / INFO).is_file():
        raise FileNotFoundError(f"no LeRobot dataset at {root}: {INFO} is missing; check the path or record one first")
    info = read_json(root / INFO)
    version = info.get("codebase_version")
    if not isinstance(version, str) or not re.fullmatch(r"v?[23]\.\d+(\.\d+)?", version):
        raise ValueError(f"{root} has codebase_version {version}, expected v2.0, v2.1 or v3.0; convert it with LeRobot")
    for name, value, expected in _meaningless(info):
        raise ValueError(f"{root / INFO} has {name} {value!r}, expected {expected}; correct it there, or copy the dataset again")
    info["features"] = features = _renamed(root, info["features"], names or {})
    if missing := {"observation.state", "action"} - features.keys():
        there, lacking = ", ".join(features), " and ".join(sorted(missing))
        raise ValueError(f"{root} lacks the feature {lacking}, it has {there}; worldsim adopt {root} proposes which of them it is")
    for key in ("observation.state", "action"):
        feature = features[key]
        if len(feature["shape"]) != 1 or not feature["shape"][0] or feature["dtype"] not in NUMBERS:
            found = f"{key} {feature['dtype']} {feature['shape']!r}"
            expected = "a shape with one number above 0, and a dtype of numbers"
            raise ValueError(f"{root / INFO} has {found}, expected {expected}; correct it there, or copy the dataset again")
    return info


def major(info: Mapping[str, Any]) -> int:
    """The major number of a dataset's version, which says how its files are laid out: 2 or 3."""
    return int(info["codebase_version"].removeprefix("v").partition(".")[0])


def template(info: Mapping[str, Any], key: str) -> str:
    """Where a dataset says that its files lie, or LeRobot's own place; `key` is data_path or video_path."""
    return info.get(key) or TEMPLATES[major(info)][key]


def visible(root: Path, pattern: str) -> list[Path]:
    """The files of a pattern, in order, without hidden ones: what file managers leave behind is no recording."""
    return sorted(path for path in root.glob(pattern) if not path.name.startswith("."))


def columns(features: Features, key: str) -> dict[str, int]:
    """The columns of data files that a feature of numbers consists of, and the width of each."""
    return features[key].get("columns", {key: features[key]["shape"][0]})


def _renamed(root: Path, features: Features, names: Mapping[str, Sequence[str]]) -> Features:
    """The features, and those of `names` beside them, which consist of one or several."""
    renamed = {**features}
    for ours, theirs in names.items():
        if missing := [key for key in theirs if key not in features]:
            raise ValueError(f"{root} has no feature {missing[0]}, it has {', '.join(features)}; correct what {ours} is called")
        if odd := [key for key in theirs if features[key]["dtype"] not in NUMBERS or len(features[key]["shape"]) != 1]:
            found = f"{features[odd[0]]['dtype']} {features[odd[0]]['shape']}"
            raise ValueError(f"{root}: feature {odd[0]} is {found}, {ours} needs a vector of numbers; choose another one")
        widths = {key: features[key]["shape"][0] for key in theirs}
        if ours in SCALARS and sum(widths.values()) != 1:
            raise ValueError(
                f"{root}: {', '.join(theirs)} has {sum(widths.values())} numbers, {ours} needs one; choose another one"
            )
        parts = {key: dimension_names(features[key]) for key in theirs}
        distinct = len({name for part in parts.values() for name in part}) == sum(widths.values())
        labels = [name if distinct else f"{key}.{name}" for key, part in parts.items() for name in part]
        renamed[ours] = {
            **(features[theirs[0]] if theirs else {"dtype": "float32"}),
            "shape": [sum(widths.values()) or 1],
            "names": labels or ["nothing"],
            "columns": widths,
        }
    return renamed


def is_count(value: Any) -> bool:
    """Whether a value is a whole number from 0; True is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _meaningless(info: Mapping[str, Any]) -> Iterator[tuple[str, Any, str]]:
    """Name, value and what was expected, of everything in `info.json` that no dataset can mean."""
    fps = info.get("fps")
    if isinstance(fps, bool) or not isinstance(fps, int | float) or not 0 < fps < math.inf:
        yield "fps", fps, "a number above 0"
    for key in ("total_episodes", "total_frames", "total_tasks"):
        if not is_count(info.get(key)):
            yield key, info.get(key), "a whole number from 0"
    place = PLACES[major(info)]
    for key, names in {"data_path": place, "video_path": {**place, "video_key": ""}}.items():
        try:
            (info.get(key) or "").format(**names)
        except (AttributeError, LookupError, ValueError):
            yield key, info[key], f"a path with {{{'} and {'.join(names)}}}"
    if major(info) == 2 and not (is_count(size := info.get("chunks_size", FILES_PER_CHUNK)) and size):
        yield "chunks_size", size, "a whole number above 0"
    features = info.get("features")
    if not isinstance(features, dict):
        yield "features", features, "an object with one entry per feature"
        return
    for key, feature in features.items():
        if not isinstance(feature, dict) or not isinstance(feature.get("dtype"), str):
            yield f"feature {key}", feature, "an object with dtype and shape"
            continue
        shape = feature.get("shape")
        if not isinstance(shape, list) or not all(map(is_count, shape)):
            yield f"{key} shape", shape, "a list of whole numbers"
        elif key in SCALARS and shape != [1]:
            yield f"{key} shape", shape, "[1]"
        for mark in ("info", "video_info"):
            if not isinstance(feature.get(mark) or {}, dict):
                yield f"{key} {mark}", feature[mark], "an object"


def data_file(root: Path, info: Mapping[str, Any], row: Mapping[str, Any]) -> Path:
    """The data file of an episode, by its row of `meta/episodes`."""
    return root / template(info, "data_path").format(chunk_index=row["data/chunk_index"], file_index=row["data/file_index"])


def video_file(root: Path, info: Mapping[str, Any], row: Mapping[str, Any], key: str) -> Path:
    """The video of camera `key` that holds an episode, by its row of `meta/episodes`."""
    file = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
    return root / template(info, "video_path").format(video_key=key, **file)


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
    """Names of a vector's dimensions, which others nest in dictionaries and lists or leave out; numbers where there are none."""
    names, width = tuple(_flat(feature.get("names"))), feature["shape"][0]
    return names if len(names) == width else tuple(str(i) for i in range(width))


def _flat(names: Any) -> Iterator[str]:
    """Names out of any nesting; an entry of a dictionary that holds none is named by its key."""
    if isinstance(names, Mapping):
        for key, value in names.items():
            yield from _flat(value if isinstance(value, list | Mapping) else key)
    elif isinstance(names, list):
        for name in names:
            yield from _flat(name)
    elif names is not None:
        yield str(names)


def number_features(features: Features) -> dict[str, int]:
    """The width of every scalar or vector feature of numbers, by its key."""
    lists = {key: feature["shape"] for key, feature in features.items() if feature["dtype"] in NUMBERS}
    return {key: shape[0] for key, shape in lists.items() if len(shape) == 1 and shape[0]}


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


def read_statistics(root: Path, num_frames: int) -> dict[str, dict[str, Any]] | None:
    """`stats.json` by feature and name; None if there is none, or if it counts other frames.

    Raises:
        ValueError: if it is damaged.
    """
    stored = read_json(root / STATS) if (root / STATS).is_file() else {}
    if not all(isinstance(stats, dict) for stats in stored.values()):
        raise ValueError(f"{root / STATS} holds no statistics by feature; remove it, and they are computed again")
    return stored if stored.get("action", {}).get("count") == [num_frames] else None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, or ValueError if it is damaged or holds something else."""
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {damaged.remedy(path)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a JSON object; copy the dataset again")
    return content


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
        raise ValueError(f"{path} is not a readable parquet file ({str(error).splitlines()[0]}); {damaged.remedy(path)}") from error
    if missing := [column for column in columns if column not in file.schema_arrow.names]:
        raise ValueError(f"{path} lacks the column {missing[0]}, has {', '.join(file.schema_arrow.names)}; copy or record it again")
    return file


def read_parquet(path: Path, columns: Sequence[str]) -> pa.Table:
    """`columns` of a parquet file; raises what `open_parquet` does, and ValueError if a page is damaged."""
    file = open_parquet(path, columns)
    try:
        return file.read([*columns])
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> ValueError:
    """What to raise where a page of a parquet file is damaged, in one line."""
    return ValueError(f"{path} cannot be read ({str(error).splitlines()[0]}); copy it again")


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
