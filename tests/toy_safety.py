"""A `Safety` at rest, or on the move, for the tests of it."""

import numpy as np
from toy_robot import make_limits

from worldsim.robot.limits import Limits
from worldsim.robot.safety import Command, Mode, Proposal, Safety

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
