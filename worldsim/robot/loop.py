"""The control loop: observes, asks the policy, and sends what safety lets through, at a fixed rate whatever the policy does.

Tick k is due at start + k * period whatever happened before, so a late tick makes no later one late, and a step number is a
time. The policy answers in a thread, in the same tick if it is quick. Read `chunks.py` for what happens with its answers.
"""

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from worldsim.robot.autonomy import Autonomy
from worldsim.robot.chunks import Chunk, Execution, Guide, interpolate
from worldsim.robot.drivers import Driver, DriverError, RobotObservation
from worldsim.robot.recording import Recorder
from worldsim.robot.safety import Command, Fault, Mode, Proposal, Safety

Policy = Callable[..., np.ndarray]  # observation -> actions [ah, ad]; (observation, guide) from an `Execution` that guides
# Share of a tick that may pass before it goes on without an answer. A policy that is quick then acts on what it has just seen: a
# whole step later its success in the default world falls from nine tenths to less than half (docs/robot.md).
PATIENCE = 0.2
KEPT = 100_000  # measurements per statistic


@dataclass(frozen=True)
class Report:
    """What happened in a run.

    Attributes:
        ended: "time", or "stopped" by safety.
        ticks: control ticks executed.
        deadline_misses: deadlines that passed while an earlier tick was still at work.
        late_ms: how late ticks began, percentiles.
        tick_ms: how long their work took.
        inference_ms: how long the policy took to answer.
        stale_chunks: answers that came too late to be used.
        modes: ticks by mode.
        interventions: by reason.
        recording: why recording ended early, or null.
        rows_dropped: rows that were not recorded.
    """

    ended: str
    ticks: int
    deadline_misses: int
    late_ms: dict[str, float]
    tick_ms: dict[str, float]
    inference_ms: dict[str, float]
    stale_chunks: int
    modes: dict[str, int]
    interventions: dict[str, int]
    recording: str | None
    rows_dropped: int

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Inference:
    """Asks a policy in a thread, one question at a time. A policy that never answers keeps nobody waiting, not even at exit.

    Args:
        policy: to be asked.
        action_dim: ad of the actions that it must answer with.

    Attributes:
        busy: a question is waiting for its answer.
        took_s: how long the last answer took.
    """

    def __init__(self, policy: Policy, action_dim: int):
        self._policy, self._action_dim = policy, action_dim
        self._answer: Future[tuple[np.ndarray, float]] | None = None
        self._asked_at = 0.0
        self.busy = False
        self.took_s = 0.0

    def ask(self, observation: RobotObservation, step: int, now: float, guide: Guide | None = None) -> None:
        """Start on an observation of policy step `step`, with what its answer should agree with."""
        assert not self.busy
        self.busy, self._step, self._asked_at = True, step, now
        self._answer = Future()
        question = (observation,) if guide is None else (observation, guide)
        threading.Thread(target=_answer, args=(self._answer, self._policy, question), name="policy", daemon=True).start()

    def busy_s(self, now: float) -> float:
        """How long the present question has been waiting for its answer, 0 without one."""
        return now - self._asked_at if self.busy else 0.0

    def poll(self, wait_s: float = 0.0) -> Chunk | Fault | None:
        """The answer if it comes within `wait_s`, as a fault if it is of no use, None otherwise."""
        if self._answer is None or not wait([self._answer], wait_s).done:
            return None
        answer, self._answer, self.busy = self._answer, None, False
        if (error := answer.exception()) is not None:
            return Fault(f"the policy failed: {type(error).__name__}: {error}")
        actions, self.took_s = answer.result()
        if actions.ndim != 2 or not len(actions) or actions.shape[1] != self._action_dim:
            return Fault(f"the policy must answer with actions [ah, {self._action_dim}], got shape {actions.shape}")
        if not np.isfinite(actions).all():
            return Fault("the policy's actions are not finite")
        return Chunk(actions, self._step, self._asked_at)


