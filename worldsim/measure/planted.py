"""The same world model with a fault, three times: what a check of world models must find, on the very episodes that it looks at.

Where episodes cannot tell a blind model from a seeing one, because all of them do the same, a clean report says nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import TensorBatch, float_image


class Planted(WorldModel):
    """A world model with a fault; it is never trained nor saved."""

    def __init__(self, model: WorldModel):
        super().__init__()
        self.model, self.spec = model, model.spec
        self.views, self.context, self.action_horizon = model.views, model.context, model.action_horizon
        self.action_dim, self.action_units = model.action_dim, model.action_units

    def init(self, images: Mapping[str, Tensor], state: Tensor, instruction: Sequence[str]) -> TensorBatch:
        return self.model.init(images, state, instruction)

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        return self.model.step(state, actions, noise)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        raise ValueError(f"a {type(self).__name__} model is there to be found, not to learn; train {type(self.model).__name__}")


class ActionBlind(Planted):
    """It takes every action for the middle one."""

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        return self.model.step(state, self.model.action_units.shift.expand_as(actions), noise)


class Blurred(Planted):
    """It shows the mean of squares of a twelfth of the picture's height."""

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        state, images, states = self.model.step(state, actions, noise)
        return state, {name: self._blurred(frames) for name, frames in images.items()}, states

    @staticmethod
    def _blurred(frames: Float[Tensor, "b t h w 3"]) -> Float[Tensor, "b t h w 3"]:
        side = 2 * max(2, frames.shape[-3] // 24) + 1
        pixels = frames.flatten(0, 1).movedim(-1, 1)
        return avg_pool2d(pixels, side, 1, side // 2, count_include_pad=False).movedim(1, -1).unflatten(0, frames.shape[:2])


@dataclass(frozen=True)
class Kept(TensorBatch):
    """A dream's state, and what its cameras showed at the start."""

    model: TensorBatch
    images: dict[str, Float[Tensor, "b 1 _ _ 3"]]


class Frozen(Planted):
    """It knows where the robot is, and shows where it was."""

    def init(self, images: Mapping[str, Tensor], state: Tensor, instruction: Sequence[str]) -> Kept:
        return Kept(
            self.model.init(images, state, instruction), {name: float_image(frames[:, -1:]) for name, frames in images.items()}
        )

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        assert isinstance(state, Kept)
        model, images, states = self.model.step(state.model, actions, noise)
        shown = {name: state.images[name].expand_as(frames) for name, frames in images.items()}
        return Kept(model, state.images), shown, states


FAULTS: dict[str, type[Planted]] = {"frozen": Frozen, "blurred": Blurred, "action-blind": ActionBlind}
"""By the name under which `trust.figures` must flag each."""
