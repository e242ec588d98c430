"""The optimiser that all training shares: AdamW whose learning rate rises briefly and then falls linearly."""

from collections.abc import Iterable

import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR


def decayed_adamw(
    parameters: Iterable[torch.nn.Parameter], *, lr: float, total_steps: int, weight_decay: float = 1e-3, floor: float = 0.05
) -> tuple[AdamW, LambdaLR]:
    """AdamW with a warm-up over the first 2 % of the steps and a linear decay to `floor` * lr.

    Args:
        parameters: to optimise.
        lr: peak learning rate.
        total_steps: optimiser steps of the whole run, `trainer.max_steps`.
        weight_decay: decoupled weight decay.
        floor: last learning rate as a share of the peak.

    Raises:
        ValueError: if total_steps is not positive (an endless run has no decay).
    """
    if total_steps <= 0:
        raise ValueError(f"trainer.max_steps must be positive, got {total_steps}; the learning rate decays over the whole run")
    optimizer = AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)  # one pass over memory
    warmup = max(1, total_steps // 50)

    def factor(step: int) -> float:
        return min((step + 1) / warmup, max(floor, 1 - (1 - floor) * step / total_steps))

    return optimizer, LambdaLR(optimizer, factor)
