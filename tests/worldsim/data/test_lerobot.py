"""The LeRobot dataset as we write it: exact round trips, statistics, clear errors. `test_journal.py` kills recordings."""

import json
import shutil
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_datasets import DATA_FILE, EPISODE_FILE, SETTINGS, drop_column, edit_info, random_episode, smooth_episode, write

from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.stats import image_statistics, merge_statistics, statistics


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


def test_a_dataset_of_which_nobody_judged_claims_nothing(tmp_path: Path) -> None:
    unknown = torch.full((6,), torch.nan)
    episode = replace(random_episode(0), success=unknown, progress=unknown)
    dataset = write(tmp_path, [episode], judged=False)
    got = next(dataset.episodes())
    assert got.success.dtype == torch.float32 and got.success.isnan().all() and got.progress.isnan().all()
    assert torch.equal(got.reward, episode.reward)
    assert not {"next.success", "success", "progress"} & (dataset.features.keys() | dataset.stats.keys())
    assert dataset.judged_share() == {"success": 0, "progress": 0}
    with DatasetWriter(tmp_path, **SETTINGS, judged=False) as writer:
        writer.add([episode])
        with pytest.raises(ValueError, match="success is known of 6 of 6 frames, while this dataset does not"):
            writer.add([random_episode(1)])
    assert Dataset(tmp_path).num_episodes == 2


def test_rows_mean_what_lerobot_expects(tmp_path: Path) -> None:
    episode = random_episode(3, t=4)
    write(tmp_path, [random_episode(1, t=2), episode])
    table = pq.read_table(tmp_path / "data/chunk-000/file-000.parquet").slice(3)
    assert table["next.done"].to_pylist() == [False] * 4 + [True]
    assert table["next.success"].to_pylist() == [*(episode.success[1:] == 1).tolist(), bool(episode.success[-1])]
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


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda root: shutil.rmtree(root), FileNotFoundError, "no LeRobot dataset at .*record one first"),
        (lambda root: (root / fmt.INFO).write_text("{"), ValueError, "info.json is not valid JSON"),
        (
            lambda root: edit_info(root, codebase_version="v1.6"),
            ValueError,
            "codebase_version v1.6, expected v2.0, v2.1 or v3.0; convert",
        ),
        (lambda root: edit_info(root, features={}), ValueError, "lacks the feature action and observation.state"),
        (
            lambda root: edit_info(root, total_episodes=3),
            ValueError,
            "counts 3 episodes, the files hold 2; worldsim doctor data=",
        ),
        (lambda root: (root / EPISODE_FILE).write_bytes(b"PAR1"), ValueError, "file-000.parquet is not a readable parquet file"),
        (lambda root: (root / fmt.TASKS).unlink(), FileNotFoundError, "tasks.parquet is missing"),
        (lambda root: drop_column(root / fmt.TASKS, "task"), ValueError, "has no column task"),
        (lambda root: edit_info(root, total_episodes=1), ValueError, "counts 1 episodes, the files hold 2; worldsim doctor"),
        (lambda root: edit_info(root, total_tasks=2), ValueError, "counts 2 tasks, meta/tasks.parquet holds 1; worldsim doctor"),
        (lambda root: edit_info(root, total_tasks=0), ValueError, r"episode 0 of .* has task_index 0, but the tasks are \[\]"),
        (lambda root: (root / DATA_FILE).unlink(), FileNotFoundError, "data/chunk-000/file-000.parquet is missing"),
        (lambda root: (root / DATA_FILE).write_bytes(b"x" * 99), ValueError, "is not a readable parquet file"),
        (
            lambda root: drop_column(root / DATA_FILE, "observation.images.top"),
            ValueError,
            "lacks the column observation.images.top",
        ),
        (
            lambda root: pq.write_table(pq.read_table(root / DATA_FILE).slice(1), root / DATA_FILE),
            ValueError,
            "file-000.parquet has 11 rows, its episodes in meta/episodes 12; copy it again",
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
        ({"cameras": {"a": (8, 3)}, "storage": "video"}, "camera a has 8 x 3 pixels, a video needs 4 x 4; use storage='image'"),
        ({"judged": False}, "next.success is .*'bool'.* there, None here"),
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
    with pytest.raises(ValueError, match="holds data/chunk-000/file-000.parquet but no meta/info.json"):
        DatasetWriter(tmp_path, **SETTINGS)
    assert (tmp_path / DATA_FILE).exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": {}}, "has the cameras none, expected top, wrist"),
        ({"action": torch.zeros(0, 2)}, "has no action"),
        ({"state": torch.full((6, 3), torch.nan)}, "state has a value that is not finite"),
        (
            {"progress": torch.full((6,), torch.nan)},
            r"progress is known of 0 of 6 frames, while this dataset says it of all;.*False",
        ),
        ({"progress": torch.full((6,), 1.5)}, "progress is 1.5 in a frame, expected a share from 0 to 1; NaN says"),
        ({"success": torch.full((6,), 0.5)}, "success is 0.5 in a frame, expected 0 or 1; NaN says that nobody knows"),
        ({"success": torch.zeros(5)}, r"success has shape \(5,\), expected \(6,\) for 5 actions"),
        ({"images": {"top": torch.zeros(6, 16, 24, 3), "wrist": torch.zeros(6, 8, 8, 3)}}, "camera top has dtype torch.float32"),
    ],
)
def test_episodes_that_do_not_fit_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with DatasetWriter(tmp_path, **SETTINGS) as writer, pytest.raises(ValueError, match=message):
        writer.add([replace(random_episode(0), **change)])
