"""`worldsim doctor data=ROOT`: one table with everything that is wrong, an exit code, and the mend that it offers."""

import io
import json
import re
from pathlib import Path

import av
import numpy as np
import pytest
from rich.console import Console
from toy_datasets import (
    SETTINGS,
    drop_column,
    edit_column,
    edit_info,
    encode,
    files,
    foreign_dataset,
    random_episode,
    smooth_episode,
    write,
)

from training.app import cli
from worldsim.data.dataset_spec import OVERLAY
from worldsim.data.faults import dataset_faults, print_faults
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.video import encode_png
from worldsim.report import doctor


def report(root: Path, *, mend: bool = False) -> str:
    """What the doctor prints, and beneath it the line in which its error ends."""
    stream = io.StringIO()
    console = Console(file=stream, width=1000)
    try:
        print_faults(root, mend=mend, console=console)
    except ValueError as error:
        print("ERROR", *str(error).splitlines(), sep="\nERROR ", file=stream)
    return stream.getvalue()


def test_a_sound_dataset_has_no_faults(tmp_path: Path) -> None:
    write(tmp_path, [smooth_episode(0)], [smooth_episode(1)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    assert not dataset_faults(tmp_path)
    text = report(tmp_path)
    assert f"{tmp_path}: 2 episodes, 24 frames at 10 frames per second" in text and "nothing is wrong" in text


def test_a_dataset_of_no_episodes_is_not_called_sound(tmp_path: Path) -> None:
    write(tmp_path)
    text = report(tmp_path)
    assert "0 episodes" in text and "there is none, as after a recording" in text and "nothing is wrong" not in text


def test_everything_that_is_wrong_is_listed_at_once_errors_first(tmp_path: Path) -> None:
    """Faults of one episode hide none of another, counted or not."""
    settings = {"storage": "video", "cameras": {"top": (64, 64), "wrist": (64, 64)}}
    write(tmp_path, *([smooth_episode(i)] for i in range(7)), **settings)
    data = [tmp_path / f"data/chunk-000/file-{i:03d}.parquet" for i in range(7)]
    edit_column(data[0], "action", {3: [2.0, 0.0]})
    edit_column(data[1], "observation.state", {0: [float("nan"), 0, 0], 5: [0, 0, float("inf")]})
    edit_column(data[2], "timestamp", {i: 0.15 * i for i in range(12)})
    edit_column(data[3], "timestamp", {1: 0.12})
    edit_column(data[4], "task_index", {11: 1})
    encode(tmp_path / "videos/observation.images.top/chunk-000/file-005.mp4", [i / 30 for i in range(12)], rate=30)
    encode(tmp_path / "videos/observation.images.wrist/chunk-000/file-006.mp4", [i / 10 for i in range(11)], rate=10)
    edit_column(data[6], "progress", {0: float("nan")})
    edit_info(tmp_path, total_episodes=2, total_frames=24)
    (tmp_path / OVERLAY).write_text('action: {"*": {limits: [-1, 1]}}')

    faults = {(fault.kind, fault.severity, fault.found) for fault in dataset_faults(tmp_path)}
    name = "data/chunk-000/file-001.parquet"
    where = tmp_path / "videos/observation.images.top/chunk-000/file-005.mp4"
    assert faults == {
        ("counters", "error", "meta/info.json counts 2 episodes, the files hold 7"),
        ("values", "error", f"2 rows of observation.state are not finite: 2 in episode 1 ({name})"),
        (
            "actions",
            "warning",
            "actions lie beyond their limits, to which they are clamped: dx 1.2 % beyond -1..1 of all steps",
        ),
        (
            "time",
            "error",
            "time stamps are half a frame or more from their place, by up to 550.0 ms at 10 frames per second: 1 episode (2)",
        ),
        ("time", "warning", "time stamps are uneven, by up to 20.0 ms at 10 frames per second: 1 episode (3)"),
        (
            "tasks",
            "error",
            "meta/episodes/chunk-000/file-004.parquet gives 1 episode (4) one task, their rows have several",
        ),
        (
            "statistics",
            "warning",
            "statistics of action that single episodes carry are not theirs in 1 episode (0): max of channel 0 is 0.9284 instead "
            "of 2",
        ),
        ("videos", "error", f"video file {where} shows 29.98 frames per second, the dataset says 10"),
        (
            "videos",
            "error",
            "observation.images.wrist shows no frame at 1 moments, nor within half a step of them: 1 episode (6)",
        ),
        ("labels", "warning", "progress is known of 83 of 84 frames"),
    }
    assert all(fault.remedy for fault in dataset_faults(tmp_path))
    severities = [fault.severity for fault in dataset_faults(tmp_path)]
    assert severities == sorted(severities), "errors first"
    text = report(tmp_path)
    assert all(found in text for _, _, found in faults) and text.count("\nERROR ") == 1
    assert f"ERROR {tmp_path} has 6 errors (counters, values, time, videos, tasks); see the table above" in text


def test_short_episodes_and_datasets_without_cameras(tmp_path: Path) -> None:
    foreign_dataset(
        tmp_path, features={"observation.image": {"dtype": "image", "shape": [8, 8, 1], "info": {"is_depth_map": True}}}
    )
    edit_column(tmp_path / "data/chunk-000/file-000.parquet", "episode_index", dict.fromkeys((1, 2), 1))
    edit_column(tmp_path / "meta/episodes/chunk-000/file-000.parquet", "length", {0: 6, 1: 1})
    edit_column(tmp_path / "data/chunk-000/file-000.parquet", "task_index", dict.fromkeys((1, 2), 0))
    found = {(fault.kind, fault.severity): fault.found for fault in dataset_faults(tmp_path)}
    assert found["cameras", "warning"] == "there is no camera"
    assert found["episodes", "warning"] == "1 episode (0) have a single frame and thus no action; they are left out"


def test_a_damaged_file_stops_no_other_check(tmp_path: Path) -> None:
    """Nor the same check of another file."""
    write(tmp_path, [random_episode(0)], [random_episode(1)], [random_episode(2)])
    (tmp_path / "data/chunk-000/file-000.parquet").write_bytes(b"not parquet")
    edit_column(tmp_path / "data/chunk-000/file-001.parquet", "observation.state", {0: [float("nan"), 0, 0]})
    edit_column(tmp_path / "data/chunk-000/file-002.parquet", "action", {0: [3.0, 0]})
    edit_column(tmp_path / "data/chunk-000/file-002.parquet", "task_index", {0: 5})
    (tmp_path / OVERLAY).write_text('action: {"*": {limits: [-1, 1]}}')
    faults = dataset_faults(tmp_path)
    assert sorted((fault.kind, fault.severity) for fault in faults) == [
        ("actions", "warning"),
        ("files", "error"),
        ("statistics", "warning"),
        ("tasks", "error"),
        ("tasks", "error"),
        ("values", "error"),
    ]
    (damaged,) = (fault for fault in faults if fault.kind == "files")
    assert "file-000.parquet is not a readable parquet file" in damaged.found and damaged.remedy == "copy it again"


@pytest.mark.parametrize("column", ["observation.images.top", "task_index", "observation.state", "next.reward", "source"])
def test_a_column_that_a_file_lacks(tmp_path: Path, column: str) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    drop_column(tmp_path / "data/chunk-000/file-001.parquet", column)
    (fault,) = [fault for fault in dataset_faults(tmp_path) if fault.severity == "error"]
    assert f"file-001.parquet lacks the column {column}, has " in fault.found and fault.remedy == "copy or record it again"
    with pytest.raises(ValueError, match=f"file-001.parquet lacks the column {column}"):
        Dataset(tmp_path)


def small_picture() -> bytes:
    return encode_png(np.zeros((1, 5, 7, 3), np.uint8))[0]


@pytest.mark.parametrize("row", [0, 5])
@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (b"no picture", "the bytes of an image of observation.images.wrist are missing or not a PNG or JPEG"),
        (None, "the bytes of an image of observation.images.wrist are missing"),
        (small_picture(), r"an image of observation.images.wrist has 5 x 7 pixels \(height x width\), expected 8 x 8; correct"),
    ],
    ids=["broken", "missing", "of another size"],
)
def test_pictures_that_are_none(tmp_path: Path, row: int, picture: bytes | None, message: str) -> None:
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    edit_column(tmp_path / "data/chunk-000/file-001.parquet", "observation.images.wrist", {row: {"bytes": picture, "path": None}})
    dataset = Dataset(tmp_path)
    with pytest.raises(ValueError, match=f"file-001.parquet: {message}"):
        list(dataset.episodes())
    assert len(list(Dataset(tmp_path, cameras=["top"]).episodes())) == 2, "nobody asked for that camera"
    (fault,) = dataset_faults(tmp_path)
    assert fault.severity == "error" and re.search(message, f"{fault.found}; {fault.remedy}")


