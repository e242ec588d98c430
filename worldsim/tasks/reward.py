"""Rewards of judged progress and success: what physics, dreams and imagination pay unless told otherwise (`reward=...`).

A judge says how far the task is; a reward only weighs it, so the same object fits the task's truth and a reflector's opinion, hard
verdicts and probabilities. Read `worldsim/core/world.py` for the contract, `training/rl/imagine.py` for a soft success.
"""

from jaxtyping import Float
from torch import Tensor

from worldsim.core.types import Judgement
from worldsim.core.world import Reward


class ProgressReward(Reward):
    """progress * (progress now - progress before) + success * (the task is done now), which telescopes over an episode.

    The difference is a potential-based shaping (Ng et al. 1999): what is gained and lost again earns nothing. Where success is a
    probability, as in a differentiable dream, its bonus is the expected one.

    Args:
        progress: weight of the progress gained.
        success: what success earns.
    """

    def __init__(self, progress: float = 1.0, success: float = 1.0):
        self.progress, self.success = progress, success

    def __call__(self, before: Judgement, now: Judgement) -> Float[Tensor, " b"]:
        return self.progress * (now.progress - before.progress) + self.success * now.success


class SparseSuccess(Reward):
    """Success alone, where nobody knows the progress or it should not count.

    Args:
        success: what it earns.
    """

    def __init__(self, success: float = 1.0):
        self.success = success

    def __call__(self, before: Judgement, now: Judgement) -> Float[Tensor, " b"]:
        return self.success * now.success
