"""A world of a place that moves as it is told, whose channels have names, for tests of who understands whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from counting import VIEWS, frames
from jaxtyping import Float
from torch import Tensor

from worldsim.core.channels import Channel
from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.spec import Spec
from worldsim.core.types import TensorBatch
from worldsim.core.units import Units
from worldsim.worlds.dream import Starts

START = torch.tensor([[0.4, -0.2], [-0.1, 0.3]])  # east and north [m]


def spec(*, turned: bool) -> Spec:
    felt = (Channel("east", "m"), Channel("north", "m"))
    asked = (Channel("de", "m", low=-1, high=1), Channel("dn", "m", low=-0.25, high=0.25))
    return Spec({}, 10, "drifter", felt[::-1] if turned else felt, asked[::-1] if turned else asked)


@dataclass(frozen=True)
class Place(TensorBatch):
    place: Float[Tensor, "b 2"]


class Drift(WorldModel):
    """A place (east, north) that actions (de, dn) move, as they are; black pictures."""

    differentiable = causal = True

    def __init__(self) -> None:
        super().__init__()
        self.views, self.context, self.action_horizon, self.action_dim = VIEWS, 1, 1, 2
        self.action_units, self.spec = Units(2), spec(turned=False)
        self.action_units.high[1], self.action_units.low[1] = 0.25, -0.25

    def init(self, images: Mapping[str, Tensor], state: Tensor, instruction: Sequence[str]) -> Place:
        return Place(state[:, -1])

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        assert isinstance(state, Place)
        places = state.place[:, None] + actions.cumsum(dim=1)
        return Place(places[:, -1]), {"front": frames(torch.zeros(actions.shape[:2]))}, places

    def loss(self, batch, generator):
        raise NotImplementedError


def moments() -> Starts:
    return Starts({"front": frames(torch.zeros(2, 1)).byte()}, START[:, None], ("go home",) * 2)
