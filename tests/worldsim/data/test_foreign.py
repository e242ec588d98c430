"""Datasets by others: what is fine is read, and what would teach something wrong in silence is refused or warned of."""

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_datasets import (
    DATA_FILE,
    drop_column,
    edit_column,
    encode,
    foreign_dataset,
    random_episode,
    smooth_episode,
    write,
)

from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.dataset_spec import OVERLAY
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset

NAN = float("nan")


def read(root: Path) -> list[Episode]:
    return list(Dataset(root).episodes())


def errors(root: Path) -> dict[str, str]:
    """What the doctor found, by kind."""
    return {fault.kind: fault.found for fault in dataset_faults(root) if fault.severity == "error"}


@pytest.mark.parametrize("tasks_column", ["task", "__index_level_0__"])
@pytest.mark.parametrize(("indices", "tasks"), [((0, 1), (0, 1)), ((2, 5), (3, 7))])
def test_datasets_by_others_are_read(tmp_path: Path, tasks_column: str, indices: tuple[int, int], tasks: tuple[int, int]) -> None:
    """Whatever was deleted from them: numbers of episodes and tasks may have gaps."""
    frames = foreign_dataset(tmp_path, tasks_column=tasks_column, indices=indices, tasks=tasks)
    dataset = Dataset(tmp_path)
    assert dataset.cameras == {"image": (8, 8)} and dataset.state_names == ("a", "b") and dataset.action_names == ("0",)
    assert dataset.num_episodes == 2 and dataset.tasks == ("push", "lift")
    first, second = dataset.episodes()
    assert np.array_equal(second.images["image"].numpy(), frames[3:])
    assert second.state.tolist() == [[6, 7], [8, 9], [10, 11], [12, 13]]
    assert second.action[:, 0].tolist() == pytest.approx([0.3, 0.4, 0.5])
    assert (first.instruction, second.instruction) == ("lift", "push")
    assert second.source == "unknown" and len(first) == 2 and second.reward.tolist() == [0, 0, 0]
    assert second.success.isnan().all() and second.progress.isnan().all(), "nobody judged them"
    assert next(Dataset(tmp_path, cameras=[]).episodes([0])).images == {}
    assert len(dataset.read_values()["action"]) == 7
    assert not errors(tmp_path)


def test_what_nobody_judged_is_unknown(tmp_path: Path) -> None:
    """next.success speaks of the next frame, so nobody judged the first; nulls and NaN are unknown too."""
    success = [False, True, False, True, None, False, False]
    progress = [NAN, 0.5, 1, NAN, NAN, NAN, NAN]
    foreign_dataset(tmp_path, **{"next.reward": [0, 1, 9, 0, 0, 2, 9], "next.success": success, "progress": progress})
    first, second = read(tmp_path)
    assert first.reward.tolist() == [0, 1] and second.reward.tolist() == [0, 0, 2]
    assert first.success.dtype == first.progress.dtype == torch.float32
    torch.testing.assert_close(first.success, torch.tensor([NAN, 0, 1]), equal_nan=True)
    torch.testing.assert_close(second.success, torch.tensor([NAN, 1, NAN, 0]), equal_nan=True)
    torch.testing.assert_close(first.progress, torch.tensor([NAN, 0.5, 1]), equal_nan=True)
    assert Dataset(tmp_path).judged_share() == {"success": pytest.approx(6 / 7), "progress": pytest.approx(2 / 7)}
    assert [fault.found for fault in dataset_faults(tmp_path)] == [
        "success is known of 6 of 7 frames",
        "progress is known of 2 of 7 frames",
    ]


DEPTH = {"dtype": "image", "shape": [8, 8, 1]}


