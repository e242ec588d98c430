"""Losses of the actor and the critic under a mask of valid decisions.

Pure functions of tensors that the caller has already brought to one common shape: any of [b], [b, t] or [b, t, k]. Whether a ratio
belongs to a denoising step or to a whole chunk is the caller's choice: sum the log-probability over k for the latter.
`training/rl/math/returns.py` has the alternative that differentiates through the dream instead.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def masked_mean(values: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, ""]:
    """Mean of `values` where mask is True; 0 if it is nowhere True. What the mask hides may be NaN or infinite."""
    return torch.where(mask, values, 0).sum() / mask.sum().clamp(min=1)


def ppo_clip(
    logprob: Float[Tensor, "*n"],
    old_logprob: Float[Tensor, "*n"],
    advantage: Float[Tensor, "*n"],
    *,
    mask: Bool[Tensor, "*n"],
    clip_low: float = 0.2,
    clip_high: float = 0.28,
    dual_clip: float = 3.0,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """Clipped surrogate -min(rho*A, clip(rho, 1-clip_low, 1+clip_high)*A) with rho = exp(logprob - old_logprob).

    PPO (Schulman et al. 2017, arXiv:1707.06347) with the wider upper clip of DAPO (arXiv:2503.14476) and the dual clip of
    Ye et al. 2020 (arXiv:1912.09729): where A < 0 the surrogate is at least dual_clip*A, so one ratio cannot dominate the batch.

    Args:
        logprob: under the policy being trained.
        old_logprob: under the policy that acted.
        advantage: without gradient.
        mask: elements that count; the loss is their mean.
        clip_low: rho is clipped at 1 - clip_low.
        clip_high: rho is clipped at 1 + clip_high.
        dual_clip: bound on rho where A < 0, above 1.

    Returns:
        The loss and detached scalars over counted elements: ratio_mean, ratio_max, clip_fraction (elements whose gradient either
        clip removes) and approx_kl = mean(rho - 1 - log rho), an estimate of KL(old || new) that is never negative.

    Raises:
        ValueError: if shapes differ (broadcasting would pair the wrong elements) or dual_clip <= 1.
    """
    _check_shapes(logprob=logprob, old_logprob=old_logprob, advantage=advantage, mask=mask)
    if dual_clip <= 1:
        raise ValueError(f"dual_clip must be above 1, got {dual_clip}; 3.0 is usual and infinity turns it off")
    advantage = torch.where(mask, advantage, 0)
    # Beyond e^20 both clips have removed the gradient, but an infinite exp would turn that 0 into NaN.
    log_ratio = torch.where(mask, logprob - old_logprob, 0).clamp(max=20)
    ratio = log_ratio.exp()
    unclipped = ratio * advantage
    surrogate = torch.minimum(unclipped, ratio.clamp(1 - clip_low, 1 + clip_high) * advantage)
    surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    metrics = {
        "ratio_mean": masked_mean(ratio, mask),
        "ratio_max": torch.where(mask, ratio, 0).max(),
        "clip_fraction": masked_mean((surrogate != unclipped).to(ratio.dtype), mask),
        "approx_kl": masked_mean(ratio - 1 - log_ratio, mask),
    }
    return -masked_mean(surrogate, mask), {name: scalar.detach() for name, scalar in metrics.items()}


def prdp(
    log_ratio: Float[Tensor, " n"], reward: Float[Tensor, " n"], *, group: Int[Tensor, " n"], beta: float, clip: float = 0.5
) -> Float[Tensor, ""]:
    """Reward-difference regression: mean over pairs of one group of (beta*(l_i - l_j) - (R_i - R_j))^2 (PRDP, arXiv:2402.08714).

    The policy that maximises E[R] - beta*KL(pi || pi_old) has beta*log(pi/pi_old) = R - const within a group, so regressing
    differences finds it without a policy gradient. The proximal form of the paper, section 4.3: the loss is the larger of the one
    above and the one whose l are clipped to [-clip, clip], so that ratios do not run away within one round.

    Args:
        log_ratio: l = log pi(chain) - log pi_old(chain) of whole trajectories, sums over denoising steps and decisions.
        reward: R, return of each trajectory, without gradient.
        group: trajectories with one number started from the same state.
        beta: strength of the KL penalty, in units of reward.
        clip: largest trusted |l|.

    Raises:
        ValueError: if beta is not positive or no group has two members.
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}; it is the price of one nat of divergence in units of reward")
    i, j = torch.triu_indices(len(group), len(group), offset=1, device=group.device)
    same = group[i] == group[j]
    if not same.any():
        raise ValueError("reward differences need at least two trajectories of one group; raise the group size")
    i, j = i[same], j[same]
    clipped = log_ratio.clamp(-clip, clip)
    errors = [(beta * (x[i] - x[j]) - (reward[i] - reward[j])).square() for x in (log_ratio, clipped)]
    return torch.maximum(*errors).mean()


