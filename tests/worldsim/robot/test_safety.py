"""Safety: what comes out when all is well, what each fault does, and properties that no input may break."""

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_robot import STEP_M, make_limits

from worldsim.robot.limits import Limits
from worldsim.robot.safety import Command, Fault, Mode, Proposal, Safety

PERIOD_S = 0.1
REST = np.zeros(2)


def make_safety(limits: Limits | None = None, state=REST, **more) -> Safety:
    return Safety(limits or make_limits(), np.asarray(state), 0.0, period_s=PERIOD_S, **more)


def running(limits: Limits | None = None, action=(0.0, 0.0), state=REST) -> Safety:
    """A robot in RUN that was last sent `action`, at time 0."""
    safety = make_safety(limits, state)
    wanted = np.asarray(action, float)
    for _ in range(10):
        command = safety.check(Proposal(wanted, 0.0), np.asarray(state), 0.0)
    assert command.mode is Mode.RUN
    np.testing.assert_allclose(command.action, wanted)
    return safety


def propose(safety: Safety, action, now: float, *, state=REST, age_s: float = 0.0, speed: float = 1.0) -> Command:
    return safety.check(Proposal(np.asarray(action), now - age_s, speed), np.asarray(state), now)


# When all is well -------------------------------------------------------------------------------------------------------------


def test_good_commands_pass_unchanged():
    safety = make_safety()
    for i in range(50):
        action = np.array([0.2 * math.sin(i), 0.1])
        command = propose(safety, action, 0.1 * i)
        assert command.mode is Mode.RUN and command.reasons == ()
        np.testing.assert_array_equal(command.action, action)
    assert not safety.counts


def test_a_command_is_not_the_proposals_own_memory():
    safety = running()
    action = np.array([0.1, 0.1])
    command = propose(safety, action, 0.1)
    command.action[:] = 9
    assert propose(safety, action, 0.2).action.tolist() == [0.1, 0.1]


# Clamps -----------------------------------------------------------------------------------------------------------------------


def test_range_is_clamped():
    command = propose(running(action=(0.8, 0)), [1.2, 0], 0.1)
    assert command.action.tolist() == [1, 0]
    assert command.reasons == ("limits",)


def test_delta_is_clamped_to_the_command_before():
    safety = running(action=(-0.2, 0))
    first = propose(safety, [1, 0.1], 0.1)
    np.testing.assert_allclose(first.action, [0.3, 0.1])  # -0.2 + 0.5
    np.testing.assert_allclose(propose(safety, [1, 0.1], 0.2).action, [0.8, 0.1])
    assert propose(safety, [1, 0.1], 0.3).reasons == ()


def test_rate_is_clamped_by_the_time_that_passed():
    safety = running(make_limits(max_rate_per_s=[2, None]))
    np.testing.assert_allclose(propose(safety, [0.5, 0.5], 0.1).action, [0.2, 0.5])  # 2 per second for 0.1 s
    np.testing.assert_allclose(propose(safety, [0.5, 0.5], 0.15).action, [0.3, 0.5])  # and for 0.05 s
    assert safety.counts["delta"] == 2


@pytest.mark.parametrize("side", [1, -1])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_workspace_clamps_the_target(side, axis):
    unit = side * np.eye(2)[axis]
    safety = running(action=0.5 * unit, state=0.15 * unit)
    command = propose(safety, 0.8 * unit, 0.1, state=0.197 * unit)
    np.testing.assert_allclose(command.action, 0.3 * unit)  # (0.2 - 0.197) / 0.01
    assert command.reasons == ("workspace",)


@pytest.mark.parametrize("side", [1, -1])
def test_outside_of_the_workspace_no_command_leads_further_out(side):
    unit = side * np.eye(2)[0]
    safety = running(state=0.21 * unit)
    assert propose(safety, 0.5 * unit, 0.1, state=0.21 * unit).action.tolist() == [0, 0]
    np.testing.assert_allclose(propose(safety, -0.5 * unit, 0.2, state=0.21 * unit).action, -0.5 * unit)


