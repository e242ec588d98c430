"""Safety: what comes out when all is well, and what each fault does. Read `test_safety_properties.py` next."""

import math

import numpy as np
import pytest
from toy_robot import make_limits
from toy_safety import PERIOD_S, REST, make_safety, propose, running

from worldsim.robot.safety import Fault, Mode, Proposal, Safety


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
    assert (last.mode, last.reason, last.detail) == ("hold", "not finite", "[nan 0]")
    assert last.time == pytest.approx(1.499)
