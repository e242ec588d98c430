"""One writer at a time, which never writes over what another left, and says in one line why it cannot go on."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_datasets import DATA_FILE, EPISODE_FILE, SETTINGS, drop_column, edit_info, files, random_episode, smooth_episode, write

from worldsim.data import journal
from worldsim.data import lerobot_format as fmt
from worldsim.data.counters import mend_counters
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset, DatasetWriter

HOLD = "import sys, time; from pathlib import Path; from worldsim.data.journal import alone\n"
HOLD += "with alone(Path(sys.argv[1])):\n    print('locked', flush=True)\n    time.sleep(60)"


def refusal(call: Callable[[], object], *, error: Any = ValueError) -> str:
    """The one line in which a call ends."""
    with pytest.raises(error) as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_a_second_writer_is_refused_while_readers_are_not(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, **SETTINGS) as first:
        first.add([random_episode(0)])
        for second in (lambda: DatasetWriter(tmp_path, **SETTINGS), lambda: mend_counters(tmp_path)):
            assert refusal(second) == f"another process is recording into {tmp_path}; wait for it or choose another folder"
        assert Dataset(tmp_path).num_episodes == 1
        first.add([random_episode(1)])
    assert [float(e.reward[0]) for e in write(tmp_path, [random_episode(2)]).episodes()] == [
        float(random_episode(i).reward[0]) for i in range(3)
    ]
    assert not dataset_faults(tmp_path), "the lock is no stray file"


def test_a_writer_that_could_not_open_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)])
    with pytest.raises(ValueError, match="fps is 10 there, 20 here") as kept:
        DatasetWriter(tmp_path, **{**SETTINGS, "fps": 20})
    assert write(tmp_path, [random_episode(1)]).num_episodes == 2
    assert kept.tb is not None, "nobody waits until the error and its frames are forgotten"


def test_a_killed_process_holds_nothing(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        assert "another process is recording" in refusal(lambda: DatasetWriter(tmp_path, **SETTINGS))
        other.send_signal(signal.SIGKILL)
    assert write(tmp_path, [random_episode(0)]).num_episodes == 1


def test_where_nothing_can_be_locked_nothing_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unknown)
    line = refusal(lambda: DatasetWriter(tmp_path, **SETTINGS), error=OSError)
    assert f"{tmp_path / journal.LOCK} cannot be locked (No locks available); record into a folder on another disk" in line


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_lives_on_holds_nothing(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, **SETTINGS):
        read, wait = os.pipe()
        if not (child := os.fork()):
            os.close(wait)
            os.read(read, 1)
            os._exit(0)
    DatasetWriter(tmp_path, **SETTINGS).close()
    os.close(wait)
    os.waitpid(child, 0)


def test_a_dataset_that_may_not_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, [random_episode(0)])
    (tmp_path / journal.LOCK).unlink()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refused)
        patch.setattr(os, "replace", refused)
        assert len(next(Dataset(tmp_path).episodes())) == 5 and not dataset_faults(tmp_path)
    assert not (tmp_path / journal.LOCK).exists()


@pytest.mark.parametrize(
    "name", ["data/chunk-000/file-001.parquet", EPISODE_FILE.replace("000.p", "001.p"), "videos/{}/chunk-000/file-001.mp4"]
)
def test_a_file_that_somebody_else_wrote_is_not_replaced(tmp_path: Path, name: str) -> None:
    other = tmp_path / name.format("observation.images.top")
    settings: dict[str, Any] = {**SETTINGS, "storage": "video", "cameras": {"top": (64, 64), "wrist": (64, 64)}}
    with DatasetWriter(tmp_path, **settings) as writer:
        writer.add([smooth_episode(0)])
        other.parent.mkdir(parents=True, exist_ok=True)
        other.write_text("by another program")
        before = files(tmp_path)
        assert f"{other} is there already, expected nothing" in refusal(lambda: writer.add([smooth_episode(1)]))
        assert files(tmp_path) == before


def test_a_dataset_that_somebody_else_changed_is_not_gone_on_with(tmp_path: Path) -> None:
    with DatasetWriter(tmp_path, **SETTINGS) as writer:
        edit_info(tmp_path, robot_type="another")
        before = files(tmp_path)
        assert "is not as this writer left it; open another" in refusal(lambda: writer.add([random_episode(0)]))
        assert files(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    [
        DATA_FILE,
        EPISODE_FILE,
        "videos/observation.images.top/chunk-000/file-000.mp4",
        "meta/tasks.parquet",
        "meta/stats.json",
        "meta/journal.json",
    ],
)
def test_a_folder_in_which_anything_of_a_dataset_is_left_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text("all that is left")
    line = refusal(lambda: DatasetWriter(tmp_path, **SETTINGS))
    assert line == f"{tmp_path} holds {name} but no meta/info.json; choose an empty folder, or restore that file"
    assert (tmp_path / name).read_text() == "all that is left" and not (tmp_path / fmt.INFO).exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
@pytest.mark.parametrize("storage", ["image", "video"])
def test_a_full_disk_costs_only_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, storage: Any, number: int) -> None:
    """At whichever file it is full; the same writer goes on when there is room."""
    settings: dict[str, Any] = {**SETTINGS, "storage": storage, "cameras": {"top": (16, 16), "wrist": (16, 16)}}
    episodes = [smooth_episode(i, t=3, size=(16, 16)) for i in range(3)]
    with DatasetWriter(tmp_path, **settings) as writer:
        writer.add(episodes[:1])
        for written in range(6 + 2 * (storage == "video")):
            with monkeypatch.context() as patch:
                sync, left = os.fsync, iter(range(written))

                def full(file: int, sync: Any = sync, left: Any = left) -> None:
                    if next(left, None) is None:
                        raise OSError(number, os.strerror(number))
                    sync(file)

                patch.setattr(os, "fsync", full)
                line = refusal(lambda: writer.add(episodes[1:2]), error=OSError)
                assert (
                    f"{tmp_path}: 1 episodes could not be written ({os.strerror(number)})" in line and "record them again" in line
                )
            assert Dataset(tmp_path).num_episodes == 1 == len([*Dataset(tmp_path).episodes()]) == writer.num_episodes
            assert not [fault for fault in dataset_faults(tmp_path) if fault.severity == "error"]
        writer.add(episodes[1:])
    for got, expected in zip(Dataset(tmp_path).episodes(), episodes, strict=True):
        assert torch.equal(got.action, expected.action)
    assert not dataset_faults(tmp_path)


@pytest.mark.parametrize("damage", ["data", "meta/episodes", "videos/observation.images.top"])
def test_a_journal_never_moves_what_is_committed(tmp_path: Path, damage: str) -> None:
    settings: dict[str, Any] = {"storage": "video", "cameras": {"top": (64, 64), "wrist": (64, 64)}}
    write(tmp_path, [smooth_episode(0)], [smooth_episode(1)], **settings)
    name = f"{damage}/chunk-000/file-001.{'mp4' if 'videos' in damage else 'parquet'}"
    journal.begin(tmp_path, total_episodes=2, files=[Path(name)])
    before = files(tmp_path)
    line = f"{tmp_path / journal.JOURNAL} names {name} as not committed, but it holds the committed episode 1; remove that journal"
    for call in (lambda: DatasetWriter(tmp_path, **{**SETTINGS, **settings}), lambda: Dataset(tmp_path)):
        assert refusal(call).startswith(line)
    assert [fault for fault in dataset_faults(tmp_path) if line.startswith(fault.found)]
    assert files(tmp_path) == before
    (tmp_path / journal.JOURNAL).unlink()
    assert write(tmp_path, **settings).num_episodes == 2


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "\xff\xfe",
        "[]",
        "7",
        "null",
        "{}",
        '{"files": []}',
        '{"total_episodes": "1", "files": []}',
        '{"total_episodes": 1.5, "files": []}',
        '{"total_episodes": true, "files": []}',
        '{"total_episodes": -1, "files": []}',
        '{"total_episodes": 1, "files": "data"}',
        '{"total_episodes": 1, "files": {"data": 1}}',
        '{"total_episodes": 1, "files": [1]}',
        '{"total_episodes": 1, "files": [null]}',
    ],
)
def test_a_damaged_journal_is_one_line(tmp_path: Path, content: str) -> None:
    write(tmp_path, [random_episode(0)])
    (tmp_path / journal.JOURNAL).write_bytes(content.encode("latin1"))
    before = files(tmp_path)
    line = refusal(lambda: DatasetWriter(tmp_path, **SETTINGS))
    assert line.startswith(str(tmp_path / journal.JOURNAL)) and "remove that journal" in line
    assert dataset_faults(tmp_path) and files(tmp_path) == before


@pytest.mark.parametrize("key", ["data_path", "video_path"])
def test_other_places_of_files_are_refused(tmp_path: Path, key: str) -> None:
    settings: dict[str, Any] = {"storage": "video", "cameras": {"top": (64, 64), "wrist": (64, 64)}}
    write(tmp_path, [smooth_episode(0)], **settings)
    ours = fmt.read_json(tmp_path / fmt.INFO)[key]
    folder, _, rest = ours.partition("/")
    (tmp_path / folder).rename(tmp_path / "elsewhere")
    edit_info(tmp_path, **{key: f"elsewhere/{rest}"})
    before = files(tmp_path)
    line = refusal(lambda: DatasetWriter(tmp_path, **{**SETTINGS, **settings}))
    assert f"{key} is elsewhere/{rest} there, {ours} here; use the same settings or another folder" in line
    assert files(tmp_path) == before and len(next(Dataset(tmp_path).episodes())) == 11


@pytest.mark.parametrize(
    "names",
    [
        {"motors": ["x", "y", "z"]},
        {"arm": {"motors": ["x", "y"]}, "z": 2},
        {"x": 0, "y": 1, "z": 2},
        [["x", "y"], ["z"]],
        [["x"], ["y"], ["z"]],
    ],
)
def test_names_may_be_nested(tmp_path: Path, names: Any) -> None:
    features = write(tmp_path, [random_episode(0)]).features
    state = {**features["observation.state"], "names": names}
    edit_info(tmp_path, features={**features, "observation.state": state})
    assert Dataset(tmp_path).state_names == ("x", "y", "z")
    dataset = write(tmp_path, [random_episode(1)])
    assert dataset.num_episodes == 2 and dataset.features["observation.state"]["names"] == names
    line = refusal(lambda: DatasetWriter(tmp_path, **{**SETTINGS, "state_names": ["x", "y", "w"]}))
    assert "observation.state is" in line and "('x', 'y', 'w')" in line


@pytest.mark.parametrize("names", [{"motors": ["x", "y", "z"]}, [["x", "y", "z"]], "xyz"])
def test_names_of_a_new_dataset_are_flat(tmp_path: Path, names: Any) -> None:
    line = refusal(lambda: DatasetWriter(tmp_path, **{**SETTINGS, "state_names": names}))
    assert line.startswith(f"state_names is {names!r}, expected one name per dimension") and not files(tmp_path)


@pytest.mark.parametrize("key", ["observation.images.top", "action"])
def test_a_dataset_with_fewer_statistics_is_refused(tmp_path: Path, key: str) -> None:
    """As LeRobot wrote before it knew quantiles: with ours in another file, it could no longer read them together."""
    write(tmp_path, [random_episode(0)])
    for name in ("q01", "q10", "q50", "q90", "q99"):
        drop_column(tmp_path / EPISODE_FILE, f"stats/{key}/{name}")
    before = files(tmp_path)
    line = refusal(lambda: DatasetWriter(tmp_path, **SETTINGS))
    assert f"{tmp_path / EPISODE_FILE} lacks 5 statistics" in line and f"stats/{key}/q01" in line and "another folder" in line
    assert files(tmp_path) == before and len(next(Dataset(tmp_path).episodes())) == 5
