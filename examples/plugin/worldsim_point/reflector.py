"""`PointReflector`: success and progress from one frame; worldsim trains it because it has `raw`, and calibrates it."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Shaped
from torch import Tensor

from worldsim.core.interfaces import Reflector
from worldsim.core.types import Reflection
from worldsim.nn.layers import mlp
from worldsim_point.eye import Eye


class PointReflector(Reflector):
    """An eye with two heads: success logit and progress.

    Args:
        eye: what it sees through.
        consecutive, window: an episode stops when `consecutive` of the last `window` frames exceed the threshold.
    """

    differentiable = True

    def __init__(self, eye: Eye, consecutive: int = 1, window: int = 2):
        super().__init__()
        self.consecutive, self.window, self.eye, self.views = consecutive, window, eye, eye.views
        self.head = mlp(eye.arguments["features"], 32, 2)
        for name, value in (("scale", 1.0), ("bias", 0.0), ("threshold", 0.5)):  # calibration sets them
            self.register_buffer(name, torch.tensor(value))

    def raw(self, clip: Mapping[str, Shaped[Tensor, "b 1 _ _ 3"]], instruction: Sequence[str]) -> tuple[Tensor, Tensor]:
        images = {name: frames[:, -1] for name, frames in clip.items()}
        logit, progress = self.head(self.eye(images, instruction)).float().unbind(dim=1)
        return logit, progress

    def judge(self, clip: Mapping[str, Shaped[Tensor, "b 1 _ _ 3"]], instruction: Sequence[str]) -> Reflection:
        logit, progress = self.raw(clip, instruction)
        return Reflection((self.scale * logit + self.bias).sigmoid(), progress, torch.zeros_like(progress))
