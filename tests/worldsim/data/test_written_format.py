"""What is written is what LeRobot 0.6.1 writes itself, and what robovet 0.2.2 asks for: seen with pyarrow and json alone.

The expectations were taken from datasets that LeRobot wrote of the same features (`tests/interop/`, which runs both programs):
images lie in the data files and `video_path` is null, a text is a string of shape [1] without statistics.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_datasets import EPISODE_FILE, SETTINGS, Killed, drop_column, edit_info, kill_at_rename, smooth_episode, write

from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset, DatasetWriter

SIZE, LENGTHS = (16, 16), (4, 6, 3, 5)  # frames of the episodes, 18 together
CAMERAS = {"top": SIZE, "wrist": SIZE}
INFO = {
    "codebase_version": "v3.0",
    "robot_type": "pusher",
    "total_episodes": 4,
    "total_frames": 18,
    "total_tasks": 2,
    "chunks_size": 1000,
    "data_files_size_in_mb": 100,
    "video_files_size_in_mb": 200,
    "fps": 10,
    "splits": {"train": "0:4"},
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
}
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
STREAM = {
    "video.height": 16,
    "video.width": 16,
    "video.codec": "av1",
    "video.pix_fmt": "yuv420p",
    "video.fps": 10,
    "video.channels": 3,
    "has_audio": False,
    "is_depth_map": False,
}
COLUMNS = {
    "observation.state": ("float32", [3], pa.list_(pa.float32(), 3)),
    "action": ("float32", [2], pa.list_(pa.float32(), 2)),
    "next.reward": ("float32", [1], pa.float32()),
    "next.done": ("bool", [1], pa.bool_()),
    "source": ("string", [1], pa.string()),
    "timestamp": ("float32", [1], pa.float32()),
    "frame_index": ("int64", [1], pa.int64()),
    "episode_index": ("int64", [1], pa.int64()),
    "index": ("int64", [1], pa.int64()),
    "task_index": ("int64", [1], pa.int64()),
}
JUDGED = {
    "next.success": ("bool", [1], pa.bool_()),
    "success": ("bool", [1], pa.bool_()),
    "progress": ("float32", [1], pa.float32()),
}
PICTURES = pa.struct({"bytes": pa.binary(), "path": pa.string()})
STATISTICS = {"min", "max", "mean", "std", "count", "q01", "q10", "q50", "q90", "q99"}


def recorded(root: Path, how: str, monkeypatch: pytest.MonkeyPatch, *, judged: Any, storage: Any) -> Path:
    unknown = {name: torch.nan for name in ("success", "progress") if not judged}
    episodes = [smooth_episode(i, t=n - 1, size=SIZE) for i, n in enumerate(LENGTHS)]
    episodes = [replace(e, **{name: torch.full((len(e) + 1,), nan) for name, nan in unknown.items()}) for e in episodes]
    episodes[2] = replace(episodes[2], instruction="another task")
    settings: dict[str, Any] = {**SETTINGS, "cameras": CAMERAS, "judged": judged, "storage": storage}
    flushes = {"at once": [episodes], "in flushes": [episodes[:1], episodes[1:3], episodes[3:]]}.get(how, [episodes[:2]])
    write(root, *flushes, **settings)
    if how == "killed":
        with DatasetWriter(root, **settings) as writer, monkeypatch.context() as patch:
            kill_at_rename(patch, 3)  # the journal and two files of the flush are there
            with pytest.raises(Killed):
                writer.add(episodes[2:])
        write(root, episodes[2:3], episodes[3:], **settings)
    return root


def table(root: Path, pattern: str) -> pa.Table:
    return pa.concat_tables(pq.ParquetFile(path).read() for path in sorted(root.glob(pattern)))


@pytest.mark.parametrize("how", ["at once", "in flushes", "killed"])
@pytest.mark.parametrize("judged", [True, False])
@pytest.mark.parametrize("storage", ["image", "video"])
def test_every_file_is_as_lerobot_writes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: str, judged: bool, how: str
) -> None:
    root = recorded(tmp_path, how, monkeypatch, judged=judged, storage=storage)
    keys, columns = ["observation.images.top", "observation.images.wrist"], COLUMNS | (JUDGED if judged else {})

    info = json.loads((root / "meta/info.json").read_text())
    features = info.pop("features")
    assert info == {**INFO, "video_path": VIDEO_PATH if storage == "video" else None}
    camera = {"dtype": storage, "shape": [16, 16, 3], "names": ["height", "width", "channels"]}
    assert [features.pop(key) for key in keys] == [camera if storage == "image" else {**camera, "info": STREAM}] * 2
    assert {key: (feature["dtype"], feature["shape"]) for key, feature in features.items()} == {
        key: (dtype, shape) for key, (dtype, shape, _) in columns.items()
    }

    for path in root.glob("data/*/*.parquet"):
        schema = pq.read_schema(path)
        there = {key: kind for key, (*_, kind) in columns.items()} | (dict.fromkeys(keys, PICTURES) if storage == "image" else {})
        assert {field.name: field.type for field in schema} == there
        kinds = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert {key for key, kind in kinds.items() if kind["_type"] == "Image"} == (set(keys) if storage == "image" else set())
    assert len([*root.glob("videos/*/*/*.mp4")]) == (2 * len([*root.glob("data/*/*.parquet")]) if storage == "video" else 0)

    frames, ends = table(root, "data/*/*.parquet"), np.cumsum(LENGTHS)
    assert frames["index"].to_pylist() == [*range(18)]
    assert frames["frame_index"].to_pylist() == [i for n in LENGTHS for i in range(n)]
    assert frames["episode_index"].to_pylist() == [e for e, n in enumerate(LENGTHS) for _ in range(n)]
    assert np.allclose(frames["timestamp"], frames["frame_index"].to_numpy() / 10, atol=1e-6)
    assert frames["task_index"].to_pylist() == [0] * 10 + [1] * 3 + [0] * 5

    episodes = table(root, "meta/episodes/*/*.parquet").to_pylist()
    assert [row["dataset_to_index"] for row in episodes] == [*ends]
    assert [row["dataset_from_index"] for row in episodes] == [0, *ends[:-1]]
    measured = {*columns, *keys} - {"source"}
    for row, length in zip(episodes, LENGTHS, strict=True):
        assert {tuple(name.split("/")[1:]) for name in row if name.startswith("stats/")} == {
            (key, name) for key in measured for name in STATISTICS
        }
        assert row["length"] == length == row["stats/index/count"][0] == row["stats/action/count"][0]
        if storage == "video":
            span = [row[f"videos/observation.images.top/{end}_timestamp"] for end in ("from", "to")]
            assert round(10 * (span[1] - span[0])) == length and np.allclose(10 * span[0], round(10 * span[0]))
    stats = json.loads((root / "meta/stats.json").read_text())
    assert {key: {*value} for key, value in stats.items()} == dict.fromkeys(measured, STATISTICS)
    assert all(np.shape(stats[key][name]) == (3, 1, 1) for key in keys for name in STATISTICS - {"count"})
    tasks = pq.read_table(root / "meta/tasks.parquet")
    assert tasks["task_index"].to_pylist() == [0, 1] and b"pandas" in tasks.schema.metadata
    assert not [fault for fault in dataset_faults(root) if fault.severity == "error"]


@pytest.mark.parametrize("storage", ["image", "video"])
def test_what_an_older_worldsim_recorded_is_gone_on_with(tmp_path: Path, storage: Any) -> None:
    """It marked depth maps as LeRobot did then, and its quantiles of images were means of the episodes'."""
    settings: dict[str, Any] = {"cameras": CAMERAS, "storage": storage}
    dark, light = (
        replace(smooth_episode(0, t=3), images=dict.fromkeys(CAMERAS, torch.full((4, *SIZE, 3), level, dtype=torch.uint8)))
        for level in (51, 204)
    )
    features = write(tmp_path, [dark], [light], **settings).features
    for feature in features.values():
        if "info" in feature:
            feature["info"] = {**feature["info"], "video.is_depth_map": feature["info"].pop("is_depth_map")}
    edit_info(tmp_path, features=features)
    stats = fmt.read_json(tmp_path / fmt.STATS)
    stats["observation.images.top"]["q99"] = np.full((3, 1, 1), 0.5).tolist()
    fmt.write_json(tmp_path / fmt.STATS, stats)
    assert np.allclose(Dataset(tmp_path).stats["observation.images.top"]["q99"], 0.5) and Dataset(tmp_path).num_episodes == 2

    dataset = write(tmp_path, [dark], **settings)
    assert dataset.num_episodes == 3 and dataset.features == features and [*dataset.cameras] == ["top", "wrist"]
    tolerance = 0.03 * (storage == "video")  # of a flat picture's level, 51 or 204 of 255, after the codec
    for key in ("top", "wrist"):
        got = dataset.stats[f"observation.images.{key}"]
        assert np.allclose([got["q01"], got["q50"]], 51 / 255, atol=tolerance)
        assert np.allclose([got["q90"], got["q99"]], 204 / 255, atol=tolerance)
        assert np.allclose(got["mean"], (2 * 51 + 204) / 3 / 255, atol=tolerance)


