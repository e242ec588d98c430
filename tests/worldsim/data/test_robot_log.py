"""Recordings of a robot become LeRobot datasets: the same numbers and pixels, cut where something is missing."""

import json
from pathlib import Path

import numpy as np
import pytest

from worldsim.data.lerobot import Dataset
from worldsim.data.robot_log import convert_robot_log
from worldsim.robot.drivers import RobotObservation
from worldsim.robot.recording import META, ROWS, Recorder, stream_file
from worldsim.robot.safety import Command, Mode


def record(folder: Path, steps: list[int], *, broken: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, states and actions of the rows; the state of row `broken` is NaN."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (len(steps), 16, 24, 3), dtype=np.uint8)
    states, actions = (random.standard_normal((len(steps), n)).astype(np.float32) for n in (3, 2))
    if broken is not None:
        states[broken] = np.nan
    names = {"state_names": ["x", "y", "z"], "action_names": ["dx", "dy"]}
    recorder = Recorder(folder, fps=20, cameras={"top": (16, 24)}, instruction="push it", queue_size=1000, **names)
    for i, step in enumerate(steps):
        observation = RobotObservation({"top": images[i]}, states[i], 0.05 * step)
        recorder.row(step, observation, Command(actions[i].astype(float), Mode.RUN, ()))
    recorder.close()
    assert recorder.error is None and recorder.dropped == 0
    return images, states, actions


def test_a_recording_becomes_a_dataset(tmp_path):
    images, states, actions = record(tmp_path / "log", list(range(6)))
    assert convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm") == 1
    data = Dataset(tmp_path / "data")
    assert (data.fps, data.info["robot_type"], data.cameras) == (20, "arm", {"top": (16, 24)})
    (episode,) = data.episodes()
    np.testing.assert_array_equal(episode.images["top"].numpy(), images)
    np.testing.assert_array_equal(episode.state.numpy(), states)
    np.testing.assert_array_equal(episode.action.numpy(), actions[:5])
    assert (episode.instruction, episode.source) == ("push it", "robot")
    assert episode.success.isnan().all() and episode.progress.isnan().all() and not episode.reward.any()
    assert not {"success", "next.success", "progress"} & data.features.keys(), "nobody judged on the robot"


def test_gaps_and_broken_states_part_episodes(tmp_path):
    _, states, _ = record(tmp_path / "log", [0, 1, 2, 5, 6, 7, 8, 20, 22, 23], broken=5)
    assert convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm") == 3
    episodes = list(Dataset(tmp_path / "data").episodes())
    for episode, rows in zip(episodes, ([0, 1, 2], [3, 4], [8, 9]), strict=True):  # row 5 is broken, 6 and 7 are alone
        np.testing.assert_array_equal(episode.state.numpy(), states[rows])


def test_a_second_recording_continues_the_dataset(tmp_path):
    for name in ("one", "two"):
        record(tmp_path / name, [0, 1, 2])
        convert_robot_log(tmp_path / name, tmp_path / "data", robot_type="arm")
    assert Dataset(tmp_path / "data").num_episodes == 2


@pytest.mark.parametrize("file", [ROWS, stream_file("state"), stream_file("action"), stream_file("camera_top")])
def test_a_torn_end_costs_no_more_than_its_row(tmp_path, file):
    record(tmp_path / "log", list(range(6)))
    content = (tmp_path / "log" / file).read_bytes()
    (tmp_path / "log" / file).write_bytes(content[:-3])
    assert convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm") == 1
    assert len(next(Dataset(tmp_path / "data").episodes())) == 4  # five rows, four actions


def test_what_is_no_recording_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no recording in"):
        convert_robot_log(tmp_path, tmp_path / "data", robot_type="arm")
    record(tmp_path / "short", [0, 2])
    with pytest.raises(ValueError, match="no two consecutive steps, only 2 rows"):
        convert_robot_log(tmp_path / "short", tmp_path / "data", robot_type="arm")
    record(tmp_path / "log", [0, 1, 2])
    rows = tmp_path / "log" / ROWS
    rows.write_text("{\n" + rows.read_text())
    with pytest.raises(ValueError, match="is damaged in row 0"):
        convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm")
    meta = tmp_path / "log" / META
    meta.write_text(json.dumps({**json.loads(meta.read_text()), "format_version": 9}))
    with pytest.raises(ValueError, match="format version 9"):
        convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm")
    meta.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        convert_robot_log(tmp_path / "log", tmp_path / "data", robot_type="arm")
    assert not (tmp_path / "data").exists()
