"""`Eye`: what policy and reflector see through; a part of theirs that a checkpoint describes in its place."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.sight import mosaic
from worldsim.core.types import float_image
from worldsim.core.views import FRONT, canvas, views_of
from worldsim_point.world import COLOURS


class Eye(Configured):
    """Three convolutions over the picture that the cameras make and, as constant channels, which colours the sentence names.

    Args:
        features: size of the result.
        channels: width of the convolutions.
        views: the cameras and the sizes at which they are seen, multiples of 8.
    """

    def __init__(self, features: int = 64, channels: int = 16, views: Mapping[str, tuple[int, int]] = FRONT):
        super().__init__()
        self.views = views_of(views, 8)
        height, width = canvas(self.views)
        sizes = (3 + len(COLOURS), channels, channels, channels)
        layers = [[nn.Conv2d(a, b, 4, stride=2, padding=1), nn.SiLU()] for a, b in zip(sizes[:-1], sizes[1:], strict=True)]
        self.convolutions = nn.Sequential(*(layer for pair in layers for layer in pair))
        self.out = nn.Linear(channels * (height // 8) * (width // 8), features)

    def forward(self, images: Mapping[str, Shaped[Tensor, "b _ _ 3"]], instruction: Sequence[str]) -> Float[Tensor, "b features"]:
        pixels = float_image(mosaic(images, self.views, "the eye")).permute(0, 3, 1, 2)
        named = torch.tensor([[float(colour in words) for colour in COLOURS] for words in instruction], device=pixels.device)
        wish = named[:, :, None, None].expand(-1, -1, *pixels.shape[2:])
        hidden = self.convolutions(torch.cat([2 * pixels - 1, wish.to(pixels.dtype)], dim=1))
        return nn.functional.silu(self.out(hidden.flatten(1))).float()
