"""Episodes that do not go together: units, scales, zeros and kinds of action that change from one session to the next.

Also states against actions over all of them: units of any factor, and channels in another order. Most datasets are merged from
several sessions, and what each of them says alone is sound. All of it is warnings. Read `picture_suspicions.py` next, which looks
at cameras.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float

from worldsim.data.contents import Contents, Fault
from worldsim.data.dataset_spec import OVERLAY
from worldsim.data.episode_faults import fault, some
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.row_suspicions import Channels, channels_of
from worldsim.data.suspicions import ALIKE, KEYS

SCALE = 10  # times: more than episodes of one unit differ by
SEVERAL = 2  # episodes on each side of a gap: one alone may be odd
TIGHT = 0.05  # of a value
SAME_RANGE = 0.2  # of its width: more than calibrating anew changes it
MERGED = "convert one part into the unit of the other, or keep them apart (worldsim convert keep=[...])"


def odd_sessions(contents: Contents) -> Iterator[Fault]:
    """All of this module."""
    both = {feature: channels for feature in KEYS if (channels := channels_of(contents, feature)) is not None}
    for channels in both.values():
        yield from two_scales(channels)
        yield from two_zeros(channels, contents)
    if len(both) == 2:
        for check in PAIRS:
            yield from check(both["state"], both["action"])


def split_by_gap(values: Float[np.ndarray, " n"], factor: float) -> Bool[np.ndarray, " n"] | None:
    """Which of n positive values lie above the one gap of that factor among them, with several on each side; None without one."""
    ordered = np.sort(values)
    gaps = ordered[1:] / np.maximum(ordered[:-1], 1e-12)
    at = int(gaps.argmax()) + 1 if len(gaps) else 0
    if not SEVERAL <= at <= len(values) - SEVERAL or gaps[at - 1] < factor:
        return None
    return values >= ordered[at]


def two_scales(channels: Channels) -> Iterator[Fault]:
    """Episodes in which all channels are many times larger than in others, or one of them goes to another end."""
    episodes = [*channels.rows]
    most = np.array([np.abs(channels.rows[episode]).max(axis=0) for episode in episodes])  # [episodes, d]
    if len(channels.moving) > 1 and (high := split_by_gap(most[:, channels.moving].max(axis=1), SCALE)) is not None:
        ratio = np.median(most[high], axis=0) / np.maximum(np.median(most[~high], axis=0), 1e-12)
        if (ratio[channels.moving] > SCALE / 2).all():
            yield _scales(channels, "all channels", episodes, high, float(np.median(ratio[channels.moving])))
            return
    for i, name in enumerate(channels.names):
        high = split_by_gap(most[:, i], SCALE)
        ends = [] if high is None else [most[high, i], most[~high, i]]
        if high is not None and all(
            np.ptp(end) <= TIGHT * end.max() for end in ends
        ):  # as ends of one range, and not as what was done
            yield _scales(channels, name, episodes, high, float(np.median(ends[0]) / np.median(ends[1])))


def _scales(channels: Channels, which: str, episodes: Sequence[EpisodeFiles], high: np.ndarray, ratio: float) -> Fault:
    degrees = ", as degrees and radians do" if abs(np.log(ratio / np.degrees(1))) < 0.2 else ""
    fewer = high if high.sum() <= len(high) / 2 else ~high
    side = "larger" if fewer is high else "smaller"
    found = f"{which} of the {channels.feature}: about {ratio:.3g} times {side} in {{}} than in the others{degrees}"
    return fault("units", "warning", [e for e, some_high in zip(episodes, fewer, strict=True) if some_high], found, MERGED)


def two_zeros(channels: Channels, contents: Contents) -> Iterator[Fault]:
    """Channels whose whole range is elsewhere from some episode on, under the same tasks: least and most moved by the same."""
    episodes = sorted(channels.rows, key=lambda episode: episode.index)
    low, high = (np.array([end(channels.rows[e], axis=0) for e in episodes]) for end in (np.min, np.max))
    tasks = [frozenset(contents.task_numbers.get(episode.index, ())) for episode in episodes]
    for i in channels.moving:
        widths = high[:, i] - low[:, i]
        width = float(np.median(widths))
        if (np.abs(widths - width) > SAME_RANGE * width).any():  # else it goes where the work is, and not to its ends
            continue
        for cut in range(3, len(episodes) - 2):
            shifts = [np.median(ends[cut:, i]) - np.median(ends[:cut, i]) for ends in (low, high)]
            apart = all(_apart(ends[:cut, i], ends[cut:, i]) > 0.25 * width for ends in (low, high))
            if apart and min(map(abs, shifts)) > 0.5 * width and {*tasks[:cut]} == {*tasks[cut:]}:
                found = f"{channels.names[i]} of the {channels.feature} has the same range, {np.mean(shifts):.3g} further, in {{}}"
                remedy = "subtract that there, if the robot was calibrated anew in between; nothing, if it works elsewhere since"
                yield fault("units", "warning", episodes[cut:], found, remedy)
                break


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """The gap between two sets of numbers; below 0 if they overlap."""
    return float(max(other.min() - one.max(), one.min() - other.max()))


def two_kinds_of_action(state: Channels, action: Channels) -> Iterator[Fault]:
    """Episodes whose actions are where to go, among others whose actions are by how much."""
    by_name = [(state.names.index(n), action.names.index(n)) for n in state.names if n in action.names]
    pairs = [(i, j) for i, j in by_name if i in state.moving and j in action.moving]
    where, how_much = [], []
    for episode, values in state.rows.items() if pairs else ():
        if episode in action.rows:
            now, then = (rows[:, [i for i, _ in pairs]] for rows in (values[:-1], values[1:]))
            told = action.rows[episode][:-1, [j for _, j in pairs]]
            absolute, relative = (float(np.abs(told - meant).mean()) for meant in (then, then - now))
            where += [episode] if absolute < 0.3 * relative else []
            how_much += [episode] if relative < 0.3 * absolute else []
    if min(len(where), len(how_much)) >= SEVERAL:
        fewer = min(where, how_much, key=len)
        said = ("how far to go", "where to be") if fewer is how_much else ("where to be", "how far to go")
        found = f"actions say {said[0]} in {{}}, and {said[1]} in the others"
        yield fault("actions", "warning", fewer, found, "convert one part into the kind of the other (add or subtract the state)")


def other_units(state: Channels, action: Channels) -> Iterator[Fault]:
    """Actions that follow the state of their name by one line of the same slope, far from 1, in every channel."""
    slopes = []
    for _, s, a in _paired(state, action):
        if np.corrcoef(s, a)[0, 1] < 0.9:
            return
        slopes.append(float(np.polyfit(s, a, 1)[0]))
    if len(slopes) > 1 and max(slopes) < 1.3 * min(slopes) and not 1 / 3 < (slope := float(np.median(slopes))) < 3:
        degrees = ", as degrees and radians do" if abs(abs(np.log(slope)) - np.log(np.degrees(1))) < 0.1 else ""
        found = f"states and actions of one name differ by a factor of about {slope:.4g}{degrees}"
        yield Fault("units", "warning", found, f"say the unit of both in {OVERLAY}, and convert one of them")


def other_order(state: Channels, action: Channels) -> Iterator[Fault]:
    """Channels that follow a channel of another name, or that are named in another order."""
    if {*state.names} == {*action.names} and state.names != action.names:
        found = f"the action names the channels of the state in another order: {some(action.names)} against {some(state.names)}"
        yield Fault("channels", "warning", found, "write both in one order: many readers pair them by position")
    paired = [*_paired(state, action)]
    crossed = []
    for name, s, a in paired:
        own = np.corrcoef(s, a)[0, 1]
        best, other = max((float(np.corrcoef(s, b)[0, 1]), n) for n, _, b in paired)
        if other != name and best > 0.9 and own < best - 0.3:
            crossed.append(f"{name} of the state goes with {other} of the action ({best:.2f}, and {own:.2f} with its own)")
    if len(crossed) > 1:
        found = f"channels of one name do not go together: {some(crossed)}"
        yield Fault("channels", "warning", found, "look in which order each was written, and name or sort them alike")


def _paired(state: Channels, action: Channels) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Name and all values of the moving channels that state and action both have."""
    there = [episode for episode in state.rows if episode in action.rows]
    if sum(len(state.rows[episode]) for episode in there) < ALIKE:
        return
    s, a = (np.concatenate([channels.rows[episode] for episode in there]) for channels in (state, action))
    for i in state.moving:
        if (name := state.names[i]) in action.names and (j := action.names.index(name)) in action.moving:
            yield name, s[:, i], a[:, j]


PAIRS: list[Callable[[Channels, Channels], Iterator[Fault]]] = [two_kinds_of_action, other_units, other_order]
