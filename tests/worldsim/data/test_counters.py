"""The mend of counters, and the commands that the doctor prints: neither may cost a file."""

import shutil
import subprocess
from pathlib import Path

import pytest
from toy_datasets import edit_column, edit_info, files, random_episode, write

from training.app import cli
from worldsim.data import lerobot_format as fmt
from worldsim.data.counters import mend_counters
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset


def test_the_command_against_stray_files_loses_none(tmp_path: Path) -> None:
    """Files of one name in several folders, in a dataset whose path a shell would split."""
    root = tmp_path / "it's a set"
    write(root, [random_episode(0)])
    strays = ["data/chunk-000/file-007.parquet", "data/chunk-001/file-007.parquet"]
    for name in strays:
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / "data/chunk-000/file-000.parquet", root / name)
        (root / name).write_bytes((root / name).read_bytes() + name.encode())
    expected = {f".orphans/{name}": (root / name).read_bytes() for name in strays}
    for _ in range(2):
        (fault,) = [fault for fault in dataset_faults(root) if "counted nowhere" in fault.found]
        subprocess.run(fault.remedy.rpartition("move each away: ")[2], shell=True, check=True)
    assert expected.items() <= files(root).items()
    assert not dataset_faults(root)


def test_a_mend_that_cannot_be_done_changes_nothing(tmp_path: Path) -> None:
    """The statistics have to be made anew, and the column that takes is damaged."""
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    edit_column(tmp_path / "data/chunk-000/file-001.parquet", "observation.state", {2: None})
    (tmp_path / fmt.STATS).unlink()
    edit_info(tmp_path, total_episodes=1, total_frames=6)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="file-001.parquet"):
        mend_counters(tmp_path)
    assert files(tmp_path) == before


def test_a_mend_that_would_leave_a_dataset_that_nobody_reads_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    (tmp_path / "data/chunk-000/file-001.parquet").unlink()
    before = files(tmp_path)
    with pytest.raises(ValueError, match="episode 1 is not whole .*is missing.*copy its files again, or delete it"):
        mend_counters(tmp_path)
    assert files(tmp_path) == before


def test_a_mend_that_is_killed_leaves_the_dataset_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`info.json` is replaced last."""
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    (tmp_path / fmt.STATS).unlink()
    edit_info(tmp_path, total_episodes=1, total_frames=6)
    info, write_json = (tmp_path / fmt.INFO).read_bytes(), fmt.write_json

    def killed(path: Path, content: dict) -> None:
        if path.name == "stats.json":
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(fmt, "write_json", killed)
        with pytest.raises(KeyboardInterrupt):
            mend_counters(tmp_path)
    assert (tmp_path / fmt.INFO).read_bytes() == info
    mend_counters(tmp_path)
    assert Dataset(tmp_path).num_episodes == 2 and Dataset(tmp_path).stored_stats() is not None


@pytest.mark.parametrize("word", ["no", "off", "0", "1", "null"])
def test_only_true_mends(tmp_path: Path, capsys: pytest.CaptureFixture[str], word: str) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    edit_info(tmp_path, total_episodes=1, total_frames=6)
    before = files(tmp_path)
    assert cli.main(["doctor", f"data={tmp_path}", f"mend={word}"]) == 2
    assert "expected true or false; write mend=true or leave it out" in capsys.readouterr().err
    assert files(tmp_path) == before


def test_a_folder_that_is_no_dataset_is_not_touched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no LeRobot dataset"):
        mend_counters(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