def test_a_workspace_that_is_out_of_reach_of_the_delta_brakes():
    safety = running(action=(1, 0), state=(0.15, 0))
    command = propose(safety, [1, 0], 0.1, state=(0.2, 0))  # may be at most 0, and at least 0.5
    assert command.action.tolist() == [0, 0]
    assert command.reasons == ("workspace", "delta", "brake")


def test_slow_executes_a_share():
    safety = running()
    command = propose(safety, [0.4, -0.2], 0.1, speed=0.5)
    np.testing.assert_allclose(command.action, [0.2, -0.1])
    assert command.mode is Mode.SLOW and command.reasons == ("slow",)


def test_positions_start_from_the_measured_ones_and_slow_down_towards_the_goal():
    limits = make_limits(workspace=None, measured=[1, 0], max_delta=[0.1, 0.1])
    safety = make_safety(limits, (0.05, -0.05))
    first = propose(safety, [0.5, 0.05], 0.0)
    np.testing.assert_allclose(first.action, [0.05, 0.05])  # from state[[1, 0]] = [-0.05, 0.05], by at most 0.1
    np.testing.assert_allclose(propose(safety, [0.09, 0.05], 0.1, speed=0.5).action, [0.07, 0.05])  # half of the way
    held = safety.check(Fault("broken"), np.zeros(2), 0.2)
    np.testing.assert_allclose(held.action, [0.07, 0.05])  # the last goal stands still


# Refusals ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "state", "reason"),
    [
        (Proposal(np.array([np.nan, 0]), 0.1), REST, "not finite"),
        (Proposal(np.array([0, np.inf]), 0.1), REST, "not finite"),
        (Proposal(np.zeros(3), 0.1), REST, "shape"),
        (Proposal(np.zeros((1, 2)), 0.1), REST, "shape"),
        (Proposal(np.array(["0", "0"]), 0.1), REST, "shape"),
        (Proposal(np.array([0j, 0j]), 0.1), REST, "shape"),
        (Proposal([[0], [0, 1]], 0.1), REST, "shape"),  # type: ignore[arg-type]
        (Proposal(None, 0.1), REST, "shape"),  # type: ignore[arg-type]
        (Proposal(np.array([2.01, 0]), 0.1), REST, "range"),  # 1 + half of the range of 2 is 2
        (Proposal(np.array([1e300, 0]), 0.1), REST, "range"),
        (Proposal(REST, 0.1, speed=1.1), REST, "range"),
        (Proposal(REST, 0.1, speed=math.nan), REST, "range"),
        (Proposal(REST, -0.91), REST, "stale"),
        (Proposal(REST, math.nan), REST, "stale"),
        (Proposal(REST, -math.inf), REST, "stale"),
        (Proposal(REST, 0.2), REST, "clock"),
        (Proposal(REST, math.inf), REST, "clock"),
        (Proposal(REST, 0.1), None, "state"),
        (Proposal(REST, 0.1), np.zeros(3), "state"),
        (Proposal(REST, 0.1), np.array([np.nan, 0]), "state"),
        (Proposal(REST, 0.1), np.array([0.31, 0]), "state"),
        (Fault("the driver is gone"), REST, "fault"),
    ],
)
def test_refusals_hold_at_once_and_recover(command, state, reason):
    safety = running(action=(0.5, 0))
    held = safety.check(command, state, 0.1)
    assert held.mode is Mode.HOLD and held.reasons == (reason,)
    assert held.action.tolist() == [0, 0]  # braking does not wait for the delta
    for now in (0.2, 0.3):
        assert propose(safety, [0.1, 0], now).reasons == ("resuming",)
    recovered = propose(safety, [0.1, 0], 0.4001)  # good since 0.2
    assert recovered.mode is Mode.RUN and recovered.action.tolist() == [0.1, 0]


def test_just_fresh_enough_and_just_inside_are_accepted():
    for command in (Proposal(REST, -0.9), Proposal(np.array([2.0, 0]), 0.1), Proposal(REST, 0.15)):
        assert running(action=(0.5, 0)).check(command, REST, 0.1).mode is Mode.RUN


