"""PPO on denoising chains: pi_RL's Flow-SDE and Flow-Noise (arXiv:2510.25889) and DPPO (arXiv:2409.00588) in one loss.

Needs no gradient of the world, so it also works where a reflector or a simulator is not differentiable. The advantage may come
from a critic or from groups of dreams (GRPO, RLOO). Read `training/rl/math/losses.py` for the clipped loss,
`training/rl/math/denoising.py` for the chains.
"""

from typing import Any

import torch
from torch import Tensor

from training.rl.math import denoising as chains
from training.rl.math.losses import masked_mean, ppo_clip
from training.rl.rollout_learner import Decisions, RolloutLearner


class PPOPostTraining(RolloutLearner):
    """Clipped policy gradient on log-probabilities of denoising transitions.

    Args:
        kl: weight of KL(policy || starting policy) along the chain.
        entropy: weight of the chain's entropy, which only a learned standard deviation can raise.
        target_kl: an iteration's updates end with the first whose `approx_kl` is larger, as the rollout no longer says what the
            policy does; those of a critic, too. Null makes all of them.
        clip_low, clip_high, dual_clip: see `ppo_clip`.
        others: as `RolloutLearner`.
    """

    def __init__(
        self,
        *args: Any,
        kl: float = 0.0,
        entropy: float = 0.0,
        target_kl: float | None = None,
        clip_low: float = 0.2,
        clip_high: float = 0.28,
        dual_clip: float = 3.0,
        **kwargs: Any,
    ):
        super().__init__(*args, **kwargs)
        self.kl, self.entropy, self.target_kl = kl, entropy, target_kl
        self.clips = {"clip_low": clip_low, "clip_high": clip_high, "dual_clip": dual_clip}

    def far_enough(self, logs: dict[str, Tensor]) -> bool:
        return self.target_kl is not None and "approx_kl" in logs and float(logs["approx_kl"]) > self.target_kl

    def policy_loss(self, decisions: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        d = decisions
        steps = chains.replay(self.chain.transition(self.policy, d.features), d.chain, stochastic=d.stochastic)
        per_action = d.advantage.shape[-1] > 1
        executed = d.valid[:, None] if per_action else d.valid[:, None, :1]

        def terms(logprob: Tensor) -> tuple[Tensor, Tensor]:
            values, counts = self.chain.ratio_terms(logprob, d.chain, d.stochastic)
            return values if per_action else values.sum(-1, keepdim=True), counts[..., None] & executed

        logprob, mask = terms(chains.chain_logprob(steps, d.chain))
        old, _ = terms(d.logprob)
        advantage = d.advantage[:, None].expand_as(logprob)
        loss, metrics = ppo_clip(logprob, old, advantage, mask=mask, **self.clips)
        spread = masked_mean(chains.entropy(steps), d.stochastic[..., None].expand(-1, -1, d.valid.shape[-1]))
        metrics["entropy"] = spread.detach()
        loss = loss - self.entropy * spread
        if self.kl:
            features = self.reference_features(d)
            with torch.no_grad():
                reference = chains.replay(self.chain.transition(self.reference, features), d.chain, stochastic=d.stochastic)
            divergence = chains.kl(steps, reference).sum((1, 2)).mean()
            loss, metrics["kl"] = loss + self.kl * divergence, divergence.detach()
        return loss, metrics
