"""Safety: properties that no input may break, in thousands of random examples."""

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_robot import STEP_M, make_limits
from toy_safety import PERIOD_S, REST, make_safety, propose, running

from worldsim.robot.safety import Fault, Mode, Proposal, Safety

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


NUMBERS = st.floats(-1, 1, allow_subnormal=False)  # some libraries make the processor round subnormal numbers to 0


@given(proposals=st.lists(st.tuples(NUMBERS, NUMBERS, st.floats(0.001, 0.3)), min_size=1, max_size=20))
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


@pytest.mark.slow
def test_no_events_break_the_invariants_in_a_hundred_thousand_examples():
    """Seeded bytes rather than Hypothesis, which takes four times as long to draw them; what fails here it shrinks above."""
    chance, moved = random.Random(0), 0
    for _ in range(100_000):
        data = chance.randbytes(33)
        try:
            moved += drive(data[32] % 3, [tuple(data[i : i + 8]) for i in range(0, 32, 8)])
        except AssertionError as error:
            raise AssertionError(f"robot {data[32] % 3} with events {data[:32].hex(' ', 8)}") from error
    assert moved > 20_000  # it does not pass by never moving