def test_a_video_that_is_missing_is_said_of_its_episode(tmp_path: Path) -> None:
    write(tmp_path, [smooth_episode(0)], [smooth_episode(1)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    name = "videos/observation.images.wrist/chunk-000/file-001.mp4"
    (tmp_path / name).unlink()
    found = {fault.kind: fault.found for fault in dataset_faults(tmp_path)}
    assert found["files"] == f"1 episodes are not whole: episode 1: its video {name} is missing"


def test_a_video_file_without_a_video(tmp_path: Path) -> None:
    write(tmp_path, [smooth_episode(0)], storage="video", cameras={"top": (64, 64), "wrist": (64, 64)})
    path = tmp_path / "videos/observation.images.top/chunk-000/file-000.mp4"
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ValueError, match="file-000.mp4 has no video stream; copy it again"):
        list(Dataset(tmp_path).episodes())
    assert [fault.found for fault in dataset_faults(tmp_path)] == [f"video file {path} has no video stream"]


def test_no_dataset_and_another_version_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no LeRobot dataset at"):
        print_faults(tmp_path)
    write(tmp_path, [random_episode(0)])
    edit_info(tmp_path, codebase_version="v1.6")
    with pytest.raises(ValueError, match="has codebase_version v1.6, expected v2.0, v2.1 or v3.0; convert"):
        print_faults(tmp_path)


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As it is typed: 0 where nothing is wrong, 2 and the command that mends where something is."""
    write(tmp_path, [random_episode(i) for i in range(3)])
    assert cli.main(["doctor", f"data={tmp_path}"]) == 0
    edit_info(tmp_path, total_episodes=1, total_frames=6)
    before = files(tmp_path)
    with pytest.raises(ValueError, match="worldsim doctor data="):
        DatasetWriter(tmp_path, **SETTINGS)
    capsys.readouterr()
    assert cli.main(["doctor", f"data={tmp_path}"]) == 2
    out, err = capsys.readouterr()
    assert "mend=true" in out and err.startswith(f"worldsim: {tmp_path} has 1 errors (counters)") and files(tmp_path) == before
    assert cli.main(["doctor", f"data={tmp_path}", "mend=true"]) == 0
    assert "total_episodes 1 -> 3, total_frames 6 -> 18; the old meta/info.json is info.json.bak-1" in capsys.readouterr().out
    assert cli.main(["doctor", f"data={tmp_path}", "mend=true"]) == 0
    assert "nothing to mend" in capsys.readouterr().out
    assert write(tmp_path).num_episodes == 3


def test_mending_needs_a_dataset() -> None:
    with pytest.raises(ValueError, match="mend=true needs the dataset to mend"):
        doctor.examine(None, mend=True, needs={})


def test_findings_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """out=FILE has what the table has, with the numbers of all episodes; also of what cannot be looked at."""
    root, out = tmp_path / "data", tmp_path / "found.json"
    write(root, *([random_episode(i)] for i in range(5)))
    for i in range(4):
        edit_column(root / f"data/chunk-000/file-{i:03d}.parquet", "timestamp", {1: 0.12})
    edit_column(root / "data/chunk-000/file-004.parquet", "action", {0: [float("nan"), 0]})
    assert cli.main(["doctor", f"data={root}", f"out={out}"]) == 2
    said = json.loads(out.read_text())
    assert (said["dataset"], said["errors"], said["warnings"]) == (str(root), 1, 1)
    error, warning = said["findings"]
    assert (error["kind"], error["severity"], error["episodes"]) == ("values", "error", [4]) and error["remedy"]
    assert (warning["kind"], warning["severity"], warning["episodes"]) == ("time", "warning", [0, 1, 2, 3])
    assert "4 episodes (0, 1, 2, ...)" in warning["found"]
    capsys.readouterr()
    assert cli.main(["doctor", f"data={root}", f"out={out}"]) == 2
    assert capsys.readouterr().err == f"worldsim: out={out} is there already; name another file, or remove that one\n"
    edit_info(root, fps=0)
    assert cli.main(["doctor", f"data={root}", f"out={tmp_path / 'refused.json'}"]) == 2
    (refused,) = json.loads((tmp_path / "refused.json").read_text())["findings"]
    assert "has fps 0, expected a number above 0" in refused["found"] and refused["remedy"].startswith("correct it there")


def test_a_warning_is_no_reason_to_fail(tmp_path: Path) -> None:
    write(tmp_path / "data", [random_episode(0)])
    edit_column(tmp_path / "data/data/chunk-000/file-000.parquet", "timestamp", {1: 0.12})
    assert cli.main(["doctor", f"data={tmp_path / 'data'}", f"out={tmp_path / 'found.json'}"]) == 0
    assert json.loads((tmp_path / "found.json").read_text())["warnings"] == 1


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["out=found.json"], "out=FILE needs the dataset to look at: worldsim doctor data=ROOT out=FILE"),
        (["museum=true", "data=x"], "museum=true looks at datasets of its own; leave out data, mend, check and out"),
        (["museum=yes"], "museum is 'yes', expected true or false; write museum=true or leave it out"),
    ],
)
def test_arguments_that_do_not_go_together(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", *arguments]) == 2
    assert capsys.readouterr().err == f"worldsim: {line}\n"


def test_a_wheel_has_no_museum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("training.app.doctor.shipped", lambda folder: tmp_path / folder)
    assert cli.main(["doctor", "museum=true"]) == 2
    line = "museum=true needs a checkout, where tests/museum lies; clone the repository and run it there"
    assert capsys.readouterr().err == f"worldsim: {line}\n"
