"""Measuring policies and dreams against physics: success on held-out starts, and the same starts imagined.

Start i of an evaluation is the stream `seed + i` of the world, so two policies are compared on the same starts and with the same
sampler noise, and a gain can be paired. Played again with another noise stream, physics says how much of an outcome is chance: an
agreement between dream and physics is to be read beside that. Read `metrics.py` for the figures and `dream_quality.py` for
open-loop dreams."""

import time
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from rich.progress import Progress
from torch import Tensor

from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.types import Observation
from worldsim.core.world import World
from worldsim.measure.collect import Actor, PolicyActor, play, unwatched
from worldsim.worlds.dream import DreamJudgement, DreamWorld, Starts

Player = Policy | Actor
"""Who plays: a policy, which is sampled with its ODE, or whoever acts in its place (`worldsim.measure.remote.RemoteActor`)."""


@dataclass(frozen=True)
class Outcomes:
    """n episodes of one policy.

    Attributes:
        success: the world says of the last frame that the task was done, [n].
        length: control steps until its end, [n].
        starts: first observation of every episode.
        p_success: in a dream, the largest success probability that the reflector gave to one of its frames, [n]; 0 in physics.
        score: the largest reward of one of its actions, [n]; PushT's score is that, the largest coverage / .95 up to 1.
        seconds: wall time.
    """

    success: Bool[Tensor, " n"]
    length: Int[Tensor, " n"]
    starts: Starts
    p_success: Float[Tensor, " n"]
    score: Float[Tensor, " n"]
    seconds: float


def evaluate(
    world: World, policy: Player, *, episodes: int, seed: int, n_action_steps: int | None = None, stream: int = 0
) -> Outcomes:
    """Play `episodes` starts with the policy's deterministic sampler, each start with noise of its own.

    Args:
        world: of any number of environments.
        policy: in evaluation mode, or what plays in its place.
        episodes: n.
        seed: episode i starts from stream seed + i.
        n_action_steps: actions of each chunk that are executed before the policy looks again, see
            `worldsim.measure.collect.executed`.
        stream: of the noise of policy and world, see `Noise`.

    Raises:
        ValueError: if n is not positive, or no action of a chunk is executed.
    """
    return _outcomes(world, policy, episodes=episodes, seed=seed, n_action_steps=n_action_steps, stream=stream)


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
    stream: int = 0,
) -> Outcomes:
    """The same starts, imagined: success by the reflector's verdict in a dream.

    Args:
        policy: in evaluation mode, or what plays in its place.
        world_model: in evaluation mode.
        reflector: in evaluation mode.
        starts: of the physical episodes, with the world model's context.
        max_episode_steps: as in physics.
        batch: dreams at a time.
        seed: of start 0, as in physics.
        n_action_steps: as for `evaluate`.
        stream: of the noise of policy and world model.
    """
    last, num_envs = len(starts) - 1, min(batch, len(starts))
    world = DreamWorld(world_model, reflector, starts, num_envs, max_episode_steps)

    def place(start: Tensor) -> dict[str, Any]:
        return {"start": start.clamp(max=last)}

    settings: Any = {"seed": seed, "n_action_steps": n_action_steps, "stream": stream}
    return _outcomes(world, policy, episodes=len(starts), place=place, **settings)


def actor_of(policy: Player) -> Actor:
    """Who acts for a player."""
    return PolicyActor(policy) if isinstance(policy, Policy) else policy


def _outcomes(world: World, policy: Player, *, episodes: int, **settings: Any) -> Outcomes:
    began = time.monotonic()
    success = torch.zeros(episodes, dtype=torch.bool, device=world.device)
    length, p_success, score = success.long(), success.float(), torch.full((episodes,), -torch.inf, device=world.device)
    firsts: dict[int, Observation] = {}
    with Progress(transient=True) as progress:
        task = progress.add_task("evaluate", total=episodes)
        for turn in play(world, actor_of(policy), unwatched(world), episodes=episodes, **settings):
            counts, result = turn.start < episodes, turn.result
            firsts |= {int(turn.start[i]): turn.before[0][[i]] for i in (turn.first & counts).nonzero().flatten().tolist()}
            length.index_add_(0, turn.start[counts], result.valid.sum(dim=1)[counts])
            most = torch.where(result.valid, result.reward, -torch.inf).amax(dim=1)
            score.scatter_reduce_(0, turn.start[counts], most[counts], "amax")
            rows = result.done & counts
            success[turn.start[rows]] = result.is_success[rows]
            if isinstance(result.final_judge, DreamJudgement):
                p_success[turn.start[rows]] = result.final_judge.p_success[rows]
            progress.advance(task, int(rows.sum()))
    starts = Starts.first_observations([firsts[i] for i in range(episodes)])
    return Outcomes(success, length, starts, p_success, score, time.monotonic() - began)
