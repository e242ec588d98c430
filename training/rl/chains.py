"""The chains a learner may choose from (`chain=...`): each makes a policy's sampler stochastic while it explores.

The mathematics is in `math/`; here a chain meets a policy. Read `rollout_learner.py` next.
"""

import math
from abc import ABC, abstractmethod
from functools import partial
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.rl.math import denoising as chains
from training.rl.math.denoising import Transition
from training.rl.math.diffusion import diffusion
from training.rl.math.flow_noise import NoiseNet, flow_noise, joint_logprob
from training.rl.math.flow_sde import flow_sde
from worldsim.core.flow import alpha_grid
from worldsim.core.interfaces import FlowPolicy
from worldsim.core.noise import Noise
from worldsim.core.types import Features


class Sample(NamedTuple):
    """Chains of b rows, noise first and the action chunk last, their log-probabilities, and which steps were stochastic."""

    path: Float[Tensor, "b k1 ah ad"]
    logprob: Float[Tensor, "b k ah"]
    stochastic: Bool[Tensor, "b k"]


class Chain(nn.Module, ABC):
    """How a policy explores.

    Attributes:
        explores: its steps have a density; a loss that needs the log-probability of what was done refuses a chain without.
    """

    explores = True

    def build(self, policy: FlowPolicy) -> None:  # noqa: B027 - most chains have no parameters
        """Create what depends on the policy's sizes; called once, before the optimiser is made."""

    @abstractmethod
    def transition(self, policy: FlowPolicy, features: Features) -> Transition:
        """One denoising step of `policy` after `FlowPolicy.encode`."""

    def stochastic(self, noise: Noise, num_steps: int) -> Bool[Tensor, "b k"]:
        """Which steps are stochastic while exploring: all."""
        return chains.every_step(len(noise), num_steps, noise.seed.device)

    def sample(self, policy: FlowPolicy, features: Features, noise: Noise) -> Sample:
        """Act once in every row; the noise of a row depends on nothing else in the batch, and only stochastic steps draw any."""
        shape, stochastic = (policy.action_horizon, policy.action_dim), self.stochastic(noise, policy.num_steps)
        start, number = noise.normal("policy", *shape), int(stochastic.sum(dim=1).max())
        drawn = noise.normal("chain", number, *shape) if number else start[:, None]  # a step without noise multiplies it by zero
        eps = drawn[torch.arange(len(start), device=start.device)[:, None], (stochastic.cumsum(dim=1) - 1).clamp(min=0)]
        path, logprob = chains.sample_chain(self.transition(policy, features), start, stochastic=stochastic, eps=eps)
        return Sample(path, logprob, stochastic)

    def lowest_entropy(self, policy: FlowPolicy) -> float | None:
        """The least entropy [nats] that a denoising transition of one action can have; None where training does not move it."""
        return None

    def ratio_terms(
        self, logprob: Float[Tensor, "b k ah"], chain: Float[Tensor, "b k1 ah ad"], stochastic: Bool[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b j ah"], Bool[Tensor, "b j"]]:
        """The log-probabilities whose ratios are clipped, and which of them count: those of single denoising steps, since every
        denoising transition carries the decision's advantage (two-layer decision process, arXiv:2510.25889; arXiv:2409.00588)."""
        return logprob, stochastic


class FlowSDE(Chain):
    """Every denoising step is a step of the reverse-time SDE.

    Args:
        noise_level: a > 0.
    """

    def __init__(self, noise_level: float = 0.5):
        super().__init__()
        if not noise_level > 0:
            raise ValueError(f"noise_level must be positive, got {noise_level}; chain=deterministic explores nothing")
        self.noise_level = noise_level

    def transition(self, policy: FlowPolicy, features: Features) -> Transition:
        return flow_sde(partial(policy.velocity, features), num_steps=policy.num_steps, noise_level=self.noise_level)


class OneStepFlowSDE(FlowSDE):
    """Hybrid: one SDE step per decision, drawn for each alone, and ODE steps around it; an update costs one call instead of K."""

    def stochastic(self, noise: Noise, num_steps: int) -> Bool[Tensor, "b k"]:
        return chains.one_step(noise, num_steps)


class FlowNoise(Chain):
    """Euler steps with a standard deviation learned along with the policy; the ratio is that of the whole chain.

    Args:
        low, high: bounds of the standard deviation.
        reduction: of the joint log-probability over the chain, see `joint_logprob`.
    """

    def __init__(self, low: float = 0.08, high: float = 0.16, reduction: Literal["sum", "mean"] = "sum"):
        super().__init__()
        self.low, self.high = low, high
        self.reduction: Literal["sum", "mean"] = reduction

    def build(self, policy: FlowPolicy) -> None:
        self.net = NoiseNet(policy.feature_dim, policy.action_horizon, policy.action_dim, low=self.low, high=self.high)

    def transition(self, policy: FlowPolicy, features: Features) -> Transition:
        return flow_noise(partial(policy.velocity, features), lambda t: self.net(features.vector, t), num_steps=policy.num_steps)

    def lowest_entropy(self, policy: FlowPolicy) -> float:
        return policy.action_dim * (math.log(self.low) + 0.5 * math.log(2 * math.pi * math.e))

    def ratio_terms(self, logprob, chain, stochastic):
        joint = joint_logprob(logprob, chain[:, 0], reduction=self.reduction)[:, None]
        return joint, stochastic.any(dim=1, keepdim=True)


class Diffusion(Chain):
    """DDPM or DDIM steps with a floor on the noise (DPPO), for diffusion policies and, through their velocity, flow policies.

    Args:
        eta: share of DDPM's noise.
        min_std: floor of the standard deviation while exploring.
    """

    def __init__(self, eta: float = 1.0, min_std: float = 0.1):
        super().__init__()
        self.eta, self.min_std = eta, min_std

    def transition(self, policy: FlowPolicy, features: Features) -> Transition:
        grid = alpha_grid(policy.num_steps)
        return diffusion(partial(policy.velocity, features), grid, eta=self.eta, min_std=self.min_std)


class Deterministic(Chain):
    """No exploration but the initial noise: the ODE sampler, for learners that need no log-probability (`nft.py`)."""

    explores = False

    def transition(self, policy: FlowPolicy, features: Features) -> Transition:
        return flow_sde(partial(policy.velocity, features), num_steps=policy.num_steps, noise_level=0.0)

    def stochastic(self, noise: Noise, num_steps: int) -> Bool[Tensor, "b k"]:
        return ~super().stochastic(noise, num_steps)