def labelled(seed: int, success: list[float], progress: list[float]) -> Episode:
    episode = smooth_episode(seed, t=len(success) - 1, size=SIZE)
    return replace(episode, success=torch.tensor(success), progress=torch.tensor(progress))


NAN = float("nan")


def test_labels_that_nobody_knows_of_some_frames_are_numbers(tmp_path: Path) -> None:
    """NaN, because neither LeRobot nor torch has truth values that are unknown; and without statistics, which would be NaN, too."""
    episodes = [labelled(0, [NAN, 0, 1], [NAN, 0.5, 1]), labelled(1, [NAN, NAN, NAN], [0, 0.25, NAN])]
    judged = {"success": False, "next.success": False, "progress": False}
    dataset = write(tmp_path, episodes[:1], episodes[1:], cameras=CAMERAS, judged=judged)
    assert {key: dataset.features[key]["dtype"] for key in judged} == dict.fromkeys(judged, "float32")
    for got, expected in zip(dataset.episodes(), episodes, strict=True):
        assert torch.equal(got.success.nan_to_num(-1), expected.success.nan_to_num(-1))
        assert torch.equal(got.progress.nan_to_num(-1), expected.progress.nan_to_num(-1))
    rows = table(tmp_path, "data/*/*.parquet")
    assert np.array_equal(rows["next.success"], [0, 1, 1, NAN, NAN, NAN], equal_nan=True)
    assert not judged.keys() & dataset.stats.keys() and "NaN" not in (tmp_path / fmt.STATS).read_text()
    with pytest.raises(ValueError, match="success is {'dtype': 'float32'.* there, {'dtype': 'bool'"):
        DatasetWriter(tmp_path, **{**SETTINGS, "cameras": CAMERAS})


