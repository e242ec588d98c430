"""Numbers that can be read and are hardly what somebody meant to record: dead joints, clipped actions, copies, units, labels.

All of them are warnings: whoever recorded may know better. A world model believes whatever it is shown, so they are worth a look.
Read `row_suspicions.py` next, which looks at single rows.
"""

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
from jaxtyping import Num

from worldsim.data import lerobot_format as fmt
from worldsim.data.contents import Contents, Fault
from worldsim.data.dataset_spec import OVERLAY, read_spec
from worldsim.data.episode_faults import fault, some
from worldsim.data.lerobot_layout import EpisodeFiles

STILL = 1e-6  # of a magnitude: less is rounding
ALIKE = 10  # frames from which on standing still is worth a word
SATURATED = 0.25  # share of frames
TURN = 2 * np.pi * 1.05  # radians that a joint rarely exceeds
KEYS = {"state": "observation.state", "action": "action"}

Rows = dict[EpisodeFiles, Num[np.ndarray, "n d"]]


def finite_rows(contents: Contents, key: str) -> Rows:
    """The values of a feature by episode, of those that are finite; another check says which are not."""
    return {episode: values for episode, values in contents.values(key) if np.isfinite(values).all()}


def dead_channels(contents: Contents) -> Iterator[Fault]:
    """Channels that never move, and joints that stand still through an episode in which they are told to move."""
    spec = read_spec(contents.given, contents.info, ())
    names = {"state": spec.state_names, "action": spec.action_names}
    rows = {feature: finite_rows(contents, key) for feature, key in KEYS.items()}
    for feature, values in rows.items():
        whole = np.concatenate([*values.values()]) if values else np.empty((0, 0))
        there = fmt.columns(contents.features, KEYS[feature])  # of an adopted dataset without a state there are none
        if there and len(whole) >= ALIKE and (dead := [names[feature][i] for i in np.flatnonzero(_still(whole))]):
            found = f"{some(dead)} of the {feature} is {whole[0, _still(whole)][0]:.4g} in all {len(whole)} frames"
            remedy = "look whether its sensor or motor is connected; a channel that says nothing is better left out"
            yield Fault("channels", "warning", found, remedy)
    for name in (name for name in names["state"] if name in names["action"]):
        state, action = names["state"].index(name), names["action"].index(name)
        every = [values[:, action] for values in rows["action"].values()]
        reach = np.ptp(np.concatenate(every)) if every else 0.0
        stuck = [
            episode
            for episode, values in rows["state"].items()
            if len(values) >= ALIKE and _still(values)[state] and np.ptp(rows["action"].get(episode, values)[:, action]) > reach / 4
        ]
        if stuck and len(stuck) < len(rows["state"]):
            found = f"{name} of the state stands still in {{}} while its action moves"
            yield fault("channels", "warning", stuck, found, "look whether it is what happened, else leave those episodes out")


def saturated_actions(contents: Contents) -> Iterator[Fault]:
    """Actions that lie at both of their extremes for a large share of all frames, as clipped ones do. Grippers may."""
    spec, rows = read_spec(contents.given, contents.info, ()), finite_rows(contents, "action")
    whole = np.concatenate([*rows.values()]) if rows else np.empty((0, 0))
    if len(whole) < ALIKE:
        return
    low, high = whole.min(axis=0), whole.max(axis=0)
    ends = np.stack([np.abs(whole - end) <= 1e-4 * (high - low) for end in (low, high)]).mean(axis=1)
    for i, channel in enumerate(spec.action):
        two_valued = channel.kind == "binary" or "grip" in channel.name.lower() or len(np.unique(whole[:, i])) <= ALIKE
        if not two_valued and ends[:, i].sum() > SATURATED and ends[:, i].min() > 0.02:
            share = f"{100 * ends[:, i].sum():.0f} % of the frames"
            found = f"{channel.name} of the action is at its extremes, {low[i]:.4g} and {high[i]:.4g}, in {share}"
            yield Fault("actions", "warning", found, "record with wider limits if it was clipped: what was meant is lost there")


def duplicated_episodes(contents: Contents) -> Iterator[Fault]:
    """Episodes whose states and actions are, bit for bit, those of an earlier one."""
    seen: dict[bytes, EpisodeFiles] = {}
    copies: dict[EpisodeFiles, EpisodeFiles] = {}
    actions = dict(contents.values("action"))
    for episode, states in contents.values("observation.state"):
        if episode in actions and len(states) > 1:
            first = seen.setdefault(sha256(states.tobytes() + actions[episode].tobytes()).digest(), episode)
            if first is not episode:
                copies[episode] = first
    if copies:
        one, other = next(iter(copies.items()))
        found = f"{{}} repeat earlier ones number for number: {one.index} is {other.index}"
        remedy = "leave the copies out (worldsim convert drop=[...]): they count twice, even in training and in testing"
        yield fault("duplicates", "warning", copies, found, remedy)


