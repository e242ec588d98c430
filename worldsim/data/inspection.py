"""What a dataset of anybody's probably means: which features are state and action, their units and kinds, and what says so.

All of it is a guess for a person to look at; nothing is converted by it. `worldsim adopt` writes the guesses down beside what they
rest on. Read `adoption.py` next: the file into which they go.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from worldsim.core.channels import UNKNOWN, Kind
from worldsim.data import lerobot_format as fmt

# What others call them, the likeliest first.
NAMED = {
    "state": (
        r"observation\.state",
        r"observation\.state\..+",
        r"states?|robot_state",
        r"(observation\.)?(proprio\w*|qpos|joint_\w+)",
    ),
    "action": (r"action", r"action\..+", r"actions", r"(target_|commanded_)?(action|ctrl|command)\w*"),
    "reward": (r"(observation\.)?rewards?",),
    "success": (r"(observation\.)?(is_)?success(ful)?",),
    "progress": (r"(observation\.)?(task_)?progress",),
}
JOINT = re.compile(r"joint|shoulder|elbow|wrist|hip|knee|ankle|waist|neck|pan|lift|flex|roll|pitch|yaw", re.I)
GRIPPER = re.compile(r"gripper|claw|jaw|hand|finger|thumb|pinky", re.I)
VELOCITY = re.compile(r"vel|speed|(^|_)d?q?dot|\.vel$", re.I)
PLACE = re.compile(r"(^|[._\s])(x|y|z|pos_?[xyz]|[xyz]_?pos(ition)?)$", re.I)
ABSOLUTE = 0.35  # of a state's spread: that near is an absolute action to where the state soon is
RELATED = 0.5  # correlation
SOON = 4  # frames


class Guess(NamedTuple):
    """What a channel probably is.

    Attributes:
        name: of the channel.
        unit: or unknown.
        kind: or unknown.
        low, high: least and largest recorded value.
        why: what the guess rests on.
    """

    name: str
    unit: str
    kind: Kind
    low: float
    high: float
    why: str


def named(features: fmt.Features) -> dict[str, list[str]]:
    """Features that are worldsim's, by what `spec.yaml` calls them. Several may make up a state or an action; reward, success and
    progress are one each, and none if the dataset has them under the names that worldsim reads.

    Raises:
        ValueError: if there is nothing that could be an action.
    """
    vectors = fmt.number_features(features)
    found = {}
    for ours, patterns in NAMED.items():
        several = ours in ("state", "action")
        if not several and vectors.keys() & {ours, f"next.{ours}"}:
            continue
        wide = {key for key, width in vectors.items() if width == 1 or several}
        fits = ([key for key in vectors if key in wide and re.fullmatch(pattern, key, re.I)] for pattern in patterns)
        if some := next((keys for keys in fits if keys), []):
            found[ours] = some if several else some[:1]
    if "action" not in found:
        raise ValueError(
            f"no feature looks like an action, there are {', '.join(features)}; name one in spec.yaml: features: {{action: ...}}"
        )
    return {"state": found.pop("state", []), **found}


def channels(names: Sequence[str], values: Float[np.ndarray, "n d"], kinds: Mapping[int, tuple[Kind, str]]) -> list[Guess]:
    """What each channel probably is, by its name and its values.

    Args:
        names: of the channels.
        values: recorded ones.
        kinds: of channels of which something else says it, and why.
    """
    guesses = []
    for i, name in enumerate(names):
        low, high = float(values[:, i].min()), float(values[:, i].max())
        unit, why = _unit(name, low, high)
        kind, because = kinds.get(i, _kind(name, values[:, i]))
        guesses.append(Guess(name, unit, kind, low, high, "; ".join(filter(None, (why, because)))))
    return guesses


def action_kinds(
    action: Float[np.ndarray, "n a"],
    state: Float[np.ndarray, "n s"],
    episode: Int[np.ndarray, " n"],
    pairs: Mapping[int, int],
) -> dict[int, tuple[Kind, str]]:
    """Whether actions say where to go, or by how much: by what the state does after them.

    Args:
        action: of each frame.
        state: of each frame.
        episode: of each frame, in order.
        pairs: which state channel each action channel moves, by number.
    """
    found: dict[int, tuple[Kind, str]] = {}
    for a, s in pairs.items():
        spread = float(state[:, s].std())
        if spread < 1e-6:
            continue
        errors = []
        for later in range(SOON + 1):
            same = episode[later:] == episode[: len(episode) - later]
            errors.append(float(np.sqrt(np.mean((action[: len(action) - later, a] - state[later:, s])[same] ** 2))) / spread)
        nearest = int(np.argmin(errors))
        if errors[nearest] < ABSOLUTE:
            where = f"{errors[nearest]:.2f} of the state's spread from where the state is {nearest} frames later"
            found[a] = ("absolute", where)
            continue
        same = episode[1:] == episode[:-1]
        steps, asked = np.diff(state[:, s])[same], action[:-1, a][same]
        if steps.std() > 1e-9 and asked.std() > 1e-9 and (r := float(np.corrcoef(asked, steps)[0, 1])) > RELATED:
            ratio = float(asked.std() / steps.std())
            kind: Kind = "delta" if 0.5 < ratio < 4 else UNKNOWN
            found[a] = (kind, f"correlates {r:.2f} with the state's next step, {ratio:.3g} times as large")
    return found


def paired(action: Sequence[str], state: Sequence[str]) -> dict[int, int]:
    """Which state channel an action channel moves: the one of its name, or where names say nothing the one in its place."""
    places = {_plain(name): i for i, name in enumerate(state)}
    by_name = {a: places[_plain(name)] for a, name in enumerate(action) if _plain(name) in places}
    return by_name or ({i: i for i in range(len(action))} if len(action) == len(state) else {})


def _plain(name: str) -> str:
    return re.sub(r"\.(pos|position|goal|target)$|^(goal|target|cmd)[._]", "", name.lower())


def _unit(name: str, low: float, high: float) -> tuple[str, str]:
    most = max(abs(low), abs(high))
    span = f"{low:.4g} .. {high:.4g}"
    if GRIPPER.search(name):
        return ("percent", f"a gripper in {span}") if 1.5 < most <= 101 and low > -2 else (UNKNOWN, f"a gripper in {span}")
    turns = "rad/s" if VELOCITY.search(name) else "rad"
    if JOINT.search(name) and most > 0:
        if most <= 2 * math.pi * 1.01:
            return turns, f"a joint, and no more than a turn: {span}"
        if 30 < most <= 720:
            return turns.replace("rad", "deg"), f"a joint beyond a turn of radians: {span}"
    if PLACE.search(name) and 0 < most < 3:
        return ("m/s" if VELOCITY.search(name) else "m"), f"a place within reach: {span}"
    return UNKNOWN, span


def _kind(name: str, values: Float[np.ndarray, " n"]) -> tuple[Kind, str]:
    if VELOCITY.search(name):
        return "velocity", "its name"
    different = np.unique(values)
    if len(different) == 2 and set(different.tolist()) <= {0.0, 1.0}:
        return "binary", "0 and 1 and nothing else"
    return UNKNOWN, ""
