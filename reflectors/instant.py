"""`InstantReflector`: judges success and progress from one frame and the instruction, in a fraction of a millisecond.

It is the reward and the end of every dream (World-Env, arXiv:2509.24948), trained on recorded frames with their outcome and
differentiable in the pixels, so that a policy can be improved through it. Read `calibration.py` next.
"""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from worldsim.core.interfaces import Reflector
from worldsim.core.types import Reflection
from worldsim.core.views import FRONT
from worldsim.nn.layers import VisualTrunk, mlp


class InstantReflector(Reflector):
    """A visual trunk with two heads: success logit and progress.

    Args:
        features, channels, blocks: size of the visual trunk.
        consecutive, window: an episode stops when k = `consecutive` of the last n = `window` frames exceed the threshold.
        views: the cameras and the sizes at which it sees them, multiples of 8.
    """

    differentiable = True
    scale: Tensor
    bias: Tensor

    def __init__(
        self,
        features: int = 256,
        channels: int = 64,
        blocks: int = 2,
        consecutive: int = 1,
        window: int = 2,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        if not 1 <= consecutive <= window:
            raise ValueError(f"k-of-n needs 1 <= consecutive <= window, got {consecutive} of {window}")
        self.consecutive, self.window = consecutive, window
        self.trunk = VisualTrunk(features, channels, blocks, views=views)
        self.views = self.trunk.views
        self.head = mlp(features, features, 2)
        # Calibration on held-out episodes: p = sigmoid(scale * logit + bias); see `calibration.py`.
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("threshold", torch.tensor(0.5))

    def raw(self, clip: Mapping[str, Shaped[Tensor, "b 1 _ _ 3"]], instruction: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Uncalibrated success logit [b] and progress [b]; what training fits."""
        images = {name: frames[:, -1] for name, frames in clip.items()}
        logit, progress = self.head(self.trunk(images, instruction, "the reflector")).float().unbind(dim=-1)
        return logit, progress

    def judge(self, clip: Mapping[str, Shaped[Tensor, "b 1 _ _ 3"]], instruction: Sequence[str]) -> Reflection:
        logit, progress = self.raw(clip, instruction)
        return Reflection((self.scale * logit + self.bias).sigmoid(), progress, torch.zeros_like(progress))
