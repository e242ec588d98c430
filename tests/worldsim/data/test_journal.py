"""Nothing that was recorded is ever lost: killed recordings, and datasets whose files and counters disagree."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from toy_datasets import (
    EPISODE_FILE,
    SETTINGS,
    Killed,
    edit_column,
    edit_info,
    files,
    kill_at_rename,
    random_episode,
    smooth_episode,
    write,
)

from worldsim.data import journal
from worldsim.data import lerobot_format as fmt
from worldsim.data.counters import mend_counters
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset, DatasetWriter


@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_kill_between_any_two_files_loses_nothing_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Any
) -> None:
    episodes = [smooth_episode(i, t=3, size=(16, 16)) for i in range(4)]
    settings = {"storage": storage, "cameras": {"top": (16, 16), "wrist": (16, 16)}}
    renames = 6 + 2 * (storage == "video")  # journal, data, episodes, tasks, stats, info; and one video per camera
    for survived in range(renames):
        root = tmp_path / str(survived)
        write(root, episodes[:2], **settings)
        before = files(root)
        with DatasetWriter(root, **{**SETTINGS, **settings}) as writer, monkeypatch.context() as patch:
            kill_at_rename(patch, survived)
            with pytest.raises(Killed):
                writer.add([replace(episode, instruction="a new task") for episode in episodes[2:]])
        left = files(root)
        dataset = Dataset(root)
        assert (dataset.num_episodes, dataset.num_frames, dataset.tasks) == (2, 8, ("push the block",))
        assert [len(episode) for episode in dataset.episodes()] == [3, 3]
        assert all(stats["count"] == 8 for stats in dataset.stats.values())
        assert np.allclose(dataset.stats["action"]["q99"], np.quantile(dataset.read_values()["action"], 0.99, axis=0))
        assert not [fault for fault in dataset_faults(root) if fault.severity == "error"]

        with DatasetWriter(root, **{**SETTINGS, **settings}) as writer:
            assert writer.num_episodes == 2 and not list(root.glob("[!.]*/**/*.tmp"))
            kept = {
                name.removeprefix(".orphans/"): content for name, content in files(root).items() if name.startswith(".orphans/")
            }
            assert kept == {name: left[name] for name in left.keys() - before.keys() - {"meta/journal.json"}}, "moved, not lost"
            writer.add(episodes[2:])
        for got, expected in zip(Dataset(root).episodes(), episodes, strict=True):
            assert torch.equal(got.action, expected.action) and got.instruction == expected.instruction
        assert Dataset(root).stats["action"]["count"] == 16
        assert not (root / journal.JOURNAL).exists()


def test_orphans_never_overwrite_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        with DatasetWriter(tmp_path, **SETTINGS) as writer, monkeypatch.context() as patch:
            kill_at_rename(patch, 2)  # after the data file
            with pytest.raises(Killed):
                writer.add([random_episode(seed)])
    DatasetWriter(tmp_path, **SETTINGS).close()
    names = sorted(path.name for path in (tmp_path / ".orphans/data/chunk-000").iterdir())
    assert names == ["file-000.parquet", "file-000.parquet.1", "file-000.parquet.2"]
    tables = [pq.read_table(tmp_path / ".orphans/data/chunk-000" / name) for name in names]
    assert len({tuple(table["next.reward"].to_pylist()) for table in tables}) == 3


def test_whole_episodes_of_a_killed_recording_can_be_counted_instead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [random_episode(0)])
    with DatasetWriter(tmp_path, **SETTINGS) as writer, monkeypatch.context() as patch:
        kill_at_rename(patch, 5)  # all but info.json
        with pytest.raises(Killed):
            writer.add([random_episode(1, instruction="lift it")])
    (fault,) = dataset_faults(tmp_path)
    assert (fault.kind, fault.severity) == ("leftovers", "warning")
    assert "1 whole episodes" in fault.found and f"worldsim doctor data={tmp_path} mend=true counts those" in fault.remedy
    mend_counters(tmp_path)
    assert not dataset_faults(tmp_path)
    DatasetWriter(tmp_path, **SETTINGS).close()
    assert [episode.instruction for episode in Dataset(tmp_path).episodes()] == ["push the block", "lift it"]
    assert not (tmp_path / ".orphans").exists() and not (tmp_path / journal.JOURNAL).exists()


@pytest.mark.parametrize("counted", [2, 50, 96, 120])
def test_a_dataset_whose_info_counts_other_episodes_is_refused_untouched_and_mended(tmp_path: Path, counted: int) -> None:
    """With two of 96 counted, going on used to delete 94."""
    episodes = [replace(random_episode(i, t=1), images={}) for i in range(96)]
    frames = 2 * counted if counted != 96 else 191
    settings: dict[str, Any] = {**SETTINGS, "cameras": {}}
    write(tmp_path, episodes[:10], episodes[10:50], episodes[50:], cameras={})
    edit_info(tmp_path, total_episodes=counted, total_frames=frames, splits={"train": f"0:{counted}"})
    before = files(tmp_path)
    line = (
        f"{fmt.INFO} counts {counted} episodes, the files hold 96"
        if counted != 96
        else "counts 191 frames, its 96 episodes have 192"
    )
    with pytest.raises(ValueError, match=f"{line}; worldsim doctor data={tmp_path} says how to mend it"):
        DatasetWriter(tmp_path, **settings)
    assert files(tmp_path) == before
    (fault,) = [fault for fault in dataset_faults(tmp_path) if fault.severity == "error"]
    assert fault.kind == "counters" and f"worldsim doctor data={tmp_path} mend=true" in fault.remedy

    assert "total_frames" in mend_counters(tmp_path)
    after = files(tmp_path)
    assert after.pop("meta/info.json.bak-1") == before["meta/info.json"], "the old one is kept"
    assert {name for name in after if after[name] != before[name]} <= {"meta/info.json"}
    with DatasetWriter(tmp_path, **settings) as writer:
        assert writer.num_episodes == 96
        writer.add(episodes[:1])
    dataset = Dataset(tmp_path)
    assert [float(episode.reward) for episode in dataset.episodes()] == [float(e.reward) for e in (*episodes, episodes[0])]
    assert dataset.info["splits"] == {"train": "0:97"} and dataset.stored_stats() is not None
    assert "nothing to mend" in mend_counters(tmp_path)


def test_mending_makes_the_statistics_those_of_what_is_counted(tmp_path: Path) -> None:
    whole = write(tmp_path, [random_episode(0)], [random_episode(1)]).stats
    write(tmp_path / "half", [random_episode(0)])
    stale = (tmp_path / "half" / fmt.STATS).read_bytes()
    (tmp_path / fmt.STATS).write_bytes(stale)
    edit_info(tmp_path, total_episodes=1, total_frames=6)
    mend_counters(tmp_path)
    assert (tmp_path / "meta/stats.json.bak-1").read_bytes() == stale
    stored = Dataset(tmp_path).stored_stats()
    assert stored is not None and stored.keys() == whole.keys()
    assert all(np.allclose(stored[key][name], value) for key in whole for name, value in whole[key].items())


def copy_rows(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def second_row_only(path: Path) -> None:
    pq.write_table(pq.read_table(path).slice(1), path)


@pytest.mark.parametrize(
    ("damage", "found", "remedy"),
    [
        (
            lambda root: copy_rows(root / EPISODE_FILE, root / "data/chunk-000/file-007.parquet"),
            "1 files are counted nowhere and no journal names them: data/chunk-000/file-007.parquet",
            "mkdir -p .*orphans/data/chunk-000 && mv -n .*file-007.parquet .*orphans/data/chunk-000/$",
        ),
        (
            lambda root: (root / "data/chunk-000/file-001.parquet.tmp").write_text("half of a flush"),
            "no journal names them: data/chunk-000/file-001.parquet.tmp",
            "move each away",
        ),
        (
            lambda root: (root / "data/chunk-000/file-001.parquet").unlink(),
            "1 episodes are not whole: episode 1: its data file data/chunk-000/file-001.parquet is missing",
            "copy those files again",
        ),
        (
            lambda root: second_row_only(root / "data/chunk-000/file-001.parquet"),
            "1 episodes are not whole: episode 1: data/chunk-000/file-001.parquet holds 5 of its 6 rows",
            "copy those files again",
        ),
        (
            lambda root: edit_column(root / "data/chunk-000/file-001.parquet", "episode_index", {0: 7}),
            "file-001.parquet holds rows of episode 7, of which meta/episodes knows nothing",
            "copy meta/episodes again",
        ),
        (lambda root: edit_info(root, total_tasks=1), "counts 1 tasks, but episodes have task 1 of", "mend=true counts it"),
        (
            lambda root: edit_info(root, total_tasks=5),
            "counts 5 tasks, meta/tasks.parquet holds 2",
            "mend=true counts what is there",
        ),
        (
            lambda root: edit_column(root / "data/chunk-000/file-001.parquet", "task_index", dict.fromkeys(range(6), 4)),
            "episodes have task 4, which meta/tasks.parquet does not name",
            "add its sentence",
        ),
    ],
)
def test_what_disagrees_is_refused_untouched(tmp_path: Path, damage: Callable[[Path], object], found: str, remedy: str) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1, instruction="lift it")])
    damage(tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="worldsim doctor data=.* says how to mend it"):
        DatasetWriter(tmp_path, **SETTINGS)
    assert files(tmp_path) == before
    (fault, *_) = [fault for fault in dataset_faults(tmp_path) if found in fault.found]
    assert fault.severity == "error"
    assert re.search(remedy, fault.remedy)


def test_counters_cannot_express_a_hole(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)], [random_episode(2)])
    (tmp_path / "data/chunk-000/file-001.parquet").unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match="episode 1 is not whole .*is missing.*cannot leave it out; copy its files again"):
        mend_counters(tmp_path)
    assert files(tmp_path) == before


@pytest.mark.parametrize("name", ["../../secret", "/etc/passwd", "meta/notes.txt", "data/../../x.parquet", "data/a/b/c.parquet"])
def test_a_journal_moves_only_files_that_a_recording_writes(tmp_path: Path, name: str) -> None:
    write(tmp_path, [random_episode(0)])
    fmt.write_json(tmp_path / journal.JOURNAL, {"total_episodes": 1, "files": [name]})
    with pytest.raises(ValueError, match="which no recording writes; remove that journal, and see what worldsim doctor"):
        DatasetWriter(tmp_path, **SETTINGS)


def test_a_journal_of_another_time_moves_nothing(tmp_path: Path) -> None:
    """A flush that was committed before it was killed, and an info.json that counts less than at the time of the flush."""
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    named = ["data/chunk-000/file-001.parquet", "meta/episodes/chunk-000/file-001.parquet"]
    fmt.write_json(tmp_path / journal.JOURNAL, {"total_episodes": 1, "files": named})
    assert write(tmp_path).num_episodes == 2
    fmt.write_json(tmp_path / journal.JOURNAL, {"total_episodes": 1, "files": named})
    edit_info(tmp_path, total_episodes=0, total_frames=0)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="info.json counts 0 episodes, .*journal.json 1;.*mend=true"):
        DatasetWriter(tmp_path, **SETTINGS)
    assert files(tmp_path) == before
    assert any("mend=true" in fault.remedy for fault in dataset_faults(tmp_path))
    mend_counters(tmp_path)
    assert write(tmp_path).num_episodes == 2


def test_a_writer_goes_on_after_the_highest_number(tmp_path: Path) -> None:
    """Somebody deleted episodes 1, 3 and 4 and the task of 1; what is there keeps its numbers."""
    episodes = [random_episode(i, t=2, instruction=f"task {i % 3}") for i in range(6)]
    write(tmp_path, *([episode] for episode in episodes))
    for number in (1, 3, 4):
        for folder in ("data", "meta/episodes"):
            (tmp_path / folder / f"chunk-000/file-{number:03d}.parquet").unlink()
    pq.write_table(fmt.tasks_table({0: "task 0", 2: "task 2"}), tmp_path / fmt.TASKS)
    edit_info(tmp_path, total_episodes=3, total_frames=9, total_tasks=2)
    dataset = write(tmp_path, [replace(episodes[1], instruction="a new task")])
    assert dataset.episode_indices == [0, 2, 5, 6] and dataset.task_of == {0: "task 0", 2: "task 2", 3: "a new task"}
    for got, expected in zip(dataset.episodes(), (episodes[0], episodes[2], episodes[5], episodes[1]), strict=True):
        assert torch.equal(got.action, expected.action)
    assert [episode.instruction for episode in dataset.episodes()] == ["task 0", "task 2", "task 2", "a new task"]
