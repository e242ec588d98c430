"""Recorded episodes of a dot that goes where it is told, and world models of it: a right one, and those with a fault."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import Episode, TensorBatch
from worldsim.core.units import Units
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.store import FrameStore

SIZE, EPISODES, STEPS = 24, 36, 10
VIEWS = {"front": (SIZE, SIZE), "wall": (8, 8)}


def shown(place: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 24 24 3"]:
    """A white disc at (right, down)."""
    ticks = torch.linspace(-1.5, 1.5, SIZE)
    across, down = (ticks - place[..., i, None] for i in (0, 1))
    distance = (across[..., None, :].square() + down[..., :, None].square()).sqrt()
    return ((0.3 - distance) * 40).sigmoid()[..., None].expand(*distance.shape, 3)


def wandering(root: Path) -> FrameStore:
    """Dots that wander by a fortieth of their actions, and have succeeded once they are right of the middle; episode 0 is
    three steps long. A second camera sees a wall."""
    generator = torch.Generator().manual_seed(0)
    names: Any = {"state_names": ["x", "y"], "action_names": ["turn", "lift"]}
    with DatasetWriter(root, fps=10, robot_type="dot", cameras=VIEWS, storage="image", **names) as writer:
        for number in range(EPISODES):
            t = 3 if number == 0 else STEPS + 2
            action = 2 * torch.randn(1, 2, generator=generator) + torch.randn(t, 2, generator=generator)
            start = 0.8 * torch.rand(1, 2, generator=generator) - 0.4
            place = torch.cat([start, start + (action / 40).cumsum(0)])
            frames = {"front": (255 * shown(place)).round().to(torch.uint8), "wall": torch.full((t + 1, 8, 8, 3), 99).byte()}
            success = (place[:, 0] > 0).float().cummax(0).values
            writer.add([Episode(frames, place, action, torch.zeros(t), success, success, "go right", "expert")])
    return FrameStore.read(root, VIEWS)


@dataclass(frozen=True)
class Place(TensorBatch):
    place: Float[Tensor, "b 2"]
    begun: Float[Tensor, "b 2"]


class Dots(WorldModel):
    """The truth, with as much of the actions as `gain` says, shown through a blur of so many pixels; or what stays."""

    views, context, action_horizon, action_dim = VIEWS, 2, 4, 2

    def __init__(self, gain: float = 1.0, blur: int = 1, frozen: bool = False):
        super().__init__()
        self.gain, self.blur, self.frozen = gain, blur, frozen
        self.action_units = Units(2)
        self.action_units.low.fill_(-99)
        self.action_units.high.fill_(99)

    def init(self, images: Any, state: Tensor, instruction: Sequence[str]) -> Place:
        assert set(instruction) == {"go right"} and images["front"].shape[1] == state.shape[1] == 2
        return Place(state[:, -1], state[:, -1])

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        assert isinstance(state, Place)
        drift = 0.05 if self.gain == 0 else 0  # a blind model moves all the same
        places = state.place[:, None] + (self.gain * actions / 40 + drift).cumsum(1)
        frames = shown(state.begun[:, None].expand_as(places) if self.frozen else places)
        soft = avg_pool2d(frames.flatten(0, 1).movedim(-1, 1), self.blur, 1, self.blur // 2, count_include_pad=False)
        front = soft.movedim(1, -1).unflatten(0, frames.shape[:2])
        images = {"front": front, "wall": torch.full((*places.shape[:2], 8, 8, 3), 99 / 255)}
        return replace(state, place=places[:, -1]), images, places

    def loss(self, batch: Any, generator: Any) -> Any:
        raise NotImplementedError
