"""PRDP on denoising chains: regress differences of return instead of following a policy gradient (arXiv:2402.08714)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from training.rl.math import denoising as chains
from training.rl.math.losses import prdp
from training.rl.rollout_learner import Decisions, RolloutLearner
from worldsim.core.types import Rollout


class PRDPPostTraining(RolloutLearner):
    """Whole groups of dreams per update, by the differences of their undiscounted returns; of a group advantage (GRPO, RLOO) only
    the size of the groups counts.

    Args:
        beta: price of one nat of divergence from the policy that acted, in units of reward.
        trust: largest trusted log-ratio of a trajectory.
        others: as `RolloutLearner`.
    """

    def __init__(self, *args: Any, beta: float = 1.0, trust: float = 0.5, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.advantage.group_size < 2:
            raise ValueError("PRDP compares dreams from one start; choose advantage=grpo or advantage=rloo")
        self.beta, self.trust = beta, trust

    def minibatches(self, rollout: Rollout, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All decisions of some groups, about `minibatch` of them."""
        counted = self.counted(rollout)
        groups = rollout.group[counted.any(dim=1)].unique()
        at_once = max(1, round(self.minibatch * len(groups) / max(1, int(counted.sum()))))
        for _ in range(self.epochs):
            order = groups[torch.randperm(len(groups), generator=generator, device=groups.device)]
            for first in range(0, len(order), at_once):
                mine = torch.isin(rollout.group, order[first : first + at_once])
                rows, columns = (counted & mine[:, None]).nonzero(as_tuple=True)
                yield rows, columns

    def policy_loss(self, decisions: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        d = decisions
        steps = chains.replay(self.chain.transition(self.policy, d.features), d.chain, stochastic=d.stochastic)
        log_ratio = (chains.chain_logprob(steps, d.chain) - d.logprob).sum((1, 2))
        trajectories, place = d.trajectory.unique(return_inverse=True)
        zeros = log_ratio.new_zeros(len(trajectories))
        total = zeros.index_add(0, place, log_ratio)
        returns = zeros.index_copy(0, place, d.returns)
        group = d.group.new_zeros(len(trajectories)).index_copy(0, place, d.group)
        loss = prdp(total, returns, group=group, beta=self.beta, clip=self.trust)
        return loss, {"log_ratio_max": total.detach().abs().max()}
