"""Advantages: how much better a decision or a whole trajectory did than expected.

Pure functions of rewards and values, each small enough to check by hand; `gae` needs a critic, `grpo` and `rloo` need several
trajectories from one start state instead. Read `losses.py` next.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from training.rl.math.losses import masked_mean


def gae(
    reward: Float[Tensor, "b t"],
    value: Float[Tensor, "b t"],
    final_value: Float[Tensor, " b"],
    *,
    terminated: Bool[Tensor, "b t"],
    valid: Bool[Tensor, "b t"],
    gamma: float,
    lam: float,
) -> tuple[Float[Tensor, "b t"], Float[Tensor, "b t"]]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv:1506.02438).

    delta_t = r_t + gamma*V_{t+1}*(1 - terminated_t) - V_t and A_t = delta_t + gamma*lam*A_{t+1}, with A = 0 behind the last valid
    decision. That decision takes `final_value` for V_{t+1}; if it is not `terminated` it was truncated, by the time limit or by the
    end of collection, and so bootstraps.

    Args:
        reward: reward of each decision, summed over its chunk.
        value: critic's estimate before each decision.
        final_value: critic's estimate after the last valid decision.
        terminated: the episode ended within this decision: nothing follows that could be worth anything.
        valid: True up to and including the decision that ends the episode.
        gamma: discount per decision.
        lam: 0 is the one-step advantage, 1 the Monte-Carlo one.

    Returns:
        Advantage and return (advantage + value, the critic's target); both 0 where not valid.

    Raises:
        ValueError: if a valid decision follows an invalid or a terminated one in the same row.
    """
    if (valid[:, 1:] & (terminated | ~valid)[:, :-1]).any():
        raise ValueError(
            "valid must be True up to the end of each row's episode and False after it; give every episode its own row"
        )
    has_next = F.pad(valid[:, 1:], (0, 1))
    next_value = torch.where(has_next, F.pad(value[:, 1:], (0, 1)), final_value[:, None])
    delta = torch.where(valid, reward + gamma * torch.where(terminated, 0, next_value) - value, 0)
    advantages = [torch.zeros_like(final_value)]
    for t in reversed(range(reward.shape[1])):
        advantages.append(delta[:, t] + gamma * lam * advantages[-1])
    advantage = torch.stack(advantages[:0:-1], dim=1)
    return advantage, torch.where(valid, advantage + value, 0)


def grpo(returns: Float[Tensor, "g n"], *, min_spread: float) -> Float[Tensor, "g n"]:
    """Group-relative advantage, A_i = (R_i - mean_g) / max(std_g, min_spread) (Shao et al. 2024, arXiv:2402.03300).

    std is the sample standard deviation (n - 1). A group of equal returns gets exactly 0. Deviation: the paper divides by std_g
    alone, which blows up whatever little a group differs in, shaped rewards of failures for instance, to advantages of size 1.

    Args:
        returns: return of n >= 2 trajectories from each of g start states.
        min_spread: the least divisor, positive, in units of the returns.

    Raises:
        ValueError: if n < 2.
    """
    centred = _centred(returns)
    return centred / centred.std(dim=1, keepdim=True).clamp(min=min_spread)


def rloo(returns: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    """Leave-one-out advantage, A_i = R_i - mean_{j != i} R_j (Ahmadian et al. 2024, arXiv:2402.14740).

    Computed as n/(n-1) * (R_i - mean_g), which is the same. A group of equal returns gets exactly 0.

    Args:
        returns: return of n >= 2 trajectories from each of g start states.

    Raises:
        ValueError: if n < 2, where the baseline is undefined.
    """
    centred, n = _centred(returns), returns.shape[1]
    return centred * (n / (n - 1))


def first_success_mask(done: Bool[Tensor, "b t"]) -> Bool[Tensor, "b t"]:
    """True up to and including the first `done` of each row: what happens after an episode's end carries no gradient
    (SimpleVLA-RL, arXiv:2509.09674)."""
    return done.int().cumsum(dim=1) - done.int() == 0


def length_normalize(advantage: Float[Tensor, "b t"], valid: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """advantage * max_len / valid_len where valid, else 0, so that every trajectory weighs the same, however early it ended.

    The clipped loss is proportional to the advantage, so its mean over the mask becomes mean(loss*mask / (valid_len/max_len))
    (RLinf-VLA, arXiv:2510.06710, section 4.3).
    """
    length = valid.sum(dim=1, keepdim=True).clamp(min=1)
    return torch.where(valid, advantage * (valid.shape[1] / length), 0)


def normalize(advantage: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """(A - mean) / (std + 1e-6) over the elements where mask is True; 0 elsewhere.

    std is the population standard deviation, so that a single counted element gives 0 rather than NaN.
    """
    centred = torch.where(mask, advantage - masked_mean(advantage, mask), 0)
    return centred / (masked_mean(centred.square(), mask).sqrt() + 1e-6)


def _centred(returns: Float[Tensor, "g n"]) -> Float[Tensor, "g n"]:
    if returns.shape[1] < 2:
        raise ValueError(f"a group needs at least 2 trajectories, got returns of shape {list(returns.shape)}; raise the group size")
    shifted = returns - returns[:, :1]  # equal returns become exact zeros; the mean of n equal floats is not always that float
    return shifted - shifted.mean(dim=1, keepdim=True)
