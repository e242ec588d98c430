"""Whether a world model knows what actions do: moments of physics, each followed by an actor's chunk and by somebody else's.

A dream may look right and still ignore the actions, or move what nobody touches: learners then follow a gradient of nothing. Read
`dream_quality.py` for how dreams look.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import recent, seen
from worldsim.core.types import Observation, TensorBatch
from worldsim.core.world import Branchable, ChunkResult, Sight, World
from worldsim.measure.collect import Actor, play
from worldsim.measure.dream_quality import ColorTracker

if TYPE_CHECKING:
    from worldsim.worlds.genesis.world import GenesisWorld


@dataclass(frozen=True)
class Effects(TensorBatch):
    """n moments of physics and what either of two chunks of actions led to.

    Attributes:
        images: the last frames before it, by camera, oldest first.
        state: proprioception of the same.
        action: the chunk that was played, and another one.
        after: what each camera shows after each of them.
        block: where the block is then that the instruction names [m].
        color: of that block, RGB 0..1.
        instruction: what was told.
    """

    images: dict[str, Shaped[Tensor, "n context _ _ 3"]]
    state: Float[Tensor, "n context s"]
    action: Float[Tensor, "n 2 ah ad"]
    after: dict[str, Shaped[Tensor, "n 2 _ _ 3"]]
    block: Float[Tensor, "n 2 2"]
    color: Float[Tensor, "n 3"]
    instruction: tuple[str, ...]


class Sensitivity(NamedTuple):
    """Dreamed against true effects of changed actions.

    Attributes:
        slope: dreamed effect per true one, along it, by least squares: 1 is right, 0 is blind.
        correlation: cosine of all effects taken together, which is blind to their size.
        moments: of how many it is.
    """

    slope: float
    correlation: float
    moments: int


class Held(Actor):
    """Another actor, each of whose actions is held for some steps, so that it can be told from none.

    Args:
        actor: who decides.
        steps: how long.
    """

    def __init__(self, actor: Actor, steps: int):
        self.actor, self.steps, self.source = actor, steps, actor.source

    def act(self, world: World, obs: Observation, noise: Noise) -> Float[Tensor, "b ah ad"]:
        return self.actor.act(world, obs, noise)[:, :1].expand(-1, self.steps, -1)


def record_effects(world: World, actor: Actor, *, context: int, seed: int) -> Effects:
    """Every chunk of one episode in every environment, played twice: as the actor wants, and as the neighbour's actor wants.

    Args:
        world: a `Branchable` table with blocks; success ends nothing meanwhile.
        actor: in chunks of several actions, see `Held`.
        context: frames before each moment.
        seed: environment i plays the start seed + i.

    Raises:
        ValueError: if there is one environment only, or the world cannot be kept.
    """
    if world.num_envs < 2:
        raise ValueError("effects need two environments or more, whose actions are exchanged, got 1; raise num_envs")
    table: GenesisWorld = world.unwrapped  # type: ignore[assignment]
    branchable, elsewhere, colors = world.require(Branchable, "action sensitivity", "measure in another world"), [], []

    def advance(chunk: Tensor) -> tuple[ChunkResult, list[Sight]]:
        colors.append(table.named_colors)
        here, other = branchable.snapshot(), chunk.roll(1, dims=0)
        elsewhere.append((other, world.watch_chunk(other)[1][-1]))
        branchable.restore(here)
        return world.watch_chunk(chunk)

    past: list[Sight] = []
    moments = []
    with table.endless():
        for turn in play(world, actor, advance, episodes=world.num_envs, seed=seed):
            past = past or [turn.before]
            (other, there), here = elsewhere[-1], turn.seen[-1]
            moments.append(_moment(past[-context:], torch.stack([turn.actions, other], dim=1), (here, there), colors[0], context))
            past += turn.seen
    return _joined(moments)


def _moment(past: list[Sight], action: Tensor, ends: tuple[Sight, Sight], color: Tensor, context: int) -> Effects:
    first = past[-1][0]

    def images(sights: Iterable[Sight]) -> dict[str, Tensor]:
        sights = list(sights)
        return {name: torch.stack([obs.images[name] for obs, _ in sights], dim=1) for name in first.images}

    return Effects(
        {name: recent(frames, context) for name, frames in images(past).items()},
        recent(torch.stack([obs.state for obs, _ in past], dim=1), context),
        action,
        images(ends),
        torch.stack([truth.block for _, truth in ends], dim=1),  # type: ignore[attr-defined]
        color,
        first.instruction,
    )


def _joined(moments: list[Effects]) -> Effects:
    def cameras(name: str) -> dict[str, Tensor]:
        return {camera: torch.cat([getattr(m, name)[camera] for m in moments]) for camera in getattr(moments[0], name)}

    tensors = {name: torch.cat([getattr(m, name) for m in moments]) for name in ("state", "action", "block", "color")}
    return Effects(cameras("images"), after=cameras("after"), instruction=sum((m.instruction for m in moments), ()), **tensors)


@torch.no_grad()
def sensitivity(
    world_model: WorldModel, effects: Effects, camera: str, *, least_m: float = 0.005, batch: int = 128, seed: int = 0
) -> Sensitivity:
    """Of the moments in which the changed actions really made a difference of `least_m` to the block, which takes contact.

    Raises:
        ValueError: if there is none.
    """
    made = effects.block[:, 1] - effects.block[:, 0]
    chosen = made.norm(dim=-1) > least_m
    if not chosen.any():
        raise ValueError(f"no changed actions moved a block by {least_m} m; record more episodes, of an actor that touches blocks")
    shown = seen(effects.after, world_model.views, "the world model")[camera]
    colors = effects.color[:, None].expand(-1, 2, -1)
    tracker = ColorTracker(shown.flatten(0, 1), colors.flatten(0, 1), effects.block.flatten(0, 1))
    some, dreamed = effects[chosen], []
    for part in torch.arange(len(some.instruction)).split(batch):
        now = some[part]
        images = {name: recent(frames, world_model.context) for name, frames in now.images.items()}
        state = world_model.init(images, recent(now.state, world_model.context), now.instruction)
        places = [
            tracker(_dreamed(world_model, state, now.action[:, i], Noise.rows(seed, len(part)), camera), now.color) for i in (0, 1)
        ]
        dreamed.append(places[1] - places[0])
    return agreement_of(torch.cat(dreamed), made[chosen])


def _dreamed(model: WorldModel, state: TensorBatch, actions: Tensor, noise: Noise, camera: str) -> Tensor:
    """The last frame of a chunk."""
    for number, piece in enumerate(actions.split(model.action_horizon, dim=1)):
        state, predicted, _ = model.step(state, piece, noise.at(number * model.action_horizon))
    return predicted[camera][:, -1].float().clamp(0, 1)


def agreement_of(dreamed: Float[Tensor, "n 2"], true: Float[Tensor, "n 2"]) -> Sensitivity:
    """Least-squares slope through the origin and cosine of two sets of displacements."""
    along, size = (dreamed * true).sum(), true.square().sum()
    return Sensitivity(float(along / size), float(along / (size * dreamed.square().sum()).sqrt().clamp(min=1e-12)), len(true))