# The watchdog -----------------------------------------------------------------------------------------------------------------


def test_without_commands_it_coasts_to_a_halt_holds_and_stops():
    safety = running(action=(0.8, 0))
    coasting = [safety.check(None, REST, now) for now in (0.1, 0.2, 0.3)]
    assert [command.mode for command in coasting] == [Mode.RUN] * 3
    np.testing.assert_allclose([command.action[0] for command in coasting], [0.3, 0, 0])
    modes = {round(now, 2): safety.check(None, REST, now).mode for now in np.arange(0.45, 2.7, 0.1)}
    assert modes[0.45] is Mode.HOLD  # the next check, at 0.55, would be too late
    assert modes[2.35] is Mode.HOLD
    assert modes[2.55] is Mode.STOPPED  # stop_s = 2 s after the hold began
    assert safety.counts["watchdog"] >= 20


def test_a_robot_that_never_gets_a_command_stops():
    safety = make_safety()
    modes = [safety.check(None, REST, 0.1 * i).mode for i in range(25)]
    assert modes[:20] == [Mode.HOLD] * 20
    assert modes[24] is Mode.STOPPED


def test_faults_that_come_and_go_still_stop_it():
    safety, now = running(), 0.0
    for i in range(40):
        now += 0.1
        mode = propose(safety, [np.nan if i % 2 else 0, 0], now).mode
    assert mode is Mode.STOPPED


def test_a_fault_that_returns_whenever_the_robot_moves_stops_it():
    safety, now, modes = running(), 0.0, set()
    while safety.mode is not Mode.STOPPED:
        now += 0.1
        command = propose(safety, [0.1, 0], now)
        modes.add(command.mode)
        if command.mode is Mode.RUN:
            safety.check(Fault("the command was not accepted"), REST, now)
        assert now < 3
    assert Mode.RUN in modes


def test_a_pause_on_purpose_is_no_fault():
    safety, now = running(), 0.0
    for _ in range(50):
        now += 0.1
        paused = propose(safety, [0.3, 0], now, speed=0)
        assert paused.mode is Mode.HOLD and paused.action.tolist() == [0, 0] and paused.reasons == ("autonomy",)
    assert propose(safety, [0.3, 0], now + 0.1).mode is Mode.RUN


# Clocks -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jump", [-1e-3, -5.0, 0.51, 1000.0, -1e12])
def test_a_jump_of_the_clock_holds_and_the_new_time_counts(jump):
    safety = running(action=(0.5, 0))
    held = propose(safety, [0.5, 0], jump)
    assert held.mode is Mode.HOLD and held.reasons == ("clock",)
    assert propose(safety, [0.1, 0], jump + 0.3).reasons == ("resuming",)
    assert propose(safety, [0.1, 0], jump + 0.6).mode is Mode.RUN


def test_the_watchdog_survives_a_clock_that_went_back():
    safety = running()
    modes = [safety.check(None, REST, -1000 + 0.1 * i).mode for i in range(30)]
    assert modes[0] is Mode.HOLD
    assert modes[-1] is Mode.STOPPED


@pytest.mark.parametrize("now", [math.nan, math.inf])
def test_a_broken_clock_stops(now):
    safety = running()
    assert safety.check(Proposal(REST, 0.1), REST, now).mode is Mode.STOPPED
    assert safety.check(Proposal(REST, 0.2), REST, 0.2).mode is Mode.STOPPED


# Stopping ---------------------------------------------------------------------------------------------------------------------


def test_an_emergency_stop_stays_until_a_person_resets_it():
    safety = running(action=(0.5, 0))
    safety.emergency_stop("button")
    for i in range(1, 100):
        command = propose(safety, [0.5, 0], 0.1 * i)
        assert command.mode is Mode.STOPPED and command.action.tolist() == [0, 0]
    assert safety.counts == {"e-stop": 1, "stopped": 98}
    with pytest.raises(ValueError, match="cannot start from this state"):
        safety.reset(np.array([np.nan, 0]), 10.0)
    assert safety.mode is Mode.STOPPED
    safety.reset(REST, 10.0)
    assert safety.mode is Mode.HOLD
    assert propose(safety, [0.1, 0], 10.1).mode is Mode.RUN


