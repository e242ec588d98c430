"""Calibration of a success probability on held-out episodes: pure functions of logits and labels.

A threshold means something only if p = 0.8 is right four times in five, and a figure only if the frames that it is of did not
choose the threshold. Read `worldsim/worlds/dream.py` for the k-of-n stop."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor


def calibration_half(episode: Int[Tensor, " n"], success: Float[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Which of n frames calibrate, so that the others can tell how well: every second episode, frames of one never apart.

    Neighbouring frames are almost equal, hence whole episodes. Those with a success are dealt out first and the others after
    them, each in the order of their numbers, so that both halves have as many of either kind as their numbers allow.

    Args:
        episode: number of each frame's episode.
        success: of each frame, 1 or 0; NaN where nobody judged it.
    """
    with_success = set(episode[success == 1].tolist())
    order = sorted(set(episode.tolist()), key=lambda number: (number not in with_success, number))
    return torch.isin(episode, torch.tensor(order[::2], dtype=episode.dtype))


def fit_platt(logit: Float[Tensor, " n"], success: Bool[Tensor, " n"], iterations: int = 50) -> tuple[float, float]:
    """Platt scaling: scale and bias that minimise the cross-entropy of sigmoid(scale * logit + bias) (Platt 1999).

    Args:
        logit: uncalibrated.
        success: ground truth; both classes must occur.
        iterations: of L-BFGS.

    Raises:
        ValueError: if only one class is present, where the fit diverges.
    """
    if success.all() or not success.any():
        raise ValueError("calibration needs successes and failures, got one class only; hold out more episodes")
    logit, label = logit.detach().float(), success.float()
    parameters = torch.tensor([1.0, 0.0], requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=iterations, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        # A weak pull towards the identity keeps separable data finite.
        loss = F.binary_cross_entropy_with_logits(parameters[0] * logit + parameters[1], label)
        loss = loss + 1e-4 * ((parameters[0] - 1).square() + parameters[1].square())
        loss.backward()
        return loss

    with torch.enable_grad():
        optimizer.step(closure)
    scale, bias = parameters.tolist()
    return scale, bias
