"""A numpy robot for the tests of `worldsim/robot`: a dot on a table that can break in many ways, here or in its own process.

As a program (`python tests/toy_robot.py LOG`) it serves itself over loopback, prints its port, takes faults as lines on stdin and
writes what it was told to LOG, with the monotonic time that all processes of a machine share.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from worldsim.robot.drivers import Driver, RobotObservation
from worldsim.robot.limits import Limits, parse_limits
from worldsim.robot.process import serve_robot

ROOT = Path(__file__).parents[1]
SIZE, STEP_M, REACH_M = 32, 0.01, 0.25
START = np.array([0.1, 0.0])
LIMITS: dict[str, Any] = {
    "action_low": [-1, -1],
    "action_high": [1, 1],
    "max_delta": [0.5, 0.5],
    "max_rate_per_s": [None, None],
    "state_low": [-0.3, -0.3],
    "state_high": [0.3, 0.3],
    "workspace": {"low_m": [-0.2, -0.2], "high_m": [0.2, 0.2], "state": [0, 1], "action": [0, 1], "scale_m": STEP_M},
}


def make_limits(**changes: Any) -> Limits:
    return parse_limits({**LIMITS, **changes})


class ToyRobot(Driver):
    """State x, y [m]; an action of 1 moves it by 1 cm. Its camera has sensor noise."""

    def __init__(self, note: Callable[[str], None] = lambda what: None, seed: int = 0):
        self.position, self._note, self._random = START.copy(), note, np.random.default_rng(seed)
        self.fault: str | None = None
        self.sent: list[np.ndarray] = []
        self._last_image: np.ndarray | None = None

    def observe(self) -> RobotObservation:
        image = draw(self.position, self._random)
        if self.fault == "frozen" and self._last_image is not None:
            image = self._last_image
        if self.fault == "black":
            image = np.zeros_like(image)
        if self.fault == "elsewhere":
            image = 255 - image
        self._last_image = image
        state = np.full(2, np.nan) if self.fault == "nan_state" else self.position
        clock = {"clock_back": -100.0, "clock_ahead": 100.0}.get(self.fault or "", 0.0)
        return RobotObservation({"front": image}, state.astype(np.float32), time.monotonic() + clock)

    def send(self, action: np.ndarray) -> None:
        self._note("send")
        self.sent.append(np.array(action))
        self.position = np.clip(self.position + STEP_M * np.asarray(action, np.float64), -REACH_M, REACH_M)

    def hold(self) -> None:
        self._note("hold")

    def stop(self) -> None:
        self._note("stop")

    def close(self) -> None:
        self._note("close")


def draw(position: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A striped table and a bright dot."""
    image = np.full((SIZE, SIZE, 3), 60, np.int64)
    image[::4] = 110
    column, row = ((position / 0.3 + 1) / 2 * (SIZE - 5)).astype(int)
    image[row : row + 4, column : column + 4] = (220, 80, 40)
    return np.clip(image + random.integers(-4, 5, image.shape), 0, 255).astype(np.uint8)


def walk(seed: int, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """An episode in which the dot walks about: images and states."""
    random = np.random.default_rng(seed)
    states = np.clip(np.cumsum(random.uniform(-STEP_M, STEP_M, (steps, 2)), axis=0) + random.uniform(-0.15, 0.15, 2), -0.2, 0.2)
    return np.stack([draw(state, random) for state in states]), states.astype(np.float32)


def blurred(image: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 pixels."""
    padded = np.pad(image.astype(float), ((1, 1), (1, 1), (0, 0)), mode="edge")
    h, w = image.shape[:2]
    return (sum(padded[i : i + h, j : j + w] for i in range(3) for j in range(3)) / 9).astype(np.uint8)


def circle(observation: RobotObservation) -> np.ndarray:
    """A policy: eight actions around the middle of the table, so that the robot never stands still by itself."""
    x, y = observation.state
    angle = np.arctan2(y, x) + 0.8 + 0.1 * np.arange(8)
    target = 0.08 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return np.clip((target - observation.state) / 0.05, -1, 1)


class RobotProcess:
    """`ToyRobot` in a process of its own."""

    def __init__(self, log: Path):
        self._log, self._since = log, 0.0
        command = [sys.executable, __file__, str(log)]  # not -m: torch-fidelity installs a package `tests`, too
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
        assert self.process.stdout is not None
        self.address = f"tcp://127.0.0.1:{int(self.process.stdout.readline())}"

    def fail(self, fault: str) -> None:
        """Break, or with an empty fault begin again."""
        assert self.process.stdin is not None
        self.process.stdin.write(fault + "\n")
        self.process.stdin.flush()

    def forget(self) -> None:
        """Be whole and where it began, and leave what was told so far out of `notes`."""
        self.fail("")
        self._since = time.monotonic()

    def notes(self) -> list[tuple[float, str]]:
        """(time, method) of every call."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()] if self._log.exists() else []
        return [(line["time"], line["what"]) for line in lines if line["time"] > self._since]

    def wait_until(self, what: str, count: int, timeout_s: float = 10.0) -> None:
        end = time.monotonic() + timeout_s
        while sum(note == what for _, note in self.notes()) < count:
            assert time.monotonic() < end, f"the robot was not told to {what} {count} times"
            time.sleep(0.02)


@contextmanager
def robot_process(log: Path) -> Iterator[RobotProcess]:
    robot = RobotProcess(log)
    try:
        yield robot
    finally:
        robot.process.kill()
        robot.process.wait()
        for stream in (robot.process.stdin, robot.process.stdout):
            if stream is not None:
                stream.close()


def main() -> None:
    with open(sys.argv[1], "a") as log:

        def note(what: str) -> None:
            log.write(json.dumps({"time": time.monotonic(), "what": what}) + "\n")
            log.flush()

        robot = ToyRobot(note)

        def listen() -> None:
            for line in sys.stdin:
                robot.fault = line.strip() or None
                robot.simulated = robot.fault == "simulated"
                if robot.fault is None:
                    robot.position = START.copy()

        threading.Thread(target=listen, daemon=True).start()
        serve_robot(robot, listening=lambda port: print(port, flush=True))


if __name__ == "__main__":
    main()
