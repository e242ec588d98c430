"""Calibration of a success probability on held-out episodes: pure functions of logits and labels.

A threshold means something only if p = 0.8 is right four times in five. Read `worldsim/dream.py` for the k-of-n stop."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


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
