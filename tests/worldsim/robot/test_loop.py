"""The control loop: deadlines on a clock of its own, a policy that is never waited for, and nothing sent past safety."""

import threading
import time

import numpy as np
import pytest
from toy_robot import ToyRobot, circle, make_limits

from worldsim.robot.chunks import OpenLoop, RealTimeChunking
from worldsim.robot.drivers import DriverError
from worldsim.robot.loop import ControlLoop, Inference, percentiles
from worldsim.robot.safety import Fault, Mode, Safety

pytestmark = pytest.mark.alone


class FakeClock:
    """Time that passes only when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 50.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds + 1e-4  # sleeping always takes a little longer


class WorkingRobot(ToyRobot):
    """Takes `work_s[i]` of the fake time in tick i and notes when each tick began."""

    def __init__(self, clock: FakeClock, work_s: list[float]):
        super().__init__()
        self.clock, self.work_s, self.began = clock, iter(work_s), []

    def observe(self):
        self.began.append(self.clock.now - 50)
        self.clock.now += next(self.work_s, 0.01)
        return super().observe()


def make_loop(robot, policy=circle, *, fps=10.0, clock=time.monotonic, sleep=time.sleep, limits=None, **more):
    safety = Safety(limits or make_limits(), robot.position, clock(), period_s=1 / (fps * more.get("multiplier", 1)))
    return ControlLoop(robot, policy, OpenLoop(4), safety, fps=fps, clock=clock, sleep=sleep, **more), safety


def run_fake(work_s: list[float], seconds: float = 2.0):
    clock = FakeClock()
    robot = WorkingRobot(clock, work_s)
    loop, _ = make_loop(robot, clock=clock, sleep=clock.sleep, limits=make_limits(watchdog_s=100, stop_s=1000))
    return robot, loop.run(seconds)


def test_deadlines_are_absolute():
    robot, report = run_fake([0.03, 0.07, 0.09] * 100)
    np.testing.assert_allclose(robot.began[1:], 0.1 * np.arange(1, 20) + 1e-4, atol=1e-9)  # the error of sleeping never adds up
    assert report.deadline_misses == 0 and report.ticks == 20
    assert report.late_ms["max"] == pytest.approx(0.1)
    assert report.tick_ms["p50"] == pytest.approx(70)


def test_a_late_tick_is_made_up_for_and_counted():
    robot, report = run_fake([0.01, 0.01, 0.15] + [0.01] * 20)
    # Tick 2 begins at 0.2 and ends at 0.35; tick 3, due at 0.3, begins at once, and tick 4 is on time again.
    np.testing.assert_allclose(robot.began[2:6], [0.2001, 0.3501, 0.4001, 0.5001], atol=1e-9)
    assert report.deadline_misses == 1 and report.ticks == 20
    assert report.late_ms["max"] == pytest.approx(50.1)


def test_ticks_that_are_long_past_are_left_out():
    robot, report = run_fake([0.01, 0.01, 0.36] + [0.01] * 20)
    # It ends at 0.56: the deadlines 0.3, 0.4 and 0.5 have passed, only the last of them is made up for.
    np.testing.assert_allclose(robot.began[2:5], [0.2001, 0.5601, 0.6001], atol=1e-9)
    assert report.deadline_misses == 3 and report.ticks == 18


def test_a_clock_that_goes_back_does_not_make_it_wait():
    clock = FakeClock()
    robot = WorkingRobot(clock, [0.01] * 100)
    loop, safety = make_loop(robot, clock=clock, sleep=clock.sleep)
    original = robot.observe

    def observe():
        if len(robot.began) == 5:
            clock.now -= 1000
        return original()

    robot.observe = observe  # type: ignore[method-assign]
    slept = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock.sleep(seconds)
        time.sleep(0.01)  # for the policy, which thinks in real time

    loop._sleep = sleep
    loop.run(1.0)
    assert max(slept) < 0.2
    assert safety.counts["clock"] == 1
    assert safety.mode is Mode.RUN


def test_the_robot_moves_under_a_policy():
    robot = ToyRobot()
    loop, safety = make_loop(robot, fps=50.0)
    report = loop.run(0.6)
    assert report.ended == "time" and report.modes["run"] >= 20
    assert set(report.modes) <= {"hold", "run"}
    assert safety.mode is Mode.RUN
    assert len(robot.sent) == report.modes["run"]
    assert np.abs(np.diff(robot.sent, axis=0)).max() <= 0.5 + 1e-12
    assert report.inference_ms["max"] < 100
    assert report.stale_chunks == 0


def test_nothing_is_sent_past_safety():
    random, robot, commands = np.random.default_rng(0), ToyRobot(), []
    loop, safety = make_loop(robot, lambda obs: random.uniform(-1.9, 1.9, (8, 2)), fps=100.0)
    check = safety.check

    def noted(*arguments):
        commands.append(check(*arguments))
        return commands[-1]

    safety.check = noted  # type: ignore[method-assign]
    loop.run(0.5)
    allowed = [command.action for command in commands if command.mode is Mode.RUN]
    assert len(robot.sent) > 20
    np.testing.assert_array_equal(robot.sent, allowed)
    assert np.abs(robot.sent).max() <= 1
    assert safety.counts["limits"] and safety.counts["delta"]


def test_interpolated_commands_lie_between_those_of_the_policy():
    robot = ToyRobot()
    ramp = np.tile(0.05 * np.arange(20)[:, None], (1, 2))  # once asked, for all that follows
    safety = Safety(make_limits(workspace=None), robot.position, time.monotonic(), period_s=0.02)
    report = ControlLoop(robot, lambda obs: ramp, OpenLoop(100), safety, fps=10.0, multiplier=5).run(0.9)
    assert report.ticks >= 40
    sent = np.array(robot.sent)[:, 0]
    np.testing.assert_allclose(sent[-20:] / 0.01, (sent[-20:] / 0.01).round(), atol=1e-9)  # 0.05 in five steps
    assert np.median(np.diff(sent)) == pytest.approx(0.01)


def test_a_quick_policy_acts_in_the_tick_in_which_it_is_asked():
    robot = ToyRobot()
    loop, _ = make_loop(robot, lambda obs: np.tile([0.2, 0.1], (8, 1)))
    loop.run(0.05)  # a single tick of 0.1 s
    assert len(robot.sent) == 1
    np.testing.assert_allclose(robot.sent[0], [0.2, 0.1])


@pytest.mark.parametrize(
    ("took_ms", "multiplier", "delay"), [(19, 1, 0), (21, 1, 1), (99, 1, 1), (101, 1, 2), (30, 5, 0), (101, 5, 1)]
)
def test_the_delay_of_a_chunk_in_policy_steps(took_ms, multiplier, delay):
    """fps 10. Up to a fifth of a tick (20 ms, or 4 with five ticks per step) it is awaited; then it arrives with a later tick."""
    loop, _ = make_loop(ToyRobot(), multiplier=multiplier)
    loop._inference_ms.extend([3.0, took_ms, 2.0])
    assert loop._delay() == delay


def test_a_slow_policy_costs_a_tick_no_more_than_a_fifth_of_it():
    robot = ToyRobot()

    def policy(observation):
        time.sleep(0.15)
        return np.zeros((8, 2))

    loop, _ = make_loop(robot, policy)
    report = loop.run(1.0)
    assert report.tick_ms["max"] < 60 and report.deadline_misses == 0
    assert report.ticks == 10 and len(robot.sent) >= 7


def test_control_never_waits_for_the_policy():
    release = threading.Event()

    def policy(observation):
        release.wait(10)
        return np.zeros((8, 2))

    robot = ToyRobot()
    loop, safety = make_loop(robot, policy, fps=50.0)
    report = loop.run(0.8)
    release.set()
    assert report.tick_ms["p50"] < 10 and report.ticks >= 30
    assert robot.sent == []
    assert any("has not answered" in event.detail for event in safety.interventions)


def test_an_error_of_the_policy_holds_and_names_it():
    def policy(observation):
        raise KeyError("wrist")

    robot = ToyRobot()
    loop, safety = make_loop(robot, policy, fps=50.0)
    loop.run(0.2)
    assert robot.sent == []
    assert "the policy failed: KeyError: 'wrist'" in [event.detail for event in safety.interventions]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros(2), "actions [ah, 2], got shape (2,)"),
        (np.zeros((4, 3)), "actions [ah, 2], got shape (4, 3)"),
        (np.zeros((0, 2)), "got shape (0, 2)"),
        (np.array([[0, np.nan]]), "not finite"),
        ([[1], [1, 2]], "the policy failed: ValueError"),
        ("left", "the policy failed: ValueError"),
        (None, "got shape ()"),
    ],
)
def test_answers_of_no_use_are_faults(answer, message):
    inference = Inference(lambda observation: answer, action_dim=2)
    inference.ask(ToyRobot().observe(), 0, 0.0)
    while (fault := inference.poll()) is None:
        time.sleep(1e-3)
    assert isinstance(fault, Fault) and message in fault.reason
    assert not inference.busy


def test_an_execution_that_guides_tells_the_policy_what_is_being_executed():
    robot, guides = ToyRobot(), []

    def policy(observation, guide=None):
        guides.append(guide)
        return np.tile([0.01 * len(guides), 0], (8, 1))

    safety = Safety(make_limits(), robot.position, time.monotonic(), period_s=0.02)
    ControlLoop(robot, policy, RealTimeChunking(4), safety, fps=50.0).run(0.5)
    assert guides[0] is None and len(guides) > 3
    for i, guide in enumerate(guides[1:], start=1):
        left = int((guide.weights > 0).sum())
        assert 0 < left < 8
        np.testing.assert_allclose(guide.previous[:left, 0], 0.01 * i, rtol=1e-6)
        assert (guide.previous[left:] == 0).all()


def test_chunks_of_before_a_fault_are_not_executed_after_it():
    robot, answers = ToyRobot(), []

    def policy(observation):
        answers.append(time.monotonic())
        if len(answers) == 2:
            time.sleep(0.25)  # asked before the fault, answers after it
        return np.tile([0.3 if len(answers) <= 2 else -0.3, 0], (100, 1))

    loop, safety = make_loop(robot, policy, fps=50.0, limits=make_limits(resume_s=0.05))
    original = robot.observe
    calls = iter(range(10_000))

    def observe():
        if next(calls) == 12:  # OpenLoop(4): the second question was asked in one of the first ticks
            raise DriverError("a hiccup")
        return original()

    robot.observe = observe  # type: ignore[method-assign]
    loop.run(0.8)
    first = next(i for i, action in enumerate(robot.sent) if action[0] < 0)
    assert first > 0 and all(action[0] < 0 for action in robot.sent[first:])
    assert loop._stale == 1
    assert safety.counts["fault"] == 1


def test_safety_ends_the_loop_and_the_driver_is_stopped():
    robot = ToyRobot()
    notes: list[str] = []
    robot._note = notes.append
    loop, safety = make_loop(robot, fps=50.0)
    threading.Timer(0.2, lambda: safety.emergency_stop("button")).start()
    began = time.monotonic()
    report = loop.run(5.0)
    assert report.ended == "stopped" and time.monotonic() - began < 1.0
    assert notes[-1] == "stop" and "send" in notes
    assert report.interventions["e-stop"] == 1


def test_an_unexpected_error_stops_the_robot_on_the_way_out():
    robot = ToyRobot()
    notes: list[str] = []
    robot._note = notes.append
    robot.observe = lambda: 1 / 0  # type: ignore[assignment,method-assign,return-value]
    loop, _ = make_loop(robot)
    with pytest.raises(ZeroDivisionError):
        loop.run(1.0)
    assert notes == ["stop"]


def test_a_driver_that_cannot_be_reached_holds_then_stops():
    robot = ToyRobot()

    def send(action):
        raise DriverError("the cable is out")

    robot.send = send  # type: ignore[method-assign]
    loop, safety = make_loop(robot, fps=50.0, limits=make_limits(stop_s=0.3))
    report = loop.run(3.0)
    assert report.ended == "stopped"
    assert any(event.detail == "the cable is out" for event in safety.interventions)


def test_percentiles_by_hand():
    assert percentiles(range(101)) == {"p50": 50, "p95": 95, "p99": 99, "max": 100}
    assert percentiles([]) == {}


def test_impossible_rates_are_refused():
    safety = Safety(make_limits(), np.zeros(2), 0.0, period_s=0.1)
    for rates in ({"fps": 0}, {"fps": -1}, {"multiplier": 0}):
        with pytest.raises(ValueError, match="fps must be positive and multiplier at least 1"):
            ControlLoop(ToyRobot(), circle, OpenLoop(1), safety, **{"fps": 10, **rates})  # type: ignore[arg-type]