@pytest.mark.parametrize(
    "features",
    [
        {"plan": {"dtype": "language", "shape": [1], "names": None}},
        {"note": {"dtype": "string", "shape": [1], "names": None}},
        {"nothing": {"dtype": "float32", "shape": [0], "names": None}},
        {"observation.images.depth": {**DEPTH, "info": {"is_depth_map": True}}},
        {"observation.images.depth": {**DEPTH, "info": {"video.is_depth_map": True}}},
        {"observation.images.depth": {**DEPTH, "video_info": {"video.is_depth_map": True}}},
        {"observation.images.depth": {**DEPTH, "video_info": {"is_depth_map": True}}},
        {"observation.images.depth": {**DEPTH, "is_depth_map": True, "info": None}},
    ],
)
def test_what_worldsim_has_no_use_for_is_left_out(tmp_path: Path, features: dict[str, Any]) -> None:
    foreign_dataset(tmp_path, features=features)
    dataset = Dataset(tmp_path)
    assert dataset.cameras == {"image": (8, 8)} and len(read(tmp_path)) == 2
    assert dataset.read_values().keys() == {"observation.state", "action", "task_index", "episode_index"}
    assert not errors(tmp_path)


@pytest.mark.parametrize(("shape", "size"), [([8, 8, 3], (8, 8)), ([3, 8, 8], (8, 8)), ([8, 6, 1], (8, 6)), ([1, 8, 6], (8, 6))])
def test_channels_may_come_first_and_pictures_be_grey(tmp_path: Path, shape: list[int], size: tuple[int, int]) -> None:
    foreign_dataset(tmp_path, features={"observation.image": {"dtype": "image", "shape": shape}})
    assert Dataset(tmp_path).cameras == {"image": size}


@pytest.mark.parametrize("shape", [[48, 64], [64], [48, 64, 2], [1, 48, 64, 3]])
def test_a_shape_that_is_no_picture_is_one_line(tmp_path: Path, shape: list[int]) -> None:
    foreign_dataset(tmp_path, features={"observation.images.top": {"dtype": "image", "shape": shape}})
    with pytest.raises(
        ValueError, match=r"observation.images.top has shape \[.*\], expected \[height, width, 3\]; correct"
    ) as raised:
        Dataset(tmp_path)
    assert "\n" not in str(raised.value)
    assert Dataset(tmp_path, cameras=["image"]).num_episodes == 2, "nobody asked for that camera"
    assert "observation.images.top has shape" in errors(tmp_path)["cameras"]


def times(*values: float) -> Callable[[Path], object]:
    """Other time stamps in the second episode, of frames 3 to 6 at 5 Hz."""
    return lambda root: foreign_dataset(root, timestamp=[0, 0.2, 0.4, *values])


