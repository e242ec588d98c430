"""Drivers: LeRobot-style objects look like robots, and a dry run sends nothing."""

import numpy as np
import pytest
from toy_robot import ToyRobot

from worldsim.robot.drivers import Driver, DryRun, RobotDriver


def test_a_driver_that_says_nothing_moves_a_machine():
    assert not Driver.simulated and not RobotDriver.simulated and not ToyRobot().simulated
    assert DryRun(ToyRobot()).simulated


class Arm:
    """A robot in LeRobot's style, without inheriting from anything."""

    action_features = {"shoulder.pos": float, "wheel.vel": float, "gripper.pos": float}

    def __init__(self):
        self.sent, self.connected = [], True

    def get_observation(self):
        return {"shoulder.pos": 0.1, "gripper.pos": 0.9, "wheel.vel": 0.3, "wrist": np.zeros((4, 4, 3), np.uint8)}

    def send_action(self, action):
        self.sent.append(dict(action))
        return action

    def disconnect(self):
        self.connected = False


def test_a_lerobot_style_object_is_a_robot():
    arm = Arm()
    driver = RobotDriver(arm, state_names=["gripper.pos", "shoulder.pos"], cameras=["wrist"])
    observation = driver.observe()
    np.testing.assert_allclose(observation.state, [0.9, 0.1], rtol=1e-6)
    assert observation.images.keys() == {"wrist"}
    driver.hold()
    assert arm.sent[-1] == {"shoulder.pos": 0.1, "wheel.vel": 0.0, "gripper.pos": 0.9}  # where it is, and no wheel turns
    driver.send(np.array([0.2, 0.5, 0.8]))
    assert arm.sent[-1] == {"shoulder.pos": 0.2, "wheel.vel": 0.5, "gripper.pos": 0.8}
    driver.stop()
    assert arm.sent[-1] == {"shoulder.pos": 0.2, "wheel.vel": 0.0, "gripper.pos": 0.8}
    driver.close()
    assert not arm.connected
    with pytest.raises(ValueError, match="does not observe 'elbow.pos', but shoulder.pos, gripper.pos"):
        RobotDriver(Arm(), state_names=["elbow.pos"], cameras=["wrist"])


def test_a_dry_run_observes_and_sends_nothing():
    notes: list[str] = []
    driver = DryRun(ToyRobot(notes.append))
    assert driver.observe().state.shape == (2,)
    driver.send(np.ones(2))
    driver.hold()
    driver.stop()
    assert notes == []
    driver.close()
    assert notes == ["close"]
