"""The LeRobot dataset: exact round trips, commits that survive a kill, statistics, data by others, and clear errors."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from worldsim.data import lerobot_format as fmt
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.stats import image_statistics, merge_statistics, statistics
from worldsim.data.video import encode_png
from worldsim.types import Episode

SETTINGS: dict[str, Any] = {
    "fps": 10,
    "robot_type": "pusher",
    "state_names": ["x", "y", "z"],
    "action_names": ["dx", "dy"],
    "cameras": {"top": (16, 24), "wrist": (8, 8)},
}


def random_episode(seed: int, t: int = 5, instruction: str = "push the block") -> Episode:
    g = torch.Generator().manual_seed(seed)
    cameras = SETTINGS["cameras"].items()
    return Episode(
        images={name: torch.randint(0, 256, (t + 1, *size, 3), dtype=torch.uint8, generator=g) for name, size in cameras},
        state=torch.randn(t + 1, 3, generator=g),
        action=torch.rand(t, 2, generator=g) * 2 - 1,
        reward=torch.randn(t, generator=g),
        success=torch.rand(t + 1, generator=g) > 0.5,
        progress=torch.rand(t + 1, generator=g),
        instruction=instruction,
        source="expert" if seed % 2 else "policy",
    )


def smooth_episode(seed: int, t: int = 11) -> Episode:
    """Frames of slow colour waves, which a video codec keeps well; each episode has another phase."""
    episode = random_episode(seed, t)

    def waves(h: int, w: int) -> torch.Tensor:
        phase = torch.arange(t + 1).view(-1, 1, 1, 1) / 10 + 2 * seed
        grid = torch.linspace(0, 2, w).view(1, 1, w, 1) + torch.linspace(0, 1, h).view(1, h, 1, 1)
        return (127 + 100 * torch.sin(grid + phase + torch.arange(3))).to(torch.uint8)

    return replace(episode, images={name: waves(64, 64) for name in episode.images})


def assert_equal(got: Episode, expected: Episode, *, images: bool = True) -> None:
    for field in fields(Episode):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if field.name == "images":
            assert a.keys() == b.keys()
            assert not images or all(torch.equal(a[name], b[name]) for name in a)
        elif isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype and torch.equal(a, b), field.name
        else:
            assert a == b, field.name


def write(root: Path, *flushes: list[Episode], **settings: Any) -> Dataset:
    with DatasetWriter(root, **{**SETTINGS, **settings}) as writer:
        for flush in flushes:
            writer.add(flush)
    return Dataset(root)


def test_round_trip_is_exact(tmp_path: Path) -> None:
    episodes = [random_episode(i, t=1 + i, instruction=f"task {i % 2}") for i in range(5)]
    dataset = write(tmp_path, episodes[:2], episodes[2:])
    assert (dataset.num_episodes, dataset.num_frames) == (5, 2 + 3 + 4 + 5 + 6)
    assert dataset.tasks == ("task 0", "task 1")
    assert dataset.cameras == SETTINGS["cameras"] and dataset.state_names == ("x", "y", "z")
    for got, expected in zip(dataset.episodes(), episodes, strict=True):
        assert_equal(got, expected)
    for got, index in zip(dataset.episodes([3, 0, 3]), [3, 0, 3], strict=True):
        assert_equal(got, episodes[index])


def test_one_dimensional_state_and_action_round_trip(tmp_path: Path) -> None:
    episode = random_episode(0)
    episode = replace(episode, images={}, state=episode.state[:, :1], action=episode.action[:, :1])
    dataset = write(tmp_path, [episode], state_names=["x"], action_names=["dx"], cameras={})
    assert_equal(next(dataset.episodes()), episode)
    assert dataset.stats.keys() == {"observation.state", "action", *fmt.SCALARS} - {"source"}


def test_rows_mean_what_lerobot_expects(tmp_path: Path) -> None:
    episode = random_episode(3, t=4)
    write(tmp_path, [random_episode(1, t=2), episode])
    table = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet").slice(3)
    assert table["next.done"].to_pylist() == [False] * 4 + [True]
    assert table["next.success"].to_pylist() == [*episode.success[1:].tolist(), bool(episode.success[-1])]
    assert table["next.reward"].to_pylist() == [*episode.reward.tolist(), 0.0]
    assert table["action"].to_pylist() == [*episode.action.tolist(), episode.action[-1].tolist()]
    assert table["index"].to_pylist() == [3, 4, 5, 6, 7]
    assert np.allclose(table["timestamp"].to_numpy(), [0, 0.1, 0.2, 0.3, 0.4])
    row = pq.read_table(tmp_path / "meta/episodes/chunk-000/file-000.parquet").to_pylist()[1]
    assert (row["dataset_from_index"], row["dataset_to_index"], row["length"], row["tasks"]) == (3, 8, 5, ["push the block"])


def test_video_round_trip(tmp_path: Path) -> None:
    episodes = [smooth_episode(i, t=7 + 4 * i) for i in range(4)]
    dataset = write(tmp_path, episodes[:3], episodes[3:], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    order = [2, 0, 3, 1]
    for got, index in zip(dataset.episodes(order), order, strict=True):
        assert_equal(got, episodes[index], images=False)
        for name, frames in got.images.items():
            assert frames.shape == episodes[index].images[name].shape
            error = (frames.float() - episodes[index].images[name].float()).square().mean(dim=(1, 2, 3)).max()
            assert 10 * torch.log10(255**2 / error) > 32  # dB, worst frame; another episode's frames give below 15


class Killed(BaseException):
    """Stands for a killed process: nothing in the writer may catch it."""


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_kill_between_any_two_files_loses_nothing_committed(tmp_path: Path, monkeypatch: Any, storage: Any) -> None:
    rename, episodes = os.replace, [smooth_episode(i, t=3) for i in range(4)]
    settings = {"storage": storage, "cameras": {"top": (64, 64), "wrist": (64, 64)}}
    renames = 5 + 2 * (storage == "video")  # data, episodes, tasks, stats, info; and one video per camera
    for survived in range(renames):
        root = tmp_path / str(survived)
        write(root, episodes[:2], **settings)
        with DatasetWriter(root, **{**SETTINGS, **settings}) as writer:
            count = iter(range(renames))

            def killed_rename(source: Path, target: Path, count: Any = count, limit: int = survived) -> None:
                if next(count) == limit:
                    raise Killed
                rename(source, target)

            monkeypatch.setattr(os, "replace", killed_rename)
            with pytest.raises(Killed):
                writer.add([replace(episode, instruction="a new task") for episode in episodes[2:]])
            monkeypatch.setattr(os, "replace", rename)
        dataset = Dataset(root)
        assert (dataset.num_episodes, dataset.num_frames, dataset.tasks) == (2, 8, ("push the block",))
        for got, expected in zip(dataset.episodes(), episodes, strict=False):
            assert_equal(got, expected, images=storage == "image")
        assert all(stats["count"] == 8 for stats in dataset.stats.values())
        assert np.allclose(dataset.stats["action"]["q99"], np.quantile(dataset.read_values()["action"], 0.99, axis=0))

        with DatasetWriter(root, **{**SETTINGS, **settings}) as writer:
            assert writer.num_episodes == 2 and not list(root.rglob("*.tmp"))
            assert len(list(root.glob("data/*/*.parquet"))) == 1
            writer.add(episodes[2:])
        for got, expected in zip(Dataset(root).episodes(), episodes, strict=True):
            assert_equal(got, expected, images=storage == "image")
        assert Dataset(root).stats["action"]["count"] == 16


def test_a_kill_before_the_first_commit_can_be_resumed(tmp_path: Path) -> None:
    DatasetWriter(tmp_path, **SETTINGS).close()
    leftover = tmp_path / "data/chunk-000/file-000.parquet"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half of a flush")
    assert Dataset(tmp_path).num_episodes == 0 and not list(Dataset(tmp_path).episodes()) and not Dataset(tmp_path).stats
    assert_equal(next(write(tmp_path, [random_episode(0)]).episodes()), random_episode(0))


def test_a_failed_flush_leaves_the_writer_usable(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, **SETTINGS) as writer:
        with pytest.raises(ValueError, match="episode 1 of this flush: state has shape"):
            writer.add([random_episode(0), replace(random_episode(1), state=torch.zeros(6, 4))])
        writer.add([])
        assert writer.num_episodes == 0
        writer.add([random_episode(1)])
        assert writer.num_episodes == 1
        writer.close()
        writer.close()
        with pytest.raises(ValueError, match="is closed"):
            writer.add([random_episode(2)])


def test_tasks_are_the_pandas_index(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0, instruction="b"), random_episode(1, instruction="a")])
    schema = pq.read_schema(tmp_path / fmt.TASKS)
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]
    pandas = pytest.importorskip("pandas")
    tasks = pandas.read_parquet(tmp_path / fmt.TASKS)
    assert tasks.index.tolist() == ["b", "a"] and tasks.index.name == "task" and tasks.columns.tolist() == ["task_index"]
    assert tasks.loc["a"].task_index == 1 and tasks.iloc[0].name == "b"


def test_statistics_equal_numpys(tmp_path: Path) -> None:
    episodes = [random_episode(i, t=3 + i) for i in range(4)]
    stats = write(tmp_path, episodes[:1], episodes[1:3], episodes[3:]).stats
    state = np.concatenate([e.state.numpy() for e in episodes]).astype(np.float64)
    action = np.concatenate([np.concatenate([e.action, e.action[-1:]]) for e in episodes]).astype(np.float64)
    for key, values in [("observation.state", state), ("action", action)]:
        expected = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
        expected |= {f"q{100 * q:02.0f}": np.quantile(values, q, axis=0) for q in (0.01, 0.1, 0.5, 0.9, 0.99)}
        assert stats[key].keys() == {*expected, "count"} and stats[key]["count"] == len(values)
        for name, value in expected.items():
            assert np.allclose(stats[key][name], value, rtol=1e-12), (key, name)
    frames = np.concatenate([e.images["top"].numpy() for e in episodes]) / 255  # all are sampled: no episode exceeds 16 frames
    image = stats["observation.images.top"]
    assert image["mean"].shape == (3, 1, 1) and image["count"] == len(frames)
    assert np.allclose(image["mean"].ravel(), frames.mean(axis=(0, 1, 2))) and np.allclose(
        image["std"].ravel(), frames.std(axis=(0, 1, 2))
    )
    assert np.allclose(image["q90"].ravel(), np.quantile(frames, 0.9, axis=(0, 1, 2)), atol=2 / 255)


def test_image_statistics_by_hand() -> None:
    frames = np.zeros((1, 1, 4, 3), np.uint8)
    frames[0, 0, :, 0] = [0, 51, 51, 102]  # red 0, 0.2, 0.2, 0.4: mean 0.2, variance (0.04 + 0.04) / 4 = 0.02
    stats = {name: value.ravel()[0] for name, value in image_statistics(frames).items()}
    assert stats == pytest.approx(
        {"min": 0, "max": 0.4, "mean": 0.2, "std": 0.02**0.5, "count": 1, "q01": 0, "q10": 0, "q50": 0.2, "q90": 0.4, "q99": 0.4}
    )


def test_merging_statistics_is_exact_for_moments() -> None:
    values = np.random.default_rng(0).normal(size=(50, 3))
    merged, whole = (
        merge_statistics([statistics(values[:7]), statistics(values[7:20]), statistics(values[20:])]),
        statistics(values),
    )
    for name in ("min", "max", "mean", "std", "count"):
        assert np.allclose(merged[name], whole[name], rtol=1e-12), name
    with pytest.raises(ValueError, match="at least one part"):
        merge_statistics([])


def foreign_dataset(root: Path, *, tasks_column: str = "__index_level_0__", **extra: list[float]) -> np.ndarray:
    """A dataset as others write it: two episodes of 3 and 4 frames in one file and one row group, without our own columns."""
    frames = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 3)).astype(np.uint8)
    rows = {
        "observation.state": np.arange(14, dtype=np.float32).reshape(7, 2).tolist(),
        "action": [float(i) for i in range(7)],
        "observation.image": [{"bytes": png, "path": None} for png in encode_png(frames)],
        "task_index": [1, 1, 1, 0, 0, 0, 0],
        "episode_index": [0, 0, 0, 1, 1, 1, 1],
        **extra,
    }
    features = {
        "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["a", "b"]}},
        "action": {"dtype": "float32", "shape": [1], "names": None},
        "observation.image": {"dtype": "image", "shape": [3, 8, 8], "names": ["channels", "height", "width"]},
        **{key: {"dtype": "int64", "shape": [1], "names": None} for key in ("task_index", "episode_index")},
        **{key: {"dtype": "float32", "shape": [1], "names": None} for key in extra},
    }
    info = {"codebase_version": "v3.0", "fps": 5, "total_episodes": 2, "total_frames": 7, "total_tasks": 2, "features": features}
    fmt.write_json(root / fmt.INFO, info | {"data_path": fmt.DATA_PATH, "video_path": None})
    episodes = {"episode_index": [1, 0], "length": [4, 3], "data/chunk_index": [0, 0], "data/file_index": [0, 0]}
    tables = {
        "data/chunk-000/file-000.parquet": rows,
        "meta/episodes/chunk-000/file-000.parquet": episodes,
        "meta/tasks.parquet": {"task_index": [1, 0], tasks_column: ["lift", "push"]},
    }
    for path, columns in tables.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / path)
    return frames


@pytest.mark.parametrize("tasks_column", ["task", "__index_level_0__"])
def test_datasets_by_others_are_read(tmp_path: Path, tasks_column: str) -> None:
    frames = foreign_dataset(tmp_path, tasks_column=tasks_column)
    dataset = Dataset(tmp_path)
    assert dataset.cameras == {"image": (8, 8)} and dataset.state_names == ("a", "b") and dataset.action_names == ("0",)
    first, second = dataset.episodes()
    assert np.array_equal(second.images["image"].numpy(), frames[3:])
    assert second.state.tolist() == [[6, 7], [8, 9], [10, 11], [12, 13]] and second.action.tolist() == [[3], [4], [5]]
    assert (first.instruction, second.instruction) == ("lift", "push")
    assert not second.success.any() and second.reward.tolist() == [0, 0, 0] and second.progress.tolist() == [0] * 4
    assert second.source == "unknown" and len(first) == 2
    assert Dataset(tmp_path, cameras=[]).episodes([0]).__next__().images == {}


def test_reward_success_and_nan_progress_of_others(tmp_path: Path) -> None:
    foreign_dataset(
        tmp_path, **{"next.reward": [0, 1, 9, 0, 0, 2, 9], "next.success": [0, 1, 0, 1, 0, 0, 0], "progress": [np.nan] * 7}
    )
    first, second = Dataset(tmp_path).episodes()
    assert first.reward.tolist() == [0, 1] and second.reward.tolist() == [0, 0, 2]
    assert first.success.tolist() == [False, False, True] and second.success.tolist() == [False, True, False, False]
    assert second.progress.tolist() == [0, 0, 0, 0]


def _edit_info(root: Path, **changes: Any) -> None:
    fmt.write_json(root / fmt.INFO, {**fmt.read_json(root / fmt.INFO), **changes})


def _drop_column(path: Path, column: str) -> None:
    pq.write_table(pq.read_table(path).drop_columns([column]), path)


DATA_FILE, EPISODE_FILE = "data/chunk-000/file-000.parquet", "meta/episodes/chunk-000/file-000.parquet"


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda root: shutil.rmtree(root), FileNotFoundError, "no LeRobot dataset at .*record one first"),
        (lambda root: (root / fmt.INFO).write_text("{"), ValueError, "info.json is not valid JSON"),
        (lambda root: _edit_info(root, codebase_version="v2.1"), ValueError, "codebase_version v2.1, expected v3.0; convert"),
        (lambda root: _edit_info(root, features={}), ValueError, "lacks the feature action and observation.state"),
        (lambda root: _edit_info(root, total_episodes=3), ValueError, "lacks episode 2 of 3"),
        (lambda root: (root / EPISODE_FILE).write_bytes(b"PAR1"), ValueError, "file-000.parquet is not a readable parquet file"),
        (lambda root: (root / fmt.TASKS).unlink(), FileNotFoundError, "tasks.parquet is missing"),
        (lambda root: _drop_column(root / fmt.TASKS, "task"), ValueError, "has no column task"),
        (lambda root: _edit_info(root, total_tasks=2), ValueError, "must number its tasks from 0 to 1"),
        (lambda root: _edit_info(root, total_tasks=0), ValueError, "episode 0 of .* has task_index 0, but there are 0 tasks"),
        (lambda root: (root / DATA_FILE).unlink(), FileNotFoundError, "data/chunk-000/file-000.parquet is missing"),
        (lambda root: (root / DATA_FILE).write_bytes(b"x" * 99), ValueError, "is not a readable parquet file"),
        (
            lambda root: _drop_column(root / DATA_FILE, "observation.images.top"),
            ValueError,
            "lacks the column observation.images.top",
        ),
        (
            lambda root: pq.write_table(pq.read_table(root / DATA_FILE).slice(1), root / DATA_FILE),
            ValueError,
            "has 5 rows of episode 0, not 6",
        ),
    ],
)
def test_each_damage_has_a_clear_error(tmp_path: Path, damage: Callable[[Path], object], error: Any, message: str) -> None:
    root = tmp_path / "dataset"
    write(root, [random_episode(0), random_episode(1)])
    damage(root)
    with pytest.raises(error, match=message) as raised:
        list(Dataset(root).episodes())
    assert "\n" not in str(raised.value)


def test_wrong_requests_have_clear_errors(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_episode(0)])
    with pytest.raises(ValueError, match="has no camera side; choose among top, wrist"):
        Dataset(tmp_path, cameras=["top", "side"])
    with pytest.raises(IndexError, match="has no episode 1; it has 1 episodes"):
        dataset.episodes([0, 1])


def test_missing_or_damaged_video(tmp_path: Path) -> None:
    dataset = write(tmp_path, [smooth_episode(0)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    video = tmp_path / "videos/observation.images.wrist/chunk-000/file-000.mp4"
    video.write_bytes(b"not a video")
    with pytest.raises(ValueError, match="file-000.mp4 cannot be decoded"):
        next(dataset.episodes())
    video.unlink()
    with pytest.raises(FileNotFoundError, match="file-000.mp4 is missing"):
        next(dataset.episodes())
    assert next(Dataset(tmp_path, cameras=["top"]).episodes()).images.keys() == {"top"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fps": 20}, "fps is 10 there, 20 here; use the same settings or another folder"),
        ({"robot_type": "arm"}, "robot_type is pusher there, arm here"),
        ({"action_names": ["dx", "dz"]}, "action is .*'dy'.* there, .*'dz'.* here"),
        ({"cameras": {"top": (16, 24)}}, "observation.images.wrist is .* there, None here"),
        ({"storage": "video"}, "observation.images.top is .*'image'.* there, .*'video'.* here"),
        ({"storage": "zip"}, "storage must be 'image' or 'video', got 'zip'"),
        ({"fps": 0.5}, "fps must be a positive whole number"),
        ({"state_names": []}, "state_names and action_names must not be empty"),
        ({"cameras": {"a/b": (8, 8)}}, "camera name 'a/b' must not"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    write(tmp_path, [random_episode(0)])
    with pytest.raises(ValueError, match=message):
        DatasetWriter(tmp_path, **{**SETTINGS, **settings})
    assert_equal(next(Dataset(tmp_path).episodes()), random_episode(0))


def test_a_folder_with_data_but_no_info_is_left_alone(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)])
    (tmp_path / fmt.INFO).unlink()
    with pytest.raises(ValueError, match="holds data but no meta/info.json"):
        DatasetWriter(tmp_path, **SETTINGS)
    assert (tmp_path / DATA_FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "has the cameras none, expected top, wrist"),
        ({"action": torch.zeros(0, 2)}, "has no action"),
        ({"progress": torch.full((6,), torch.nan)}, "progress has a value that is not finite"),
        ({"success": torch.zeros(5, dtype=torch.bool)}, r"success has shape \(5,\), expected \(6,\) for 5 actions"),
        ({"images": {"top": torch.zeros(6, 16, 24, 3), "wrist": torch.zeros(6, 8, 8, 3)}}, "camera top has dtype torch.float32"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with DatasetWriter(tmp_path, **SETTINGS) as writer, pytest.raises(ValueError, match=message):
        writer.add([replace(random_episode(0), **change)])
