"""Flow-Noise: Euler steps of the flow policy with a learned standard deviation (pi_RL, arXiv:2510.25889).

The noise network is part of exploration alone: it is trained with the policy and dropped at deployment. Read `diffusion.py` next.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.rl.math.denoising import Step, Transition
from worldsim.core.flow import VelocityField, time_grid
from worldsim.core.precision import exact


def flow_noise(velocity: VelocityField, std: Callable[[Tensor], Tensor], *, num_steps: int) -> Transition:
    """The transition x_{t-delta} ~ N(x_t - delta*v, std(t)^2) (arXiv:2510.25889): the mean is the Euler step itself.

    Args:
        velocity: the field; its result is cast to the dtype of x_t.
        std: standard deviation [b, ah, ad] at times [b], from a network on the policy's features; see `bounded`.
        num_steps: K, delta = 1/K.
    """
    times = torch.tensor(time_grid(num_steps))

    def transition(x: Float[Tensor, "b ah ad"], step: Tensor) -> Step:
        t = times.to(x)[step]
        mean = x - velocity(x, t).to(x.dtype) / num_steps
        return Step(mean, std(t).to(x.dtype), mean)

    return transition


def bounded(raw: Tensor, *, low: float, high: float) -> Tensor:
    """A standard deviation in (low, high) from an unbounded network output: low + (high - low)*(1 + tanh(raw))/2.

    The bounds are those of a standard deviation, about 0.08 and 0.16, although the public code names them log-variances.
    """
    return low + (high - low) * 0.5 * (1 + raw.tanh())


def joint_logprob(
    logprob: Float[Tensor, "b k ah"], noise: Float[Tensor, "b ah ad"], *, reduction: Literal["sum", "mean"]
) -> Float[Tensor, "b ah"]:
    """log N(x_0; 0, I) + sum_k log N(x_{k+1}; mean_k, std_k^2), per action (arXiv:2510.25889).

    Args:
        logprob: of the K transitions, from `chain_logprob`.
        noise: x_0, the chain's start.
        reduction: "sum" as in the paper. "mean" divides by K + 1, as a public implementation does: it raises the probability ratio
            to the power 1/(K+1), hence widens PPO's clip range by that factor. Name it, do not inherit it.

    Raises:
        ValueError: for another reduction.
    """
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be 'sum' or 'mean', got {reduction!r}; the paper sums")
    start = (-0.5 * noise.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
    joint = start + logprob.sum(1)
    return joint if reduction == "sum" else joint / (logprob.shape[1] + 1)


class NoiseNet(nn.Module):
    """Log-free standard deviation in (low, high) from the policy's features and the time; starts in the middle.

    Args:
        features: size of the policy's features.
        action_horizon, action_dim: of a chunk.
        low, high: bounds.
        width: of the hidden layer.
    """

    def __init__(self, features: int, action_horizon: int, action_dim: int, *, low: float, high: float, width: int = 64):
        super().__init__()
        if not 0 < low < high:
            raise ValueError(f"noise bounds need 0 < low < high, got {low} and {high}; .08 and .16 are usual")
        self.low, self.high, self.shape = low, high, (action_horizon, action_dim)
        last = nn.Linear(width, action_horizon * action_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(nn.Linear(features + 1, width), nn.Tanh(), last)

    @exact
    def forward(self, features: Float[Tensor, "b f"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        raw = self.net(torch.cat([features.float(), t[:, None]], dim=-1))
        return bounded(raw, low=self.low, high=self.high).unflatten(-1, self.shape)
