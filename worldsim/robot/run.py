"""Runs an exported policy on a robot: `python -m worldsim.robot.run BUNDLE --robot tcp://127.0.0.1:PORT --seconds N`.

It puts the parts together and holds nothing of its own: bundle, reliability, chunks, safety, loop, recorder. Read `loop.py` next;
`process.serve_robot` is the other end of the connection.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from worldsim.robot.autonomy import Autonomy, Verdict
from worldsim.robot.bundle import Bundle, load_bundle
from worldsim.robot.chunks import Blending, Execution, Guide, OpenLoop, RealTimeChunking, TemporalEnsembling
from worldsim.robot.drivers import Driver, DriverError, DryRun, RobotObservation, joined
from worldsim.robot.limits import limits_of, read_limits, require_limits
from worldsim.robot.loop import ControlLoop, Policy, Report
from worldsim.robot.observation import picture_of
from worldsim.robot.process import ProcessDriver
from worldsim.robot.recording import Recorder
from worldsim.robot.reliability import THRESHOLDS, read_reference
from worldsim.robot.safety import Safety

# Each from the number of actions to execute per chunk.
EXECUTIONS: dict[str, Callable[[int], Execution]] = {
    "open_loop": OpenLoop,
    "ensemble": lambda execute: TemporalEnsembling(),
    "blend": Blending,
    "rtc": RealTimeChunking,
}


def bundle_policy(bundle: Bundle, instruction: str, *, seed: int = 0) -> Policy:
    """A bundle under one instruction, with noise from `seed`, as the loop calls it."""
    generator = np.random.default_rng(seed)

    def policy(observation: RobotObservation, guide: Guide | None = None) -> np.ndarray:
        picture = picture_of(observation.images, bundle.description["views"])
        inputs = picture, observation.state, instruction, bundle.noise(generator)
        return bundle(*inputs) if guide is None else bundle.guided(*inputs, guide.previous, guide.weights)

    return policy


def run(options: argparse.Namespace) -> Report:
    """Run until the time is over, safety stops the robot or a signal asks for it.

    Raises:
        FileNotFoundError: if there is no bundle.
        ValueError: if the bundle or an option is not possible, the robot's channels are not the bundle's, a robot that is not
            simulated has no limits, or may not start from its state.
        DriverError: if the robot does not answer.
    """
    bundle = load_bundle(options.bundle, threads=options.threads)
    fps = bundle.description["fps"]
    if fps is None:
        raise ValueError(f"{options.bundle} does not say its control rate; export the policy again with fps=")
    changes = read_limits(options.limits) if options.limits else None
    limits = limits_of(bundle.description, changes)
    reference = read_reference(options.bundle) if THRESHOLDS in bundle.description["sha256"] else None
    autonomy = Autonomy(bundle.description["views"], reference, ask=_ask)
    policy = bundle_policy(bundle, options.instruction, seed=options.seed)
    execute = options.execute or max(bundle.shapes["noise"][1] // 2, 1)
    robot = ProcessDriver(options.robot)
    driver: Driver = DryRun(robot) if options.dry_run else robot
    recorder = None
    try:
        driver.observe()  # with it a robot in a process of its own says what its channels are
        driver = joined(driver, bundle.description)
        first = driver.observe()
        if not driver.simulated:
            require_limits(bundle.description, changes)
        policy(first)  # the first answer is the slowest; it must not come in the first tick
        if options.log:
            recorder = _recorder(options.log, bundle, first, options.instruction, fps)
        safety = Safety(
            limits,
            first.state,
            time.monotonic(),
            period_s=1 / (fps * options.multiplier),
            sink=None if recorder is None else recorder.intervention,
        )
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, lambda number, _: safety.emergency_stop(signal.Signals(number).name))
        loop = ControlLoop(
            driver,
            policy,
            EXECUTIONS[options.chunks](execute),
            safety,
            fps=fps,
            multiplier=options.multiplier,
            autonomy=autonomy,
            recorder=recorder,
        )
        return loop.run(options.seconds)
    finally:
        if recorder is not None:
            recorder.close()
        driver.close()


def _recorder(folder: Path, bundle: Bundle, first: RobotObservation, instruction: str, fps: int) -> Recorder:
    description = bundle.description
    ad = bundle.shapes["noise"][-1]
    return Recorder(
        folder,
        fps=fps,
        state_names=description["state_names"] or [f"state_{i}" for i in range(len(first.state))],
        action_names=description["action_names"] or [f"action_{i}" for i in range(ad)],
        cameras={name: (image.shape[0], image.shape[1]) for name, image in first.images.items()},
        instruction=instruction,
    )


def _ask(verdict: Verdict) -> None:
    estimates = ", ".join(f"{name} {value:.2f}" for name, value in verdict.estimates.items())
    print(f"the robot holds because it does not trust what it sees ({estimates}); please look", file=sys.stderr)


def main(arguments: list[str] | None = None) -> int:
    """0 if the time was up, 1 if safety or a signal stopped the robot, 2 if it could not start."""
    parser = argparse.ArgumentParser(prog="python -m worldsim.robot.run", description="Run an exported policy on a robot.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--robot", required=True, help="tcp://127.0.0.1:PORT, where worldsim.robot.process.serve_robot listens")
    parser.add_argument("--instruction", required=True, help="what to do, one sentence")
    parser.add_argument("--seconds", type=float, required=True, help="how long")
    parser.add_argument("--log", type=Path, help="record into this new folder")
    parser.add_argument("--dry-run", action="store_true", help="compute, judge and record everything, send nothing")
    parser.add_argument("--limits", type=Path, help="JSON file of limits that go before the bundle's; a machine needs some")
    parser.add_argument("--chunks", choices=EXECUTIONS, default="rtc", help="how to execute action chunks")
    parser.add_argument("--execute", type=int, help="actions per chunk, half of them by default")
    parser.add_argument("--multiplier", type=int, default=1, help="control ticks per policy step")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 lets it decide")
    parser.add_argument("--seed", type=int, default=0, help="of the policy's noise")
    options = parser.parse_args(arguments)
    try:
        report = run(options)
    except (ValueError, OSError, DriverError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(json.dumps(report.as_dict(), indent=2))
    return 0 if report.ended == "time" else 1


if __name__ == "__main__":
    sys.exit(main())
