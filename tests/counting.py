"""A world of one number and a judge that remembers what it was shown: every clip of a dream is known in advance."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import Reflection, TensorBatch, float_image
from worldsim.core.units import Units
from worldsim.worlds.dream import Starts

VIEWS = {"front": (8, 8)}


@dataclass(frozen=True)
class Level(TensorBatch):
    level: Float[Tensor, " b"]


class Rising(WorldModel):
    """Grey frames; each action's first number, in hundredths, is what the grey rises by. It reads one frame."""

    differentiable = causal = True

    def __init__(self, context: int = 1) -> None:
        super().__init__()
        self.views, self.context, self.action_horizon, self.action_dim = VIEWS, context, 4, 2
        self.action_units = Units(2)

    def init(self, images: Mapping[str, Tensor], state: Tensor, instruction: Sequence[str]) -> Level:
        assert images["front"].shape[1] == state.shape[1] == self.context and len(instruction) == len(state)
        return Level(float_image(images["front"])[:, -1].mean(dim=(1, 2, 3)))

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        assert isinstance(state, Level)
        level = state.level[:, None] + 0.01 * actions[..., 0].cumsum(dim=1)
        return Level(level[:, -1]), {"front": frames(level)}, torch.zeros(*level.shape, 4)

    def loss(self, batch, generator):
        raise NotImplementedError


class Remembering(Reflector):
    """Success is as likely as the last frame is bright, progress what the clip has risen by (a single frame from black).

    It keeps the levels of all clips.
    """

    def __init__(self, context: int = 3, every: int = 1, *, differentiable: bool = False) -> None:
        super().__init__()
        self.views, self.context, self.every, self.differentiable = VIEWS, context, every, differentiable
        self.threshold, self.consecutive, self.window = torch.tensor(0.995), 1, 2
        self.shown: list[list[float]] = []

    def judge(self, clip: Mapping[str, Tensor], instruction: Sequence[str]) -> Reflection:
        levels = float_image(clip["front"]).mean(dim=(2, 3, 4))
        assert levels.shape == (len(instruction), self.context)
        self.shown += levels.detach().mul(100).round().long().tolist()
        risen = levels[:, -1] - (levels[:, 0] if self.context > 1 else 0)
        return Reflection(levels[:, -1], risen, torch.zeros(len(levels)))


def frames(level: Float[Tensor, "*b"]) -> Float[Tensor, "*b 8 8 3"]:
    return level[..., None, None, None].expand(*level.shape, 8, 8, 3)


def starts(*levels: Sequence[float]) -> Starts:
    """Moments of a few frames each, grey in hundredths."""
    images = (frames(torch.tensor(levels)) * 2.55).round().byte()
    return Starts({"front": images}, torch.zeros(len(levels), len(levels[0]), 4), ("go",) * len(levels))
