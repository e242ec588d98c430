"""Views of tensors: what `views.py` does to the pictures of a robot, done to those of batches and dreams, whose gradient passes.

Bytes come out as they do there, bit for bit. Read `interfaces.py` next: models name the views that they see.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor
from torch.nn.functional import pad

from worldsim.core.precision import exact
from worldsim.core.views import Views, canvas, check_cameras, letterbox


@exact  # whole numbers need 24 bits
def resize(frames: Shaped[Tensor, "*b h w 3"], size: tuple[int, int]) -> Shaped[Tensor, "*b h2 w2 3"]:
    """`views.resize` of bytes; of floats in 0..1 the same without rounding, differentiable."""
    old = (frames.shape[-3], frames.shape[-2])
    if old == tuple(size):
        return frames
    rows, columns = (torch.from_numpy(weights).to(frames.device) for weights in letterbox(old, size))
    narrow = torch.einsum("yh,...hwc,xw->...yxc", rows, frames.float(), columns) / 2**16
    if frames.dtype == torch.uint8:
        narrow = (narrow + 0.5).floor().to(torch.uint8)
    top, left = ((size[0] - len(rows)) // 2, (size[1] - len(columns)) // 2)
    sides = (0, 0, left, size[1] - len(columns) - left, top, size[0] - len(rows) - top)
    return pad(narrow, sides)


def seen(images: Mapping[str, Shaped[Tensor, "*b _ _ 3"]], views: Views, who: str) -> dict[str, Shaped[Tensor, "*b _ _ 3"]]:
    """The cameras of the views at their sizes.

    Raises:
        ValueError: if one is missing.
    """
    check_cameras(views, images, who, "there is")
    return {name: resize(images[name], size) for name, size in views.items()}


def mosaic(images: Mapping[str, Shaped[Tensor, "*b _ _ 3"]], views: Views, who: str) -> Shaped[Tensor, "*b h w 3"]:
    """`views.mosaic` of tensors; a single camera of its view's size is itself."""
    height, _ = canvas(views)
    parts = seen(images, views, who).values()
    padded = [pad(one, (0, 0, 0, 0, 0, height - one.shape[-3])) if one.shape[-3] < height else one for one in parts]
    return padded[0] if len(padded) == 1 else torch.cat(padded, dim=-2)


def recent(frames: Shaped[Tensor, "b t *rest"], context: int) -> Shaped[Tensor, "b context *rest"]:
    """The last `context` frames; where there are fewer, the oldest is repeated."""
    missing = max(0, context - frames.shape[1])
    return torch.cat([frames[:, :1].expand(-1, missing, *frames.shape[2:]), frames], dim=1)[:, -context:]


def clips(frames: Shaped[Tensor, "b t *rest"], context: int) -> Shaped[Tensor, "b t2 context *rest"]:
    """The t - context + 1 clips of as many frames within t of them, by the place of their last frame."""
    return frames.unfold(1, context, 1).movedim(-1, 2)


def apart(picture: Float[Tensor, "*b h w 3"] | UInt8[Tensor, "*b h w 3"], views: Views) -> dict[str, Shaped[Tensor, "*b _ _ 3"]]:
    """The cameras of a mosaic."""
    columns = picture.split([width for _, width in views.values()], dim=-2)
    return {name: part[..., : size[0], :, :] for (name, size), part in zip(views.items(), columns, strict=True)}
