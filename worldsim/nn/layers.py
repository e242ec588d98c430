"""Network parts that policies, reflectors and critics share: a text encoder over a real tokenizer and a visual trunk.

They live here because `models` and `reflectors` may not import each other. Both are small enough for a laptop; a VLM backbone
takes their place through the same two methods. Read `models/policies/flow_vla.py` next.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.sight import mosaic
from worldsim.core.types import float_image
from worldsim.core.views import FRONT, canvas, views_of
from worldsim.nn.text import TextEncoder


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)) * (1 + scale) + shift)) with scale and shift from the instruction (FiLM, arXiv:1709.07871).

    The last convolution starts at zero instead of a normalisation layer: group norm costs as much as the convolution on a CPU.
    """

    def __init__(self, channels: int, condition: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        hidden = self.first(F.silu(x)) * (1 + scale) + shift
        return x + self.second(F.silu(hidden))


class VisualTrunk(Configured):
    """RGB frames and an instruction -> features: patches, residual blocks that the instruction modulates, one linear layer.

    The grid is flattened, not pooled: where things are is what matters.

    Args:
        features: size of the result.
        channels: width of the convolutions.
        blocks: number of residual blocks.
        text: size of the instruction's vector.
        patch: side of a patch in pixels.
        views: the cameras and the sizes at which they are seen, multiples of `patch`; they are put side by side (`mosaic`).
    """

    def __init__(
        self,
        features: int = 256,
        channels: int = 64,
        blocks: int = 2,
        text: int = 64,
        patch: int = 8,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        self.views = views_of(views, patch)
        height, width = canvas(self.views)
        self.text = TextEncoder(text)
        self.stem = nn.Conv2d(3, channels, patch, stride=patch)
        self.blocks = nn.ModuleList(ResidualBlock(channels, text) for _ in range(blocks))
        grid = (height // patch) * (width // patch)
        self.out = nn.Sequential(nn.Linear(grid * channels + text, features), nn.SiLU(), nn.Linear(features, features))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self, images: Mapping[str, Shaped[Tensor, "b _ _ 3"]], instruction: Sequence[str], who: str = "the model"
    ) -> Float[Tensor, "b features"]:
        """Features of what the cameras show, of any size, under one instruction each.

        Raises:
            ValueError: if a camera is missing.
        """
        return self.see(mosaic(images, self.views, who), self.text(instruction))

    def see(self, picture: Shaped[Tensor, "b h w 3"], text: Float[Tensor, "b text"]) -> Float[Tensor, "b features"]:
        """Features of a mosaic under the instruction's vector."""
        x = self.stem((float_image(picture) - 0.45).permute(0, 3, 1, 2) * 4)  # a permuted NHWC frame is channels-last already
        for block in self.blocks:
            x = block(x, text)
        return F.silu(self.out(torch.cat([F.silu(x).flatten(1), text], dim=-1)))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.SiLU()] if i else []
        layers += [nn.Linear(a, b)]
    return nn.Sequential(*layers)


def time_embedding(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sines and cosines of t in [0, 1] at frequencies 1 to 100 (arXiv:1706.03762, section 3.5)."""
    angle = t[:, None] * torch.logspace(0, 2, width // 2, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
