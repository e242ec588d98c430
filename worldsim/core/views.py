"""What of a camera's picture a model sees: a view is a height and a width, and this is the one way in which pictures come to it.

Training, dreams, exports and robots resize by this function, and its numbers are whole, so that all of them see the same bytes on
every machine. It needs no torch. Read `worldsim/data/frame_cache.py` next, which keeps the views of a dataset.
"""

from functools import cache

import numpy as np
from jaxtyping import Float, UInt8

_ONE = 256  # weights are multiples of 1/256: two passes over 8 bits are at most 255 * 2^16 < 2^24, whole numbers to a float32


def resize(frames: UInt8[np.ndarray, "*b h w 3"], size: tuple[int, int]) -> UInt8[np.ndarray, "*b h2 w2 3"]:
    """Letterbox: the whole picture in its proportions, in the middle of black. A picture of that size already is itself.

    Every pixel is the mean of those that it covers, weighted by a triangle (bilinear interpolation where it covers less than one).

    Args:
        frames: RGB.
        size: height and width to come to.
    """
    old = frames.shape[-3:-1]
    if old == tuple(size):
        return frames
    scale = min(size[0] / old[0], size[1] / old[1])
    height, width = (max(1, round(side * scale)) for side in old)
    rows, columns = _weights(old[0], height), _weights(old[1], width)
    batch = frames.reshape(-1, old[0], old[1] * 3).astype(np.float32)
    narrow = np.moveaxis((rows @ batch).reshape(-1, height, old[1], 3), 2, 3) @ columns.T  # [n, height, 3, width]
    box = np.zeros((len(batch), *size, 3), np.uint8)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    box[:, top : top + height, left : left + width] = np.moveaxis(np.floor((narrow + _ONE**2 / 2) / _ONE**2), 2, 3)
    return box.reshape(*frames.shape[:-3], *size, 3)


@cache
def _weights(old: int, new: int) -> Float[np.ndarray, "new old"]:
    """What each new pixel takes of the old ones of a line, in 1/256: whole numbers, which add up to 256."""
    pixel = old / new  # of the old ones that a new one covers
    distance = np.abs(np.arange(old) + 0.5 - (np.arange(new)[:, None] + 0.5) * pixel)
    triangle = (1 - distance / max(pixel, 1)).clip(0)
    shares = (triangle / triangle.sum(1, keepdims=True)).cumsum(1)
    return np.diff(np.round(_ONE * shares), axis=1, prepend=0).astype(np.float32)