def test_only_a_stopped_robot_is_reset():
    with pytest.raises(ValueError, match="only a stopped robot can be reset, this one is in mode run"):
        running().reset(REST, 1.0)


def test_a_robot_that_may_not_start_does_not():
    with pytest.raises(ValueError, match="cannot start from this state: .* outside of its range"):
        make_safety(state=(0.4, 0))
    with pytest.raises(ValueError, match="cannot start from this state: not finite"):
        make_safety(state=(math.nan, 0))
    joints = make_limits(workspace=None, measured=[0, 1], state_low=[-9, -9], state_high=[9, 9])
    with pytest.raises(ValueError, match="too far from the range of its commands"):
        make_safety(joints, (1.6, 0))
    with pytest.raises(ValueError, match="now must be finite"):
        Safety(make_limits(), REST, math.nan, period_s=PERIOD_S)
    with pytest.raises(ValueError, match="period_s must lie between 0 and watchdog_s = 0.5, got 0.5"):
        Safety(make_limits(), REST, 0.0, period_s=0.5)


def test_interventions_are_logged_bounded_and_counted():
    told = []
    safety = make_safety(sink=told.append)
    for i in range(1500):
        safety.check(Proposal(np.array([np.nan, 0]), 0.001 * i), REST, 0.001 * i)
    assert safety.counts["not finite"] == 1500 == len(told)
    assert len(safety.interventions) == 1000
    last = safety.interventions[-1]
    assert (last.mode, last.reason, last.detail) == ("hold", "not finite", "[nan  0.]")
    assert last.time == pytest.approx(1.499)


# Properties -------------------------------------------------------------------------------------------------------------------

# What a byte stands for: below 200 something usual, else something nasty.
ACTIONS = ((0.0, 0.3, -0.3, 0.9, -1.0, 0.02), (1.9, 2.1, -0.0, 5e-324, 1e-9, 1e300, -1e308, math.inf, math.nan))
STATES = ((0.0, 0.05, -0.1, 0.195, 0.2), (-0.2, 0.25, -0.299, 0.3, 0.31, 1e300, math.nan))
TIMES = ((0.1, 0.02, 0.25), (0.0, 0.5, 0.51, 3.0, -0.01, -100.0, 1e9, math.nan))
AGES = ((0.0, 0.1), (0.9, 1.1, -0.04, -0.06, 1e9, math.inf, math.nan))
SPEEDS = ((1.0, 0.5), (0.01, 0.0, -1.0, 1.5, math.nan))
KINDS = (
    make_limits(resume_s=0.01),
    make_limits(max_delta=[0.05, 2], max_rate_per_s=[1, None], resume_s=0.01, stop_s=0.3),
    make_limits(
        workspace=None, measured=[1, 0], action_low=[-0.3, 0.01], action_high=[0.3, 0.25], max_delta=[0.3, 0.3], resume_s=0.01
    ),
)
STARTS = (REST, REST, np.array([0.1, 0.1]))


def pick(values: tuple[tuple[float, ...], tuple[float, ...]], byte: int) -> float:
    chosen = values[byte >= 200]
    return chosen[byte % len(chosen)]


