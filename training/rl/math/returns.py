"""The pure parts of policy learning by analytic gradients through the dream, after SHAC (Xu et al. 2022, arXiv:2204.07137).

World model and reflector are differentiable, so the return of a short dream can be differentiated with respect to the actions
directly; a critic stands in for what follows the horizon. The success probability is the chance that the episode ends, so it
discounts the future smoothly where a real episode would stop. `losses.ppo_clip` is the alternative without such gradients.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def discounted_return(
    reward: Float[Tensor, "b h"], p_success: Float[Tensor, "b h"], final_value: Float[Tensor, " b"], *, gamma: float
) -> Float[Tensor, " b"]:
    """Bootstrapped return of an h-chunk dream, J = sum_i D_i*r_i + D_h*V_h with D_i = prod_{j<i} gamma*(1 - p_j).

    The objective of arXiv:2204.07137 with the continuation 1 - p_success in place of a hard end; differentiable in all tensors.

    Args:
        reward: reward of each chunk.
        p_success: probability in [0, 1] that the episode ended in success within that chunk.
        final_value: the target critic's estimate V_h after the last chunk.
        gamma: discount per chunk.
    """
    value = final_value
    for r, p in zip(reward.unbind(dim=1)[::-1], p_success.unbind(dim=1)[::-1], strict=True):
        value = r + gamma * (1 - p) * value
    return value


def td_lambda_targets(
    reward: Float[Tensor, "b h"], p_success: Float[Tensor, "b h"], value_next: Float[Tensor, "b h"], *, gamma: float, lam: float
) -> Float[Tensor, "b h"]:
    """The critic's targets, G_i = r_i + gamma*(1 - p_i)*((1 - lam)*V_{i+1} + lam*G_{i+1}) with G_h = V_h (TD(lambda)).

    The critic targets of arXiv:2204.07137 in recursive form, with the same continuation as `discounted_return`. Pass tensors
    without gradient.

    Args:
        reward: reward of each chunk.
        p_success: probability in [0, 1] that the episode ended in success within that chunk.
        value_next: the target critic's estimates V_{i+1} after each chunk.
        gamma: discount per chunk.
        lam: 0 is the one-step target, 1 the bootstrapped return of the whole dream.
    """
    target = value_next[:, -1]
    targets = []
    for i in reversed(range(reward.shape[1])):
        target = reward[:, i] + gamma * (1 - p_success[:, i]) * ((1 - lam) * value_next[:, i] + lam * target)
        targets.append(target)
    return torch.stack(targets[::-1], dim=1)


def action_penalty(actions: Float[Tensor, "*b ah ad"], within: Float[Tensor, "*b ah ad"]) -> Float[Tensor, ""]:
    """mean |a - clip(a)|^2: pulls actions back within their limits, where clipping would leave them without gradient."""
    return (actions - within).square().mean()
