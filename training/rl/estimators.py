"""Advantage estimators as a learner uses them (`advantage=...` on the command line): with a critic, or within groups of dreams.

The formulas are in `training/rl/math/advantages.py`. Read `rollout_learner.py` next.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.rl.critics import OwnEncoder, ValueHead
from training.rl.math import advantages
from training.rl.math.losses import value_huber
from worldsim.core.interfaces import FlowPolicy, Reflector
from worldsim.core.types import Features, Rollout


class Assessment(NamedTuple):
    """Advantage of every decision or action, and what a critic should have said, [b, t, v] each."""

    advantage: Tensor
    target: Tensor


class Advantage(nn.Module, ABC):
    """How much better a decision did than expected. Its scale is the estimator's own affair: learners take it as it is.

    Attributes:
        group_size: dreams from each start.
        lr: learning rate of its parameters, if it has any.
        warmup: iterations at the beginning of the run before the policy learns.
    """

    group_size: int = 1
    lr: float = 0.0
    warmup: int = 0

    def build(self, policy: FlowPolicy, reflector: Reflector | None) -> None:  # noqa: B027 - only a critic has parameters
        """Create networks that depend on the models' sizes."""

    def value(self, images: Mapping[str, Tensor], instruction: Sequence[str], features: Features) -> Float[Tensor, "b v"]:
        """The critic's estimate; 0 without one."""
        return features.vector.new_zeros(len(features), 1)

    @abstractmethod
    def assess(self, rollout: Rollout) -> Assessment:
        """Advantages and targets of a rollout."""

    def loss(self, value: Tensor, target: Tensor, old_value: Tensor, *, mask: Tensor) -> Tensor | None:
        """The critic's loss on some decisions, [n, v] each, where `mask` says that they were executed; None without a critic."""
        return None


class GAE(Advantage):
    """Generalised advantage estimation with a critic, per decision or per action (`ValueHead.per_action`).

    Advantages are normalised over all executed decisions (or actions) of a rollout, to mean 0 and standard deviation 1, as is usual
    with PPO (arXiv:2005.12729, section 3).

    Args:
        critic: on its own encoder or on the policy's features.
        gamma, lam: discount per decision, and lambda; per action their ah-th roots.
        lr: of the critic.
        warmup: iterations at the beginning of the run in which only the critic learns.
    """

    def __init__(self, critic: ValueHead | None = None, gamma: float = 0.95, lam: float = 0.95, lr: float = 5e-4, warmup: int = 2):
        super().__init__()
        self.critic = OwnEncoder() if critic is None else critic
        self.gamma, self.lam, self.lr, self.warmup = gamma, lam, lr, warmup

    def build(self, policy: FlowPolicy, reflector: Reflector | None) -> None:
        self.critic.build(policy, reflector)

    def value(self, images: Mapping[str, Tensor], instruction: Sequence[str], features: Features) -> Float[Tensor, "b v"]:
        return self.critic(images, instruction, features)

    def assess(self, rollout: Rollout) -> Assessment:
        b, t, v = rollout.value.shape
        if v == 1:
            reward, terminated, valid = rollout.reward.sum(2), rollout.terminated.any(2), rollout.decided
            gamma, lam = self.gamma, self.lam
        else:
            reward, terminated, valid = (x.flatten(1) for x in (rollout.reward, rollout.terminated, rollout.valid))
            gamma, lam = self.gamma ** (1 / v), self.lam ** (1 / v)
        advantage, target = advantages.gae(
            reward, rollout.value.flatten(1), rollout.final_value, terminated=terminated, valid=valid, gamma=gamma, lam=lam
        )
        return Assessment(advantages.normalize(advantage, valid).reshape(b, t, v), target.reshape(b, t, v))

    def loss(self, value: Tensor, target: Tensor, old_value: Tensor, *, mask: Tensor) -> Tensor:
        return value_huber(value, target, old_value, mask=mask)


class GRPO(Advantage):
    """Each dream against the mean of its group, divided by the group's spread (`advantages.grpo`).

    Every decision of a dream gets the dream's advantage times T / (its number of decisions), T the most of the rollout, so that in
    a mean over decisions long and short dreams weigh the same (`advantages.length_normalize`).

    Args:
        group_size: dreams per start, at least 2.
        min_spread: the least spread that is divided by, in units of reward. One success in a group of eight is a spread of 0.35;
            where all fail, or all succeed, small differences of progress are left, which must not count as much.
    """

    def __init__(self, group_size: int = 8, min_spread: float = 0.25):
        super().__init__()
        if group_size < 2:
            raise ValueError(f"group_size must be at least 2 for a group advantage, got {group_size}; 8 is usual")
        if min_spread <= 0:
            raise ValueError(f"min_spread must be positive, got {min_spread}; 0.25 is less than the spread of one success in eight")
        self.group_size, self.min_spread = group_size, min_spread

    def compare(self, returns: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        """Advantage of each dream within its group."""
        return advantages.grpo(returns, min_spread=self.min_spread)

    def assess(self, rollout: Rollout) -> Assessment:
        returns = rollout.returns.unflatten(0, (-1, self.group_size))
        advantage = self.compare(returns).flatten()[:, None].expand(rollout.decided.shape)
        advantage = advantages.length_normalize(advantage, rollout.decided)[..., None]
        return Assessment(advantage, torch.zeros_like(advantage))


class RLOO(GRPO):
    """Each dream against the mean of the others from its start (also LOOP). Unlike GRPO's its advantage is in units of reward:
    nothing is divided by a spread. The weight of long and short dreams is GRPO's.

    Args:
        group_size: dreams per start, at least 2.
    """

    def __init__(self, group_size: int = 8):
        super().__init__(group_size)

    def compare(self, returns: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
        return advantages.rloo(returns)
