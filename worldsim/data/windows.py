"""What learners do to windows of frames so that there are more of them: mirror, colour and shift.

Read `training/supervised/data.py` next: it draws batches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from worldsim.core.spec import Spec


@dataclass(frozen=True)
class Mirror:
    """The left-right symmetry of a scene, for data augmentation: frames flip, states and actions change sign.

    Attributes:
        state: factor of each state dimension, 1 or -1.
        action: factor of each action dimension, 1 or -1.
    """

    state: tuple[float, ...]
    action: tuple[float, ...]

    def ordered(self, data: Spec, learned: Spec) -> "Mirror":
        """The same symmetry of channels in another order.

        Args:
            data: in whose order the factors are.
            learned: the same channels, as they are learned from.

        Raises:
            ValueError: if it has not one factor for each channel of state and action.
        """
        for name, factors, size in (("state", self.state, len(data.state)), ("action", self.action, len(data.action))):
            if len(factors) != size:
                raise ValueError(
                    f"mirror.{name} has {len(factors)} factors, the data have {size} numbers; give one each, or mirror=null"
                )
        state, action = (
            dict(zip(*pair, strict=True)) for pair in ((data.state_names, self.state), (data.action_names, self.action))
        )
        return Mirror(tuple(state[name] for name in learned.state_names), tuple(action[name] for name in learned.action_names))

    def __call__(self, batch: dict, which: Bool[Tensor, " b"]) -> dict:
        """`batch` with the rows `which` mirrored: "images" by camera [b, ..., h, w, 3], "state" and "action", if present."""

        def signs(factors: tuple[float, ...], values: Tensor) -> Tensor:
            shape = (-1, *([1] * (values.ndim - 1)))
            return torch.where(which.reshape(shape), torch.tensor(factors), 1.0)

        mirrored, flipped = dict(batch), which.tolist()
        mirrored["images"] = {
            name: torch.stack([one.flip(-2) if flip else one for one, flip in zip(frames, flipped, strict=True)])
            for name, frames in batch["images"].items()
        }
        for name, factors in (("state", self.state), ("action", self.action)):
            if name in batch:
                mirrored[name] = batch[name] * signs(factors, batch[name])
        return mirrored


@dataclass(frozen=True)
class Colour:
    """Other light and another camera's colours, for few demonstrations: each factor is drawn from [1 - x, 1 + x], one per row.

    All frames and cameras of a row change alike, so that nothing in a window flickers.

    Attributes:
        brightness, contrast, saturation: x of each, from 0 to 1.
    """

    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2

    def __post_init__(self) -> None:
        for name, most in vars(self).items():
            if not 0 <= most <= 1:
                raise ValueError(f"colour.{name} must be in [0, 1], got {most}; 0.2 makes factors of 0.8 to 1.2")

    def __call__(self, images: dict[str, UInt8[Tensor, "b *t h w 3"]], generator: torch.Generator) -> dict[str, Tensor]:
        """The pictures of each camera in other colours."""
        b = len(next(iter(images.values())))
        most = torch.tensor([self.brightness, self.contrast, self.saturation])
        factors = 1 + most * (2 * torch.rand(b, 3, generator=generator) - 1)
        return {name: self._changed(frames, factors) for name, frames in images.items()}

    def _changed(self, frames: Tensor, factors: Float[Tensor, "b 3"]) -> Tensor:
        brightness, contrast, saturation = (f.reshape(-1, *[1] * (frames.ndim - 1)) for f in factors.unbind(1))
        changed = frames.float() * brightness
        middle = changed.mean(dim=tuple(range(1, frames.ndim)), keepdim=True)
        changed = middle + contrast * (changed - middle)
        grey = changed.mean(dim=-1, keepdim=True)
        return (grey + saturation * (changed - grey)).round_().clamp_(0, 255).to(torch.uint8)


def shift(frames: UInt8[Tensor, "*b h w 3"], pixels: tuple[int, int]) -> UInt8[Tensor, "*b h w 3"]:
    """Frames moved by (down, right) pixels; the border is repeated."""
    (down, right), (height, width) = pixels, frames.shape[-3:-1]
    top, bottom, left, end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    moved = torch.empty_like(frames)
    moved[..., top:bottom, left:end, :] = frames[..., top - down : bottom - down, left - right : end - right, :]
    moved[..., top:bottom, :left, :] = moved[..., top:bottom, left : left + 1, :]
    moved[..., top:bottom, end:, :] = moved[..., top:bottom, end - 1 : end, :]
    moved[..., :top, :, :] = moved[..., top : top + 1, :, :]
    moved[..., bottom:, :, :] = moved[..., bottom - 1 : bottom, :, :]
    return moved
