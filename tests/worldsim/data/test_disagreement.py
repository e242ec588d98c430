"""A dataset whose metadata disagrees with its files or makes no sense is one line, of the reader and of the doctor."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_datasets import DATA_FILE, EPISODE_FILE, edit_column, edit_info, foreign_dataset, random_episode, smooth_episode, write

from worldsim.data import lerobot_format as fmt
from worldsim.data.faults import dataset_faults, print_faults
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore

SECOND = DATA_FILE.replace("000.parquet", "001.parquet")


def refused(root: Path, message: str) -> None:
    """Whoever reads the dataset is told so in one line, before any frame is read."""
    for read in (Dataset, lambda root: FrameStore.read(root, {"top": None})):
        with pytest.raises((ValueError, FileNotFoundError), match=message) as raised:
            read(root)
        assert "\n" not in str(raised.value)


def copied(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes())


def without_rows(path: Path, number: int) -> None:
    pq.write_table(pq.read_table(path).slice(number), path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: edit_info(root, total_episodes=1), "counts 1 episodes, the files hold 2; worldsim doctor data="),
        (lambda root: edit_info(root, total_episodes=3), "counts 3 episodes, the files hold 2; worldsim doctor data="),
        (lambda root: edit_info(root, total_frames=11), "counts 11 frames, its 2 episodes have 12; worldsim doctor data="),
        (
            lambda root: edit_column(root / EPISODE_FILE, "length", {0: 7}),
            "counts 12 frames, its 2 episodes have 13; worldsim doctor",
        ),
        (lambda root: edit_info(root, total_tasks=2), "counts 2 tasks, meta/tasks.parquet holds 1; worldsim doctor data="),
        (lambda root: (root / SECOND).unlink(), "file-001.parquet is missing; copy the dataset again"),
        (lambda root: without_rows(root / SECOND, 1), "file-001.parquet has 5 rows, its episodes in meta/episodes 6; copy"),
        (lambda root: copied(root / DATA_FILE, root / "data/chunk-000/file-007.parquet"), "file-007.parquet holds frames"),
    ],
)
def test_files_that_disagree_with_their_counters_are_refused(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    damage(tmp_path)
    refused(tmp_path, message)
    assert [fault for fault in dataset_faults(tmp_path) if fault.severity == "error"]


def test_rows_of_one_episode_that_another_has_are_refused_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0), random_episode(1)])
    edit_column(tmp_path / DATA_FILE, "episode_index", {5: 1})
    with pytest.raises(ValueError, match="file-000.parquet has 5 rows of episode 0, not 6; copy it again"):
        list(Dataset(tmp_path).episodes())
    edit_column(tmp_path / DATA_FILE, "episode_index", dict.fromkeys(range(12), 1))
    with pytest.raises(ValueError, match="file-000.parquet has 0 rows of episode 0, not 6; copy it again"):
        list(Dataset(tmp_path).episodes())


def feature(key: str, **changes: Any) -> Callable[[Path], None]:
    """Another description of a feature."""

    def change(root: Path) -> None:
        features = fmt.read_json(root / fmt.INFO)["features"]
        edit_info(root, features={**features, key: {**features[key], **changes}})

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / fmt.INFO).write_text("[]"), "holds a list, expected a JSON object"),
        (lambda root: edit_info(root, features=[]), r"has features \[\], expected an object with one entry per feature"),
        (lambda root: edit_info(root, features=None), "has features None, expected an object"),
        (lambda root: edit_info(root, features={"action": "float32"}), "has feature action 'float32', expected an object"),
        (feature("action", dtype=None), "has feature action .*, expected an object with dtype and shape"),
        (feature("action", shape="2"), "has action shape '2', expected a list of whole numbers"),
        (feature("action", shape=[-2]), r"has action shape \[-2\], expected a list of whole numbers"),
        (feature("action", shape=[]), r"has action float32 \[\], expected a shape with one number above 0"),
        (feature("observation.state", dtype="string"), r"has observation.state string \[3\], expected .* a dtype of numbers"),
        (feature("progress", shape=[2]), r"has progress shape \[2\], expected \[1\]"),
        (feature("observation.images.top", info="rgb"), "has observation.images.top info 'rgb', expected an object"),
        *(
            (lambda root, fps=fps: edit_info(root, fps=fps), f"has fps {fps!r}, expected a number")
            for fps in (None, 0, -5, "30", True)
        ),
        *(
            (lambda root, n=n: edit_info(root, total_episodes=n), f"has total_episodes {n!r}, expected")
            for n in ("1", -1, 1.5, None)
        ),
        (lambda root: edit_info(root, total_frames="6"), "has total_frames '6', expected a whole number from 0"),
        (lambda root: edit_info(root, total_tasks=None), "has total_tasks None, expected a whole number from 0"),
        (
            lambda root: edit_info(root, data_path="data/{episode_chunk}"),
            "has data_path 'data/{episode_chunk}', expected a path with",
        ),
        (lambda root: edit_info(root, data_path=5), "has data_path 5, expected a path with {chunk_index} and {file_index}"),
    ],
)
def test_an_info_that_makes_no_sense(tmp_path: Path, damage: Callable[[Path], object], message: str) -> None:
    write(tmp_path, [random_episode(0)])
    damage(tmp_path)
    refused(tmp_path, f"meta/info.json {message}.*; .*copy the dataset again")
    with pytest.raises(ValueError, match=message) as raised:
        print_faults(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("length", None, "a whole number from 0"),
        ("length", -6, "a whole number from 0"),
        ("length", "six", "a whole number from 0"),
        ("episode_index", None, "a whole number from 0"),
        ("data/chunk_index", None, "a whole number from 0"),
        ("data/file_index", 0.0, "a whole number from 0"),
        ("videos/observation.images.top/file_index", -1, "a whole number from 0"),
        ("videos/observation.images.top/from_timestamp", None, "seconds from 0"),
        ("videos/observation.images.top/from_timestamp", float("nan"), "seconds from 0"),
    ],
)
def test_an_episode_row_that_makes_no_sense(tmp_path: Path, column: str, value: Any, expected: str) -> None:
    write(tmp_path, [smooth_episode(0)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    table = pq.read_table(tmp_path / EPISODE_FILE)
    pq.write_table(table.set_column(table.column_names.index(column), column, pa.array([value])), tmp_path / EPISODE_FILE)
    message = f"meta/episodes/chunk-000/file-000.parquet has {column} {value!r} of episode .*, expected {expected}"
    refused(tmp_path, f"{message}; copy or record it again")
    assert any(fault.severity == "error" and column in fault.found and fault.remedy for fault in dataset_faults(tmp_path))


@pytest.mark.parametrize(
    ("numbers", "sentences", "message"),
    [
        ([0, None], ["lift", "push"], "has task None, 'push', expected a whole number from 0 and a sentence"),
        ([0, -1], ["lift", "push"], "has task -1, 'push', expected"),
        (["0", "1"], ["lift", "push"], "has task '0', 'lift', expected"),
        ([0, 1], ["lift", None], "has task 1, None, expected"),
        ([0, 1], [3, 4], "has task 0, 3, expected"),
        ([1, 1], ["lift", "push"], r"gives one number to several tasks, \[1, 1\]"),
    ],
)
def test_tasks_that_make_no_sense(tmp_path: Path, numbers: list[Any], sentences: list[Any], message: str) -> None:
    foreign_dataset(tmp_path)
    pq.write_table(pa.table({"task_index": numbers, "task": sentences}), tmp_path / fmt.TASKS)
    with pytest.raises(ValueError, match=f"meta/tasks.parquet {message}.*; copy the dataset again"):
        Dataset(tmp_path)
    assert any(fault.severity == "error" and "meta/tasks.parquet" in fault.found for fault in dataset_faults(tmp_path))


def test_a_damaged_page_is_one_line(tmp_path: Path) -> None:
    """The footer is whole, so the file opens; the episodes in it do not."""
    write(tmp_path, [random_episode(0)])
    content = bytearray((tmp_path / EPISODE_FILE).read_bytes())
    content[4:2000] = b"x" * 1996
    (tmp_path / EPISODE_FILE).write_bytes(content)
    refused(tmp_path, r"meta/episodes/chunk-000/file-000.parquet cannot be read \(.*; copy it again")
    assert any("cannot be read" in fault.found for fault in dataset_faults(tmp_path))


def test_statistics_that_make_no_sense(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_episode(0)])
    fmt.write_json(tmp_path / fmt.STATS, {"action": [1]})
    with pytest.raises(ValueError, match="stats.json holds no statistics by feature; remove it"):
        _ = dataset.stats
