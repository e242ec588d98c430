"""Flow-SDE: the ODE sampler of a flow policy made stochastic, so that every denoising step has a log-probability.

Policy-gradient methods need log-probabilities, which a deterministic sampler lacks; the reverse-time SDE has the ODE's marginals
and Gaussian transitions (pi_RL, arXiv:2510.25889; Flow-GRPO, arXiv:2505.05470). Time runs as in `worldsim/flow.py`, t = 1 noise.
Read `advantages.py` and `losses.py` next: they turn these log-probabilities into a policy update.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldsim.flow import VelocityField, expand_time, noise_estimate, time_grid


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


def transition(
    v: Float[Tensor, "b ah ad"], x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"], *, delta: float, noise_level: float
) -> tuple[Float[Tensor, "b ah ad"], Float[Tensor, "b 1 1"]]:
    """Mean and standard deviation of x_{t-delta} ~ N(mean, std^2 I) (arXiv:2510.25889).

    mean = x_t - delta*v - (sigma^2*delta / (2t)) * (x_t + (1-t)*v), std = sigma*sqrt(delta): the Euler-Maruyama step of
    dx = [v - (sigma^2/2)*score] dt + sigma dw run backwards in time, with score = -(x_t + (1-t)*v)/t. With noise_level 0 it is
    the Euler step of `worldsim.flow.sample_ode`.

    Args:
        v: the velocity at x_t and t; cast to the dtype of x_t, so that a half-precision network does not round the chain.
        x_t: noisy chunks.
        t: grid times in (0, 1].
        delta: step length 1/K.
        noise_level: a.
    """
    v = v.to(x_t.dtype)
    s = expand_time(sigma(t, delta=delta, noise_level=noise_level), x_t)
    correction = s.square() * delta / (2 * expand_time(t, x_t))
    return x_t - delta * v - correction * noise_estimate(x_t, v, t), s * math.sqrt(delta)


def one_step_mask(batch: int, num_steps: int, generator: torch.Generator) -> Bool[Tensor, "b k"]:
    """Hybrid sampling: exactly one stochastic denoising step per sample, its index uniform and drawn for each sample alone.

    Collapses the two-layer decision process of arXiv:2510.25889 to one inner step, which `chain_logprob` evaluates with a single
    network call. Deviation from the public code, which shares one index among the whole batch and so correlates its gradients.
    """
    index = torch.randint(num_steps, (batch, 1), generator=generator, device=generator.device)
    return index == torch.arange(num_steps, device=generator.device)


@torch.no_grad()
def sample_chain(
    velocity: VelocityField,
    noise: Float[Tensor, "b ah ad"],
    *,
    num_steps: int,
    noise_level: float,
    generator: torch.Generator,
    stochastic: Bool[Tensor, "b k"] | None = None,
) -> tuple[Float[Tensor, "b k1 ah ad"], Float[Tensor, "b k"]]:
    """Act: denoise from t = 1 to t = 0, x <- mean + std*eps in stochastic steps and x <- x - delta*v (ODE) in the others.

    No gradient: `chain_logprob` recomputes the log-probabilities with one, equal to the last bit before any update as long as
    `velocity` treats each row alone and is deterministic (dropout off).

    Args:
        velocity: the field, called num_steps times.
        noise: x_1 ~ N(0, I).
        num_steps: K.
        noise_level: a, about 0.5.
        generator: source of eps, on the device of `noise`; draws the same numbers whatever `stochastic` is.
        stochastic: which steps are stochastic; None means all. All False is the ODE, as in evaluation.

    Returns:
        The chain, noise first and the action chunk last, and the log-probability of each transition, 0 for ODE steps.

    Raises:
        ValueError: if a stochastic step is asked for with noise_level 0, or `stochastic` is not [b, num_steps].
    """
    times = torch.tensor(time_grid(num_steps), dtype=noise.dtype, device=noise.device)
    stochastic = _stochastic_steps(stochastic, noise, num_steps, noise_level)
    delta = 1 / num_steps
    chain, logprob = [noise], []
    for k in range(num_steps):
        x, t = chain[-1], times[k].expand(noise.shape[0])
        v = velocity(x, t)
        mean, std = transition(v, x, t, delta=delta, noise_level=noise_level)
        eps = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        x_next = torch.where(stochastic[:, k, None, None], mean + std * eps, x - delta * v.to(x.dtype))
        chain.append(x_next)
        logprob.append(torch.where(stochastic[:, k], _gaussian_logprob(x_next, mean, std), 0))
    return torch.stack(chain, dim=1), torch.stack(logprob, dim=1)


def chain_logprob(
    velocity: VelocityField,
    chain: Float[Tensor, "b k1 ah ad"],
    *,
    noise_level: float,
    stochastic: Bool[Tensor, "b k"] | None = None,
) -> Float[Tensor, "b k"]:
    """Log-probability of each transition of a recorded chain, sum over ah and ad of log N(x_{t-delta}; mean, std^2).

    Differentiable in the parameters of `velocity`. Only stochastic steps are evaluated, the j-th one of every sample in the j-th
    call, so a `one_step_mask` costs one call instead of K; `velocity` then sees a different t in each row.

    Args:
        velocity: the field, called as often as the sample with most stochastic steps has them.
        chain: from `sample_chain`.
        noise_level: a, as when the chain was sampled.
        stochastic: as when the chain was sampled; the other steps contribute 0.

    Raises:
        ValueError: if a stochastic step is asked for with noise_level 0, or `stochastic` is not [b, k].
    """
    batch, num_steps = chain.shape[0], chain.shape[1] - 1
    times = torch.tensor(time_grid(num_steps), dtype=chain.dtype, device=chain.device)
    stochastic = _stochastic_steps(stochastic, chain, num_steps, noise_level)
    logprob = chain.new_zeros(batch, num_steps)
    rows = torch.arange(batch, device=chain.device)
    order = stochastic.int().argsort(dim=1, descending=True, stable=True)  # [b, k]: a sample's stochastic steps come first
    for step in order[:, : int(stochastic.sum(dim=1).max())].unbind(dim=1):
        x, x_next, t = chain[rows, step], chain[rows, step + 1], times[step]
        mean, std = transition(velocity(x, t), x, t, delta=1 / num_steps, noise_level=noise_level)
        value = torch.where(stochastic[rows, step], _gaussian_logprob(x_next, mean, std), 0)
        logprob = logprob.scatter(1, step[:, None], value[:, None])
    return logprob


def _gaussian_logprob(
    x: Float[Tensor, "b ah ad"], mean: Float[Tensor, "b ah ad"], std: Float[Tensor, "b 1 1"]
) -> Float[Tensor, " b"]:
    return (-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(dim=(1, 2))


def _stochastic_steps(stochastic: Bool[Tensor, "b k"] | None, x: Tensor, num_steps: int, noise_level: float) -> Bool[Tensor, "b k"]:
    shape = (x.shape[0], num_steps)
    if stochastic is None:
        stochastic = torch.ones(shape, dtype=torch.bool, device=x.device)
    if stochastic.shape != shape:
        raise ValueError(f"stochastic must have shape [batch, num_steps] = {list(shape)}, got {list(stochastic.shape)}")
    if noise_level <= 0 and stochastic.any():
        raise ValueError(
            f"noise_level must be positive for a stochastic step, got {noise_level}: a transition without noise has no density; "
            "for the ODE pass stochastic all False"
        )
    return stochastic
