"""Drivers: environments and LeRobot-style objects look like robots, and a dry run sends nothing."""

import gymnasium as gym
import numpy as np
import pytest
from toy_robot import ToyRobot

from worldsim.robot.drivers import Driver, DryRun, GymDriver, RobotDriver, lerobot_observation


class Line(gym.Env):
    """Walks along a line; an episode succeeds at 1, and is truncated after five steps."""

    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.x, self.steps, self.seeds = 0.0, 0, [*getattr(self, "seeds", []), seed]
        return self._obs(), {}

    def step(self, action):
        assert action.dtype == np.float32
        self.x, self.steps = self.x + float(action[0]), self.steps + 1
        return self._obs(), 0.0, self.x >= 1, self.steps >= 5, {"is_success": self.x >= 1}

    def _obs(self):
        return {"pixels": {"top": np.full((8, 8, 3), 100 + self.steps, np.uint8)}, "agent_pos": np.array([self.x])}


def test_an_environment_is_a_robot():
    env = Line()
    driver = GymDriver(env, seed=7)
    first = driver.observe()
    assert first.images["top"][0, 0, 0] == 100 and first.state.dtype == np.float32
    driver.send(np.array([0.6]))
    assert driver.observe().state == pytest.approx([0.6])
    assert driver.observe().time > first.time
    driver.hold()
    assert driver.observe().state == pytest.approx([0.6])
    driver.send(np.array([0.6]))
    assert (driver.episodes, driver.successes) == (1, 1)
    assert driver.observe().state == [0]
    for _ in range(5):
        driver.send(np.array([-0.1]))
    assert (driver.episodes, driver.successes) == (2, 1)
    assert env.seeds == [7, None, None]
    driver.stop()
    driver.close()


def test_other_environments_bring_their_own_reading():
    class Plain(Line):
        def _obs(self):
            return np.array([self.x, 3.0])

    driver = GymDriver(Plain(), read=lambda obs: ({}, obs), still=np.array([0.5], np.float32))
    driver.hold()
    assert driver.observe().state.tolist() == [0.5, 3]
    with pytest.raises(ValueError, match="lacks 'pixels', has image; pass a `read`"):
        lerobot_observation({"image": 1})
    assert lerobot_observation({"pixels": np.zeros((2, 2, 3)), "agent_pos": [1]})[0].keys() == {"front"}


def test_a_driver_that_says_nothing_moves_a_machine():
    assert not Driver.simulated and not RobotDriver.simulated and not ToyRobot().simulated
    assert GymDriver(Line()).simulated and DryRun(ToyRobot()).simulated
    assert not GymDriver(Line(), simulated=False).simulated


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