def _answer(future: Future[tuple[np.ndarray, float]], policy: Policy, question: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    try:
        future.set_result((np.asarray(policy(*question), np.float64), time.perf_counter() - began))
    except Exception as error:  # nothing is swallowed: `poll` gives it to the control thread, which holds the robot
        future.set_exception(error)


class ControlLoop:
    """Runs one robot.

    Args:
        driver: the robot.
        policy: called in a thread, never twice at a time.
        execution: what to do with its chunks.
        safety: every command passes it; its period must be that of this loop.
        fps: policy steps per second, as in training.
        multiplier: control ticks per policy step, between which commands are interpolated.
        autonomy: judges the observation of every policy step; None trusts all.
        recorder: records every policy step. A robot that can no longer be recorded is held.
        clock: monotonic time [s].
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        driver: Driver,
        policy: Policy,
        execution: Execution,
        safety: Safety,
        *,
        fps: float,
        multiplier: int = 1,
        autonomy: Autonomy | None = None,
        recorder: Recorder | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not (fps > 0 and multiplier >= 1):
            raise ValueError(f"fps must be positive and multiplier at least 1, got {fps} and {multiplier}")
        self._driver, self._execution, self._safety, self._recorder = driver, execution, safety, recorder
        self._autonomy, self._multiplier = autonomy, multiplier
        self._period_s = 1 / (fps * multiplier)
        self._patience_s = PATIENCE * self._period_s
        self._clock, self._sleep = clock, sleep
        self._inference = Inference(policy, safety.limits.action_dim)
        self._speed, self._outdated = 1.0, False
        self._previous: np.ndarray | None = None  # the action of the policy step before this one
        self._seen: RobotObservation | None = None  # the observation at the beginning of this policy step
        self._late_ms, self._tick_ms, self._inference_ms = (deque[float](maxlen=KEPT) for _ in range(3))
        self._modes: Counter[str] = Counter()
        self._misses = self._stale = 0

    def run(self, seconds: float) -> Report:
        """Control the robot for so long, or until safety stops it. Whatever happens, the driver's `stop` is called at the end."""
        start, tick, ticks = self._clock(), 0, 0
        mode = self._safety.mode
        try:
            while tick * self._period_s < seconds and mode is not Mode.STOPPED:
                deadline = start + tick * self._period_s
                wait = deadline - self._clock()
                if wait > 2 * self._period_s:  # the clock went back; the robot must not wait until it has caught up
                    start, wait = start - wait, 0.0
                    deadline = start + tick * self._period_s
                if wait > 0:
                    self._sleep(wait)
                began = self._clock()
                self._late_ms.append(1e3 * (began - deadline))
                mode = self._tick(tick)
                ticks += 1
                ended = self._clock()
                self._tick_ms.append(1e3 * (ended - began))
                # Deadlines that have passed: one is made up for at once, more are left out.
                passed = max(math.floor((ended - start) / self._period_s) - tick, 0)
                self._misses += passed
                tick += max(passed, 1)
        finally:
            self._attempt(self._driver.stop)
        return self._report("stopped" if mode is Mode.STOPPED else "time", ticks)

    def _tick(self, tick: int) -> Mode:
        step, part = divmod(tick, self._multiplier)
        observation, fault = self._observe(part)
        state = None if observation is None else observation.state
        proposal = fault or self._decide(observation, step, part, self._clock())
        if self._recorder is not None and self._recorder.error is not None:
            proposal = Fault(self._recorder.error)
        verdict = self._safety.check(proposal, state, self._clock())
        if isinstance(proposal, Fault) or "clock" in verdict.reasons:
            self._forget()
        self._modes[verdict.mode.value] += 1
        if fault := self._act(verdict):
            self._safety.check(fault, state, self._clock())
        if part == self._multiplier - 1:
            if self._recorder is not None and self._seen is not None:
                self._recorder.row(step, self._seen, verdict)
            self._seen = None
        return self._safety.mode

    def _observe(self, part: int) -> tuple[RobotObservation | None, Fault | None]:
        try:
            observation = self._driver.observe()
            if part == 0:
                self._seen = observation
                self._speed = 1.0 if self._autonomy is None else self._autonomy.judge(observation, self._clock()).speed
        except (DriverError, OSError, ValueError) as error:
            return None, Fault(str(error))
        return observation, None

    def _decide(self, observation: RobotObservation | None, step: int, part: int, now: float) -> Proposal | Fault | None:
        """What to propose in this tick, after looking whether the policy has answered and whether it should be asked."""
        if fault := self._collect(self._inference.poll(), step, now):
            return fault
        if (busy_s := self._inference.busy_s(now)) + self._period_s > self._safety.limits.watchdog_s:
            return Fault(f"the policy has not answered for {busy_s:.2f} s")
        if observation is not None and part == 0 and not self._inference.busy and self._execution.wants(step, self._delay()):
            self._inference.ask(observation, step, now, self._execution.guide(step, self._delay()))
            self._outdated = False
            if fault := self._collect(self._inference.poll(self._patience_s), step, now):
                return fault
        if (found := self._execution.action(step)) is None:
            return None
        action, observed_at = found
        previous = action if self._previous is None or self._previous.shape != action.shape else self._previous
        between = interpolate(previous, action, self._multiplier)[part]
        if part == self._multiplier - 1:
            self._previous = action
        return Proposal(between, observed_at, self._speed)

    def _collect(self, answer: Chunk | Fault | None, step: int, now: float) -> Fault | None:
        """Take a chunk that has arrived, if it is still of use."""
        if isinstance(answer, Chunk):
            self._inference_ms.append(1e3 * self._inference.took_s)
            old = now - answer.observed_at > self._safety.limits.max_age_s
            if self._outdated or old or not self._execution.add(answer, step):
                self._stale += 1
            return None
        return answer

    def _delay(self) -> int:
        """Steps from an observation to the arrival of its chunk, judged by the slowest of the last ten answers."""
        slowest_s = max(list(self._inference_ms)[-10:], default=0.0) / 1e3
        return 0 if slowest_s <= self._patience_s else math.ceil(slowest_s / self._period_s) // self._multiplier

    def _forget(self) -> None:
        """After a fault, what was seen and planned before it no longer holds."""
        self._outdated = self._inference.busy
        self._execution.clear()
        self._previous = None

    def _act(self, command: Command) -> Fault | None:
        if command.mode is Mode.HOLD:
            return self._attempt(self._driver.hold)
        if command.mode is Mode.STOPPED:
            return self._attempt(self._driver.stop)
        return self._attempt(self._driver.send, command.action)

    def _attempt(self, call: Callable[..., None], *arguments: np.ndarray) -> Fault | None:
        try:
            call(*arguments)
        except (DriverError, OSError) as error:
            return Fault(str(error))
        return None

    def _report(self, ended: str, ticks: int) -> Report:
        return Report(
            ended=ended,
            ticks=ticks,
            deadline_misses=self._misses,
            late_ms=percentiles(self._late_ms),
            tick_ms=percentiles(self._tick_ms),
            inference_ms=percentiles(self._inference_ms),
            stale_chunks=self._stale,
            modes=dict(self._modes),
            interventions=dict(self._safety.counts),
            recording=None if self._recorder is None else self._recorder.error,
            rows_dropped=0 if self._recorder is None else self._recorder.dropped,
        )


def percentiles(values: Iterable[float]) -> dict[str, float]:
    """p50, p95, p99 and max, rounded to microseconds for milliseconds; empty without values."""
    array = np.array(list(values))
    if not len(array):
        return {}
    return {
        **{f"p{q}": round(float(np.percentile(array, q)), 3) for q in (50, 95, 99)},
        "max": round(float(array.max()), 3),
    }
