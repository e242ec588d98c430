"""Record episodes in a world: an actor proposes chunks of actions, the world answers, finished episodes come out.

The same loop records demonstrations, noisy play, policy rollouts in physics and dreamed episodes; only the actor and the
world differ. Read `worldsim/data/lerobot.py` next: it stores the episodes.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldsim import checkpoint
from worldsim.flow import sample_ode
from worldsim.interfaces import Policy, World
from worldsim.sim.expert import expert_action
from worldsim.types import Episode, Observation


class Actor(ABC):
    """Whoever acts: proposes a chunk of actions for every environment.

    `world` is any `World` for a policy, one with an `expert()` for `ExpertActor`, and a `GenesisWorld` with discs for `PlayActor`.

    Attributes:
        source: stored with each episode, see `Episode.source`.
    """

    source: str

    @abstractmethod
    def act(self, world: Any, obs: Observation) -> Float[Tensor, "b ah ad"]:
        """Chunks of ah >= 1 actions in [-1, 1]."""

    def begin(self, world: Any, started: Bool[Tensor, " b"]) -> None:  # noqa: B027 - most actors keep no memory
        """Forget the past of the environments whose episode has just started."""


class ExpertActor(Actor):
    """The world's scripted expert with white noise on its actions: clean demonstrations.

    Args:
        noise: standard deviation of the noise, in units of the action range.
        seed: of the noise.
    """

    source = "expert"

    def __init__(self, noise: float = 0.05, seed: int = 0):
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, world: Any, obs: Observation) -> Tensor:
        action = world.expert()
        return (action + self.noise * torch.randn(action.shape, generator=self.generator)).clamp(-1, 1)[:, None]


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
        seed: of all the draws.
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
        seed: int = 0,
    ):
        self.levels, self.named, self.any_disc = torch.tensor(levels), named, any_disc
        self.max_offset_m, self.reach_m, self.patience = max_offset_m, reach_m, patience
        self.generator = torch.Generator().manual_seed(seed)
        self.level = torch.zeros(0)

    def begin(self, world: Any, started: Tensor) -> None:
        b = world.num_envs
        if len(self.level) != b:
            self.level, self.drift = torch.zeros(b), torch.zeros(b, 2)
            self.kind, self.disc, self.age = (torch.zeros(b, dtype=torch.long) for _ in range(3))
            self.point, self.offset = torch.zeros(b, 2), torch.zeros(b)
        drawn = self.levels[torch.randint(len(self.levels), (b,), generator=self.generator)]
        self.level = torch.where(started, drawn, self.level)
        self.drift = torch.where(started[:, None], 0.0, self.drift)
        self.age = torch.where(started, 0, self.age)

    def act(self, world: Any, obs: Observation) -> Tensor:
        if not getattr(world, "goals", torch.zeros(0)).numel():
            raise ValueError(f"play needs a GenesisWorld with discs, got {type(world).__name__}; record with actor=expert")
        truth = world.truth()
        self._wish(world)
        targets = torch.stack([truth.goal, world.goals[torch.arange(world.num_envs), self.disc], self.point], dim=1)
        target = targets[torch.arange(world.num_envs), self.kind]
        self.drift = 0.7 * self.drift + (1 - 0.7**2) ** 0.5 * torch.randn(world.num_envs, 2, generator=self.generator)
        action = expert_action(truth.block, target, truth.pusher, max_delta_m=world.max_delta_m, offset_m=self.offset)
        return (action + self.level[:, None] * self.drift).clamp(-1, 1)[:, None]

    def _wish(self, world: Any) -> None:
        """Draw a new wish where patience has run out."""
        b, draw = world.num_envs, torch.rand(world.num_envs, 5, generator=self.generator)
        over = self.age % self.patience == 0
        kind = (draw[:, 0] > self.named).long() + (draw[:, 0] > self.named + self.any_disc).long()
        self.kind = torch.where(over, kind, self.kind)
        self.disc = torch.where(over, torch.randint(world.goals.shape[1], (b,), generator=self.generator), self.disc)
        self.point = torch.where(over[:, None], (2 * draw[:, 1:3] - 1) * self.reach_m, self.point)
        # Half of the pushes are aimed well, the others up to `max_offset_m` beside the centre.
        offset = (2 * draw[:, 3] - 1) * self.max_offset_m * (draw[:, 4] < 0.5)
        self.offset = torch.where(over, offset, self.offset)
        self.age += 1


class PolicyActor(Actor):
    """A flow policy, sampled with its ODE from seeded noise.

    Args:
        policy: in evaluation mode.
        noise: standard deviation of white noise added to the actions, for coverage; 0 to evaluate.
        seed: of the initial noise and the action noise.
    """

    source = "policy"

    def __init__(self, policy: Policy, noise: float = 0.0, seed: int = 0):
        self.policy, self.noise = policy, noise
        self.generator = torch.Generator().manual_seed(seed)

    @classmethod
    def from_folder(cls, folder: str, noise: float = 0.0, seed: int = 0) -> "PolicyActor":
        """The actor of an exported policy (`worldsim.checkpoint.load`)."""
        return cls(checkpoint.load(folder, Policy), noise, seed)

    @torch.no_grad()
    def act(self, world: Any, obs: Observation) -> Tensor:
        shape = (world.num_envs, self.policy.action_horizon, self.policy.action_dim)
        features = self.policy.encode(obs)
        start = torch.randn(shape, generator=self.generator)
        chunk = sample_ode(lambda x, t: self.policy.velocity(features, x, t), start, num_steps=self.policy.num_steps).float()
        return (chunk + self.noise * torch.randn(shape, generator=self.generator)).clamp(-1, 1)


def executed(chunk: Float[Tensor, "b ah ad"], n_action_steps: int | None) -> Float[Tensor, "b n ad"]:
    """The first `n_action_steps` actions of each chunk (LeRobot's name), or all of them if that is None or more than there are.

    Raises:
        ValueError: if it is not a positive integer.
    """
    if n_action_steps is not None and (not isinstance(n_action_steps, int) or n_action_steps < 1):
        raise ValueError(f"n_action_steps must be an integer from 1 on, got {n_action_steps!r}; null executes whole chunks")
    return chunk[:, :n_action_steps]


def collect(world: World, actor: Actor, *, seed: int, n_action_steps: int | None = None) -> Iterator[Episode]:
    """Episodes without end, each yielded when it finishes; short episodes finish first, so take whole multiples of `num_envs`.

    Args:
        world: reset here; its autoreset starts each next episode.
        actor: asked for a new chunk by environment, when its last one is used up.
        seed: environment i plays the stream seed + i.
        n_action_steps: actions of each chunk that are executed before the actor is asked again, see `executed`.

    Raises:
        ValueError: if no action of a chunk would be executed.

    Yields:
        Episodes with success and progress of every frame from the world's judge (task truth, or a reflector in a dream).
    """
    obs, info = world.reset(seed=seed)
    b = world.num_envs
    started = torch.ones(b, dtype=torch.bool)
    left = torch.zeros(b, dtype=torch.long)
    chunk = torch.zeros(b, 1, *world.single_action_space.shape)
    logs: list[dict[str, list]] = [{} for _ in range(b)]
    judge = world.judge()
    while True:
        actor.begin(world, started)
        for i in started.nonzero().flatten().tolist():
            logs[i] = {
                "obs": [obs[[i]]],
                "action": [],
                "reward": [],
                "success": [judge.success[i]],
                "progress": [judge.progress[i]],
            }
        left[started] = 0
        if (left == 0).any():
            fresh = executed(actor.act(world, obs), n_action_steps)
            if fresh.shape != chunk.shape:
                chunk = torch.zeros_like(fresh)
            chunk = torch.where((left == 0)[:, None, None], fresh, chunk)
            left[left == 0] = fresh.shape[1]
        action = chunk[torch.arange(b), chunk.shape[1] - left]
        left -= 1
        obs, reward, terminated, truncated, info = world.step(action)
        started, judge = terminated | truncated, info["final_judge"]
        for i in range(b):
            log = logs[i]
            log["obs"].append(info["final_obs"][[i]])
            log["action"].append(action[i].clone())
            log["reward"].append(reward[i])
            log["success"].append(judge.success[i])
            log["progress"].append(judge.progress[i])
            if started[i]:
                yield _episode(log, actor.source)
        if started.any():
            judge = world.judge()


def _episode(log: dict[str, list], source: str) -> Episode:
    observations: list[Observation] = log["obs"]
    return Episode(
        images={camera: torch.cat([o.images[camera] for o in observations]) for camera in observations[0].images},
        state=torch.cat([o.state for o in observations]),
        action=torch.stack(log["action"]),
        reward=torch.stack(log["reward"]),
        success=torch.stack(log["success"]),
        progress=torch.stack(log["progress"]),
        instruction=observations[0].instruction[0],
        source=source,
    )
