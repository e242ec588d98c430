"""The chains a learner may choose from (`chain=...`): each makes a policy's sampler stochastic while it explores.

The mathematics is in `algorithms/`; here a chain meets a policy. Read `learner.py` next.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from training.algorithms import chain as chains
from training.algorithms.chain import Transition
from training.algorithms.diffusion import diffusion
from training.algorithms.flow_noise import NoiseNet, flow_noise, joint_logprob
from training.algorithms.flow_sde import flow_sde
from worldsim.flow import alpha_grid
from worldsim.interfaces import Policy


class Chain(nn.Module, ABC):
    """How a policy explores."""

    def build(self, policy: Policy) -> None:  # noqa: B027 - most chains have no parameters
        """Create what depends on the policy's sizes; called once, before the optimiser is made."""

    @abstractmethod
    def transition(self, policy: Policy, features: Tensor) -> Transition:
        """One denoising step of `policy` after `Policy.encode`."""

    def stochastic(self, batch: int, num_steps: int, generator: torch.Generator) -> Bool[Tensor, "b k"]:
        """Which steps are stochastic while exploring: all."""
        return chains.every_step(batch, num_steps, generator.device)

    def ratio_terms(
        self, logprob: Float[Tensor, "b k ah"], chain: Float[Tensor, "b k1 ah ad"], stochastic: Bool[Tensor, "b k"]
    ) -> tuple[Float[Tensor, "b j ah"], Bool[Tensor, "b j"]]:
        """The log-probabilities whose ratios are clipped, and which of them count: those of single denoising steps, since every
        denoising transition carries the decision's advantage (two-layer decision process, arXiv:2510.25889; arXiv:2409.00588)."""
        return logprob, stochastic


class FlowSDE(Chain):
    """Every denoising step is a step of the reverse-time SDE.

    Args:
        noise_level: a.
    """

    def __init__(self, noise_level: float = 0.5):
        super().__init__()
        self.noise_level = noise_level

    def transition(self, policy: Policy, features: Tensor) -> Transition:
        return flow_sde(lambda x, t: policy.velocity(features, x, t), num_steps=policy.num_steps, noise_level=self.noise_level)


class OneStepFlowSDE(FlowSDE):
    """Hybrid: one SDE step per decision, drawn for each alone, and ODE steps around it; an update costs one call instead of K."""

    def stochastic(self, batch: int, num_steps: int, generator: torch.Generator) -> Bool[Tensor, "b k"]:
        return chains.one_step(batch, num_steps, generator)


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

    def build(self, policy: Policy) -> None:
        self.net = NoiseNet(policy.feature_dim, policy.action_horizon, policy.action_dim, low=self.low, high=self.high)

    def transition(self, policy: Policy, features: Tensor) -> Transition:
        return flow_noise(lambda x, t: policy.velocity(features, x, t), lambda t: self.net(features, t), num_steps=policy.num_steps)

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

    def transition(self, policy: Policy, features: Tensor) -> Transition:
        grid = alpha_grid(policy.num_steps)
        return diffusion(lambda x, t: policy.velocity(features, x, t), grid, eta=self.eta, min_std=self.min_std)


class Deterministic(FlowSDE):
    """No exploration but the initial noise: the ODE sampler, for learners that need no log-probability (`nft.py`)."""

    def __init__(self):
        super().__init__(noise_level=0.0)

    def stochastic(self, batch: int, num_steps: int, generator: torch.Generator) -> Bool[Tensor, "b k"]:
        return ~chains.every_step(batch, num_steps, generator.device)
