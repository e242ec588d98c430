"""Layouts of every age are read alike, and what lies about in folders is not read."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from toy_datasets import (
    DATA_FILE,
    EPISODE_FILE,
    as_v2,
    edit_column,
    edit_info,
    foreign_dataset,
    random_episode,
    smooth_episode,
    write,
)

from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("v3") / "arm"
    cameras = {"top": (64, 64), "wrist": (64, 64)}
    write(root, *([smooth_episode(seed, t=4 + seed)] for seed in range(3)), storage="video", cameras=cameras)
    return root


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_layouts_are_read_like_the_newest(recorded: Path, tmp_path: Path, version: str) -> None:
    as_v2(recorded, tmp_path, version=version)
    old, new = Dataset(tmp_path), Dataset(recorded)
    assert old.state_names == new.state_names == ("x", "y", "z") and old.action_names == ("dx", "dy")
    assert (old.lengths, old.num_frames, old.tasks, old.cameras) == (new.lengths, new.num_frames, new.tasks, new.cameras)
    for one, other in zip(old.episodes(), new.episodes(), strict=True):
        assert torch.equal(one.state, other.state) and torch.equal(one.action, other.action)
        assert torch.equal(one.success, other.success) and one.instruction == other.instruction
        assert all(torch.equal(one.images[camera], other.images[camera]) for camera in ("top", "wrist"))
    assert [fault.found for fault in dataset_faults(tmp_path) if fault.severity == "error"] == []


def test_places_that_info_does_not_name_are_lerobots_own(recorded: Path, tmp_path: Path) -> None:
    as_v2(recorded, tmp_path / "old")
    shutil.copytree(recorded, tmp_path / "new")
    for root in (tmp_path / "old", tmp_path / "new"):
        edit_info(root, data_path=None, video_path=None)
        assert [len(episode) for episode in Dataset(root).episodes()] == [4, 5, 6]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ('{"episode_index": 1, "length"', "episodes.jsonl is not valid JSON in line 2"),
        ('{"episode_index": 1, "tasks": []}', "has length None of episode 1, expected a whole number from 0"),
        ("[1, 2]", "holds a list in line 2, expected an object"),
    ],
)
def test_a_damaged_list_is_one_line(recorded: Path, tmp_path: Path, line: str, expected: str) -> None:
    as_v2(recorded, tmp_path)
    path = tmp_path / "meta/episodes.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], line, lines[2]]))
    with pytest.raises(ValueError, match=expected):
        Dataset(tmp_path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="episodes.jsonl is missing; copy the dataset again"):
        Dataset(tmp_path)


def test_the_minor_number_of_a_version_does_not_matter(tmp_path: Path) -> None:
    foreign_dataset(tmp_path)
    edit_info(tmp_path, codebase_version="v3.1")
    assert Dataset(tmp_path).num_episodes == 2


def test_what_file_managers_leave_behind_is_no_recording(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)])
    for file in ("data/chunk-000/._file-000.parquet", "meta/episodes/chunk-000/._file-000.parquet", "data/chunk-000/.DS_Store"):
        (tmp_path / file).write_bytes(b"\0\5\26\7")
    assert len(next(Dataset(tmp_path).episodes())) == 5
    assert not dataset_faults(tmp_path)


def test_an_episode_of_several_tasks_is_several(tmp_path: Path) -> None:
    """Frames 3 to 6 are an episode; its last two are under the other task, and what it says of frames stays with them."""
    frames = foreign_dataset(tmp_path, **{"next.reward": [0, 1, 9, 3, 4, 5, 6]})
    edit_column(tmp_path / DATA_FILE, "task_index", {5: 1, 6: 1})
    data = Dataset(tmp_path)
    assert data.num_episodes == 3 and data.lengths == [3, 2, 2] and data.episode_indices == [0, 1, 1] and data.num_frames == 7
    _, first, second = data.episodes()
    assert (first.instruction, second.instruction) == ("push", "lift")
    assert first.state.tolist() == [[6, 7], [8, 9]] and second.state.tolist() == [[10, 11], [12, 13]]
    assert first.reward.tolist() == [3] and second.reward.tolist() == [5]
    assert np.array_equal(first.images["image"].numpy(), frames[3:5])
    assert np.array_equal(second.images["image"].numpy(), frames[5:])
    clips = [np.concatenate([*data.clips("image", index)]) for index in (1, 2)]
    assert np.array_equal(np.concatenate(clips), frames[3:]), "as the cache of frames reads them"
    assert len({*data.sources("image")}) == 3


def test_parts_of_an_episode_in_a_video(tmp_path: Path) -> None:
    write(tmp_path, [smooth_episode(0, t=7)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    whole = next(Dataset(tmp_path).episodes())
    edit_column(tmp_path / DATA_FILE, "task_index", {row: 1 for row in range(5, 8)})
    tasks = pq.read_table(tmp_path / "meta/tasks.parquet").to_pydict()
    two = pa.table({"task_index": [0, 1], "task": [*tasks["task"], "then rest"]})
    pq.write_table(two, tmp_path / "meta/tasks.parquet")
    edit_info(tmp_path, total_tasks=2)
    listed = pq.read_table(tmp_path / EPISODE_FILE).drop_columns(["tasks"])
    pq.write_table(listed.append_column("tasks", pa.array([[*tasks["task"], "then rest"]])), tmp_path / EPISODE_FILE)
    first, second = Dataset(tmp_path).episodes()
    assert torch.equal(torch.cat([first.images["top"], second.images["top"]]), whole.images["top"])
    assert (len(first), len(second), second.instruction) == (4, 2, "then rest")


def test_a_single_frame_is_left_out_and_said(tmp_path: Path) -> None:
    foreign_dataset(tmp_path)
    edit_column(tmp_path / DATA_FILE, "task_index", {3: 1})
    with pytest.warns(
        UserWarning, match="1 episodes, or parts of one .* have a single frame and thus no action; they are left out: 1"
    ):
        data = Dataset(tmp_path)
    assert data.lengths == [3, 3]


def test_a_file_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    foreign_dataset(tmp_path)
    episodes = Dataset(tmp_path).episodes()
    next(episodes)
    edit_column(tmp_path / DATA_FILE, "action", {6: 0.0})
    with pytest.raises(ValueError, match="file-000.parquet has changed while .* was read; wait until nobody writes it"):
        next(episodes)


def test_a_success_that_the_last_action_brings_is_the_last_frames(tmp_path: Path) -> None:
    """As recorders have it who say it once, in the last row, of which no frame follows."""
    foreign_dataset(tmp_path, **{"next.success": [0, 0, 1, 0, 0, 0, 0]})
    first, second = Dataset(tmp_path).episodes()
    assert first.success.tolist()[1:] == [0, 1] and second.success.tolist()[1:] == [0, 0, 0] and first.success[:1].isnan()


def test_sentences_may_hold_what_else_breaks_lines(recorded: Path, tmp_path: Path) -> None:
    as_v2(recorded, tmp_path)
    path = tmp_path / "meta/tasks.jsonl"
    path.write_text(path.read_text().replace("push the block", "push\u2028the block"), encoding="utf-8")
    assert Dataset(tmp_path).tasks == ("push\u2028the block",)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="tasks.jsonl is not text in UTF-8"):
        Dataset(tmp_path)


@pytest.mark.parametrize("size", [0, None, "many"])
def test_chunks_of_no_size_are_told(recorded: Path, tmp_path: Path, size: object) -> None:
    as_v2(recorded, tmp_path)
    edit_info(tmp_path, chunks_size=size)
    with pytest.raises(ValueError, match="has chunks_size .*, expected a whole number above 0"):
        Dataset(tmp_path)