def impossible_units(contents: Contents) -> Iterator[Fault]:
    """Radians beyond a turn, and degrees that are as small as radians."""
    spec = read_spec(contents.given, contents.info, ())
    channels = {"state": spec.state, "action": spec.action}
    whole = {
        feature: np.concatenate([np.empty((0, len(channels[feature]))), *finite_rows(contents, key).values()])
        for feature, key in KEYS.items()
    }
    if not all(map(len, whole.values())):
        return
    for feature, values in whole.items():
        most = np.abs(values).max(axis=0)
        wide = [f"{c.name} (up to {most[i]:.4g})" for i, c in enumerate(channels[feature]) if c.unit == "rad" and most[i] > TURN]
        if wide:
            found = f"{feature} channels are called rad and go beyond a turn: {some(wide)}"
            yield Fault("units", "warning", found, f"say deg in {OVERLAY} if that is what they are")
        narrow = [most[i] for i, c in enumerate(channels[feature]) if c.unit == "deg"]
        if len(narrow) > 1 and max(narrow) < np.pi:
            found = f"all {len(narrow)} {feature} channels called deg stay within {max(narrow):.3g} of 0, as radians do"
            yield Fault("units", "warning", found, f"say rad in {OVERLAY} if that is what they are")


def contradictory_labels(contents: Contents) -> Iterator[Fault]:
    """Labels of success that contradict each other, progress, or the end of a demonstration."""
    labels = {key: dict(contents.values(key)) for key in ("success", "next.success", "progress") if key in contents.features}
    success, following, progress = (labels.get(key, {}) for key in ("success", "next.success", "progress"))
    judge = "correct the labels: a reflector learns what they say"
    unlike = []
    for episode in success.keys() & following.keys():
        now, then = success[episode][1:, 0], following[episode][:-1, 0]
        if (now != then)[np.isfinite(now) & np.isfinite(then)].any():
            unlike.append(episode)
    if unlike:
        found = "success of a frame is not next.success of the one before it in {}"
        yield fault("labels", "warning", sorted(unlike, key=lambda e: e.index), found, judge)
    verdicts = success or following
    known = {episode: values[np.isfinite(values)] for episode, values in verdicts.items() if np.isfinite(values).any()}
    if known and not any(values.any() for values in known.values()):
        found = f"none of the {sum(map(len, known.values()))} frames of which success is known is one"
        yield Fault("labels", "warning", found, "add demonstrations that succeed, or correct the labels: nothing to tell apart")
    elif len(known) > 1 and not any(values[-3:].any() for values in known.values()):
        found = f"{sum(values.any() for values in known.values())} episodes succeed, but none ends in success"
        yield Fault("labels", "warning", found, "look whether the labels are of another frame or turned round")
    both = [(success[e][:, 0], progress[e][:, 0]) for e in success.keys() & progress.keys()]
    done, far = (np.concatenate([pair[i] for pair in both] or [np.empty(0)]) for i in (0, 1))
    at, before = (far[(done == value) & np.isfinite(far)] for value in (1, 0))
    if min(len(at), len(before)) >= ALIKE and at.mean() < before.mean() - 0.1:
        found = f"progress is {at.mean():.2f} on average where success is 1, and {before.mean():.2f} where it is 0"
        yield Fault("labels", "warning", found, judge)


def careless_labels(contents: Contents) -> Iterator[Fault]:
    """Success of an episode in each of its frames, labels that are a row late, and episodes that begin again in the middle."""
    labels = {key: {e: v[:, 0] for e, v in contents.values(key)} for key in ("success", "progress") if key in contents.features}
    success = {episode: v for episode, v in labels.get("success", {}).items() if len(v) >= ALIKE and np.isfinite(v).all()}
    good = [episode for episode, values in success.items() if values.any()]
    if len(good) > 1 and all(success[episode].all() for episode in good):
        found = "success is 1 in every frame of each episode in which it is 1 at all: {}"
        remedy = "say it of the frames in which the task is done, as a reflector learns from each frame"
        yield fault("labels", "warning", good, found, remedy)
    late = [episode for episode, values in success.items() if values[0] == 1 and not values[1:3].any()]
    if len(late) > 1:
        found = "success is 1 in the first frame and 0 after it in {}"
        yield fault("labels", "warning", late, found, "shift the labels by a row, each to the end of the episode before")
    rises = {e: np.diff(v) for e, v in labels.get("progress", {}).items() if len(v) >= 2 * ALIKE and np.isfinite(v).all()}
    again = [episode for episode, rise in rises.items() if rise.min() < -0.8 and (rise < 0).sum() == 1]
    if again:
        found = "progress rises, falls back within a step and rises again, as where another take begins, in {}"
        remedy = "cut those episodes there (worldsim convert split=...) if they hold several takes"
        yield fault("labels", "warning", again, found, remedy)


def _still(values: np.ndarray) -> np.ndarray:
    """Channels [d] of rows [n, d] that never move."""
    return np.ptp(values, axis=0) <= STILL * np.abs(values).max(axis=0) + 1e-12
