"""Where a learner plays: in a learned world, or for comparison in physics (`arena=...` on the command line)."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from training.rl.post_training import frozen
from training.supervised.batches import Batch
from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.seeds import CHOOSING
from worldsim.core.types import Observation
from worldsim.core.views import Views
from worldsim.core.world import Reward, World
from worldsim.worlds.dream import DreamWorld, Starts


class Arena(nn.Module, ABC):
    """Gives a learner worlds to play in.

    Attributes:
        reflector: whose trunk a critic may start from; None in physics.
        views: cameras whose frames its episodes start from, and at which size; none in physics.
        context: frames with which its episodes start.
        any_number: it begins as many episodes as there are starts, so that a few tell what many will cost.
    """

    reflector: Reflector | None
    views: Views = {}
    context: int = 1
    any_number: bool = False

    @abstractmethod
    def begin(self, batch: Batch, group_size: int, generator: torch.Generator, steps: int) -> tuple[World, Observation, Tensor]:
        """A world of ``len(batch) * group_size`` episodes, its first observation, and each episode's group [b], on the generator's
        device.

        The episodes of a group are neighbours and share start state and instruction. Dreams end after `steps` actions, as many as
        will be played.
        """


class DreamArena(Arena):
    """Dreams of a frozen world model, judged by a frozen reflector, from the recorded moments of the batch.

    Args:
        world_model, reflector: what dreams and what judges; both are frozen.
        reward: what its dreams pay by, see `DreamWorld`.
        every: the reflector looks at each `every`-th frame of a chunk, see `DreamWorld`.
    """

    reflector: Reflector
    any_number = True

    def __init__(self, world_model: WorldModel, reflector: Reflector, reward: Reward | None = None, every: int = 1):
        super().__init__()
        self.world_model, self.reflector, self.reward = frozen(world_model), frozen(reflector), reward
        self.every = every
        self.views, self.context = world_model.views, max(world_model.context, reflector.context)

    def begin(self, batch: Batch, group_size: int, generator: torch.Generator, steps: int) -> tuple[World, Observation, Tensor]:
        n = len(batch["instruction"])
        starts = Starts(batch["images"], batch["state"], tuple(batch["instruction"]))  # the loader turns tuples into lists
        how = {"max_episode_steps": steps, "reward": self.reward, "every": self.every}
        world = DreamWorld(self.world_model, self.reflector, starts, n * group_size, **how)
        group = torch.arange(n, device=generator.device).repeat_interleave(group_size)
        seed = int(torch.randint(2**31, (), generator=generator, device=generator.device))
        obs, _ = world.reset(seed=seed, options={"start": group})
        return world, obs, group


class PhysicsArena(Arena):
    """The simulator itself, from random starts; of the batch only the size counts. Every control step is counted, and the world
    pays by its own reward.

    Args:
        world: with batch size * group size environments.
        randomization: wraps it, `+randomization@model.arena.randomization=moderate` on the command line.
    """

    def __init__(self, world: World, randomization: Callable[[World], World] | None = None):
        super().__init__()
        self.world, self.reflector = world if randomization is None else randomization(world), None

    def begin(self, batch: Batch, group_size: int, generator: torch.Generator, steps: int) -> tuple[World, Observation, Tensor]:
        n = len(batch["instruction"])
        if n * group_size != self.world.num_envs:
            raise ValueError(
                f"the physics world has {self.world.num_envs} environments, the learner needs data.batch_size * group_size = "
                f"{n} * {group_size}; set arena.world.num_envs={n * group_size}"
            )
        group = torch.arange(n, device=generator.device).repeat_interleave(group_size)
        seeds = torch.randint(CHOOSING, (n,), generator=generator, device=generator.device)[group]
        obs, _ = self.world.reset(seed=seeds.tolist())
        return self.world, obs, group