def test_a_success_that_comes_with_the_next_frame_says_nothing_of_the_first(tmp_path: Path) -> None:
    """As LeRobot's simulators record it: a dataset without NaN."""
    settings: dict[str, Any] = {"cameras": CAMERAS, "judged": {"next.success": True}}
    dataset = write(tmp_path, [labelled(0, [NAN, 0, 1], [NAN] * 3)], **settings)
    assert not {"success", "progress"} & dataset.features.keys() and dataset.features["next.success"]["dtype"] == "bool"
    assert torch.equal(next(dataset.episodes()).success.nan_to_num(-1), torch.tensor([-1.0, 0, 1]))
    for wrong, how in (([0, 0, 1], "3 of 3 frames, while this dataset says it of all but the first"), ([NAN, NAN, 1], "1 of 3")):
        with pytest.raises(ValueError, match=f"success is known of {how}"):
            write(tmp_path, [labelled(0, [float(x) for x in wrong], [NAN] * 3)], **settings)


def test_progress_of_all_frames_and_of_some_do_not_go_together(tmp_path: Path) -> None:
    """Both are numbers; but one has statistics, and LeRobot reads all files with the columns of the first."""
    whole = write(tmp_path, [labelled(0, [NAN] * 3, [0, 0.5, 1])], cameras=CAMERAS, judged={"progress": True})
    assert whole.num_episodes == 1 and "progress" in whole.stats
    with pytest.raises(ValueError, match="has stats/progress/count, of what is known of every frame there"):
        write(tmp_path, [labelled(0, [NAN] * 3, [0, NAN, 1])], cameras=CAMERAS, judged={"progress": False})
    drop_column(tmp_path / EPISODE_FILE, "stats/progress/q50")
    with pytest.raises(ValueError, match="lacks 1 statistics of the episodes recorded now, such as stats/progress/q50"):
        write(tmp_path, [], cameras=CAMERAS, judged={"progress": True})
