"""Rows that sensors and converters leave and nobody meant: zeros, jumps, angles that wrap, runs that hang, columns twice.

All of them are exact and cheap, over states and actions alone, and all are warnings. Read `session_suspicions.py` next, which holds
episodes against each other.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from jaxtyping import Bool, Num

from worldsim.data import lerobot_format as fmt
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import AGAIN, fault, some
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.suspicions import ALIKE, KEYS, Rows, finite_rows

FAR = 5  # median steps: more than an arm does from one frame to the next
SUDDEN = 3  # steps beside it: an arm that sets off from its zero is about as fast in the next frame
OUTLIER = 20  # median steps
TURNS = ((2 * np.pi, "2 pi"), (360.0, "360"))  # in radians, in degrees


@dataclass(frozen=True)
class Channels:
    """The channels of a feature that go through many values, grippers aside, in the rows of all episodes that are finite.

    Attributes:
        feature: state or action.
        names: of all channels.
        rows: all channels, by episode.
        moving: numbers of those channels.
        step: [d], the median of the steps of each channel that are none of 0; 1 where there are none.
    """

    feature: str
    names: tuple[str, ...]
    rows: Rows
    moving: list[int]
    step: Num[np.ndarray, " d"]

    def far(self, values: Num[np.ndarray, "n d"]) -> Bool[np.ndarray, " n-1"]:
        """Which steps from a row to the next are larger than most of their channel."""
        return (np.abs(np.diff(values, axis=0)) > FAR * self.step)[:, self.moving].any(axis=1)


def channels_of(contents: Contents, feature: str) -> Channels | None:
    """Those of a feature; None if nothing of it can be read."""
    rows = {episode: values.astype(float) for episode, values in finite_rows(contents, KEYS[feature]).items() if len(values) > 1}
    if not rows:
        return None
    names = fmt.dimension_names(contents.features[KEYS[feature]])
    whole, steps = np.concatenate([*rows.values()]), np.abs(np.concatenate([np.diff(v, axis=0) for v in rows.values()]))
    moving = [i for i, name in enumerate(names) if not is_gripper(name) and len(np.unique(whole[:, i])) > ALIKE]
    step = np.array([np.median(column[column > 0]) if (column > 0).any() else 1.0 for column in steps.T])
    return Channels(feature, names, rows, moving, step)


def is_gripper(name: str) -> bool:
    """Whether a channel may jump from one end to the other, and may be there twice."""
    return "grip" in name.lower() or "finger" in name.lower()


def odd_rows(contents: Contents) -> Iterator[Fault]:
    """All of this module, of state and action."""
    both = {feature: channels for feature in KEYS if (channels := channels_of(contents, feature)) is not None}
    for channels in both.values():
        for check in ROWS:
            yield from check(channels)
    if len(both) == 2:
        for check in PAIRS:
            yield from check(both["state"], both["action"])


def copied_channels(channels: Channels) -> Iterator[Fault]:
    """Channels that hold the same numbers in every frame."""
    whole, names = np.concatenate([*channels.rows.values()]), channels.names
    pairs = [(i, j) for i in channels.moving for j in channels.moving if i < j and (whole[:, i] == whole[:, j]).all()]
    if pairs:
        said = some([f"{names[i]} and {names[j]}" for i, j in pairs])
        found = f"{said} of the {channels.feature} are the same number in all {len(whole)} frames"
        yield Fault("channels", "warning", found, "look whether one sensor was read twice; a copy is better left out")


def zero_rows(state: Channels, action: Channels) -> Iterator[Fault]:
    """Rows of nothing but zeros beside rows that are far from them; of actions, which may mean "stay", only each last one."""
    lost: dict[EpisodeFiles, int] = {}
    first = 0
    for episode, values in state.rows.items() if len(state.moving) > 1 else ():
        zero = (values == 0).all(axis=1)
        steps = np.abs(np.diff(values, axis=0, prepend=values[:1], append=values[-1:]))  # [n + 1, d]: into each row, and out
        on = np.where(zero[:-1, None], steps[2:], steps[:-2])  # on the other side of the row that is not zeros
        sudden = (steps[1:-1] > SUDDEN * on)[:, state.moving].any(axis=1)
        if ((zero[1:] != zero[:-1]) & state.far(values) & sudden).any():
            lost[episode] = int(zero.sum())
            first += bool(zero[0])
    if lost:
        where = ", most of them begin so" if first > len(lost) / 2 else ""
        found = f"{sum(lost.values())} rows of the state are zeros, far from those beside them, in {{}}{where}"
        yield fault("jumps", "warning", lost, found, f"look whether a sensor did not answer, or rows are padding; {AGAIN}")
    zeros = {episode: (values == 0).all(axis=1) for episode, values in action.rows.items()}
    far = [action.far(values)[-1] for values in action.rows.values()]
    if len(zeros) > 1 and all(zero[-1] and not zero[:-1].any() for zero in zeros.values()) and np.mean(far) >= 0.5:
        found = "the last action is zeros, and no other one is, in all {}"
        remedy = "repeat the one before there, or leave the last frames out: it stands for no action, and statistics count it"
        yield fault("jumps", "warning", zeros, found, remedy)


def outliers(channels: Channels) -> Iterator[Fault]:
    """Single readings that leave all that a channel usually goes through, and come back in the next frame."""
    usual = np.concatenate([*channels.rows.values()])
    reach = np.quantile(usual, 0.99, axis=0) - np.quantile(usual, 0.01, axis=0)
    worst: dict[EpisodeFiles, str] = {}
    for episode, values in channels.rows.items():
        if len(values) > 2:
            off = np.abs(values[1:-1] - np.median([values[:-2], values[1:-1], values[2:]], axis=0))
            for row, i in np.argwhere(off > np.maximum(OUTLIER * channels.step, reach)):
                if i in channels.moving:
                    worst.setdefault(episode, f"{channels.names[i]} is {values[row + 1, i]:.4g} in frame {row + 1}")
    if worst:
        one, text = next(iter(worst.items()))
        found = f"single readings of the {channels.feature} are far from both neighbours in {{}}: {text} of episode {one.index}"
        yield fault("jumps", "warning", worst, found, f"take the mean of both neighbours there, or {AGAIN}")


def wrapped_angles(channels: Channels) -> Iterator[Fault]:
    """Angles that jump by nearly a turn at the ends of a range of one."""
    whole = np.concatenate([*channels.rows.values()])
    for turn, said in TURNS:
        for i in channels.moving:
            low, high = whole[:, i].min(), whole[:, i].max()
            there = [e for e, v in channels.rows.items() if (np.abs(np.diff(v[:, i])) > 0.85 * turn).any()]
            if there and high - low < 1.01 * turn and (low > -0.01 * turn or abs(low + high) < 0.2 * turn):
                found = f"{channels.names[i]} of the {channels.feature} jumps by nearly {said} in {{}}, as an angle that wraps"
                yield fault(
                    "jumps", "warning", there, found, "unwrap it within each episode (numpy.unwrap), or store its sine and cosine"
                )


def flipped_quaternions(channels: Channels) -> Iterator[Fault]:
    """Unit vectors that turn into their opposite from one frame to the next: as quaternions, one rotation written in two ways."""
    whole, taken = np.concatenate([*channels.rows.values()]), -1
    for size in (4, 3, 2):
        for first in range(whole.shape[1] - size + 1):
            part = slice(first, first + size)
            if first <= taken or (np.abs(np.linalg.norm(whole[:, part], axis=1) - 1) > 1e-3).any():
                continue
            there = [e for e, v in channels.rows.items() if (np.linalg.norm(v[1:, part] + v[:-1, part], axis=1) < 0.3).any()]
            if there:
                taken = first + size - 1
                said = ", ".join(channels.names[part])
                found = f"{said} of the {channels.feature} have length 1 and turn into their opposite within a step in {{}}"
                remedy = "keep one sign of a quaternion: where it is nearer to minus the one before, negate it"
                yield fault("jumps", "warning", there, found, remedy)


def whole_numbers(channels: Channels) -> Iterator[Fault]:
    """Channels of fractions that hold nothing but a few whole numbers."""
    whole = np.concatenate([*channels.rows.values()])
    arms = [i for i, name in enumerate(channels.names) if not is_gripper(name)]
    cut = [i for i in arms if 2 < len(np.unique(whole[:, i])) <= ALIKE and np.ptp(whole[:, i]) < TURNS[0][0]]
    if len(cut) > 1 and cut == arms and (whole[:, cut] == np.trunc(whole[:, cut])).all():
        found = f"all {len(cut)} channels of the {channels.feature} are whole numbers from {whole.min():.0f} to {whole.max():.0f}"
        yield Fault(
            "channels", "warning", found, "convert the dataset again into an array of floats: radians or metres were cut off"
        )


def hanging_states(state: Channels, action: Channels) -> Iterator[Fault]:
    """States that stay the same, bit for bit, for a while in which actions go on, though not through the whole episode."""
    reach = np.ptp(np.concatenate([*action.rows.values()]), axis=0)[action.moving]
    hung = {}
    for episode, start, end in runs(state.rows):
        told = action.rows[episode][start:end, action.moving] if episode in action.rows else np.zeros((1, 1))
        if end - start < len(state.rows[episode]) and (np.ptp(told, axis=0) > reach / 4).any():
            hung[episode] = max(hung.get(episode, 0), end - start)
    if hung:
        found = f"the state is the same for up to {max(hung.values())} frames while actions go on: {{}}"
        yield fault("jumps", "warning", hung, found, f"look whether the bus of the motors hung; {AGAIN}")


def idle_ends(state: Channels, action: Channels) -> Iterator[Fault]:
    """Episodes of which more than half is one row over and over, state and action alike."""
    both = {e: np.concatenate([v, action.rows[e]], axis=1) for e, v in state.rows.items() if e in action.rows}
    longest: dict[EpisodeFiles, int] = {}
    for episode, start, end in runs(both):
        if end - start > 0.5 * len(both[episode]):
            longest[episode] = end - start
    if longest:
        found = f"neither state nor action changes for up to {max(longest.values())} frames, more than half of the episode: {{}}"
        remedy = "cut the rest off (worldsim convert split=... drop=...) unless standing still is what is to be learned"
        yield fault("idle", "warning", longest, found, remedy)


def states_as_actions(state: Channels, action: Channels) -> Iterator[Fault]:
    """Actions that are the state of the same frame."""
    pairs = [(v, action.rows[e]) for e, v in state.rows.items() if e in action.rows]
    if sum(len(values) for values, _ in pairs) >= ALIKE and all(np.array_equal(a, b) for a, b in pairs):
        found = "actions are the states of the same frames, number for number: they say nothing of what comes next"
        yield Fault(
            "actions", "warning", found, "convert again with the state of the next frame as action, or with what was commanded"
        )


def runs(rows: Mapping[EpisodeFiles, Num[np.ndarray, "n d"]]) -> Iterator[tuple[EpisodeFiles, int, int]]:
    """Episode, first frame and end of each stretch of at least `ALIKE` equal rows."""
    for episode, values in rows.items():
        ends = [-1, *np.flatnonzero((np.diff(values, axis=0) != 0).any(axis=1)), len(values) - 1]
        yield from ((episode, a + 1, b + 1) for a, b in pairwise(ends) if b - a >= ALIKE)


ROWS: list[Callable[[Channels], Iterator[Fault]]] = [copied_channels, whole_numbers, outliers, wrapped_angles, flipped_quaternions]
PAIRS: list[Callable[[Channels, Channels], Iterator[Fault]]] = [zero_rows, hanging_states, idle_ends, states_as_actions]
