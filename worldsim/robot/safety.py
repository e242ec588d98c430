"""The safety of a robot: a small state machine between policy and driver that every command passes, and nothing else does.

A policy may propose anything, at any time or never; a camera may freeze and a clock jump. What leaves here is finite, inside
the limits and near the command before it, or it is the command that stands still. Read `limits.py` for the limits and `loop.py`
for the only caller.
"""

import math
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import numpy as np

from worldsim.robot.limits import Limits

CLOCK_TOLERANCE_S = 0.05  # an observation may be that much ahead of the clock before its time counts as wrong


class Mode(str, Enum):
    """What the robot does: RUN and SLOW move, HOLD stands still until commands are good again, STOPPED until a person resets."""

    RUN = "run"
    SLOW = "slow"
    HOLD = "hold"
    STOPPED = "stopped"


@dataclass(frozen=True)
class Proposal:
    """What a policy wants.

    Attributes:
        action: [ad].
        observed_at: time of the observation that it comes from [s], on the clock of `Safety.check`.
        speed: share in [0, 1] of the motion that is to be executed; 0 holds, without that being a fault.
    """

    action: np.ndarray
    observed_at: float
    speed: float = 1.0


@dataclass(frozen=True)
class Fault:
    """Something is broken, in one line: the driver does not answer, the policy raised an error, the disk is full."""

    reason: str


@dataclass(frozen=True)
class Command:
    """What the robot is told.

    Attributes:
        action: [ad], float64; in HOLD and STOPPED the command that stands still.
        mode: which of the driver's methods to call.
        reasons: the interventions that made it, empty if the proposal passed unchanged.
    """

    action: np.ndarray
    mode: Mode
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Intervention:
    """One correction or refusal: when [s], in which mode it left the robot, why, and the particulars."""

    time: float
    mode: str
    reason: str
    detail: str


