"""Four ways to execute action chunks while the next one is being computed, and interpolation between actions.

Inference takes longer than a control step, so a chunk arrives late: its first actions are already past. Every chunk says at which
step it was observed, and action i belongs to step `start + i`, whoever executes it. Read `loop.py` next: it calls these.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """The actions that a policy chose for one observation.

    Attributes:
        actions: [ah, ad]; row i is for step start + i.
        start: number of the policy step at which the observation was made.
        observed_at: monotonic time of that [s].
    """

    actions: np.ndarray
    start: int
    observed_at: float

    @property
    def end(self) -> int:
        """The first step that it has no action for."""
        return self.start + len(self.actions)

    def at(self, step: int) -> np.ndarray | None:
        """The action for `step`, [ad], or None."""
        return self.actions[step - self.start] if self.start <= step < self.end else None


@dataclass(frozen=True)
class Guide:
    """What a new chunk should agree with.

    Attributes:
        previous: actions of the present plan for the new chunk's steps, float32 [ah, ad]; zeros where it has none.
        weights: how much each counts, float32 [ah] in [0, 1].
    """

    previous: np.ndarray
    weights: np.ndarray


class Execution(ABC):
    """Decides when a new chunk is wanted, and which action belongs to a step."""

    @abstractmethod
    def wants(self, step: int, delay: int) -> bool:
        """Whether to start inference on the observation of `step`, if its chunk will arrive about `delay` steps later."""

    @abstractmethod
    def add(self, chunk: Chunk, step: int) -> bool:
        """Take a chunk that arrived at `step`. False, and no effect, if it holds no action for this step or a later one."""

    @abstractmethod
    def action(self, step: int) -> tuple[np.ndarray, float] | None:
        """The action for `step`, [ad], and the time of the newest observation behind it [s]; None if there is none."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all chunks, after a fault."""

    def guide(self, step: int, delay: int) -> Guide | None:
        """What inference on the observation of `step` should agree with, if its chunk will arrive about `delay` steps later."""
        return None


class OpenLoop(Execution):
    """Executes `execute` actions of a chunk, then goes over to the next one; goes on only while that is late.

    Args:
        execute: n of the ah actions, at least 1. Those that are past when a chunk arrives do not count, so n plus the delay must
            fit into ah if the robot is not to wait.
    """

    def __init__(self, execute: int):
        self._execute = _positive(execute)
        self.clear()

    def clear(self) -> None:
        self._current: Chunk | None = None
        self._next: Chunk | None = None
        self._until = 0

    def wants(self, step: int, delay: int) -> bool:
        return self._next is None and (self._current is None or step + delay >= self._until)

    def add(self, chunk: Chunk, step: int) -> bool:
        if step >= chunk.end:
            return False
        self._next = chunk
        return True

    def action(self, step: int) -> tuple[np.ndarray, float] | None:
        if self._next is not None and (self._current is None or step >= self._until):
            self._current, self._next, self._until = self._next, None, step + self._execute
        if self._current is None or (action := self._current.at(step)) is None:
            return None
        return action, self._current.observed_at


class TemporalEnsembling(Execution):
    """Averages what all chunks say about a step, w_i = exp(-decay i) with the oldest first (ACT, arXiv:2304.13705).

    Inference is wanted at every step; where it takes longer, fewer chunks overlap.

    Args:
        decay: of the weights; larger trusts old chunks more.
    """

    def __init__(self, decay: float = 0.01):
        if not decay >= 0:
            raise ValueError(f"decay must not be negative, got {decay}; ACT uses 0.01")
        self._decay = decay
        self.clear()

    def clear(self) -> None:
        self._chunks: list[Chunk] = []

    def wants(self, step: int, delay: int) -> bool:
        return True

    def add(self, chunk: Chunk, step: int) -> bool:
        if step >= chunk.end:
            return False
        self._chunks = [*(old for old in self._chunks if old.end > step), chunk]
        return True

    def action(self, step: int) -> tuple[np.ndarray, float] | None:
        covering = [chunk for chunk in self._chunks if chunk.at(step) is not None]
        if not covering:
            return None
        weights = np.exp(-self._decay * np.arange(len(covering)))
        actions = np.stack([chunk.actions[step - chunk.start] for chunk in covering])
        return weights @ actions / weights.sum(), covering[-1].observed_at


