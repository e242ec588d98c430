"""Judges of a policy that learns in a dream: what it was not trained on, and so could not learn to please.

`SecondReflector` finds mistakes of the reflector without any physics, `PhysicsCheck` finds those of the world model too. Read
`guard.py` next: it measures with them while a learner runs.
"""

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool
from torch import Tensor

from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.seeds import GUARDING, check_guarding
from worldsim.core.sizes import check_names
from worldsim.core.world import World
from worldsim.data.store import FrameStore
from worldsim.measure.evaluate import evaluate, imagine_outcomes
from worldsim.measure.metrics import agreement, confusion
from worldsim.worlds.dream import Starts


@dataclass(frozen=True)
class Verdict:
    """Success of the policy that would be shipped after `step` iterations, in [0, 1]: in dreams by the first reflector
    (`imagined`) and on the same starts by the held-out judge (`judged`), which took `physics_steps` control steps of physics.

    `agreement` compares both start by start (agreement, kappa, false and missed success). What each repeats of itself under other
    noise would double the cost of a check; `worldsim evaluate` says it."""

    step: int
    imagined: float
    judged: float
    physics_steps: int
    agreement: dict[str, float | None] = field(default_factory=dict)


class HeldOut(ABC):
    """Measures a policy by something that it was not trained on, always on the same episodes, so that checks can be compared.

    It leaves torch's global generator as it is, so that it never changes what is learned, and judges on the CPU with copies of its
    models: a learner that shares them may take them to an accelerator.

    Args:
        world_model: the model that training uses.
        reflectors: the first one gives the imagined success.
        seed: of the episodes and of the policy's noise.

    Attributes:
        physics_steps: control steps taken so far, those before a resumption included.
        spent: why it measures no more; None while it does.
        num_envs: episodes at a time.
    """

    num_envs: int = 1
    physics_steps: int = 0
    spent: str | None = None

    def __init__(self, world_model: WorldModel, reflectors: list[Reflector], seed: int):
        self.world_model = copy.deepcopy(world_model).eval()
        self.reflectors = [copy.deepcopy(reflector).eval() for reflector in reflectors]
        self.seed = seed

    @abstractmethod
    def measure(self, policy: Policy) -> Verdict | None:
        """The verdict, of step 0, on a policy that is on the CPU and in evaluation mode; None if there is no budget left."""

    def imagined(self, policy: Policy, reflector: Reflector, starts: Starts, *, steps: int) -> Bool[Tensor, " n"]:
        """Which dreams of at most `steps` steps succeed in the reflector's eyes."""
        size = {"max_episode_steps": steps, "batch": self.num_envs, "seed": self.seed}
        return imagine_outcomes(policy, self.world_model, reflector, starts, **size).success

    @staticmethod
    def verdict(imagined: Bool[Tensor, " n"], judged: Bool[Tensor, " n"], physics_steps: int) -> Verdict:
        """Of the same n starts."""
        shares = confusion(imagined, judged)
        kappa = agreement(imagined, judged, draws=1)["kappa"]
        found = {name: shares[name] for name in ("agreement", "false_success", "missed_success")}
        dreamed, real = (x.float().mean().item() for x in (imagined, judged))
        return Verdict(0, dreamed, real, physics_steps, {**found, "kappa": kappa if math.isfinite(kappa) else None})


class SecondReflector(HeldOut):
    """The same dreams from the first frames of recorded episodes, judged by the reflector that trains and by an independent one.

    Takes no physics, and sees mistakes of the reflector but none of the world model.

    Args:
        world_model, reflector: the models that training uses.
        second_reflector: one trained with another seed, better on other episodes too.
        data: datasets; `episodes` of their episodes, drawn with `seed`, begin the dreams.
        max_episode_steps: length of a dream.
    """

    def __init__(
        self,
        world_model: WorldModel,
        reflector: Reflector,
        second_reflector: Reflector,
        data: list[str],
        episodes: int = 64,
        seed: int = 0,
        max_episode_steps: int = 40,
    ):
        if second_reflector is reflector:
            raise ValueError("second_reflector must differ from reflector, got the same one; train another one with another seed")
        super().__init__(world_model, [reflector, second_reflector], seed)
        table = FrameStore.read(data, self.world_model.views)
        if self.world_model.spec is not None:
            table = table.ordered(self.world_model.spec, "the world model")
        starts = Starts.first_frames(table, self.world_model.context)
        if not 1 <= episodes <= len(starts):
            raise ValueError(f"episodes must be in [1, {len(starts)}], the number in {data}, got {episodes}")
        self.starts = starts[torch.randperm(len(starts), generator=torch.Generator().manual_seed(seed))[:episodes]]
        self.max_episode_steps, self.num_envs = max_episode_steps, episodes

    def measure(self, policy: Policy) -> Verdict:
        with torch.random.fork_rng(devices=[]):
            verdicts = (self.imagined(policy, judge, self.starts, steps=self.max_episode_steps) for judge in self.reflectors)
            return self.verdict(*verdicts, physics_steps=0)


class PhysicsCheck(HeldOut):
    """Episodes in physics, and the same starts imagined. The steps are counted like all others.

    Args:
        world: physics.
        world_model: the model that training uses.
        reflector: the one whose imagined success is compared: the one that training uses, or one that knows dreams.
        seed: episode i starts from stream seed + i, see `worldsim.core.seeds`.
        budget: control steps of the whole run. No check begins that could exceed it, and a check takes up to `episodes`, rounded up
            to a multiple of the world's `num_envs`, times its `max_episode_steps`, so choose `Guard.every` to match: what follows
            the last check is not measured, and a line says so when it happens.
        randomization: wraps the world, `+randomization@trainer.callbacks.guard.judge.randomization=moderate` on the command line.
    """

    def __init__(
        self,
        world: World,
        world_model: WorldModel,
        reflector: Reflector,
        episodes: int = 128,
        seed: int = GUARDING,
        budget: int = 40_000,
        randomization: Callable[[World], World] | None = None,
    ):
        check_guarding(seed, episodes)
        super().__init__(world_model, [reflector], seed)
        self.world = world if randomization is None else randomization(world)
        check_names(self.world_model, self.world.spec)
        self.episodes, self.budget, self.num_envs = episodes, budget, world.num_envs

    def measure(self, policy: Policy) -> Verdict | None:
        check_names(policy, self.world.spec)
        limit, before = self.world.max_episode_steps, self.world.physics_steps
        longest = math.ceil(limit / policy.action_horizon) * policy.action_horizon  # environments go on until the last one ends
        most = math.ceil(self.episodes / self.num_envs) * self.num_envs * longest
        if self.physics_steps + most > self.budget:
            self._say_spent(most)
            return None
        with torch.random.fork_rng(devices=[]):
            real = evaluate(self.world, policy, episodes=self.episodes, seed=self.seed)
            starts = real.starts.with_context(self.world_model.context)
            imagined = self.imagined(policy, self.reflectors[0], starts, steps=limit)
        steps = self.world.physics_steps - before
        self.physics_steps += steps
        return self.verdict(imagined, real.success, steps)

    def _say_spent(self, most: int) -> None:
        """Once: a run goes on for hours after its last check."""
        if self.spent is None:
            self.spent = f"{self.physics_steps} of budget={self.budget} control steps are taken and a check takes up to {most}"
            raise_it = (
                "raise trainer.callbacks.guard.judge.budget, or check more rarely with a larger trainer.callbacks.guard.every"
            )
            print(f"guard: {self.spent}, so nothing is measured from here on; {raise_it}", flush=True)
