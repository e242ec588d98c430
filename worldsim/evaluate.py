"""Measuring policies and dreams against physics: success on held-out starts, and the same starts imagined.

Start i of an evaluation is the stream `seed + i` of the world, so two policies are compared on the same starts (and, with the
same batch size, the same sampler noise) and a gain can be paired. Read `metrics.py` for the intervals and
`world_model_quality.py` for open-loop dreams."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from rich.progress import Progress
from torch import Tensor

from worldsim.collect import Actor, PolicyActor, executed
from worldsim.dream import DreamWorld, Starts
from worldsim.interfaces import Policy, Reflector, World, WorldModel
from worldsim.types import Observation

Player = Policy | Callable[[int], Actor]
"""Who plays: a policy, or a function that makes an actor whose noise has the given seed (`worldsim.remote.RemotePolicies`)."""


@dataclass(frozen=True)
class Outcomes:
    """n episodes of one policy.

    Attributes:
        success: the episode terminated in success, [n].
        length: control steps until its end, [n].
        starts: first observation of every episode.
        seconds: wall time.
    """

    success: Bool[Tensor, " n"]
    length: Int[Tensor, " n"]
    starts: Starts
    seconds: float


@torch.no_grad()
def evaluate(world: World, policy: Player, *, episodes: int, seed: int, n_action_steps: int | None = None) -> Outcomes:
    """Play `episodes` episodes with the policy's deterministic sampler and noise seeded by episode.

    Args:
        world: with at most `episodes` environments.
        policy: in evaluation mode, or what plays in its place.
        episodes: n, a multiple of the world's `num_envs`.
        seed: episode i starts from stream seed + i.
        n_action_steps: actions of each chunk that are executed before the policy looks again, see `worldsim.collect.executed`.

    Raises:
        ValueError: if n is not a positive multiple of `num_envs`, or no action of a chunk is executed.
    """
    b = world.num_envs
    if episodes < 1 or episodes % b:
        raise ValueError(f"episodes must be a positive multiple of num_envs={b}, got {episodes}; try {max(1, episodes // b) * b}")
    began = time.monotonic()
    parts: list[tuple[Tensor, Tensor, Observation]] = []
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluate", total=episodes)
        for first in range(0, episodes, b):
            obs, _ = world.reset(seed=seed + first)
            parts.append((*play(world, policy, obs, seed=seed + first, n_action_steps=n_action_steps), obs))
            progress.advance(task, b)
    return Outcomes(
        success=torch.cat([part[0] for part in parts]),
        length=torch.cat([part[1] for part in parts]),
        starts=_starts([part[2] for part in parts]),
        seconds=time.monotonic() - began,
    )


@torch.no_grad()
def play(
    world: World, policy: Player, obs: Observation, *, seed: int, n_action_steps: int | None = None
) -> tuple[Bool[Tensor, " b"], Int[Tensor, " b"]]:
    """One episode in every environment of a freshly reset world: success and length, [b] each; arguments as for `evaluate`."""
    actor = actor_of(policy, seed)
    success = torch.zeros(world.num_envs, dtype=torch.bool)
    ended, length = success.clone(), torch.zeros(world.num_envs, dtype=torch.long)
    while not ended.all():
        result = world.step_chunk(executed(actor.act(world, obs), n_action_steps))
        success |= result.terminated.any(1) & ~ended
        length += (result.valid.sum(1)) * ~ended
        ended |= result.done
        obs = result.obs
    return success, length


def actor_of(policy: Player, seed: int) -> Actor:
    """The actor of one batch of episodes."""
    return PolicyActor(policy, seed=seed) if isinstance(policy, Policy) else policy(seed)


def imagine_outcomes(
    policy: Player,
    world_model: WorldModel,
    reflector: Reflector,
    starts: Starts,
    *,
    max_episode_steps: int,
    batch: int,
    seed: int,
    n_action_steps: int | None = None,
) -> Outcomes:
    """The same starts, imagined: success by the reflector's verdict in a dream.

    Args:
        policy: in evaluation mode, or what plays in its place.
        world_model: in evaluation mode.
        reflector: in evaluation mode.
        starts: of the physical episodes, with the world model's context.
        max_episode_steps: as in physics.
        batch: dreams at a time; the number of starts must be a multiple.
        seed: of the policy's noise, as in physics.
        n_action_steps: as for `evaluate`.
    """
    began = time.monotonic()
    world = DreamWorld(world_model, reflector, starts, num_envs=batch, max_episode_steps=max_episode_steps)
    parts = []
    for first in range(0, len(starts), batch):
        obs, _ = world.reset(seed=seed + first, options={"start": torch.arange(first, first + batch)})
        parts.append(play(world, policy, obs, seed=seed + first, n_action_steps=n_action_steps))
    success, length = (torch.cat(values) for values in zip(*parts, strict=True))
    return Outcomes(success, length, starts, time.monotonic() - began)


def _starts(observations: list[Observation]) -> Starts:
    """First observations as starts with one frame of context."""
    camera = next(iter(observations[0].images))
    return Starts(
        frames=torch.cat([obs.images[camera] for obs in observations])[:, None],
        state=torch.cat([obs.state for obs in observations])[:, None],
        instruction=tuple(sentence for obs in observations for sentence in obs.instruction),
    )
