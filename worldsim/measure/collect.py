"""Play episodes in a world: an actor proposes chunks of actions, the world answers, episodes come out in the order of their starts.

The same loop records demonstrations, noisy play and policies, measures success in physics, and dreams; only the actor and the world
differ. Which starts are played is settled beforehand: start k is seed + k, whatever the number of environments, and no rate is that
of the episodes that happened to end first, since successes end early. Read `worldsim/measure/evaluate.py` next for rates,
`worldsim/data/lerobot.py` for what stores the episodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.seeds import check_training
from worldsim.core.sizes import join
from worldsim.core.types import Episode, Observation
from worldsim.core.world import ChunkResult, Scripted, Sight, World
from worldsim.tasks.push import expert_action


class Actor(ABC):
    """Whoever acts: proposes a chunk of actions for every environment.

    `world` is any `World` for a policy, a `Scripted` one for `ExpertActor`, and one with a table and discs for `PlayActor`.

    Attributes:
        source: stored with each episode, see `Episode.source`.
    """

    source: str

    @abstractmethod
    def act(self, world: Any, obs: Observation, noise: Noise) -> Float[Tensor, "b ah ad"]:
        """Chunks of ah >= 1 actions in the world's units.

        Args:
            world: where it acts.
            obs: what it sees.
            noise: start, episode and step of each environment, the only source of chance. Step 0 begins an episode, so forget the
                one before.
        """

    def seeds(self, seed: int, start: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        """Of these starts of a recording that begins at `seed`; numbers beyond its last are of no account."""
        return seed + start

    def check_starts(self, seed: int, episodes: int) -> None:
        """Whether so many episodes can be recorded from `seed` on; ValueError if not."""
        check_training(seed, episodes)


class ExpertActor(Actor):
    """The world's scripted expert with white noise on its actions: clean demonstrations.

    Args:
        noise: standard deviation of the noise, in halves of the range of each action, or in its unit where it has no limits.
    """

    source = "expert"

    def __init__(self, noise: float = 0.05):
        self.noise = noise

    def act(self, world: Any, obs: Observation, noise: Noise) -> Tensor:
        action = world.require(Scripted, "actor=expert", "record with actor=policy actor.folder=FOLDER").expert()
        space = world.single_action_space
        half = torch.as_tensor((space.high - space.low) / 2, dtype=action.dtype, device=action.device)
        half = torch.where(half.isfinite(), half, 1.0)
        return world.clipped(action + self.noise * half * noise.normal("expert", action.shape[1]))[:, None]


class PlayActor(Actor):
    """The expert made clumsy and aimless, so that a world model sees failures, near-successes and how blocks really move.

    Each wish is the named disc, any disc or any point of the table, pursued with a push off the block's centre and correlated
    noise. Aimless and off-centre pushes matter: where all pushes go to discs, a world model learns that pushed blocks drift to
    discs, and a policy learns to count on it (DECISIONS.md).

    Args:
        levels: standard deviations of the Ornstein-Uhlenbeck noise (70 % memory) to choose from, per episode.
        named, any_disc: probabilities of wishing for the named disc, or any; the rest are points of the table.
        max_offset_m: largest distance of a push from the block's centre.
        reach_m: half the side of the square of wished points.
        patience: control steps between wishes.
    """

    source = "noisy_expert"

    def __init__(
        self,
        levels: tuple[float, ...] = (0.1, 0.2, 0.4, 0.8),
        named: float = 0.3,
        any_disc: float = 0.2,
        max_offset_m: float = 0.035,
        reach_m: float = 0.2,
        patience: int = 15,
    ):
        self.levels, self.named, self.any_disc = torch.tensor(levels), named, any_disc
        self.max_offset_m, self.reach_m, self.patience = max_offset_m, reach_m, patience
        self.drift = torch.zeros(0)

    def act(self, world: Any, obs: Observation, noise: Noise) -> Tensor:
        table = world.unwrapped
        if not getattr(table, "goals", torch.zeros(0)).numel():
            raise ValueError(f"play needs a GenesisWorld with discs, got {type(world).__name__}; record with actor=expert")
        truth, rows, wish = table.truth(), torch.arange(len(noise)), noise.at(noise.step // self.patience * self.patience)
        draw, disc = wish.uniform("play.wish", 5), wish.integers("play.disc", table.goals.shape[1])
        kind = (draw[:, 0] > self.named).long() + (draw[:, 0] > self.named + self.any_disc).long()
        point = (2 * draw[:, 1:3] - 1) * self.reach_m
        target = torch.stack([truth.goal, table.goals[rows, disc], point], dim=1)[rows, kind]
        # Half of the pushes are aimed well, the others up to `max_offset_m` beside the centre.
        offset = (2 * draw[:, 3] - 1) * self.max_offset_m * (draw[:, 4] < 0.5)
        kept = self.drift if len(self.drift) == len(noise) else torch.zeros(len(noise), 2)
        self.drift = 0.7 * torch.where(noise.step[:, None] > 0, kept, 0.0) + (1 - 0.7**2) ** 0.5 * noise.normal("play.drift", 2)
        action = expert_action(truth.block, target, truth.pusher, max_delta_m=table.max_delta_m, offset_m=offset)
        level = self.levels[noise.at(0).integers("play.level", len(self.levels))]
        return world.clipped(action + level[:, None] * self.drift)[:, None]


class PolicyActor(Actor):
    """A policy, joined by name with the world that it acts in.

    Args:
        policy: in evaluation mode.
        noise: standard deviation of white noise added to the actions in network units, for coverage; 0 to evaluate.
    """

    source = "policy"

    def __init__(self, policy: Policy, noise: float = 0.0):
        self.policy, self.noise = policy, noise

    @classmethod
    def from_folder(cls, folder: str, noise: float = 0.0) -> "PolicyActor":
        """The actor of an exported policy (`worldsim.core.checkpoint.load`)."""
        return cls(checkpoint.load(folder, Policy), noise)

    @torch.no_grad()
    def act(self, world: Any, obs: Observation, noise: Noise) -> Tensor:
        joined = join(self.policy, world.spec)
        chunk = self.policy.act(joined.seen(obs), noise)
        if self.noise:
            units = self.policy.action_units
            chunk = units.native(units.network(chunk) + self.noise * noise.normal("action", *chunk.shape[1:]))
        return joined.done(chunk)


def executed(chunk: Float[Tensor, "b ah ad"], n_action_steps: int | None) -> Float[Tensor, "b n ad"]:
    """The first `n_action_steps` actions of each chunk (LeRobot's name), or all of them if that is None or more than there are.

    Raises:
        ValueError: if it is not a positive integer.
    """
    check_n_action_steps(n_action_steps)
    return chunk[:, :n_action_steps]


def check_n_action_steps(n_action_steps: int | None) -> None:
    """How many actions of a chunk are executed, or None for all.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if n_action_steps is not None and (type(n_action_steps) is not int or n_action_steps < 1):
        raise ValueError(f"n_action_steps must be an integer from 1 on, got {n_action_steps!r}; null executes whole chunks")


class Turn(NamedTuple):
    """One chunk of every environment.

    Attributes:
        start: number of the start that each environment is at; an environment with none left has a number beyond the last, and
            what it does is of no account.
        first: the chunk begins an episode.
        before: what was seen and judged before it.
        actions: what the world was asked to do.
        result: what it answered.
        seen: what was seen and judged after each action, if anyone watched.
    """

    start: Int[Tensor, " b"]
    first: Bool[Tensor, " b"]
    before: Sight
    actions: Float[Tensor, "b ah ad"]
    result: ChunkResult
    seen: list[Sight]


@torch.no_grad()
def play(
    world: World,
    actor: Actor,
    advance: Callable[[Tensor], tuple[ChunkResult, list[Sight]]],
    *,
    episodes: int,
    seed: int,
    n_action_steps: int | None = None,
    stream: int = 0,
    place: Callable[[Tensor], dict[str, Any]] = lambda start: {},
) -> Iterator[Turn]:
    """Play the starts seed, seed + 1, ..., or those that the actor names, each exactly once, in chunks as it proposes them.

    An environment that ends an episode takes the next start that nobody has. The world is reset to that seed, so that start and
    noise are the same whichever environment takes it; what still differs is arithmetic (docs/results/starts.md).

    Args:
        world: reset here.
        actor: asked for a chunk in all environments at once.
        advance: `unwatched(world)`, or `world.watch_chunk` for what lies between.
        episodes: number of starts.
        seed: of start 0.
        n_action_steps: actions of each chunk that are executed before the actor is asked again, see `executed`.
        stream: of the noise of actor and world; another one plays the same starts with other noise.
        place: further options of `World.reset` for the starts [b], where a seed alone does not say which start it is.

    Raises:
        ValueError: if `episodes` is not positive, or no action of a chunk would be executed.
    """
    if episodes < 1:
        raise ValueError(f"episodes must be at least 1, got {episodes}")
    b = world.num_envs
    start, taken = torch.arange(b, device=world.device), b
    elapsed = torch.zeros_like(start)
    obs, _ = world.reset(seed=actor.seeds(seed, start).tolist(), options={"stream": stream, **place(start)})
    while (start < episodes).any():
        noise, before = Noise(actor.seeds(seed, start), torch.zeros_like(start), elapsed, stream), (obs, world.judge())
        actions = executed(actor.act(world, obs, noise), n_action_steps)
        result, seen = advance(actions)
        yield Turn(start, elapsed == 0, before, actions, result, seen)
        elapsed, obs = torch.where(result.done, 0, elapsed + result.valid.sum(dim=1)), result.obs
        if result.done.any():
            start = start.masked_scatter(result.done, taken + torch.arange(int(result.done.sum()), device=world.device))
            taken = int(start.max()) + 1
            if (start[result.done] < episodes).any():
                obs, _ = world.reset(seed=actor.seeds(seed, start).tolist(), options={"mask": result.done, **place(start)})


def unwatched(world: World) -> Callable[[Tensor], tuple[ChunkResult, list[Sight]]]:
    """How `play` advances where only chunks count."""
    return lambda actions: (world.step_chunk(actions), [])


def collect(world: World, actor: Actor, *, episodes: int, seed: int, n_action_steps: int | None = None) -> Iterator[Episode]:
    """The episodes of the starts seed, ..., seed + episodes - 1, in this order; arguments as for `play`.

    Yields:
        Episodes with success and progress of every frame from the world's judge (task truth, or a reflector in a dream).
    """
    logs: list[list[dict[str, Tensor]]] = [[] for _ in range(world.num_envs)]
    waiting: dict[int, Episode] = {}  # for an earlier start to end
    following = 0
    for turn in play(world, actor, world.watch_chunk, episodes=episodes, seed=seed, n_action_steps=n_action_steps):
        result = turn.result
        frames, actions = _columns([turn.before, *turn.seen]), {"action": turn.actions, "reward": result.reward}
        for i, start in enumerate(turn.start.tolist()):
            if start >= episodes:
                continue
            if turn.first[i]:
                logs[i] = [{name: values[i, :1] for name, values in frames.items()}]
            n = int(result.valid[i].sum())
            piece = {name: values[i, 1 : n + 1] for name, values in frames.items()}
            logs[i].append(piece | {name: values[i, :n] for name, values in actions.items()})
            if result.done[i]:
                waiting[start] = _episode(logs[i], turn.before[0].instruction[i], actor.source)
        while following in waiting:
            yield waiting.pop(following)
            following += 1


def _columns(sights: list[Sight]) -> dict[str, Tensor]:
    """What was seen and judged, by name, [b, len(sights), ...]; cameras by "image " and their name."""
    rows = [
        {f"image {camera}": frames for camera, frames in obs.images.items()}
        | {"state": obs.state, "success": judged.success, "progress": judged.progress}
        for obs, judged in sights
    ]
    return {name: torch.stack([row[name] for row in rows], dim=1) for name in rows[0]}


def _episode(log: list[dict[str, Tensor]], instruction: str, source: str) -> Episode:
    whole = {name: torch.cat([piece[name] for piece in log if name in piece]).cpu() for name in log[-1]}
    cameras = {name.removeprefix("image "): whole.pop(name) for name in list(whole) if name.startswith("image ")}
    whole["success"] = whole["success"].float()
    return Episode(images=cameras, instruction=instruction, source=source, **whole)
