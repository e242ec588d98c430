"""Denoising chains: a policy's sampler as a Markov decision process with Gaussian transitions, whatever its family.

A chain is x_0 (noise), x_1, ..., x_K (the action chunk). `flow_sde.py`, `flow_noise.py` and `diffusion.py` each say in a few lines
what one transition is; acting, log-probability, entropy and divergence follow here, once for all of them. Read `flow_sde.py` next.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldsim.core.noise import Noise


class Step(NamedTuple):
    """One transition x_{k+1} ~ N(mean, std^2), [b, ah, ad] each (std may broadcast), and `plain`: where the deterministic sampler
    would go instead."""

    mean: Tensor
    std: Tensor
    plain: Tensor


Transition = Callable[[Tensor, Tensor], Step]
"""``transition(x, step)`` with x [b, ah, ad] and the number of the step [b] in 0..K-1, which may differ from row to row."""


@dataclass(frozen=True)
class Transitions:
    """The Gaussians of the stochastic steps of recorded chains; mean and std are 0 and 1 in deterministic steps."""

    mean: Float[Tensor, "b k ah ad"]
    std: Float[Tensor, "b k ah ad"]
    stochastic: Bool[Tensor, "b k"]


def sample_chain(
    transition: Transition,
    start: Float[Tensor, "b ah ad"],
    *,
    stochastic: Bool[Tensor, "b k"],
    eps: Float[Tensor, "b k ah ad"],
) -> tuple[Float[Tensor, "b k1 ah ad"], Float[Tensor, "b k ah"]]:
    """Act: x <- mean + std*eps in stochastic steps, x <- plain in the others.

    Differentiable by reparameterisation (the noise is given). Policy-gradient callers switch gradients off and let `replay`
    recompute the log-probability with one, equal to the last bit before any update if the network treats each row alone and has
    no dropout.

    Args:
        transition: called K times.
        start: x_0 ~ N(0, I).
        stochastic: which steps are stochastic. All False is the deterministic sampler, as in evaluation.
        eps: standard normal; what stands in deterministic steps is ignored.

    Returns:
        The chain, noise first and the action chunk last, and the log-probability of each transition and action, summed over
        the action's dimensions; 0 in deterministic steps.

    Raises:
        ValueError: if a stochastic step has no positive std, or `stochastic` is not [b, k].
    """
    _check_mask(stochastic, start)
    chain, logprob, stds = [start], [], []
    for k in range(stochastic.shape[1]):
        x, noisy = chain[-1], stochastic[:, k, None, None]
        step = transition(x, torch.full((len(x),), k, device=x.device))
        stds.append(torch.where(noisy, step.std.expand_as(x), 1))
        std = stds[-1]
        chain.append(torch.where(noisy, step.mean + std * eps[:, k], step.plain))
        logprob.append(torch.where(noisy[..., 0], _log_normal(chain[-1], step.mean, std), 0))
    _check_positive(torch.stack(stds))
    return torch.stack(chain, dim=1), torch.stack(logprob, dim=1)


def replay(transition: Transition, chain: Float[Tensor, "b k1 ah ad"], *, stochastic: Bool[Tensor, "b k"]) -> Transitions:
    """The Gaussians that `transition` gives along recorded chains, differentiable in the parameters behind it.

    Only stochastic steps are evaluated, the j-th one of every row in the j-th call, so that one stochastic step per row (hybrid
    sampling) costs one call instead of K. Each call sees a different step in each row.

    Raises:
        ValueError: as `sample_chain`.
    """
    _check_mask(stochastic, chain[:, 0])
    rows = torch.arange(len(chain), device=chain.device)
    mean, std = torch.zeros_like(chain[:, 1:]), torch.ones_like(chain[:, 1:])
    order = stochastic.int().argsort(dim=1, descending=True, stable=True)  # [b, k]: a row's stochastic steps come first
    for number in order[:, : int(stochastic.sum(dim=1).max())].unbind(dim=1):
        x, noisy = chain[rows, number], stochastic[rows, number][:, None, None]
        step = transition(x, number)
        column = number[:, None, None, None].expand(-1, 1, *x.shape[1:])
        mean = mean.scatter(1, column, torch.where(noisy, step.mean, 0)[:, None])
        std = std.scatter(1, column, torch.where(noisy, step.std.expand_as(x), 1)[:, None])
    _check_positive(std)
    return Transitions(mean, std, stochastic)


def chain_logprob(steps: Transitions, chain: Float[Tensor, "b k1 ah ad"]) -> Float[Tensor, "b k ah"]:
    """log N(x_{k+1}; mean_k, std_k^2) of each action of each transition; 0 where deterministic.

    Summed over the dimensions of an action; sum over ah as well for the log-probability of the whole chunk.
    """
    return torch.where(steps.stochastic[..., None], _log_normal(chain[:, 1:], steps.mean, steps.std), 0)


def entropy(steps: Transitions) -> Float[Tensor, "b k ah"]:
    """Entropy log(std) + log(2*pi*e)/2 of each transition, summed over the action's dimensions; 0 where deterministic."""
    value = (steps.std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
    return torch.where(steps.stochastic[..., None], value, 0)


def kl(steps: Transitions, reference: Transitions) -> Float[Tensor, "b k ah"]:
    """KL(steps || reference) of each transition, log(s'/s) + (s^2 + (m - m')^2) / (2 s'^2) - 1/2, summed over ad.

    By the chain rule the sum over k is the divergence of the chains, an upper bound on that of the actions. Replay both along the
    same chain with the same stochastic steps.
    """
    ratio = (steps.std / reference.std).square()
    distance = ((steps.mean - reference.mean) / reference.std).square()
    return 0.5 * (ratio + distance - 1 - ratio.log()).sum(-1)


def every_step(batch: int, num_steps: int, device: torch.device | str = "cpu") -> Bool[Tensor, "b k"]:
    """The mask of a chain that is stochastic throughout."""
    return torch.ones(batch, num_steps, dtype=torch.bool, device=device)


def one_step(noise: Noise, num_steps: int) -> Bool[Tensor, "b k"]:
    """Hybrid sampling: exactly one stochastic step per row, its index uniform and drawn for each row alone.

    Collapses the two-layer decision process of pi_RL (arXiv:2510.25889) to one inner step, which `replay` evaluates with a single
    network call. Deviation from the public code, which shares one index among the whole batch and so correlates its gradients.
    """
    index = noise.integers("chain.step", num_steps)
    return index[:, None] == torch.arange(num_steps, device=index.device)


def _log_normal(x: Tensor, mean: Tensor, std: Tensor) -> Float[Tensor, "*b ah"]:
    return (-0.5 * ((x - mean) / std).square() - std.log() - 0.5 * math.log(2 * math.pi)).sum(-1)


def _check_positive(std: Tensor) -> None:
    """A transition without noise has no density. Asked once for all steps: the answer of a GPU takes a while."""
    if (~(std > 0)).any():
        raise ValueError(
            "a stochastic step needs a positive standard deviation (noise_level, min_std); for the deterministic sampler pass "
            "stochastic all False"
        )


def _check_mask(stochastic: Tensor, x: Tensor) -> None:
    if stochastic.ndim != 2 or len(stochastic) != len(x) or stochastic.shape[1] < 1:
        raise ValueError(
            f"stochastic must have shape [batch, num_steps] = [{len(x)}, K >= 1], got {list(stochastic.shape)}; one_step makes "
            "one kind of mask"
        )
