"""Drivers: the one interface through which the control loop sees and moves a robot, whatever the robot is.

An object in the style of LeRobot's robots, a process on this machine and a dry run all look alike to `loop.py`, so
that what was rehearsed is what runs. Read `process.py` next for a robot in a process of its own.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


class DriverError(Exception):
    """The robot does not answer, or not sensibly. The loop holds, and tries again in the next tick."""


@dataclass(frozen=True)
class RobotObservation:
    """What a robot senses at one instant.

    Attributes:
        images: RGB uint8 [h, w, 3] by camera name.
        state: proprioception in SI units, float32 [s].
        time: when that was, on the robot's own steady clock [s]; it may have any origin.
    """

    images: dict[str, np.ndarray]
    state: np.ndarray
    time: float


class Driver(ABC):
    """A robot. One thread calls it; every method returns or raises `DriverError` within a fraction of the watchdog's time.

    Attributes:
        simulated: nothing real moves, whatever it is told. A driver that does not say so moves a machine, and then
            `worldsim.robot.run` wants to know its limits.
    """

    simulated: bool = False

    @abstractmethod
    def observe(self) -> RobotObservation:
        """The newest observation."""

    @abstractmethod
    def send(self, action: np.ndarray) -> None:
        """Execute one command, [ad]. Only `loop.py` calls it, with what `Safety` returned."""

    @abstractmethod
    def hold(self) -> None:
        """Stand still, ready to go on."""

    @abstractmethod
    def stop(self) -> None:
        """Stand still for good. Called when the loop ends, for whatever reason, and when safety stops the robot."""

    @abstractmethod
    def close(self) -> None:
        """Release what the driver opened."""


class DryRun(Driver):
    """Observes through another driver and sends nothing, so that a policy can be watched on a robot that does not move."""

    simulated = True

    def __init__(self, driver: Driver):
        self._driver = driver

    def observe(self) -> RobotObservation:
        return self._driver.observe()

    def send(self, action: np.ndarray) -> None:
        pass

    def hold(self) -> None:
        pass

    def stop(self) -> None:
        pass

    def close(self) -> None:
        self._driver.close()


class RobotDriver(Driver):
    """An object in the style of LeRobot's `Robot`: flat dictionaries from `get_observation` and to `send_action`.

    Holding sends the last command again, which stands still where commands are positions; elements whose name ends in `.vel`
    become 0. Its calls have no time limit: serve the robot from a process of its own (`process.serve_robot`) if they may hang.

    Args:
        robot: has `get_observation`, `send_action`, `action_features` and, if it needs to be closed, `disconnect`.
        state_names: which numbers of an observation are the state, in the order of the bundle's `state_names`.
        cameras: which of its arrays are images.

    Raises:
        ValueError: if the first observation lacks one of them.
    """

    def __init__(self, robot: Any, *, state_names: Sequence[str], cameras: Sequence[str]):
        self._robot, self._state_names, self._cameras = robot, list(state_names), list(cameras)
        self._action_names = list(robot.action_features)
        first = robot.get_observation()
        if missing := [name for name in (*state_names, *cameras) if name not in first]:
            raise ValueError(f"the robot does not observe {missing[0]!r}, but {', '.join(first)}; correct state_names or cameras")
        self._last = {name: float(first[name]) for name in self._action_names if name in first}

    def observe(self) -> RobotObservation:
        now = time.monotonic()
        obs = self._robot.get_observation()
        state = np.array([obs[name] for name in self._state_names], np.float32)
        return RobotObservation({name: np.asarray(obs[name]) for name in self._cameras}, state, now)

    def send(self, action: np.ndarray) -> None:
        self._last = dict(zip(self._action_names, map(float, action), strict=True))
        self._robot.send_action(self._last)

    def hold(self) -> None:
        if still := {name: 0.0 if name.endswith(".vel") else value for name, value in self._last.items()}:
            self._robot.send_action(still)

    def stop(self) -> None:
        self.hold()

    def close(self) -> None:
        if hasattr(self._robot, "disconnect"):
            self._robot.disconnect()