@pytest.mark.parametrize(
    ("record", "kind", "message"),
    [
        (
            lambda root: foreign_dataset(root, **{"observation.state": [[0, 0]] * 4 + [[NAN, 0]] * 2 + [[0, 0]]}),
            "values",
            "file-000.parquet: 2 of 4 rows of observation.state are not finite in episode 1; delete or record",
        ),
        (
            lambda root: foreign_dataset(root, action=[0, 0, 0, 0, float("-inf"), 0, 0]),
            "values",
            "file-000.parquet: 1 of 4 rows of action are not finite in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, **{"next.reward": [0, 0, 0, 0, NAN, float("inf"), 0]}),
            "values",
            "file-000.parquet: 2 of 4 rows of next.reward are not finite in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, success=[0, 1, NAN, 0, NAN, 0.5, 2]),
            "values",
            "2 of 4 rows of success are neither 0 nor 1 nor unknown .* in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, success=[0, 1, 0, 0, 2**40, 0, 1]),
            "values",
            "1 of 4 rows of success are neither 0 nor 1 nor unknown .* in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, **{"next.success": [0, 1, NAN, 0, NAN, float("inf"), 1]}),
            "values",
            "1 of 4 rows of next.success are neither 0 nor 1 nor unknown .* in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, progress=[0, 1, NAN, -0.1, 1.1, float("-inf"), 0.5]),
            "values",
            r"3 of 4 rows of progress are neither in \[0, 1\] nor unknown .* in episode 1",
        ),
        (
            lambda root: foreign_dataset(root, frame_index=[0, 1, 2, 0, 2, 1, 3]),
            "order",
            "file-000.parquet: frame_index does not rise in the rows of episode 1; sort them",
        ),
        (
            lambda root: foreign_dataset(root, frame_index=[0, 1, 2, 0, 1, 1, 2]),
            "order",
            "frame_index does not rise in the rows of episode 1",
        ),
        (times(0, NAN, 0.4, 0.6), "values", "1 of 4 rows of timestamp are not finite in episode 1"),
        (times(0, 0.2, 0.6, 0.8), "time", "a time stamp of episode 1 is 200 ms, half a frame or more, from its place at 5 frames"),
        (times(0, 0.1, 0.2, 0.3), "time", "a time stamp of episode 1 is 300 ms"),
        (times(0, 0.2, 0.2, 0.4), "time", "a time stamp of episode 1 is 200 ms"),
    ],
)
def test_what_would_teach_something_wrong_is_refused(
    tmp_path: Path, record: Callable[[Path], object], kind: str, message: str
) -> None:
    record(tmp_path)
    assert len(list(Dataset(tmp_path).episodes([0]))) == 1, "the first episode is fine"
    with pytest.raises(ValueError, match=message) as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)
    assert errors(tmp_path).keys() == {kind}
    if kind != "tasks":
        assert "of episode 1" in str(raised.value) or "in episode 1" in str(raised.value)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("observation.state", [[0, 0]] * 3 + [[0], [0, 0, 0]] + [[0, 0]] * 2, "2 of . rows .* do not hold 2 values, one holds 1"),
        ("action", [[0], [0]] + [[0, 0]] * 5, ". of . rows of column action do not hold 1 values, one holds 2"),
        ("action", [None] + [0.0] * 6, "1 values of column action are missing, expected 1 per row"),
        ("action", ["left"] * 7, "column action holds string, expected numbers"),
        ("episode_index", ["0"] * 7, "column episode_index holds string, expected numbers"),
        ("success", ["yes"] * 7, "column success holds string, expected numbers"),
        ("progress", [[0.0, 1.0]] * 7, ". of . rows of column progress do not hold 1 values"),
        ("observation.image", [b"png"] * 7, r"column observation.image holds binary, expected pictures {bytes, path}"),
    ],
)
def test_columns_of_another_kind_are_one_line(tmp_path: Path, column: str, values: list[Any], message: str) -> None:
    """Ragged rows too, even if they have as many numbers in all as they should."""
    foreign_dataset(tmp_path, success=[0] * 7, progress=[0] * 7)
    table = pq.read_table(tmp_path / DATA_FILE)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array(values)), tmp_path / DATA_FILE)
    with pytest.raises(ValueError, match=f"file-000.parquet: {message}.*; (copy|record)") as raised:
        read(tmp_path)
    assert "\n" not in str(raised.value)
    assert re.search(message, errors(tmp_path)["files"])


def test_jitter_is_one_warning_with_its_size(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, timestamp=[0, 0.25, 0.4, 0, 0.2, 0.43, 0.6])
    with pytest.warns(
        UserWarning, match=r"time stamps of 2 of 2 episodes are uneven, by up to 50.0 ms; .* to last 200.0 ms"
    ) as seen:
        read(tmp_path)
    assert len(seen) == 1 and not errors(tmp_path)
    assert any("by up to 50.0 ms" in fault.found for fault in dataset_faults(tmp_path))


@pytest.mark.parametrize(
    "stamps",
    [
        [0, 0.2, 0.4, 0, 0.2, 0.4, 0.6],
        [7, 7.2, 7.4, 0, 0.2, 0.4, 0.6],  # not from zero
        [0, 0.20005, 0.4, 0, 0.2, 0.39995, 0.6],  # LeRobot accepts 0.1 ms
        [3000.2, 3000.4, 3000.6, 0, 0.2, 0.4, 0.6],  # float32 resolves 0.24 ms there
    ],
)
def test_even_time_stamps_pass(tmp_path: Path, stamps: list[float]) -> None:
    foreign_dataset(tmp_path, timestamp=np.array(stamps, np.float32))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(tmp_path)
    assert not errors(tmp_path)