def drive(kind: int, events: list[tuple[int, ...]]) -> int:
    """Feed events to a robot and assert what must always hold; returns the number of moving commands."""
    limits = KINDS[kind]
    safety = Safety(limits, STARTS[kind], 0.0, period_s=PERIOD_S)
    last = safety.check(None, STARTS[kind], 0.0).action
    now, moving = 0.0, 0
    for what, first, second, x, y, passed, age, speed in events:
        asked = what % 32 == 0
        if asked:
            safety.emergency_stop("test")
        was_stopped = safety.mode is Mode.STOPPED
        if was_stopped and not asked and what % 32 == 1:
            safety.reset(STARTS[kind], now)
            last, was_stopped = STARTS[kind][::-1] if kind == 2 else REST, False
        then = now + pick(TIMES, passed)
        state = {2: None, 3: np.zeros(3)}.get(what % 32, np.array([pick(STATES, x), pick(STATES, y)]))
        action = {4: np.zeros(3), 5: np.array(["a", "b"]), 6: 0.5}.get(
            what % 32, np.array([pick(ACTIONS, first), pick(ACTIONS, second)])
        )
        proposal = Proposal(action, then - pick(AGES, age), pick(SPEEDS, speed))  # type: ignore[arg-type]
        command = safety.check({7: None, 8: Fault("test")}.get(what % 32, proposal), state, then)
        still = last if kind == 2 else REST

        assert command.action.shape == (2,) and np.isfinite(command.action).all()
        assert (command.action >= limits.action_low).all() and (command.action <= limits.action_high).all()
        if command.mode in (Mode.HOLD, Mode.STOPPED):
            assert np.array_equal(command.action, still)
        elif not np.array_equal(command.action, still):
            moving += 1
            passed_s = then - now
            assert 0 <= passed_s <= limits.watchdog_s
            rates = [2.0 if math.isinf(rate) else rate * passed_s for rate in limits.max_rate_per_s]
            step = np.minimum(limits.max_delta, rates)
            assert (np.abs(command.action - last) <= step + 1e-12).all()
            assert state is not None and np.isfinite(state).all()
            if kind != 2:
                target = state + STEP_M * command.action
                assert (np.abs(target) <= np.maximum(0.2, np.abs(state)) + 1e-12).all()
        if was_stopped or asked or not math.isfinite(then):
            assert command.mode is Mode.STOPPED
        assert command.mode is safety.mode
        last, now = command.action, then if math.isfinite(then) else now
    return moving


EVENTS = st.lists(st.tuples(*[st.integers(0, 255)] * 8), min_size=1, max_size=12)


@given(kind=st.integers(0, 2), events=EVENTS)
@settings(max_examples=700, deadline=None)
def test_no_events_break_the_invariants(kind, events):
    drive(kind, events)


@given(
    proposals=st.lists(st.tuples(st.floats(-1, 1), st.floats(-1, 1), st.floats(0.001, 0.3)), min_size=1, max_size=20),
)
@settings(max_examples=700, deadline=None)
def test_commands_within_every_limit_pass_unchanged(proposals):
    limits = make_limits(max_delta=[2, 2], workspace=None)
    safety, now = make_safety(limits), 0.0
    for x, y, passed_s in proposals:
        now += passed_s
        command = propose(safety, [x, y], now, age_s=0.5)
        assert command.mode is Mode.RUN and command.reasons == ()
        assert command.action.tolist() == [x, y]


@given(
    action=st.lists(st.floats(width=64), min_size=2, max_size=2),
    state=st.lists(st.floats(width=64), min_size=2, max_size=2),
    passed_s=st.floats(0, 0.5),
    kind=st.integers(0, 1),
)
@settings(max_examples=700, deadline=None)
def test_any_numbers_are_survived(action, state, passed_s, kind):
    safety = running(KINDS[kind], action=(0, 0))
    limits = KINDS[kind]
    command = propose(safety, action, passed_s, state=state)
    assert np.isfinite(command.action).all()
    assert (np.abs(command.action) <= limits.max_delta + 1e-12).all()


moved: list[int] = []


@given(data=st.binary(min_size=32, max_size=32))
@settings(max_examples=100_000, deadline=None, suppress_health_check=list(HealthCheck))
def drive_many(data: bytes) -> None:
    moved.append(drive(data[0] % 3, [tuple(data[i : i + 8]) for i in range(0, 32, 8)]))


@pytest.mark.slow
def test_no_events_break_the_invariants_in_a_hundred_thousand_examples():
    """Bytes rather than lists of tuples: they are drawn several times as fast."""
    moved.clear()
    drive_many()
    assert len(moved) >= 100_000
    assert sum(moved) > 20_000  # it does not pass by never moving
