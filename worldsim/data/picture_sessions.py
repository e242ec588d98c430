"""Pictures that do not go together: turned or with other colours in some episodes, of another camera, episode or moment.

It looks at the clips of `clips.py`, and holds their middle pictures, their changes and the moves of states against each other. Read
`session_suspicions.py` for the same about numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations, pairwise

import numpy as np
import pyarrow as pa
from jaxtyping import Float
from scipy.stats import rankdata

from worldsim.data.clips import LOOKS, SAME, Clip, small_frames
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import fault
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.suspicions import Rows

UNLIKE = 8  # grey levels on average, between pictures that are not of one scene
BETTER = 0.5  # of a distance: what is left of it when pictures are turned as they must be
FITS, FAILS = 0.7, 0.3  # correlation of changes of the picture with moves of the state, and of what is of another moment
WORSE = 0.35  # of correlation: more than two episodes differ by
LAGS = 8  # steps
ENOUGH = 100  # frames, before two cameras are called one
REPEATED = 0.12  # share of frames
NOTHING = 0.15  # of the changes before and after: what a codec makes of a picture that is shown again

Picture = Float[np.ndarray, "32 32 3"]
TURNS: dict[str, Callable[[Picture], Picture]] = {
    "with red and blue exchanged": lambda picture: picture[:, :, ::-1],
    "upside down": lambda picture: picture[::-1, ::-1],
    "mirrored": lambda picture: picture[:, ::-1],
    "mirrored top to bottom": lambda picture: picture[::-1],
}


def odd_sessions(contents: Contents, key: str, clips: Sequence[Clip], states: Rows) -> Iterator[Fault]:
    """All that this module finds in one camera."""
    yield from _turned(key, clips)
    yield from _repeated(key, clips, contents.info["fps"])
    yield from _elsewhere(key, clips, states)
    yield from _stale(contents, key, states)


def odd_cameras(cameras: Mapping[str, Sequence[Clip]]) -> Iterator[Fault]:
    """Two cameras that show the same, or that change places from one episode to another."""
    for (one, first), (other, second) in combinations(cameras.items(), 2):
        pairs = [(a, b) for a, b in zip(first, second, strict=False) if a.episode is b.episode and a.frames.shape == b.frames.shape]
        if sum(len(a.frames) for a, _ in pairs) < ENOUGH:
            continue
        if all(np.abs(a.frames - b.frames).max() <= 4 * SAME and np.ptp(a.frames) > 4 * SAME for a, b in pairs):
            found = f"{one} and {other} show the same pictures in all of the {len(pairs)} episodes that were looked at"
            yield Fault("pictures", "warning", found, "look whether both were opened as one device; leave one of them out")
            continue
        means = [(np.median(a.frames, axis=0), np.median(b.frames, axis=0)) for a, b in pairs]
        (x, y), swapped = means[0], []
        for (a, _), (u, v) in zip(pairs, means, strict=True):
            straight, crossed = min(_far(x, u), _far(y, v)), max(_far(x, v), _far(y, u))
            swapped += [a.episode] if straight > UNLIKE and crossed < BETTER * straight else []
        if swapped:
            fewer = swapped if len(swapped) <= len(pairs) / 2 else [a.episode for a, _ in pairs if a.episode not in swapped]
            found = f"{one} and {other} have changed places in {{}}, of the {len(pairs)} that were looked at"
            yield fault("pictures", "warning", fewer, found, "exchange them there: look through the episodes between these, too")


def changes_of(clip: Clip) -> Float[np.ndarray, " n-1"]:
    """How much the picture changes from one frame to the next, in grey levels."""
    return np.sqrt((np.diff(clip.frames, axis=0) ** 2).mean(axis=(1, 2, 3)))


def _far(one: Picture, other: Picture) -> float:
    return float(np.abs(one - other).mean())


def _turned(key: str, clips: Sequence[Clip]) -> Iterator[Fault]:
    """Episodes whose middle picture is that of the first one when it is turned, and not as it is."""
    means = [np.median(clip.frames, axis=0) for clip in clips]  # without what moves
    for said, turn in TURNS.items():
        far = [(_far(means[0], mean), _far(means[0], turn(mean))) for mean in means]
        there = [
            clip.episode for clip, (as_is, turned) in zip(clips, far, strict=True) if as_is > UNLIKE and turned < BETTER * as_is
        ]
        others = [clip.episode for clip in clips if clip.episode not in there]
        if there:
            fewer = min(there, others, key=len)
            found = f"{key} looks {said} in {{}}, against the others of the {len(clips)} episodes that were looked at"
            yield fault("pictures", "warning", fewer, found, "turn those pictures back: look through the episodes between, too")
            return


def _repeated(key: str, clips: Sequence[Clip], fps: float) -> Iterator[Fault]:
    """Pictures that are shown again and again while the state moves, as of a camera that is slower than the rows."""
    shares = []
    for clip in clips:
        change, move = changes_of(clip), np.linalg.norm(np.diff(clip.states, axis=0), axis=1)
        if len(change) < 2 * LAGS:
            continue
        beside = np.maximum(change[:-2], change[2:])
        moving = move[1:-1] > 0.5 * np.quantile(move, 0.9)  # by more than what a pixel hides
        again = (change[1:-1] < NOTHING * beside) & (beside > SAME)
        shares.append(float((again & moving).sum() / max(1, moving.sum())))
    if len(shares) > 1 and min(np.median(shares), np.mean(shares)) > REPEATED:
        share = float(np.mean(shares))
        found = (
            f"{key} shows the picture before once more in {100 * share:.0f} % of the frames in which the state moves, of "
            f"{len(shares)} episodes that were looked at, as a camera of {(1 - share) * fps:.0f} frames per second or fewer does"
        )
        remedy = "record rows at the rate of the camera, or take every second row; a world model learns to stand still in between"
        yield Fault("pictures", "warning", found, remedy)


def _elsewhere(key: str, clips: Sequence[Clip], states: Rows) -> Iterator[Fault]:
    """Pictures whose changes are those of the states of another episode, or, in single episodes, of another moment."""
    fits = {clip.episode: _fit(changes_of(clip), states[clip.episode], clip.first) for clip in clips}
    order = sorted(states, key=lambda episode: episode.index)
    shifts: dict[int, list[EpisodeFiles]] = {}
    for clip in clips:
        others = {e: _fit(changes_of(clip), rows, clip.first) for e, rows in states.items() if e is not clip.episode}
        best = max(others, key=others.__getitem__, default=clip.episode)
        if others.get(best, 0) > max(FITS, fits[clip.episode] + WORSE):
            shifts.setdefault(order.index(best) - order.index(clip.episode), []).append(clip.episode)
    if shifts and len(episodes := max(shifts.values(), key=len)) > 1:
        steps = next(step for step, there in shifts.items() if there is episodes)
        side = "later" if steps > 0 else "earlier"
        found = f"{key} shows the episode {abs(steps)} {side} in {{}}, by what moves when, of {len(clips)} that were looked at"
        yield fault(
            "pictures", "warning", episodes, found, "look which pictures belong to which rows: some were deleted or renamed"
        )
        return
    late = {}
    for clip in clips:
        by_lag = {lag: _fit(changes_of(clip), states[clip.episode], clip.first, lag) for lag in range(-LAGS, LAGS + 1)}
        best = max(by_lag, key=by_lag.__getitem__)
        if by_lag[best] > FITS and by_lag[0] < FAILS:
            late[clip.episode] = best
    if late and len(late) < len(clips) / 2 and np.median([*fits.values()]) > FITS:
        steps = ", ".join(f"{abs(lag)} steps {'after' if lag > 0 else 'before'} the state" for lag in sorted({*late.values()}))
        found = f"{key} shows what happens {steps} in {{}}, and in step with it in the others of the {len(clips)} looked at"
        yield fault(
            "lag", "warning", late, found, "leave those episodes out (worldsim convert drop=[...]), or shift their pictures"
        )


def _fit(changes: Float[np.ndarray, " n"], rows: np.ndarray, first: int, lag: int = 0) -> float:
    """Correlation of the ranks of changes of pictures with those of the state's moves `lag` steps before; 0 without any."""
    move = np.linalg.norm(np.diff(rows.astype(float) / np.maximum(rows.std(axis=0), 1e-9), axis=0), axis=1)
    at = np.arange(len(changes)) + first - lag
    there = (at >= 0) & (at < len(move))
    if there.sum() < 2 * LAGS:
        return 0.0
    a, b = rankdata(changes[there]), rankdata(move[at[there]])
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else 0.0


