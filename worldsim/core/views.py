"""What a model sees of a robot's cameras: views, a height and a width by camera, and the one way in which pictures come to it.

Training, dreams, exports and robots resize by `resize` and put cameras side by side by `mosaic`; the numbers are whole, so that all
of them see the same bytes on every machine. It needs no torch; `sight.py` does the same to tensors. Read that next, then
`worldsim/data/frame_cache.py`, which keeps the views of a dataset.
"""

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache

import numpy as np

Views = Mapping[str, tuple[int, int]]
"""Height and width at which each camera is seen, by name, in the order in which they are put side by side."""

FRONT: Views = {"front": (64, 64)}
"""What our own worlds show."""
_ONE = 256  # weights are multiples of 1/256: two passes over 8 bits are at most 255 * 2^16 < 2^24, whole numbers to a float32
_LARGEST = 128  # side of a view that nobody chose


def views_of(views: Mapping[str, Sequence[int]], multiple: int) -> dict[str, tuple[int, int]]:
    """Views as a model keeps them.

    Raises:
        ValueError: if there are none, or a side is not a multiple of `multiple` pixels.
    """
    for name, size in views.items():
        if len(size) != 2 or min(size) < 1 or any(side % multiple for side in size):
            raise ValueError(
                f"the view of camera {name} must be [height, width] in multiples of {multiple} pixels, got {list(size)}; round them"
            )
    if not views:
        raise ValueError("views is empty, expected at least one camera; name one and its size: views={front: [64, 64]}")
    return {name: (size[0], size[1]) for name, size in views.items()}


def usual_view(height: int, width: int) -> tuple[int, int]:
    """The view of a camera for which nobody chose one: as it records, but no side beyond 128, in multiples of 8 pixels."""
    scale = min(1, _LARGEST / max(height, width))
    return max(8, 8 * round(scale * height / 8)), max(8, 8 * round(scale * width / 8))


def check_cameras(views: Views, cameras: Collection[str], who: str, there: str) -> None:
    """ValueError if a view is of a camera that is not there."""
    if missing := [name for name in views if name not in cameras]:
        raise ValueError(f"{who} looks through camera {missing[0]!r}, {there} {', '.join(sorted(cameras)) or 'none'}; rename one")


def canvas(views: Views) -> tuple[int, int]:
    """Height and width of a mosaic."""
    return max(height for height, _ in views.values()), sum(width for _, width in views.values())


def mosaic(images: Mapping[str, np.ndarray], views: Views, who: str = "the policy") -> np.ndarray:
    """The picture that a network sees: cameras side by side in the order of the views, each at its size, black below lower ones.

    Args:
        images: RGB by camera, of any size; those that are not in `views` are not looked at.
        views: which cameras, and how large.
        who: looks, for the error.

    Raises:
        ValueError: if a camera is missing.
    """
    check_cameras(views, images, who, "there is")
    height, _ = canvas(views)
    seen = [resize(images[name], size) for name, size in views.items()]
    rest = [(0, 0)] * (seen[0].ndim - 3)
    padded = [np.pad(one, [*rest, (0, height - one.shape[-3]), (0, 0), (0, 0)]) for one in seen]
    return padded[0] if len(padded) == 1 else np.concatenate(padded, axis=-2)


def resize(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Letterbox: the whole picture in its proportions, in the middle of black. A picture of that size already is itself.

    Every pixel is the mean of those that it covers, weighted by a triangle (bilinear interpolation where it covers less than one).

    Args:
        frames: RGB.
        size: height and width to come to.
    """
    old = frames.shape[-3:-1]
    if old == tuple(size):
        return frames
    rows, columns = letterbox((old[0], old[1]), size)
    height, width = len(rows), len(columns)
    batch = frames.reshape(-1, old[0], old[1] * 3).astype(np.float32)
    narrow = np.moveaxis((rows @ batch).reshape(-1, height, old[1], 3), 2, 3) @ columns.T  # [n, height, 3, width]
    box = np.zeros((len(batch), *size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    box[:, top : top + height, left : left + width] = np.moveaxis(np.floor((narrow + _ONE**2 / 2) / _ONE**2), 2, 3)
    return box.reshape(*frames.shape[:-3], *size, 3)


def letterbox(old: tuple[int, int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """What each row and column of a picture takes of the old ones, in 1/256, where it keeps its proportions within a size."""
    scale = min(size[0] / old[0], size[1] / old[1])
    height, width = (max(1, round(side * scale)) for side in old)
    return _weights(old[0], height), _weights(old[1], width)


@lru_cache(maxsize=64)  # a server is sent pictures of any size
def _weights(old: int, new: int) -> np.ndarray:
    """What each new pixel takes of the old ones of a line, in 1/256: whole numbers, which add up to 256."""
    pixel = old / new  # of the old ones that a new one covers
    distance = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * pixel)
    triangle = (1 - distance / max(pixel, 1)).clip(0)
    shares = (triangle / triangle.sum(1, keepdims=True)).cumsum(1)
    return np.diff(np.round(_ONE * shares), axis=1, prepend=0).astype(np.float32)
