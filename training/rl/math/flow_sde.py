"""Flow-SDE: the ODE sampler of a flow policy made stochastic, so that every denoising step has a log-probability.

Policy-gradient methods need log-probabilities, which a deterministic sampler lacks; the reverse-time SDE has the ODE's marginals
and Gaussian transitions (pi_RL, arXiv:2510.25889; Flow-GRPO, arXiv:2505.05470). Time runs as in `worldsim/core/flow.py`, t = 1
noise. `chain.one_step` makes it the hybrid one-step variant. Read `flow_noise.py` next.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from training.rl.math.denoising import Step, Transition
from worldsim.core.flow import VelocityField, expand_time, noise_estimate, time_grid


def flow_sde(velocity: VelocityField, *, num_steps: int, noise_level: float) -> Transition:
    """The transition x_{t-delta} ~ N(mean, std^2 I) from t = 1 - step/K, with delta = 1/K (arXiv:2510.25889).

    mean = x_t - delta*v - (sigma^2*delta / (2t)) * (x_t + (1-t)*v), std = sigma*sqrt(delta): the Euler-Maruyama step of
    dx = [v - (sigma^2/2)*score] dt + sigma dw run backwards in time, with score = -(x_t + (1-t)*v)/t. The plain step is the Euler
    step of `worldsim.core.flow.sample_ode`, to which the other falls with noise_level 0.

    Args:
        velocity: the field; its result is cast to the dtype of x_t, so that a half-precision network does not round the chain.
        num_steps: K.
        noise_level: a, about 0.5.
    """
    times = torch.tensor(time_grid(num_steps))
    delta = 1 / num_steps

    def transition(x: Float[Tensor, "b ah ad"], step: Tensor) -> Step:
        t = times.to(x)[step]
        v = velocity(x, t).to(x.dtype)
        s = expand_time(sigma(t, delta=delta, noise_level=noise_level), x)
        plain = x - delta * v
        mean = plain - s.square() * delta / (2 * expand_time(t, x)) * noise_estimate(x, v, t)
        return Step(mean, s * math.sqrt(delta), plain)

    return transition


def sigma(t: Float[Tensor, " b"], *, delta: float, noise_level: float) -> Float[Tensor, " b"]:
    """Diffusion coefficient sigma(t) = a*sqrt(t / (1-t)) (arXiv:2510.25889).

    At t = 1 the denominator uses the next grid time, so sigma(1) = a*sqrt(1/delta) = a*sqrt(K). On the grid every other 1-t is at
    least delta, hence one maximum covers both cases.

    Args:
        t: grid times in (0, 1].
        delta: step length 1/K.
        noise_level: a.
    """
    return noise_level * torch.sqrt(t / (1 - t).clamp(min=delta))
