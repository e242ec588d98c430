"""Drivers: the one interface through which the control loop sees and moves a robot, whatever the robot is.

An object in the style of LeRobot's robots, a process on this machine and a dry run all look alike to `loop.py`, so
that what was rehearsed is what runs; `joined` gives each the order in which a bundle speaks. Read `process.py` next for a robot
in a process of its own.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from worldsim.core.channels import UNKNOWN, Channel, Kind, check, match
from worldsim.core.spec import Spec

Channels = tuple[Channel, ...] | None
RATES: tuple[Kind, ...] = ("velocity", "delta")  # kinds of which 0 stands still


class DriverError(Exception):
    """The robot does not answer, or not sensibly. The loop holds, and tries again in the next tick."""


@dataclass(frozen=True)
class RobotObservation:
    """What a robot senses at one instant.

    Attributes:
        images: RGB uint8 [h, w, 3] by camera name.
        state: proprioception in native units, float32 [s].
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
        state_channels: names, units and kinds of the state's numbers, in their order; None if the driver does not say.
        action_channels: those of a command's numbers.
    """

    simulated: bool = False
    state_channels: Channels = None
    action_channels: Channels = None

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

    @property
    def state_channels(self) -> Channels:
        return self._driver.state_channels

    @property
    def action_channels(self) -> Channels:
        return self._driver.action_channels

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

    Holding sends the last command again, which stands still where commands are positions; velocities and differences
    become 0. Its calls have no time limit: serve the robot from a process of its own (`process.serve_robot`) if they may hang.

    Args:
        robot: has `get_observation`, `send_action`, `action_features` and, if it needs to be closed, `disconnect`.
        state_names: which numbers of an observation are the state.
        cameras: which of its arrays are images.
        units: of numbers of the state and of `action_features`, by name; those of others are unknown.
        kinds: of such numbers; where none is given, a name that ends in `.vel` is a velocity, as in LeRobot.

    Raises:
        ValueError: if the first observation lacks one of them, or nothing has a name of `units` or `kinds`.
    """

    def __init__(
        self,
        robot: Any,
        *,
        state_names: Sequence[str],
        cameras: Sequence[str],
        units: Mapping[str, str] = {},
        kinds: Mapping[str, Kind] = {},
    ):
        self._robot, self._state_names, self._cameras = robot, list(state_names), list(cameras)
        self._action_names = list(robot.action_features)
        first = robot.get_observation()
        if missing := [name for name in (*state_names, *cameras) if name not in first]:
            raise ValueError(f"the robot does not observe {missing[0]!r}, but {', '.join(first)}; correct state_names or cameras")
        for name in (*units, *kinds):
            check("channel of units and kinds", name, [*self._state_names, *self._action_names])
        self.state_channels, self.action_channels = (
            tuple(Channel(name, units.get(name, UNKNOWN), kinds.get(name, _kind(name))) for name in names)
            for names in (self._state_names, self._action_names)
        )
        self._rates = {channel.name for channel in self.action_channels if channel.kind in RATES}
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
        if still := {name: 0.0 if name in self._rates else value for name, value in self._last.items()}:
            self._robot.send_action(still)

    def stop(self) -> None:
        self.hold()

    def close(self) -> None:
        if hasattr(self._robot, "disconnect"):
            self._robot.disconnect()


def _kind(name: str) -> Kind:
    """What LeRobot's names say of the kind."""
    return "velocity" if name.endswith(".vel") else Channel.kind


class Joined(Driver):
    """A robot as a bundle speaks of it: state and commands in the order of the bundle's channels. `joined` makes it.

    Args:
        driver: the robot, in its own order.
        spec: of the bundle.
        state_order: place of each of the bundle's state channels among those of the robot, [s].
        action_order: place of each of the bundle's action channels among those of the robot, [ad].
    """

    def __init__(self, driver: Driver, spec: Spec, state_order: Sequence[int], action_order: Sequence[int]):
        self._driver, self._state_order, self._action_order = driver, list(state_order), list(action_order)
        self._there = len(spec.state if driver.state_channels is None else driver.state_channels)
        self.state_channels, self.action_channels = spec.state, spec.action

    @property
    def simulated(self) -> bool:
        return self._driver.simulated

    def observe(self) -> RobotObservation:
        obs = self._driver.observe()
        if obs.state.shape != (self._there,):
            raise DriverError(f"the robot's state has the shape {obs.state.shape}, expected one number for {self._there} channels")
        return replace(obs, state=obs.state[self._state_order])

    def send(self, action: np.ndarray) -> None:
        own = np.empty_like(action)
        own[self._action_order] = action
        self._driver.send(own)

    def hold(self) -> None:
        self._driver.hold()

    def stop(self) -> None:
        self._driver.stop()

    def close(self) -> None:
        self._driver.close()


def joined(driver: Driver, description: Mapping[str, Any]) -> Driver:
    """The robot with its channels in the order of a bundle's, matched by name; the driver itself where that is its order.

    Sensors that the bundle does not know are dropped. What the driver or the bundle does not name is taken in the order as it is.

    Args:
        driver: the robot. A `ProcessDriver` knows its channels after the first observation.
        description: `Bundle.description`.

    Raises:
        ValueError: in one line, if the robot lacks a channel, has a joint that the bundle does not tell anything, or one of
            another known unit or kind.
    """
    if description["spec"] is None:
        return driver
    spec = Spec.from_json(description["spec"], "the bundle's spec")
    state = spec.state if driver.state_channels is None else driver.state_channels
    action = spec.action if driver.action_channels is None else driver.action_channels
    state_order = match(spec.state, state, what="state", who="the policy", where="the robot", exact=False)
    action_order = match(spec.action, action, what="action", who="the policy", where="the robot", exact=True)
    if (state_order, action_order) == (tuple(range(len(state))), tuple(range(len(action)))):
        return driver
    return Joined(driver, spec, state_order, action_order)
