"""DiffusionNFT: velocity regression on good and bad chunks (arXiv:2509.16117), for worlds that have no gradient.

It acts with the deterministic sampler and needs no log-probability, so any sampler and any number of steps may act."""

import copy
from typing import Any

import torch
from torch import Tensor

from training.rl.math.losses import nft
from training.rl.post_training import frozen
from training.rl.rollout_learner import Decisions, RolloutLearner
from training.supervised.batches import Batch
from worldsim.core.flow import interpolate, velocity_target
from worldsim.core.interfaces import FlowPolicy, Policy


class NFTPostTraining(RolloutLearner):
    """The policy that acted is a slow copy of the one that learns; its distance guides the regression.

    Args:
        beta: guidance strength, see `nft`.
        spread: advantages of this size, in units of the estimator (`training/rl/estimators.py`), count as wholly good or bad.
        follow: step of the acting copy towards the learning policy, once per iteration.
        repeats: noised points per chunk.
        others: as `RolloutLearner`; `chain` is usually `Deterministic`.
    """

    needs_logprob = False

    def __init__(
        self,
        policy: Policy,
        *args: Any,
        beta: float = 1.0,
        spread: float = 2.0,
        follow: float = 0.5,
        repeats: int = 4,
        **kwargs: Any,
    ):
        super().__init__(policy, *args, **kwargs)
        self.old = frozen(copy.deepcopy(self.policy))
        self.beta, self.spread, self.follow, self.repeats = beta, spread, follow, repeats

    @property
    def actor(self) -> FlowPolicy:
        """The slow copy."""
        return self.old

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """The acting copy follows."""
        super().on_train_batch_start(batch, batch_idx)
        with torch.no_grad():
            for slow, fast in zip(self.old.parameters(), self.policy.parameters(), strict=True):
                slow.lerp_(fast, self.follow)

    def policy_loss(self, decisions: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        d, r = decisions, self.repeats
        with torch.no_grad():
            old_features = (d.features if self.expert_only else self.old.encode(d.obs)).repeat(r)
        counted = d.valid[:, : d.advantage.shape[1]]  # of the actions, or of the decision, which is there with its first action
        advantage = torch.where(counted, d.advantage, 0).sum(-1) / counted.sum(-1)
        features, chunk = d.features.repeat(r), self.policy.action_units.within(d.chain[:, -1]).repeat(r, 1, 1)
        optimality = (0.5 + 0.5 * advantage / self.spread).clamp(0, 1).repeat(r)
        t = torch.rand(len(chunk), generator=d.generator, device=chunk.device).clamp(min=1e-2)
        noise = torch.randn(chunk.shape, generator=d.generator, device=chunk.device)
        x = interpolate(chunk, noise, t)
        with torch.no_grad():
            old = self.old.velocity(old_features, x, t)
        velocity = self.policy.velocity(features, x, t)
        mask = d.valid.repeat(r, 1)[..., None].expand_as(chunk)
        loss = nft(velocity, old, velocity_target(chunk, noise), optimality, mask=mask, beta=self.beta)
        return loss, {"velocity_gap": (velocity - old).detach().square().mean()}
