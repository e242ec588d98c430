"""Recording: what is written is what happened, and neither a slow nor a full disk reaches the control thread."""

import json
import threading
import time

import numpy as np
import pytest
from toy_robot import ToyRobot

from worldsim.robot import recording
from worldsim.robot.drivers import RobotObservation
from worldsim.robot.recording import INTERVENTIONS, META, ROWS, Recorder, stream_file
from worldsim.robot.safety import Command, Intervention, Mode

pytestmark = pytest.mark.alone

SETTINGS = {"fps": 20, "state_names": ["x", "y"], "action_names": ["dx", "dy"], "cameras": {"front": (32, 32)}, "instruction": "go"}
COMMAND = Command(np.array([0.25, -0.5]), Mode.SLOW, ("slow",))


def wait(condition, timeout_s: float = 3.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_rows_are_appended_as_they_were(tmp_path):
    robot, recorder = ToyRobot(), Recorder(tmp_path / "log", **SETTINGS)
    seen = []
    for step in (0, 1, 3):
        seen.append(robot.observe())
        recorder.row(step, seen[-1], COMMAND)
        robot.position += 0.01
    recorder.intervention(Intervention(1.5, "slow", "slow", "speed 0.50"))
    recorder.close()
    assert recorder.error is None and recorder.dropped == 0
    meta = json.loads((recorder.folder / META).read_text())
    assert meta == {"format_version": 1, **SETTINGS, "cameras": {"front": [32, 32]}}
    images = np.fromfile(recorder.folder / stream_file("camera_front"), np.uint8).reshape(3, 32, 32, 3)
    states = np.fromfile(recorder.folder / stream_file("state"), "<f4").reshape(3, 2)
    actions = np.fromfile(recorder.folder / stream_file("action"), "<f4").reshape(3, 2)
    for i, observation in enumerate(seen):
        np.testing.assert_array_equal(images[i], observation.images["front"])
        np.testing.assert_array_equal(states[i], observation.state)
    assert actions.tolist() == [[0.25, -0.5]] * 3
    rows = [json.loads(line) for line in (recorder.folder / ROWS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 3]
    assert rows[2] == {"step": 3, "time": seen[2].time, "mode": "slow", "reasons": ["slow"]}
    assert json.loads((recorder.folder / INTERVENTIONS).read_text())["reason"] == "slow"


def test_a_driver_may_reuse_its_memory(tmp_path):
    recorder, image = Recorder(tmp_path / "log", **SETTINGS), np.zeros((32, 32, 3), np.uint8)
    for step in range(5):
        image[:] = step
        recorder.row(step, RobotObservation({"front": image}, np.zeros(2, np.float32), 0.0), COMMAND)
    recorder.close()
    frames = np.fromfile(recorder.folder / stream_file("camera_front"), np.uint8).reshape(5, -1)
    assert frames[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_slow_disk_drops_rows_and_never_waits(tmp_path, monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(recording, "_append", lambda file, data: release.wait(5))
    recorder, observation = Recorder(tmp_path / "log", **SETTINGS, queue_size=4), ToyRobot().observe()
    began = time.monotonic()
    for step in range(200):
        recorder.row(step, observation, COMMAND)
        recorder.intervention(Intervention(0.0, "run", "delta", ""))
    assert time.monotonic() - began < 0.5
    assert recorder.dropped > 190 and recorder.error is None
    release.set()
    recorder.close()


@pytest.mark.parametrize("full", ["rows", "camera"])
def test_a_full_disk_ends_recording_with_one_line(tmp_path, monkeypatch, full):
    if full == "rows":
        monkeypatch.setattr(recording, "ROWS", "/dev/full")
    else:
        monkeypatch.setattr(recording, "stream_file", lambda name: "/dev/full" if name == "camera_front" else name)
    recorder = Recorder(tmp_path / "log", **SETTINGS)
    recorder.row(0, ToyRobot().observe(), COMMAND)
    wait(lambda: recorder.error is not None)
    assert "No space left on device" in str(recorder.error) and "\n" not in str(recorder.error)
    recorder.row(1, ToyRobot().observe(), COMMAND)
    assert recorder.dropped == 1
    recorder.close()


@pytest.mark.parametrize(
    ("observation", "message"),
    [
        (
            RobotObservation({"front": np.zeros((16, 16, 3), np.uint8)}, np.zeros(2), 0.0),
            "camera_front must have shape (32, 32, 3)",
        ),
        (RobotObservation({}, np.zeros(2), 0.0), "camera_front must have shape (32, 32, 3), got nothing"),
        (RobotObservation({"front": np.zeros((32, 32, 3), np.uint8)}, np.zeros(3), 0.0), "state must have shape (2,), got (3,)"),
    ],
)
def test_a_row_that_does_not_fit_ends_recording_and_not_the_program(tmp_path, observation, message):
    recorder = Recorder(tmp_path / "log", **SETTINGS)
    recorder.row(0, observation, COMMAND)
    wait(lambda: recorder.error is not None)
    assert message in str(recorder.error)


def test_more_cameras_than_declared_are_left_out(tmp_path):
    recorder, observation = Recorder(tmp_path / "log", **SETTINGS), ToyRobot().observe()
    recorder.row(0, RobotObservation({**observation.images, "wrist": np.zeros(3)}, observation.state, 0.0), COMMAND)
    recorder.close()
    assert recorder.error is None and not (recorder.folder / stream_file("camera_wrist")).exists()


def test_a_folder_with_something_in_it_and_a_camera_name_that_leaves_it_are_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="is not an empty folder"):
        Recorder(tmp_path, **SETTINGS)
    with pytest.raises(ValueError, match="camera name '../front' must not"):
        Recorder(tmp_path / "log", **{**SETTINGS, "cameras": {"../front": (4, 4)}})
    assert not (tmp_path / "log").exists()