def nft(
    velocity: Float[Tensor, "n ah ad"],
    old_velocity: Float[Tensor, "n ah ad"],
    target: Float[Tensor, "n ah ad"],
    optimality: Float[Tensor, " n"],
    *,
    mask: Bool[Tensor, "n ah ad"],
    beta: float,
) -> Float[Tensor, ""]:
    """Negative-aware fine-tuning, a velocity regression on good and bad chunks (DiffusionNFT, arXiv:2509.16117, equation 5).

    E[r*|v+ - v*|^2 + (1-r)*|v- - v*|^2] with v+ = (1-beta)*v_old + beta*v and v- = (1+beta)*v_old - beta*v: chunks that did well
    pull the velocity towards their own, others push it away, in proportion. Needs no log-probability and no sampler in particular.

    Args:
        velocity: of the policy being trained, at noised executed chunks.
        old_velocity: of the policy that acted, at the same points; without gradient.
        target: v* = noise - chunk.
        optimality: r in [0, 1], 1/2 for as good as expected.
        mask: actions that were executed.
        beta: guidance strength; smaller moves further for the same loss.

    Raises:
        ValueError: if beta is not positive or r is outside [0, 1].
    """
    if beta <= 0:
        raise ValueError(f"beta must be positive, got {beta}; 1 is usual")
    if ((optimality < 0) | (optimality > 1)).any():
        raise ValueError(f"optimality must be in [0, 1], got {float(optimality.min()):.3g} to {float(optimality.max()):.3g}")
    r = optimality[:, None, None]
    positive = (1 - beta) * old_velocity + beta * velocity
    negative = (1 + beta) * old_velocity - beta * velocity
    return masked_mean(r * (positive - target).square() + (1 - r) * (negative - target).square(), mask)


def value_huber(
    value: Float[Tensor, "*n"],
    target: Float[Tensor, "*n"],
    old_value: Float[Tensor, "*n"],
    *,
    mask: Bool[Tensor, "*n"],
    delta: float = 10.0,
    clip: float = 0.2,
) -> Float[Tensor, ""]:
    """Clipped critic loss, the mean of max(huber(V - G), huber(V_clip - G)) with V_clip = V_old + clip(V - V_old, -clip, clip).

    huber(e) = e^2/2 for |e| <= delta, else delta*(|e| - delta/2). The clip is PPO's (arXiv:2005.12729, section 3), the Huber loss
    and both defaults are RLinf's (arXiv:2510.06710).

    Args:
        value: V, the critic being trained.
        target: G, the return; without gradient.
        old_value: V_old, the critic's estimate when the trajectory was collected.
        mask: elements that count.
        delta: error beyond which the loss grows linearly.
        clip: how far the value may move from V_old before the gradient vanishes.

    Raises:
        ValueError: if shapes differ.
    """
    _check_shapes(value=value, target=target, old_value=old_value, mask=mask)
    clipped = old_value + (value - old_value).clamp(-clip, clip)
    losses = [F.huber_loss(estimate, target, reduction="none", delta=delta) for estimate in (value, clipped)]
    return masked_mean(torch.maximum(*losses), mask)


def _check_shapes(**tensors: Tensor) -> None:
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"all arguments must have one shape, got {shapes}; expand or sum them before")
