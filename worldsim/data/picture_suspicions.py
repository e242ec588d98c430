"""Cameras that freeze, go black or run late: what is wrong with pictures that decode without a complaint.

Only a few frames are decoded (`clips.py`), and what is found says of how many; what is wrong elsewhere goes unnoticed. Read
`picture_sessions.py` next, which holds episodes and cameras against each other.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata

from worldsim.data import lerobot_format as fmt
from worldsim.data.clips import SAME, Clip, clips_of
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import fault
from worldsim.data.picture_sessions import changes_of, odd_cameras, odd_sessions
from worldsim.data.suspicions import finite_rows

FROZEN = 10  # frames
MAX_LAG = 8  # steps
WEAK = 0.4  # correlation
RESAMPLES, SURE = 200, 0.95


class Lag(NamedTuple):
    """How many steps what a camera shows comes after what the state says.

    Attributes:
        steps: below 0 if the camera is ahead.
        correlation: of changes of the picture with those of the state, at that lag.
        unshifted: the same at lag 0.
        sure: share of the resampled clips that say the same.
    """

    steps: int
    correlation: float
    unshifted: float
    sure: float


def odd_pictures(contents: Contents) -> Iterator[Fault]:
    """Frames of one colour, cameras that stand still while the state moves, and cameras that are not in step with the state."""
    states = finite_rows(contents, "observation.state")
    cameras = {key: [*clips_of(contents, key, states)] for key, feature in contents.features.items() if fmt.is_rgb(feature)}
    yield from odd_cameras(cameras)
    for key, clips in cameras.items():
        if clips:
            looked = f"of the {sum(len(clip.frames) for clip in clips)} frames of {len(clips)} episodes that were looked at"
            yield from _blank(key, clips, looked)
            yield from _frozen(key, clips, looked)
            yield from _late(key, clips, looked, contents.info["fps"])
            yield from odd_sessions(contents, key, clips, states)


def camera_lag(changes: Sequence[Float[np.ndarray, " n"]], moves: Sequence[Float[np.ndarray, " n"]]) -> Lag | None:
    """By how many steps the changes of pictures come after the moves of states, from the cross-correlation of their ranks.

    Args:
        changes: of each clip, how much the picture changes from one frame to the next.
        moves: of each clip, how far the state goes from one frame to the next.

    Returns:
        The lag; None where the signal is too weak to say, that is below a correlation of .4, with less than 95 % of resampled
        clips saying the same, or with fewer than three clips.
    """
    lags, rows = np.arange(-MAX_LAG, MAX_LAG + 1), []
    for change, move in zip(changes, moves, strict=True):
        if len(change) >= 3 * MAX_LAG and np.ptp(change) > 0 and np.ptp(move) > 0:
            a, b = ((ranks - ranks.mean()) / ranks.std() for ranks in (rankdata(change), rankdata(move)))
            rows.append([np.mean(a[max(0, lag) : len(a) + min(0, lag)] * b[max(0, -lag) : len(b) - max(0, lag)]) for lag in lags])
    if len(rows) < 3:
        return None
    by_clip = np.array(rows)
    score = by_clip.mean(axis=0)
    best = int(score.argmax())
    drawn = np.random.default_rng(0).integers(0, len(rows), (RESAMPLES, len(rows)))
    sure = float((by_clip[drawn].mean(axis=1).argmax(axis=1) == best).mean())
    lag = Lag(int(lags[best]), float(score[best]), float(score[MAX_LAG]), sure)
    return lag if lag.correlation >= WEAK and sure >= SURE else None


def lag_of(clips: Sequence[Clip]) -> Lag | None:
    """The lag of a camera; of the whole state's moves and those of each channel, which may be a velocity, the clearest counts."""
    changes, moves = [changes_of(clip) for clip in clips], [np.abs(np.diff(clip.states, axis=0)) for clip in clips]
    lags = [camera_lag(changes, [np.linalg.norm(move, axis=1) for move in moves])]
    lags += [camera_lag(changes, [move[:, channel] for move in moves]) for channel in range(moves[0].shape[1])]
    return max((lag for lag in lags if lag is not None), key=lambda lag: lag.correlation, default=None)


def _blank(key: str, clips: Sequence[Clip], looked: str) -> Iterator[Fault]:
    """Frames that are black, or of any one colour."""
    blank = {clip.episode: int((np.ptp(clip.frames, axis=(1, 2)).max(axis=1) <= 4 * SAME).sum()) for clip in clips}
    if there := [episode for episode, number in blank.items() if number]:
        found = f"{key} shows a single colour in {sum(blank.values())} {looked}: {{}}"
        yield fault("pictures", "warning", there, found, "look at them; leave those episodes out if the camera was off or covered")


def _frozen(key: str, clips: Sequence[Clip], looked: str) -> Iterator[Fault]:
    """Stretches in which no frame differs from the first while the state goes on."""
    longest = {clip.episode: max(_stretches(clip), default=0) for clip in clips}
    if there := [episode for episode, number in longest.items() if number >= FROZEN]:
        found = f"{key} shows the same picture for up to {max(longest.values())} frames while the state moves, {looked}: {{}}"
        yield fault("pictures", "warning", there, found, "look at them; leave those episodes out if the camera hung")


def _stretches(clip: Clip) -> Iterator[int]:
    """Lengths of stretches of the same picture through which the state moves by half of its standard deviation."""
    start = 0
    for i in range(1, len(clip.frames) + 1):
        if i == len(clip.frames) or np.abs(clip.frames[i] - clip.frames[start]).max() > SAME:
            if np.ptp(clip.states[start:i], axis=0).max() > 0.5:
                yield i - start
            start = i


def _late(key: str, clips: Sequence[Clip], looked: str, fps: float) -> Iterator[Fault]:
    lag = lag_of(clips)
    if lag is not None and lag.steps and lag.correlation > lag.unshifted + 0.1:
        side = "after" if lag.steps > 0 else "before"
        found = (
            f"{key} shows what happens {abs(lag.steps)} steps ({1000 * abs(lag.steps) / fps:.0f} ms) {side} the state says it: "
            f"changes correlate by {lag.correlation:.2f} then and {lag.unshifted:.2f} unshifted, {100 * lag.sure:.0f} % of "
            f"resampled clips agree, {looked}"
        )
        yield Fault("lag", "warning", found, "shift pictures against rows by that, or record with the time stamps of the camera")
