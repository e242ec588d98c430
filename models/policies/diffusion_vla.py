"""`DiffusionVLA`: the same small policy as a denoising diffusion model on a scheduler of diffusers.

After Diffusion Policy (arXiv:2303.04137). It predicts the variance-preserving v of Salimans and Ho (arXiv:2202.00512)
and offers a flow velocity computed from it, so that every sampler, learner and exporter of a flow policy takes it too. Read
`training/rl/math/diffusion.py` next.
"""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from jaxtyping import Bool, Float
from torch import Tensor

from models.policies.flow_vla import FlowVLA
from worldsim.core.flow import expand_time
from worldsim.core.types import Features
from worldsim.core.views import FRONT


class DiffusionVLA(FlowVLA):
    """v-prediction on DDPM's discrete noise levels with a squared-cosine schedule.

    Args:
        train_timesteps: T, number of noise levels.
        others: as `FlowVLA`; repeated, because a saved model records them with their defaults.
    """

    flow_times: Tensor

    def __init__(
        self,
        state_dim: int = 4,
        action_dim: int = 2,
        action_horizon: int = 4,
        num_steps: int = 4,
        width: int = 256,
        channels: int = 64,
        blocks: int = 2,
        state_used: tuple[int, ...] | None = None,
        train_timesteps: int = 100,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__(state_dim, action_dim, action_horizon, num_steps, width, channels, blocks, state_used, views)
        self.scheduler: Any = DDPMScheduler(train_timesteps, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
        alphas = self.scheduler.alphas_cumprod
        self.register_buffer("flow_times", (1 - alphas).sqrt() / (alphas.sqrt() + (1 - alphas).sqrt()), persistent=False)

    def cloning_loss(
        self, features: Features, actions: Float[Tensor, "b ah ad"], mask: Bool[Tensor, "b ah 1"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """E |v_theta(x_n, n) - v|^2 over uniform noise levels n, with diffusers' `add_noise` and `get_velocity`."""
        actions = torch.where(mask, self.action_units.network(actions), 0.0)
        level = torch.randint(len(self.flow_times), (len(actions),), generator=generator, device=actions.device)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        noisy, target = self.scheduler.add_noise(actions, noise, level), self.scheduler.get_velocity(actions, noise, level)
        error = (self.predict(features, noisy, self._time(level)) - target).square()
        mask = mask.expand_as(error)
        return (error * mask).sum() / mask.sum().clamp(min=1)

    def velocity(self, features: Features, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        """The flow velocity noise - data of the network's estimates, from the nearest trained noise level."""
        level = (t[:, None] - self.flow_times).abs().argmin(dim=1)
        signal, spread = expand_time(1 - t, x_t), expand_time(t, x_t)
        norm = (signal.square() + spread.square()).sqrt()  # x_vp = x_t / norm has unit variance
        v = self.predict(features, x_t / norm, self._time(level))
        noise = (spread * x_t / norm + signal * v) / norm
        data = (signal * x_t / norm - spread * v) / norm
        return noise - data

    def _time(self, level: Tensor) -> Tensor:
        return (level + 1) / len(self.flow_times)
