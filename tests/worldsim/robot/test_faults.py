"""Every fault ends in hold or stop within 600 ms: real processes over loopback, broken in the middle of a motion and timed.

All processes of a machine share the monotonic clock, so the time of a fault here and of a command there can be compared.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from toy_robot import ROOT, SIZE, RobotProcess, circle, make_limits

from worldsim.robot.autonomy import Autonomy
from worldsim.robot.chunks import Blending
from worldsim.robot.loop import ControlLoop, Report
from worldsim.robot.process import ProcessDriver
from worldsim.robot.safety import Intervention, Mode, Safety

pytestmark = pytest.mark.alone

DEADLINE_S = 0.6
FPS = 20


@dataclass
class Run:
    """A control loop in a thread of the test."""

    safety: Safety
    thread: threading.Thread
    reports: list[Report]

    def wait_until_it_moves(self, robot: RobotProcess) -> None:
        robot.wait_until("send", 5)
        assert self.safety.mode in (Mode.RUN, Mode.SLOW)

    def end(self) -> Report:
        self.safety.emergency_stop("the test is over")
        self.thread.join(5)
        return self.reports[0]

    def halted_after_s(self, fault_at: float) -> float:
        """Time from the fault to the first command that stands still."""
        end = time.monotonic() + 3
        while time.monotonic() < end:
            events: list[Intervention] = list(self.safety.interventions)
            halts = [event.time for event in events if event.time >= fault_at and event.mode in ("hold", "stopped")]
            if halts:
                return halts[0] - fault_at
            time.sleep(0.01)
        raise AssertionError(f"no hold after the fault, mode {self.safety.mode}")


def start(robot: RobotProcess, policy=circle, clock: Callable[[], float] = time.monotonic) -> Run:
    driver = ProcessDriver(robot.address)
    safety = Safety(make_limits(), driver.observe().state, clock(), period_s=1 / FPS)
    autonomy = Autonomy({"front": (SIZE, SIZE)})
    loop = ControlLoop(driver, policy, Blending(4), safety, fps=FPS, autonomy=autonomy, clock=clock)
    reports: list[Report] = []
    thread = threading.Thread(target=lambda: reports.append(loop.run(20)), daemon=True)
    thread.start()
    return Run(safety, thread, reports)


def check_halt(seconds: float, record_property: Callable[[str, object], None]) -> None:
    """`pytest --junitxml=FILE` writes the times down."""
    record_property("halt_ms", round(1e3 * seconds))
    assert 0 <= seconds < DEADLINE_S


def sends_after(robot: RobotProcess, since: float) -> list[float]:
    return [at - since for at, what in robot.notes() if what == "send" and at > since]


def test_without_a_fault_it_runs(robot):
    run = start(robot)
    run.wait_until_it_moves(robot)
    time.sleep(0.7)
    report = run.end()
    assert report.ended == "stopped" and report.interventions.get("fault", 0) == 0
    assert report.modes["run"] > 15
    stops = [at for at, what in robot.notes() if what == "stop"]
    assert stops and not sends_after(robot, stops[0])


def test_killed_robot(mortal_robot, record_property):
    run = start(mortal_robot)
    run.wait_until_it_moves(mortal_robot)
    fault_at = time.monotonic()
    mortal_robot.process.kill()
    check_halt(run.halted_after_s(fault_at), record_property)
    run.end()


def test_robot_that_stalls_for_two_seconds(robot, record_property):
    run = start(robot)
    run.wait_until_it_moves(robot)
    fault_at = time.monotonic()
    os.kill(robot.process.pid, signal.SIGSTOP)
    check_halt(run.halted_after_s(fault_at), record_property)
    time.sleep(max(2.0 - (time.monotonic() - fault_at), 0))
    woken_at = time.monotonic()
    os.kill(robot.process.pid, signal.SIGCONT)
    robot.wait_until("hold", 1)
    time.sleep(0.1)
    run.end()
    assert not [s for s in sends_after(robot, woken_at) if s < 0.1]  # what had piled up is not executed


@pytest.mark.parametrize("fault", ["frozen", "black", "nan_state", "clock_back", "clock_ahead"])
def test_robot_whose_senses_fail(robot, fault, record_property):
    run = start(robot)
    run.wait_until_it_moves(robot)
    time.sleep(0.3)
    fault_at = time.monotonic()
    robot.fail(fault)
    check_halt(run.halted_after_s(fault_at), record_property)
    time.sleep(0.1)
    run.end()
    holds = [at for at, what in robot.notes() if what == "hold" and at > fault_at]
    assert holds and holds[0] - fault_at < DEADLINE_S
    if fault != "clock_ahead":  # which is a new origin of time, after a moment
        assert not sends_after(robot, holds[0])


@pytest.mark.parametrize(
    "answer",
    [
        lambda obs: np.full((8, 2), np.nan),
        lambda obs: np.full((8, 2), 1e6),
        lambda obs: np.zeros((8, 3)),
        lambda obs: {}["front"],
        lambda obs: time.sleep(2) or circle(obs),
    ],
    ids=["nan", "huge", "wrong width", "error", "stall of two seconds"],
)
def test_policy_that_fails(robot, answer, record_property):
    broken = threading.Event()
    asked_at: list[float] = []

    def policy(observation):
        if not broken.is_set():
            return circle(observation)
        asked_at.append(time.monotonic())
        return answer(observation)

    run = start(robot, policy)
    run.wait_until_it_moves(robot)
    broken.set()
    fault_at = time.monotonic()
    while not asked_at:
        assert time.monotonic() < fault_at + 1
        time.sleep(0.002)
    check_halt(run.halted_after_s(asked_at[0]), record_property)
    holding = time.monotonic()
    time.sleep(0.2)
    run.end()
    assert not sends_after(robot, holding + 0.06)  # the tick in which it was noticed may just have sent


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_clock_of_the_control_loop_jumps(robot, jump_s, record_property):
    offset = [0.0]
    run = start(robot, clock=lambda: time.monotonic() + offset[0])
    run.wait_until_it_moves(robot)
    jumped_at = time.monotonic()
    offset[0] = jump_s
    time.sleep(DEADLINE_S)
    run.end()
    halts = [at for at, what in robot.notes() if what in ("hold", "stop") and at > jumped_at]
    check_halt(halts[0] - jumped_at, record_property)
    assert run.safety.counts["clock"] >= 1


# The process that controls ----------------------------------------------------------------------------------------------------


def run_program(bundle, robot: RobotProcess, *more: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "worldsim.robot.run", str(bundle), "--robot", robot.address, "--instruction", "go"]
    command += ["--threads", "1", *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def end(program: subprocess.Popen) -> tuple[int, str, str]:
    out, error = program.communicate(timeout=10)
    return program.returncode, out, error


@pytest.mark.parametrize("what", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stalled"])
def test_control_that_dies_or_stalls(toy_bundle, robot, what, record_property):
    program = run_program(toy_bundle, robot, "--seconds", "20")
    try:
        robot.wait_until("send", 10)
        before = sum(note == "hold" for _, note in robot.notes())  # a robot may notice a death before it can be counted
        fault_at = time.monotonic()
        os.kill(program.pid, what)
        robot.wait_until("hold", 1 + before)
        holds = [at for at, note in robot.notes() if note == "hold" and at > fault_at]
        check_halt(holds[0] - fault_at, record_property)
        time.sleep(0.3)
        assert not sends_after(robot, holds[0])
    finally:
        program.kill()
        end(program)


def test_a_signal_stops(toy_bundle, robot, record_property):
    program = run_program(toy_bundle, robot, "--seconds", "20")
    robot.wait_until("send", 10)
    fault_at = time.monotonic()
    program.send_signal(signal.SIGTERM)
    code, out, _ = end(program)
    assert code == 1 and json.loads(out)["interventions"]["e-stop"] == 1
    stops = [at for at, note in robot.notes() if note == "stop"]
    check_halt(stops[0] - fault_at, record_property)
    assert not sends_after(robot, stops[0])


def test_full_disk_while_recording(toy_bundle, robot, tmp_path, record_property):
    """The files may grow no further than a limit that is set in the middle of the run."""
    code = (
        "import os, resource, sys, threading, time\n"
        "from worldsim.robot.run import main\n"
        "log = sys.argv[-1]\n"
        "def fill():\n"
        "    while not (os.path.exists(log + '/rows.jsonl') and os.path.getsize(log + '/rows.jsonl') > 500):\n"
        "        time.sleep(0.01)\n"
        "    size = os.path.getsize(log + '/camera_front.u8')\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))\n"
        "    print(time.monotonic(), file=sys.stderr, flush=True)\n"
        "threading.Thread(target=fill, daemon=True).start()\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    limits = tmp_path / "limits.json"
    limits.write_text('{"stop_s": 0.5}')
    arguments = [str(toy_bundle), "--robot", robot.address, "--instruction", "go", "--threads", "1", "--seconds", "20"]
    command = [sys.executable, "-c", code, *arguments, "--limits", str(limits), "--log", str(tmp_path / "log")]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    returned, out, error = end(program)
    fault_at, report = float(error.split()[0]), json.loads(out)
    assert returned == 1 and report["ended"] == "stopped"
    assert "File too large" in report["recording"]
    holds = [at for at, note in robot.notes() if note in ("hold", "stop") and at > fault_at]
    check_halt(holds[0] - fault_at, record_property)
    assert not sends_after(robot, holds[0])
    assert report["deadline_misses"] <= 3 and report["tick_ms"]["p50"] < 25  # control went on as before, holding
