"""When a frame is shown, against when it should be: the grid of a dataset's `fps`, in time stamps and in videos.

A world model learns what one step of 1/fps seconds does, so a step that lasts two of them is a wrong label that looks like a right
one. Read `video.py` next, which picks frames by these rules.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

LEROBOT_TOLERANCE_S = 1e-4  # by which LeRobot lets a step differ from 1/fps (`tolerance_s`)


class Timing(NamedTuple):
    """How an episode's time stamps keep to the grid first + i / fps.

    Attributes:
        even: every step is 1/fps to what LeRobot demands and the numbers resolve.
        worst_s: the largest distance of a frame from its place [s].
        broken: the steps are not even and a frame is half a step or more from its place.
    """

    even: bool
    worst_s: float
    broken: bool


def timing(timestamp: Float[np.ndarray, " n"], fps: float) -> Timing:
    """How n time stamps of one episode [s] keep to the grid.

    Steps that LeRobot accepts are even, however far they drift: 29.97 Hz may call itself 30 Hz. Beyond that, what matters is
    whether frame i still is the frame of step i, so half a step is where jitter becomes a wrong label.
    """
    stamps = timestamp.astype(np.float64)
    resolution = float(np.spacing(np.abs(timestamp).max())) if np.issubdtype(timestamp.dtype, np.floating) else 0.0
    tolerance = LEROBOT_TOLERANCE_S + min(2 * resolution, 0.1 / fps)
    even = bool((np.abs(np.diff(stamps) - 1 / fps) <= tolerance).all())
    worst = float(np.abs(stamps - stamps[0] - np.arange(len(stamps)) / fps).max())
    return Timing(even, worst, not even and worst >= 0.5 / fps * (1 - 1e-6))


def in_order(frame_index: Int[np.ndarray, " n"]) -> bool:
    """Whether the rows of an episode stand in the order of their frames, none of them twice."""
    return bool((np.diff(frame_index) > 0).all())


def nearest(shown: Float[np.ndarray, " n"], wanted: Float[np.ndarray, " m"], fps: float) -> Int[np.ndarray, " m"]:
    """Of frames in the order of their times [s], the nearest to each wanted time; -1 where none is within half a step of it."""
    if len(shown) == 0:
        return np.full(len(wanted), -1)
    after = np.searchsorted(shown, wanted).clip(1, max(1, len(shown) - 1))
    before = after - 1
    after = after.clip(max=len(shown) - 1)
    chosen = np.where(np.abs(shown[before] - wanted) <= np.abs(shown[after] - wanted), before, after)
    return np.where(np.abs(shown[chosen] - wanted) <= 0.5 / fps * (1 + 1e-6), chosen, -1)