def _stale(contents: Contents, key: str, states: Rows) -> Iterator[Fault]:
    """Episodes that begin with the picture with which the one before ended, though the state is elsewhere."""
    pairs = [
        (a, b) for a, b in pairwise(sorted(states, key=lambda e: e.index)) if b.index == a.index + 1 and min(a.length, b.length) > 1
    ]
    if not pairs:
        return
    spread = np.maximum(np.concatenate([*states.values()]).std(axis=0), 1e-9)
    far = [(a, b) for a, b in pairs if (np.abs(states[b][0].astype(float) - states[a][-1]) > 0.5 * spread).any()]
    looked = [far[i] for i in np.unique(np.linspace(0, len(far) - 1, LOOKS).round().astype(int))] if far else []
    stale = []
    for before, episode in looked:
        try:
            last, (first, *_) = (
                small_frames(contents, key, before, before.length - 1, 1)[0],
                small_frames(contents, key, episode, 0, 1),
            )
        except (ValueError, FileNotFoundError, pa.ArrowInvalid):  # other checks say so
            continue
        stale += [episode] if np.abs(last - first).max() <= SAME and np.ptp(first) > 4 * SAME else []
    if len(stale) > 1:
        found = f"{key} begins with the last picture of the episode before in {{}}, of {len(looked)} that were looked at"
        yield fault(
            "pictures", "warning", stale, found, "empty the buffer of the camera before recording; cut the first frames off"
        )
