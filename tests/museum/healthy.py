"""Datasets that are unusual and sound: every one of them must be read, with the right numbers, and without a fault.

Read `broken.py` next.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from museum.cases import case
from museum.recorder import CAMERA, DATA, EPISODES, Take, described, feature, png, save, takes, write, write_json, write_v2
from toy_datasets import drop_column, edit_info

from worldsim.data import lerobot_format as fmt


def describe(root: Path, key: str, **changes: Any) -> None:
    """Say something else of a feature in `info.json`."""
    features = fmt.read_json(root / fmt.INFO)["features"]
    edit_info(root, features={**features, key: {**features.get(key, {}), **changes}})


@case("fine")
def pictures(root: Path) -> list[Take]:
    """LeRobot v3.0 with PNGs in one data file."""
    return write(root, takes())


@case("fine")
def videos(root: Path) -> list[Take]:
    """LeRobot v3.0 with all episodes in one h264 video."""
    return write(root, takes(), storage="video")


@case("fine", "VIDEO-403")
def av1(root: Path) -> list[Take]:
    """A video in AV1, as LeRobot records them."""
    return write(root, takes(), storage="video", codec="libsvtav1")


@case("fine", "VIDEO-403")
def h265(root: Path) -> list[Take]:
    """A video in h265, which browsers do not show."""
    return write(root, takes(), storage="video", codec="libx265")


@case("fine", "B30")
def lerobot_2_0(root: Path) -> list[Take]:
    """LeRobot v2.0: a file and a video for each episode, meta in lines of JSON."""
    return write_v2(root, takes(), version="v2.0")


@case("fine", "B30")
def lerobot_2_1(root: Path) -> list[Take]:
    """LeRobot v2.1: as v2.0, with statistics for each episode."""
    return write_v2(root, takes())


@case("fine", "B30")
def lerobot_2_1_pictures(root: Path) -> list[Take]:
    """LeRobot v2.1 with PNGs in the data files."""
    return write_v2(root, takes(), storage="image")


@case("fine", "STRUCT-003")
def lerobot_3_1(root: Path) -> list[Take]:
    """codebase_version v3.1; LeRobot compares the major number."""
    made = write(root, takes())
    edit_info(root, codebase_version="v3.1")
    return made


@case("fine")
def nested_names(root: Path) -> list[Take]:
    """Names of channels in a list in a list, as Unitree writes them, and in a dictionary."""
    made = write(root, takes())
    describe(root, "observation.state", names=[["shoulder", "elbow"]])
    describe(root, "action", names={"motors": ["shoulder", "elbow"]})
    return made


@case("fine")
def channels_first(root: Path) -> list[Take]:
    """A camera described as [3, height, width]."""
    made = write(root, takes())
    describe(root, CAMERA, shape=[3, 32, 32], names=["channels", "height", "width"])
    return made


@case("fine", "B20")
def grey_camera(root: Path) -> list[Take]:
    """A camera described as [height, width, 1], with grey pictures."""
    made = [replace(t, pictures=t.pictures.mean(axis=3, keepdims=True).astype(np.uint8).repeat(3, axis=3)) for t in takes()]
    write(root, made)
    describe(root, CAMERA, shape=[32, 32, 1])
    return made


@case("fine")
def rate_as_a_decimal(root: Path) -> list[Take]:
    """fps 10.0 rather than 10."""
    made = write(root, takes(), storage="video")
    edit_info(root, fps=10.0)
    return made


@case("fine", "STATS-301")
def no_statistics(root: Path) -> list[Take]:
    """No meta/stats.json."""
    made = write(root, takes())
    (root / fmt.STATS).unlink()
    return made


@case("fine", "B16")
def no_quantiles(root: Path) -> list[Take]:
    """Statistics without quantiles, from before LeRobot had them."""
    made = write(root, takes())
    stats = fmt.read_json(root / fmt.STATS)
    write_json(root / fmt.STATS, {key: {n: v for n, v in said.items() if n[0] != "q"} for key, said in stats.items()})
    for name in [n for n in pq.read_schema(root / EPISODES).names if "/q" in n]:
        drop_column(root / EPISODES, name)
    return made


@case("fine", "B17")
def language(root: Path) -> list[Take]:
    """Columns of dtype language, with subtasks and plans."""
    extra = {"language_persistent": (feature("language", [1]), ["reach"] * 160)}
    return write(root, takes(), extra=extra)


@case("fine")
def sentences_in_a_column(root: Path) -> list[Take]:
    """A feature of strings."""
    return write(root, takes(), extra={"operator": (feature("string", [1]), ["somebody"] * 160)})


@case("fine", "B18")
def nothing_in_a_feature(root: Path) -> list[Take]:
    """A feature of width 0."""
    return write(root, takes(), extra={"observation.environment_state": (feature("float32", [0]), [[]] * 160)})


@case("fine", "B15")
def tasks_with_gaps(root: Path) -> list[Take]:
    """Tasks 0 and 5, as after a merge."""
    made = write(root, takes())
    for path, column in ((root / DATA, "task_index"), (root / "meta/tasks.parquet", "task_index")):
        table = pq.read_table(path)
        numbers = pa.array([5 * n for n in table[column].to_pylist()])
        save(path, table.set_column(table.schema.get_field_index(column), column, numbers))
    return made


@case("fine", "B19")
def depth_marked_long_ago(root: Path) -> list[Take]:
    """A depth map marked in video_info, where LeRobot once did."""
    depth = [png(np.full((32, 32, 3), i, np.uint8)) for i in range(160)]
    said = {**feature("image", [32, 32, 1]), "video_info": {"video.is_depth_map": True}}
    return write(root, takes(), extra={"observation.images.depth": (said, depth)})


@case("fine", "B14")
def episodes_with_gaps(root: Path) -> list[Take]:
    """Episodes 0, 2, 3 and 7, as after some were deleted, in two splits that meet."""
    made = write(root, takes(), numbers=[0, 2, 3, 7])
    edit_info(root, splits={"train": "0:3", "test": "3:8"})
    return made


@case("fine")
def two_data_files(root: Path) -> list[Take]:
    """Two episodes in each of two data files, and one video for all."""
    return write(root, takes(), storage="video", files=2)


@case("fine")
def doubles(root: Path) -> list[Take]:
    """Numbers of 64 bits where 32 are said."""
    made = write(root, takes())
    table = pq.read_table(root / DATA)
    wide = table["action"].combine_chunks().cast(pa.list_(pa.float64(), 2))
    save(root / DATA, table.set_column(table.schema.get_field_index("action"), "action", wide))
    return made


@case("fine", "B28")
def episodes_of_two_frames(root: Path) -> list[Take]:
    """Episodes that are shorter than any chunk of actions."""
    made = [replace(take, success=np.array([0, 1], np.float32)) for take in takes(4, 2)]
    return write(root, made)


@case("fine", "STRUCT-002")
def default_paths(root: Path) -> list[Take]:
    """info.json without data_path and video_path, for which LeRobot has defaults."""
    made = write(root, takes(), storage="video")
    info = fmt.read_json(root / fmt.INFO)
    write_json(root / fmt.INFO, {key: value for key, value in info.items() if not key.endswith("_path")})
    return made


@case("fine")
def files_of_a_desktop(root: Path) -> list[Take]:
    """Hidden files that macOS leaves in every folder, one of them named like a parquet file."""
    made = write(root, takes(), storage="video")
    for path in (root / DATA, root / EPISODES, root / f"videos/{CAMERA}/chunk-000/file-000.mp4"):
        (path.parent / f"._{path.name}").write_bytes(b"\0\5\26\7")
        (path.parent / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    return made


@case("fine")
def notes_beside(root: Path) -> list[Take]:
    """A README and a text file among the data files."""
    made = write(root, takes())
    (root / "README.md").write_text("# An arm\n")
    (root / "data/chunk-000/notes.txt").write_text("the third one was nice\n")
    return made


@case("fine")
def degrees(root: Path) -> list[Take]:
    """Joints in degrees, and a file that says so."""
    made = [replace(t, state=np.degrees(t.state), action=np.degrees(t.action)) for t in takes()]
    write(root, made)
    (root / "meta/spec.yaml").write_text('state: {"*": {unit: deg}}\naction: {"*": {unit: deg, kind: absolute}}\n')
    return made


@case("fine")
def a_gripper_that_is_open_or_closed(root: Path) -> list[Take]:
    """A channel that is nearly always at one of its ends, as grippers are."""
    made = []
    for take in takes():
        grip = np.clip(3 * take.action[:, 1], -1, 1).round(1).astype(np.float32)
        made.append(replace(take, action=np.stack([take.action[:, 0], grip], axis=1)))
    write(root, made)
    for key in ("observation.state", "action"):
        describe(root, key, names=["shoulder", "gripper"])
    return made


@case("fine", "B27")
def quantiles_as_means(root: Path) -> list[Take]:
    """Quantiles of the whole dataset as the mean of those of its episodes, as LeRobot computed them."""
    made = write(root, takes())
    stats = fmt.read_json(root / fmt.STATS)
    for key, rows in {"observation.state": [t.state for t in made], "action": [t.action for t in made]}.items():
        parts = [described(values) for values in rows]
        stats[key] |= {name: np.mean([part[name] for part in parts], axis=0).tolist() for name in ("q01", "q50", "q99")}
    write_json(root / fmt.STATS, stats)
    return made


def adopt(root: Path, features: str, drop: str = "") -> list[Take]:
    """A recording whose features have other names, and a folder that says which they are."""
    made = write(root / "recording", takes())
    names = {"observation.state": "state", "action": "actions", CAMERA: "image"}
    info = fmt.read_json(root / "recording" / fmt.INFO)["features"]
    edit_info(root / "recording", features={names.get(key, key): said for key, said in info.items() if key != drop})
    table = pq.read_table(root / "recording" / DATA)
    table = table.drop_columns([drop] if drop else [])
    save(root / "recording" / DATA, table.rename_columns([names.get(name, name) for name in table.column_names]))
    stats = fmt.read_json(root / "recording" / fmt.STATS)
    write_json(root / "recording" / fmt.STATS, {names.get(key, key): said for key, said in stats.items() if key != drop})
    for name in [name for name in pq.read_schema(root / "recording" / EPISODES).names if name.startswith("stats/")]:
        drop_column(root / "recording" / EPISODES, name)
    (root / "spec.yaml").write_text(f"dataset: recording\nfeatures: {features}\n")
    return made


@case("fine", "B21")
def adopted(root: Path) -> list[Take]:
    """Features named state, actions and image, adopted by a folder that says which they are."""
    return adopt(root, "{state: state, action: actions}")


@case("fine", "B21")
def adopted_without_a_state(root: Path) -> list[Take]:
    """The same without a state."""
    made = adopt(root, "{state: [], action: actions}", drop="observation.state")
    return [replace(take, state=np.zeros((40, 1), np.float32)) for take in made]
