"""Success of an exported policy on the default world through the robot's control loop, by how its chunks are executed.

.venv/bin/python benchmarks/robot_execution.py [BUNDLE] [EPISODES]

The world stands in for the robot, and its time is simulated: nobody waits for physics. All rows have the same starts;
"one step late" is a policy that answers after the tick in which it was asked.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from worldsim.core.seeds import CHOOSING
from worldsim.measure.metrics import success_rate
from worldsim.robot.autonomy import Autonomy
from worldsim.robot.bundle import Bundle, load_bundle
from worldsim.robot.chunks import Blending, Execution, Guide, OpenLoop, RealTimeChunking, TemporalEnsembling
from worldsim.robot.drivers import Driver, RobotObservation
from worldsim.robot.limits import limits_of
from worldsim.robot.loop import PATIENCE, ControlLoop
from worldsim.robot.observation import picture_of
from worldsim.robot.reliability import THRESHOLDS, read_reference
from worldsim.robot.safety import Safety
from worldsim.worlds.genesis.world import GenesisWorld

FIRST_SEED = CHOOSING


class SimulatedClock:
    """Time passes when the loop sleeps; a moment of real time is left to the policy's thread."""

    now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        time.sleep(0.004)


class WorldDriver(Driver):
    """One episode of the world at a time; `on_end` is called when it is over."""

    def __init__(self, world: GenesisWorld):
        self._world = world

    def begin(self, seed: int, clock: Callable[[], float]) -> str:
        self._obs, _ = self._world.reset(seed=seed)
        self._clock, self.over, self.success = clock, False, False
        self.on_end: Callable[[], None] = lambda: None
        return self._obs.instruction[0]

    def observe(self) -> RobotObservation:
        images = {name: image[0].numpy() for name, image in self._obs.images.items()}
        return RobotObservation(images, self._obs.state[0].float().numpy(), self._clock())

    def send(self, action: np.ndarray) -> None:
        if not self.over:
            self._obs, _, terminated, truncated, _ = self._world.step(torch.as_tensor(action, dtype=torch.float32)[None])
            self.over, self.success = bool(terminated[0] or truncated[0]), bool(terminated[0])
            if self.over:
                self.on_end()

    def hold(self) -> None:
        self.send(np.zeros(2))

    def stop(self) -> None:
        """Nothing moves while nobody steps the world."""

    def close(self) -> None:
        """The world belongs to the caller."""


def episode(bundle: Bundle, folder: Path, robot: WorldDriver, seed: int, execution: Execution, late: bool) -> bool:
    """Success of the control loop with everything it has."""
    noise, clock = np.random.default_rng(seed), SimulatedClock()
    instruction = robot.begin(seed, clock)
    fps, views = bundle.description["fps"], bundle.description["views"]

    def policy(observation: RobotObservation, guide: Guide | None = None) -> np.ndarray:
        time.sleep(1.5 * PATIENCE / fps if late else 0)
        inputs = picture_of(observation.images, views), observation.state, instruction, bundle.noise(noise)
        return bundle(*inputs) if guide is None else bundle.guided(*inputs, guide.previous, guide.weights)

    reference = read_reference(folder) if THRESHOLDS in bundle.description["sha256"] else None
    limits = limits_of(bundle.description)
    safety = Safety(limits, robot.observe().state, clock(), period_s=1 / fps)
    autonomy = Autonomy(views, reference)
    robot.on_end = lambda: safety.emergency_stop("the episode is over")
    ControlLoop(robot, policy, execution, safety, fps=fps, autonomy=autonomy, clock=clock, sleep=clock.sleep).run(seconds=60)
    return robot.success


def lockstep(bundle: Bundle, robot: WorldDriver, seed: int, execute: int) -> bool:
    """As in training: the world waits for the policy."""
    instruction, noise = robot.begin(seed, SimulatedClock()), np.random.default_rng(seed)
    while not robot.over:
        observation = robot.observe()
        image = picture_of(observation.images, bundle.description["views"])
        for action in bundle(image, observation.state, instruction, bundle.noise(noise))[:execute]:
            robot.send(action)
    return robot.success


if __name__ == "__main__":
    folder, episodes = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/bundle"), int(sys.argv[2]) if len(sys.argv) > 2 else 100
    if not folder.is_dir():
        print(f"no bundle in {folder}: write one with worldsim export, or name it")
        sys.exit()
    bundle, robot = load_bundle(folder, threads=1), WorldDriver(GenesisWorld(num_envs=1))
    ah = bundle.shapes["noise"][1]
    rows: dict[str, Callable[[int], bool]] = {f"lockstep, {ah} of {ah}": lambda seed: lockstep(bundle, robot, seed, ah)}
    for late in (False, True):
        for name, make in (
            (f"open_loop {ah - late}", lambda late=late: OpenLoop(ah - late)),
            (f"open_loop {ah // 2}", lambda: OpenLoop(ah // 2)),
            (f"blend {ah // 2}", lambda: Blending(ah // 2)),
            (f"rtc {ah // 2}", lambda: RealTimeChunking(ah // 2)),
            ("ensemble", lambda: TemporalEnsembling()),
        ):
            rows[name + ", one step late" * late] = lambda seed, make=make, late=late: episode(
                bundle, folder, robot, seed, make(), late
            )
    for name, succeeds in rows.items():
        result = success_rate(torch.tensor([succeeds(FIRST_SEED + i) for i in range(episodes)]))
        low, high = result["ci95"]
        print(f"{name:28s} {100 * result['rate']:.0f} % [{100 * low:.0f}, {100 * high:.0f}] of {episodes}", flush=True)