@pytest.mark.parametrize(
    ("shown", "rate", "message"),
    [
        ([i / 20 for i in range(24)], 20, "shows 20 frames per second, the dataset says 10; encode it again at that rate"),
        ([i / 10 for i in range(12) if i != 7], 10, "shows no frame at 0.700 s, .*: 1 of 12 frames are lost"),
        ([i / 10 for i in range(9)], 10, "shows no frame at 0.900 s, .*: 3 of 12 frames are lost"),
    ],
)
def test_a_video_at_another_rate_or_without_a_frame_is_refused(tmp_path: Path, shown: list[float], rate: int, message: str) -> None:
    write(tmp_path, [smooth_episode(0)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    encode(tmp_path / "videos/observation.images.wrist/chunk-000/file-000.mp4", shown, rate=rate)
    with pytest.raises(ValueError, match=message):
        read(tmp_path)
    assert next(Dataset(tmp_path, cameras=["top"]).episodes()).images.keys() == {"top"}
    assert errors(tmp_path).keys() == {"videos"}


def test_missing_or_damaged_video(tmp_path: Path) -> None:
    dataset = write(tmp_path, [smooth_episode(0)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    video = tmp_path / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    video.write_bytes(b"not a video")
    with pytest.raises(ValueError, match="file-000.mp4 cannot be decoded"):
        next(dataset.episodes())
    assert "cannot be decoded" in errors(tmp_path)["videos"]
    video.unlink()
    with pytest.raises(FileNotFoundError, match="file-000.mp4 is missing"):
        next(dataset.episodes())
    assert "is missing" in errors(tmp_path)["videos"]
    with pytest.raises(FileNotFoundError, match="file-000.mp4 is missing"):
        Dataset(tmp_path)
    assert next(Dataset(tmp_path, cameras=["top"]).episodes()).images.keys() == {"top"}, "nobody asked for that camera"


@pytest.mark.parametrize("size", [(63, 65), (64, 65), (17, 33)])
def test_odd_sizes_survive_a_video(tmp_path: Path, size: tuple[int, int]) -> None:
    episode = smooth_episode(0, size=size)
    dataset = write(tmp_path, [episode], storage="video", cameras={"top": size, "wrist": size})
    got = next(dataset.episodes()).images["top"]
    assert got.shape == episode.images["top"].shape
    assert (got.float() - episode.images["top"].float()).abs().mean() < 3, "of 255; lossy, but not shifted"
    assert not dataset_faults(tmp_path)


def test_other_columns_may_be_missing(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)])
    for column in ("timestamp", "source", "next.reward", "success", "next.success", "progress"):
        drop_column(tmp_path / DATA_FILE, column)
    info = fmt.read_json(tmp_path / fmt.INFO)
    kept = {key: f for key, f in info["features"].items() if key in ("observation.state", "action") or "images" in key}
    fmt.write_json(tmp_path / fmt.INFO, {**info, "features": kept})
    (episode,) = read(tmp_path)
    assert episode.success.isnan().all() and episode.source == "unknown"


def test_a_nan_in_an_extra_column_is_nobodys_business(tmp_path: Path) -> None:
    foreign_dataset(tmp_path, force=[NAN] * 7)
    assert len(read(tmp_path)) == 2 and not errors(tmp_path)
    edit_column(tmp_path / DATA_FILE, "action", {0: 2.5})
    assert not [f for f in dataset_faults(tmp_path) if f.kind == "actions"], "nobody says that it has limits"
    (tmp_path / OVERLAY).write_text('action: {"*": {limits: [-1, 1]}}')
    assert [f.found for f in dataset_faults(tmp_path) if f.kind == "actions"] == [
        "actions lie beyond their limits, to which they are clamped: 0 14.3 % beyond -1..1 of all steps"
    ]
    (tmp_path / OVERLAY).write_text("action: {thumb: {unit: deg}}")
    (found,) = [f.found for f in dataset_faults(tmp_path) if f.kind == "actions"]
    assert "thumb" in found and OVERLAY.name in found