class Blending(Execution):
    """The result of real-time chunking without a look inside the sampler, for policies that cannot be guided.

    Inference on the observation of step s starts while the present plan is executed. When its chunk arrives d steps later, the d
    actions that were executed in the meantime are frozen, later ones go over from the present plan to the new chunk with
    `prefix_weights`, and what the present plan does not reach is the new chunk's. The motion stays continuous, but where old and
    new plan disagree (left or right around an obstacle) it passes through their average.

    Args:
        execute: actions between two starts of inference, at least 1 (the paper's execution horizon). With a delay of d steps,
            execute + d should not exceed ah.
    """

    def __init__(self, execute: int):
        self._execute = _positive(execute)
        self.clear()

    def clear(self) -> None:
        self._plan: Chunk | None = None

    def wants(self, step: int, delay: int) -> bool:
        return self._plan is None or step - self._plan.start >= self._execute

    def add(self, chunk: Chunk, step: int) -> bool:
        if step >= chunk.end:
            return False
        self._plan = chunk if self._plan is None else self._joined(self._plan, chunk, step)
        return True

    def action(self, step: int) -> tuple[np.ndarray, float] | None:
        if self._plan is None or (action := self._plan.at(step)) is None:
            return None
        return action, self._plan.observed_at

    def _joined(self, plan: Chunk, chunk: Chunk, step: int) -> Chunk:
        return _blend(plan, chunk, delay=step - chunk.start)


class RealTimeChunking(Blending):
    """Real-time chunking (Black, Galliker, Levine 2025, arXiv:2506.07339): the sampler itself goes on from the present plan.

    Inference is told what the present plan does from the observed step on, with `prefix_weights`: the actions that will be
    executed before the new chunk arrives count fully, later ones less and less. Every denoising step is drawn towards them
    (`worldsim.core.flow.sample_guided`), so the new chunk is one that the policy could have chosen and that continues the motion.
    It is then executed as it is. The policy must take a `Guide`.
    """

    def guide(self, step: int, delay: int) -> Guide | None:
        if self._plan is None or (overlap := self._plan.end - step) <= 0:
            return None
        horizon = len(self._plan.actions)
        previous = np.zeros((horizon, self._plan.actions.shape[1]), np.float32)
        previous[:overlap] = self._plan.actions[step - self._plan.start :]
        return Guide(previous, prefix_weights(horizon, delay=min(delay, overlap), overlap=overlap).astype(np.float32))

    def _joined(self, plan: Chunk, chunk: Chunk, step: int) -> Chunk:
        return chunk


def _blend(plan: Chunk, chunk: Chunk, *, delay: int) -> Chunk:
    horizon = len(chunk.actions)
    overlap = min(max(plan.end - chunk.start, 0), horizon)
    weights = prefix_weights(horizon, delay=min(delay, overlap), overlap=overlap)[:overlap, None]
    old = plan.actions[chunk.start - plan.start :][:overlap]
    actions = np.array(chunk.actions, dtype=np.float64)
    actions[:overlap] = weights * old + (1 - weights) * actions[:overlap]
    return replace(chunk, actions=actions)


def prefix_weights(horizon: int, *, delay: int, overlap: int) -> np.ndarray:
    """Weights of the previous chunk in the new one, [horizon], equation 5 of arXiv:2506.07339.

    w_i = 1 for i < delay, c_i (exp(c_i) - 1) / (e - 1) with c_i = (overlap - i) / (overlap - delay + 1) for delay <= i < overlap,
    and 0 beyond. The paper writes H - s for `overlap`, the number of actions that the previous chunk still has.

    Raises:
        ValueError: unless 0 <= delay <= overlap <= horizon.
    """
    if not 0 <= delay <= overlap <= horizon:
        raise ValueError(f"expected 0 <= delay <= overlap <= horizon, got {delay}, {overlap} and {horizon}")
    i = np.arange(horizon)
    c = (overlap - i) / (overlap - delay + 1)
    return np.where(i < delay, 1.0, np.where(i < overlap, c * np.expm1(c) / np.expm1(1), 0.0))


def interpolate(previous: np.ndarray, action: np.ndarray, multiplier: int) -> np.ndarray:
    """`multiplier` commands from `previous` (not included) to `action` (included), evenly spaced, [multiplier, ad].

    For actions that are positions or velocities; a displacement per step must be divided by the driver that executes it.

    Raises:
        ValueError: if multiplier is not a positive whole number.
    """
    share = np.arange(1, _positive(multiplier) + 1)[:, None] / multiplier
    return previous + share * (np.asarray(action) - previous)


def _positive(count: int) -> int:
    if count != int(count) or count < 1:
        raise ValueError(f"a number of actions must be a positive whole number, got {count}")
    return int(count)
