"""The data that every part of worldsim exchanges: observations, episodes, rollouts and judgements.

They are frozen dataclasses of batched torch tensors so that the whole data contract fits on one page and slicing,
branching and resetting are plain indexing. Read `interfaces.py` next: it says who produces and who consumes them.

Shape legend of the repository: ``b`` environment, ``t`` decision or frame, ``k`` denoising step, ``ah``/``ad`` action
horizon and dimension, ``s`` proprioceptive state, ``h w c`` image (RGB).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from typing_extensions import Self


class TensorBatch:
    """Indexing and moving for dataclasses whose tensors share their leading axis."""

    def __getitem__(self, index: Tensor | slice | list[int]) -> Self:
        """Rows `index` (an integer tensor, a boolean mask, a slice or a list) of every field."""
        if isinstance(index, list):
            index = torch.tensor(index, dtype=torch.bool if index and isinstance(index[0], bool) else torch.long)
        return self._map(lambda tensor: tensor[index.to(tensor.device) if isinstance(index, Tensor) else index], index)

    def to(self, device: torch.device | str) -> Self:
        """A copy on `device`."""
        return self.each(lambda tensor: tensor.to(device))

    def detach(self) -> Self:
        """A copy that carries no gradient."""
        return self.each(lambda tensor: tensor.detach())

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """A copy with every tensor changed."""
        return self._map(change, slice(None))

    def _map(self, fn, index) -> Self:
        def apply(value):
            if isinstance(value, Tensor):
                return fn(value)
            if isinstance(value, dict):
                return {key: apply(item) for key, item in value.items()}
            if isinstance(value, tuple):
                return tuple(value[i] for i in range(len(value))[index]) if isinstance(index, slice) else _take(value, index)
            if isinstance(value, TensorBatch):
                return value._map(fn, index)
            return value

        return replace(self, **{f.name: apply(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var]


def _take(values: tuple, index: Tensor) -> tuple:
    rows = index.nonzero().flatten() if index.dtype == torch.bool else index
    return tuple(values[i] for i in rows.tolist())


Rows = TypeVar("Rows", bound=TensorBatch)


def where_rows(mask: Bool[Tensor, " b"], first: Rows, second: Rows) -> Rows:
    """Row i of `first` where mask[i], of `second` elsewhere."""

    def choose(a: Any, z: Any) -> Any:
        if a is z:  # nothing to choose; a tuple would have to wait for the mask
            return a
        if isinstance(a, Tensor):
            return torch.where(mask.reshape(-1, *([1] * (a.ndim - 1))), a, z)
        return tuple(x if m else y for m, x, y in zip(mask.tolist(), a, z, strict=True))

    return _together(choose, first, second)


def cat_rows(first: Rows, second: Rows) -> Rows:
    """The rows of `first`, then those of `second`."""
    return _together(lambda a, z: a + z if isinstance(a, tuple) else torch.cat([a, z.to(a.dtype)]), first, second)


def stack_times(parts: Sequence[Rows]) -> Rows:
    """Batches of tensors alone, one of each time, as one whose second axis is time."""
    return _together(lambda *tensors: torch.stack(tensors, dim=1), *parts)


def _together(join: Callable[..., Any], *parts: Any) -> Any:
    """`join` of the tensors and tuples in the same place of several batches."""
    a = parts[0]
    if isinstance(a, TensorBatch):
        joined = {f.name: _together(join, *(getattr(part, f.name) for part in parts)) for f in fields(a)}  # type: ignore[arg-type]
        return replace(a, **joined)  # type: ignore[type-var]
    if not isinstance(a, Tensor | tuple | dict):
        return a  # what is not by environment
    if isinstance(a, dict):
        return {key: _together(join, *(part[key] for part in parts)) for key in a}
    return join(*parts)


@dataclass(frozen=True)
class Observation(TensorBatch):
    """What a policy sees at one instant, for a batch of environments.

    Attributes:
        images: RGB by camera name; uint8 0..255, or float 0..1 inside a differentiable dream.
        state: proprioception in native units, in the order of the `Spec`'s state channels.
        instruction: one natural-language sentence per environment.
    """

    images: dict[str, Shaped[Tensor, "*b _ _ 3"]]
    state: Float[Tensor, "*b s"]
    instruction: tuple[str, ...]


@dataclass(frozen=True)
class Features(TensorBatch):
    """What a flow policy keeps of an observation for all denoising steps of a decision.

    A policy that keeps more than a vector, such as keys and values of its prefix, adds fields in a subclass.

    Attributes:
        vector: what critics and noise networks see that share the policy's encoder.
    """

    vector: Float[Tensor, "*b f"]

    def __getitem__(self, index: Tensor | slice | list[int] | tuple[Tensor | slice, Tensor | int]) -> Self:
        """Rows `index`, or those of decisions by (trajectory, time)."""
        return self.each(lambda tensor: tensor[index]) if isinstance(index, tuple) else super().__getitem__(index)

    def __len__(self) -> int:
        return len(self.vector)

    def repeat(self, times: int) -> Self:
        """All rows, then all of them again, and so on."""
        return self.each(lambda tensor: tensor.repeat(times, *[1] * (tensor.ndim - 1)))


@dataclass(frozen=True, kw_only=True)
class Judgement(TensorBatch):
    """What a world's judge says of the current frame: the task's truth in physics, the reflector's verdict in a dream.

    Attributes:
        success: the task is done; inside a differentiable dream the probability of it, 0..1.
        progress: task progress in [0, 1]; NaN where nobody knows it.
    """

    success: Bool[Tensor, "*b"] | Float[Tensor, "*b"]
    progress: Float[Tensor, "*b"]


@dataclass(frozen=True)
class Reflection(TensorBatch):
    """A reflector's judgement of frames under an instruction; every field is [*b].

    Attributes:
        p_success: calibrated probability in (0, 1) that the task is done in this frame.
        progress: estimated progress in [0, 1]; 1 is done.
        uncertainty: spread of the judgement in [0, 1]; 0 where the reflector has no estimate.
    """

    p_success: Float[Tensor, "*b"]
    progress: Float[Tensor, "*b"]
    uncertainty: Float[Tensor, "*b"]


@dataclass(frozen=True)
class Episode:
    """One recorded episode of t actions and t+1 observations.

    Attributes:
        images: RGB uint8 by camera, [t+1, h, w, 3].
        state: proprioception, [t+1, s].
        action: actions in native units, [t, ad].
        reward: reward of each action, [t].
        success: ground truth of every frame, 1 or 0, [t+1]; NaN where nobody judged it, so ask `== 1`.
        progress: task progress of every frame in [0, 1], [t+1]; NaN where nobody judged it.
        instruction: what the episode was told to do.
        source: who acted: "expert", "noisy_expert", "policy", "dream" or "robot".
    """

    images: dict[str, Shaped[Tensor, "t1 _ _ 3"]]
    state: Float[Tensor, "t1 s"]
    action: Float[Tensor, "t ad"]
    reward: Float[Tensor, " t"]
    success: Float[Tensor, " t1"]
    progress: Float[Tensor, " t1"]
    instruction: str
    source: str

    def __len__(self) -> int:
        return self.action.shape[0]


@dataclass(frozen=True)
class Rollout(TensorBatch):
    """What reinforcement learning eats: b trajectories of t decisions, each a denoising chain of k steps to a chunk of ah actions.

    Attributes:
        images: RGB uint8 by camera before each decision.
        state: proprioception before each decision, in the order of the policy's channels, as the chain is.
        features: `FlowPolicy.encode` of both under the policy that acted.
        instruction: one sentence per trajectory.
        chain: noisy action chunks, noise first, the executed chunk last.
        stochastic: which denoising steps were stochastic.
        logprob: log-probability of each denoising transition and action under the policy that acted; 0 in deterministic steps.
        reward: of each action.
        terminated: the task ended the episode at this action: nothing follows that could be worth anything.
        success: the episode ended, and the world says that the task was done in its last frame.
        valid: this action was executed before the end of its episode; others carry no gradient.
        group: trajectories with one number share start state and instruction (GRPO).
        value: critic's estimate before each decision (v = 1) or each of its actions (v = ah); 0 without a critic.
        final_value: critic's estimate after the last valid action, for the bootstrap.
    """

    images: dict[str, Shaped[Tensor, "b t _ _ 3"]]
    state: Float[Tensor, "b t s"]
    features: Features  # [b, t, ...]
    instruction: tuple[str, ...]
    chain: Float[Tensor, "b t k1 ah ad"]
    stochastic: Bool[Tensor, "b t k"]
    logprob: Float[Tensor, "b t k ah"]
    reward: Float[Tensor, "b t ah"]
    terminated: Bool[Tensor, "b t ah"]
    success: Bool[Tensor, " b"]
    valid: Bool[Tensor, "b t ah"]
    group: Int[Tensor, " b"]
    value: Float[Tensor, "b t v"]
    final_value: Float[Tensor, " b"]

    def observations(self, index: tuple[Tensor | slice, Tensor | int]) -> Observation:
        """What was seen before some decisions, by (trajectory, time)."""
        rows = torch.arange(len(self.instruction), device=self.state.device)[index[0]].tolist()
        images = {name: frames[index] for name, frames in self.images.items()}
        return Observation(images, self.state[index], tuple(self.instruction[i] for i in rows))

    @property
    def returns(self) -> Float[Tensor, " b"]:
        """Undiscounted reward of each trajectory."""
        return self.reward.sum(dim=(1, 2))

    @property
    def decided(self) -> Bool[Tensor, "b t"]:
        """Decisions of which at least the first action was executed."""
        return self.valid[..., 0]


def float_image(images: Tensor) -> Tensor:
    """RGB in [0, 1] from uint8 0..255; a float image passes through unchanged, with its gradient."""
    return images.float().div_(255) if images.dtype == torch.uint8 else images
