"""What learners do to windows of frames so that there are more of them: mirror and shift.

Read `training/supervised/data.py` next: it draws batches.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, UInt8
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