class Safety:
    """Judges one command per control tick.

    RUN and SLOW become HOLD by any fault, HOLD becomes RUN after `resume_s` of good commands or STOPPED after `stop_s` of faults.
    Only `reset` leaves STOPPED. A command in RUN or SLOW is finite, inside its limits and its workspace and within `max_delta` and
    `max_rate_per_s` of the command before it, or stands still: braking never waits.

    Args:
        limits: what to enforce.
        state: the measured state now, [s].
        now: monotonic time [s].
        period_s: time between two checks [s]; the watchdog acts in the last check before it would be late.
        sink: is told of every intervention; it must return at once.

    Attributes:
        mode: the present mode, HOLD until the first good command.
        interventions: the last 1,000.
        counts: all interventions by reason.

    Raises:
        ValueError: if the state is not one from which the robot may start.
    """

    def __init__(
        self,
        limits: Limits,
        state: np.ndarray,
        now: float,
        *,
        period_s: float,
        sink: Callable[[Intervention], None] | None = None,
    ):
        if not 0 < period_s < limits.watchdog_s:
            raise ValueError(f"period_s must lie between 0 and watchdog_s = {limits.watchdog_s}, got {period_s}; control faster")
        self.limits, self._period_s, self._sink = limits, period_s, sink
        self.interventions: deque[Intervention] = deque(maxlen=1000)
        self.counts: Counter[str] = Counter()
        self._stop_asked: str | None = None
        self._begin(state, now)

    def _begin(self, state: np.ndarray, now: float) -> None:
        if not math.isfinite(now):
            raise ValueError(f"now must be finite, got {now}; pass time.monotonic()")
        if refusal := self._refuse_state(state):
            raise ValueError(
                f"the robot cannot start from this state: {refusal[1]}; move it by hand, or correct state_low and high"
            )
        limits = self.limits
        still = np.zeros(limits.action_dim) if limits.measured is None else np.asarray(state, np.float64)[list(limits.measured)]
        self._last = np.clip(still, limits.action_low, limits.action_high)
        if not (np.abs(self._last - still) <= limits.max_delta).all():
            raise ValueError(f"the robot starts at {still}, too far from the range of its commands; move it by hand")
        self._now = self._fresh_at = self._fault_since = now
        self._good_since: float | None = -math.inf
        self.mode = Mode.HOLD

    def emergency_stop(self, reason: str) -> None:
        """Stop for good at the next check. May be called from any thread and from a signal handler."""
        self._stop_asked = reason

    def reset(self, state: np.ndarray, now: float) -> None:
        """Leave STOPPED, when a person has looked and says so. The robot holds until the next good command.

        Raises:
            ValueError: if it is not stopped, or may not start from this state.
        """
        if self.mode is not Mode.STOPPED:
            raise ValueError(f"only a stopped robot can be reset, this one is in mode {self.mode.value}; nothing to do")
        self._begin(state, now)
        self._stop_asked = None

    def check(self, command: Proposal | Fault | None, state: np.ndarray | None, now: float) -> Command:
        """The command to send now.

        Args:
            command: what the policy proposes, what is broken, or None if there is nothing new.
            state: the measured state, [s]; None if it could not be read.
            now: monotonic time [s].
        """
        if self.mode is Mode.STOPPED:
            return self._still([("stopped", "until a person resets it")])
        if self._stop_asked is not None or not math.isfinite(now):
            self.mode = Mode.STOPPED
            why = ("clock", f"the time is {now}") if self._stop_asked is None else ("e-stop", self._stop_asked)
            return self._still([why])
        passed_s, self._now = now - self._now, now
        refusal = self._refuse_time(passed_s)
        if isinstance(command, Fault):
            refusal, command = refusal or ("fault", command.reason), None
        if refusal := refusal or self._refuse_state(state) or self._refuse(command):
            self._good_since = None
            return self._hold(refusal)
        assert state is not None
        if command is None:
            if self.mode is Mode.HOLD:
                return self._hold(("missing", "no command in this tick"))
            return self._move(self._stand, state, passed_s, [("missing", "no command in this tick")])
        self._fresh_at = now
        self._good_since = now if self._good_since is None else self._good_since
        good_s = now - self._good_since
        if good_s < self.limits.resume_s:
            return self._hold(("resuming", f"commands are good since {good_s:.2f} s"))
        if good_s >= 2 * self.limits.resume_s:  # a fault that returns whenever the robot moves must stop it
            self._fault_since = math.inf
        if command.speed == 0:
            self.mode = Mode.HOLD
            return self._still([("autonomy", "the observation is not reliable")])
        self.mode = Mode.RUN if command.speed == 1 else Mode.SLOW
        reasons = [] if command.speed == 1 else [("slow", f"speed {command.speed:.2f}")]
        wanted = self._stand + command.speed * (np.asarray(command.action, np.float64) - self._stand)
        return self._move(wanted, state, passed_s, reasons)

    # Refusals: (reason, particulars) or None ------------------------------------------------------------------------------

    def _refuse_time(self, passed_s: float) -> tuple[str, str] | None:
        if passed_s < 0:
            return "clock", f"time went back by {-passed_s:.3g} s"
        if passed_s > self.limits.watchdog_s:
            return "clock", f"{passed_s:.3g} s passed between two checks"
        return None

    def _refuse_state(self, state: np.ndarray | None) -> tuple[str, str] | None:
        if state is None:
            return "state", "it could not be read"
        values = _numbers(state)
        if values is None or values.shape != (self.limits.state_dim,):
            return "state", f"expected {self.limits.state_dim} numbers, got {_describe(state)}"
        if not np.isfinite(values).all():
            return "state", f"not finite: {_listed(values)}"
        low, high = self.limits.state_low, self.limits.state_high
        if not ((values >= low) & (values <= high)).all():
            return "state", f"{_listed(values)} lies outside of its range {_listed(low)} to {_listed(high)}"
        return None

    def _refuse(self, command: Proposal | None) -> tuple[str, str] | None:
        limits, now = self.limits, self._now
        if command is None:
            # The next check would be too late.
            late = now + self._period_s - self._fresh_at > limits.watchdog_s
            return ("watchdog", f"no command for {now - self._fresh_at:.2f} s") if late else None
        action = _numbers(command.action)
        if action is None or action.shape != (limits.action_dim,):
            return "shape", f"expected {limits.action_dim} numbers, got {_describe(command.action)}"
        if not np.isfinite(action).all():
            return "not finite", _listed(action)
        margin = limits.max_excess * (limits.action_high - limits.action_low)
        if not ((action >= limits.action_low - margin) & (action <= limits.action_high + margin)).all():
            return "range", f"{_listed(action)} lies far outside of {_listed(limits.action_low)} to {_listed(limits.action_high)}"
        if not 0 <= command.speed <= 1:
            return "range", f"speed {command.speed} lies outside of 0 to 1"
        age_s = now - command.observed_at
        if not age_s <= limits.max_age_s:
            return "stale", f"the command comes from an observation of {age_s:.2f} s ago"
        if age_s < -CLOCK_TOLERANCE_S:
            return "clock", f"the observation is {-age_s:.3g} s ahead of the clock"
        return None

    # Commands -------------------------------------------------------------------------------------------------------------

    @property
    def _stand(self) -> np.ndarray:
        """The command that stands still."""
        return np.zeros(self.limits.action_dim) if self.limits.measured is None else self._last

    def _hold(self, reason: tuple[str, str]) -> Command:
        """Stand still because of a fault, or stop if that has lasted too long."""
        self._fault_since = min(self._fault_since, self._now)
        lasted_s = self._now - self._fault_since
        if lasted_s >= self.limits.stop_s:
            self.mode = Mode.STOPPED
            return self._still([reason, ("stop", f"on hold for {lasted_s:.2f} s")])
        self.mode = Mode.HOLD
        return self._still([reason])

    def _still(self, reasons: list[tuple[str, str]]) -> Command:
        self._last = self._stand
        return self._command(reasons)

    def _move(self, wanted: np.ndarray, state: np.ndarray, passed_s: float, reasons: list[tuple[str, str]]) -> Command:
        """`wanted`, moved into the limits, into the workspace and near the last command; in doubt, still."""
        limits = self.limits
        low, high = limits.action_low, limits.action_high
        if not ((wanted >= low) & (wanted <= high)).all():
            reasons.append(("limits", f"{_listed(wanted)} was clamped into {_listed(low)} to {_listed(high)}"))
        box_low, box_high = self._box(state)
        if not ((wanted >= box_low) & (wanted <= box_high)).all():
            where = _listed(np.asarray(state, np.float64))
            reasons.append(("workspace", f"{_listed(wanted)} would leave the workspace from {where}"))
        low, high = np.maximum(low, box_low), np.minimum(high, box_high)
        wanted = np.clip(wanted, low, high)
        limited = np.isfinite(limits.max_rate_per_s)
        rate = np.where(limited, limits.max_rate_per_s, 0.0)
        step = np.where(limited, np.minimum(limits.max_delta, rate * passed_s), limits.max_delta)
        if not (np.abs(wanted - self._last) <= step).all():
            reasons.append(("delta", f"{_listed(wanted)} is more than {_listed(step)} from the last command {_listed(self._last)}"))
        near_low, near_high = self._last - step, self._last + step
        if not ((near_low <= high) & (near_high >= low)).all():
            reasons.append(("brake", "no command is both near the last one and in the workspace"))
            return self._still(reasons)
        self._last = np.clip(wanted, near_low, near_high)
        return self._command(reasons)

    def _box(self, state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Range of commands that stay in the workspace, or from outside lead no further out; always contains 0."""
        low, high = np.full(self.limits.action_dim, -np.inf), np.full(self.limits.action_dim, np.inf)
        if (box := self.limits.workspace) is not None:
            position = np.asarray(state, np.float64)[list(box.state)]
            with np.errstate(over="ignore"):  # an absurd but finite position
                low[list(box.action)] = np.minimum((box.low_m - position) / box.scale_m, 0)
                high[list(box.action)] = np.maximum((box.high_m - position) / box.scale_m, 0)
        return low, high

    def _command(self, reasons: list[tuple[str, str]]) -> Command:
        for reason, detail in reasons:
            intervention = Intervention(self._now, self.mode.value, reason, detail)
            self.interventions.append(intervention)
            self.counts[reason] += 1
            if self._sink is not None:
                self._sink(intervention)
        return Command(self._last.copy(), self.mode, tuple(reason for reason, _ in reasons))


def _numbers(value: object) -> np.ndarray | None:
    """`value` as float64, or None if it is not an array of real numbers."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return None
    return array.astype(np.float64) if array.dtype.kind in "fiu" else None


def _listed(values: np.ndarray) -> str:
    """Numbers in brackets; numpy's own text would keep a control loop waiting."""
    return f"[{' '.join(f'{value:.8g}' for value in values.tolist())}]"


def _describe(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
