"""Are faults found? One world model and the same with each of four faults, held to the same recorded episodes.

`python benchmarks/planted_models.py MODEL DATASET [DATASET ...]` takes the last twentieth of each dataset, as `worldsim evaluate`
does, and prints the figures of docs/results/world_model.md.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import avg_pool2d

from worldsim.core import checkpoint
from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import TensorBatch, float_image
from worldsim.data.store import FrameStore
from worldsim.measure import recorded, trust


class Planted(WorldModel):
    """A world model with a fault."""

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
        raise NotImplementedError


class ActionBlind(Planted):
    """It takes every action for the middle one."""

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        return self.model.step(state, self.model.action_units.shift.expand_as(actions), noise)


class Confused(Planted):
    """It takes every robot's actions for those of the next one: it moves, and it does not obey."""

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        return self.model.step(state, actions.roll(1, 0), noise)


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


FAULTS: dict[str, type[Planted]] = {"frozen": Frozen, "blurred": Blurred, "action-blind": ActionBlind, "confused": Confused}


def main(folder: str, *roots: str, steps: int = 40) -> None:
    model = checkpoint.load(folder, WorldModel)
    table = FrameStore.read_held_out(roots, model.views, held_out=0.05)
    if table is None or model.spec is None:
        raise SystemExit("name a world model of worldsim, and datasets of which episodes are held out")
    table = table.ordered(model.spec, "the world model")
    rows = recorded.starts(table, steps, 512)
    print("| | motion | detail | control | skill after 4 | after 20 | after 40 | flagged as |", "| --- " * 8 + "|", sep="\n")
    for name, tried in {"as it is": model, **{name: fault(model).eval() for name, fault in FAULTS.items()}}.items():
        found = trust.figures(recorded.hold(tried, table, rows, steps=steps), model.action_horizon)
        for camera in found["cameras"].values():
            skill = [camera["skill_by_step"][min(k, found["steps"]) - 1] for k in (4, 20, 40)]
            shown = [camera[key] for key in ("motion", "detail", "control")] + skill
            cells = ("{:.2f} [{:.2f}, {:.2f}]".format(*figure) for figure in shown)
            print(f"| {name} | {' | '.join(cells)} | {', '.join(found['flags']) or 'nothing'} |", flush=True)


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
