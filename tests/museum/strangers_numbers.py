"""More by the stranger of `strangers.py`: states and actions that were merged, calibrated, converted or read in a wrong way.

The doctor was silent about all of them when they were written. Read `strangers_pictures.py` next.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from museum.cases import case
from museum.healthy import describe
from museum.recorder import Take, draw, takes, write


def some(made: list[Take], change: Callable[[Take], Take], which: Callable[[int], bool]) -> list[Take]:
    """The episodes, of which those of some numbers are changed."""
    return [change(take) if which(i) else take for i, take in enumerate(made)]


def later(change: Callable[[Take], Take]) -> list[Take]:
    """Eight episodes, the later four of which are changed."""
    return some(takes(8), change, lambda i: i >= 4)


def with_state(take: Take, rows: slice, values: np.ndarray | float) -> Take:
    """An episode whose state is another one in some rows."""
    state = take.state.copy()
    state[rows] = values
    return replace(take, state=state)


@case("warning actions", "stranger")
def taught_by_hand(root: Path) -> list[Take]:
    """Kinesthetic teaching: the converter wrote the state of the same frame as the action."""
    return write(root, [replace(t, action=t.state) for t in takes(8)])


@case("warning units", "stranger")
def homed_elsewhere(root: Path) -> list[Take]:
    """After a new calibration the elbow's zero is 90 degrees elsewhere in the later episodes."""
    shift = np.array([0, np.pi / 2], np.float32)
    return write(root, later(lambda t: replace(t, state=t.state + shift, action=t.action + shift)))


@case("warning channels", "stranger")
def sorted_by_name(root: Path) -> list[Take]:
    """The state was read from a dictionary sorted by name, the action was not; info.json names both alike."""
    return write(root, [replace(t, state=t.state[:, ::-1].copy()) for t in takes(8)])


@case("warning channels", "stranger")
def names_that_disagree(root: Path) -> list[Take]:
    """The action's names stand in another order than those of the state, and its values with them."""
    made = write(root, [replace(t, action=t.action[:, ::-1].copy()) for t in takes(8)])
    describe(root, "action", names=["elbow", "shoulder"])
    return made


@case("warning channels", "stranger")
def one_motor_read_twice(root: Path) -> list[Take]:
    """The elbow's column holds the shoulder: both were read with one motor id."""
    return write(root, [replace(t, state=t.state[:, [0, 0]], action=t.action[:, [0, 0]]) for t in takes(8)])


@case("warning units", "stranger")
def half_in_degrees(root: Path) -> list[Take]:
    """Two recordings merged, one in radians and one in degrees."""
    return write(root, later(lambda t: replace(t, state=np.degrees(t.state), action=np.degrees(t.action))))


@case("warning units", "stranger")
def actions_in_ticks(root: Path) -> list[Take]:
    """The state is in radians, the action in the motor's ticks from 0 to 4095."""
    return write(root, [replace(t, action=np.round(2048 + t.action * 2048 / np.pi).astype(np.float32)) for t in takes(8)])


@case("warning actions", "stranger")
def half_relative(root: Path) -> list[Take]:
    """Merged from absolute targets and from differences to the state."""
    return write(root, later(lambda t: replace(t, action=t.action - t.state)))


@case("warning jumps", "stranger")
def first_read_is_zero(root: Path) -> list[Take]:
    """Every episode begins with a state of zeros, from before the first answer of the motors."""
    return write(root, [with_state(t, slice(1), 0) for t in takes(8)])


@case("warning jumps", "stranger")
def lost_packets(root: Path) -> list[Take]:
    """Where the motor bus did not answer, single frames hold a state of zeros."""
    return write(root, [with_state(t, slice(5, None, 11), 0) for t in takes(8)])


@case("warning jumps", "stranger")
def a_bus_that_hangs(root: Path) -> list[Take]:
    """For the last 20 of 40 frames of one episode the state is the last that the bus gave, while actions and pictures go on."""
    return write(root, some(takes(8), lambda t: with_state(t, slice(20, None), t.state[20]), lambda i: i == 3))


@case("warning jumps", "stranger")
def angles_that_wrap(root: Path) -> list[Take]:
    """A joint turns past pi and its angle jumps to -pi."""

    def wrapped(values: np.ndarray) -> np.ndarray:
        return ((values + [2 * np.pi, np.pi]) % (2 * np.pi) - np.pi).astype(np.float32)

    return write(root, [replace(t, state=wrapped(t.state), action=wrapped(t.action)) for t in takes(8)])


@case("warning channels", "stranger")
def made_whole_numbers(root: Path) -> list[Take]:
    """Preallocated as integers by the converter: radians were cut to whole numbers."""
    return write(root, [replace(t, state=np.trunc(t.state * 2), action=np.trunc(t.action * 2)) for t in takes(8)])


@case("warning jumps", "stranger")
def last_action_is_zero(root: Path) -> list[Take]:
    """RLDS has no action in its last step; the converter wrote zeros there."""
    made = takes(8)
    for take in made:
        take.action[-1] = 0
    return write(root, made)


@case("warning labels", "stranger")
def two_takes_in_one(root: Path) -> list[Take]:
    """The key that ends an episode was missed: one holds two takes, and arm, picture and progress jump between them."""
    one, other, *rest = takes(8)
    fields = ("state", "action", "pictures", "success", "progress")
    both = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in fields}
    return write(root, [replace(one, **both), *rest])


@case("warning idle", "stranger")
def operator_went_for_coffee(root: Path) -> list[Take]:
    """Of one episode only the first 10 of 80 frames move: the recording ran on."""

    def run_on(take: Take) -> Take:
        state = np.concatenate([take.state[:10], take.state[9:10].repeat(70, axis=0)])
        action = np.concatenate([take.action[:9], state[9:]])
        success, progress = (np.arange(80) >= 77).astype(np.float32), np.linspace(0, 1, 80, dtype=np.float32)
        return Take(state, action, draw(state), take.task, success, progress)

    return write(root, some(takes(8), run_on, lambda i: i == 3))


@case("warning jumps", "stranger")
def an_outlier_of_the_encoder(root: Path) -> list[Take]:
    """Single readings of the encoder jump by 40 radians, three in the whole dataset."""
    return write(root, some(takes(8), lambda t: with_state(t, slice(17, 18), t.state[17] + [0, 40]), lambda i: i in (1, 4, 6)))


@case("warning units", "stranger")
def gripper_of_two_scales(root: Path) -> list[Take]:
    """The gripper was calibrated to 0..100 in the first session and to 0..1 in the second."""
    made = []
    for i, take in enumerate(takes(8)):
        grip = np.where(take.action[:, 1] > 0, 100 if i < 4 else 1, 0).astype(np.float32)
        state, action = np.stack([take.state[:, 0], np.roll(grip, 1)], 1), np.stack([take.action[:, 0], grip], 1)
        made.append(replace(take, state=state, action=action))
    write(root, made)
    for key in ("observation.state", "action"):
        describe(root, key, names=["shoulder", "gripper"])
    return made


@case("warning jumps", "stranger")
def quaternions_of_two_signs(root: Path) -> list[Take]:
    """A rotation about one axis as a quaternion whose sign flips from frame to frame."""
    made = []
    for take in takes(8):
        turned = np.stack([np.cos(take.state[:, 0] / 2), np.sin(take.state[:, 0] / 2)], axis=1).astype(np.float32)
        turned[1::3] *= -1
        made.append(replace(take, state=turned, action=np.concatenate([turned[1:], turned[-1:]])))
    write(root, made)
    for key in ("observation.state", "action"):
        describe(root, key, names=["qw", "qz"])
    return made


@case("warning jumps", "stranger")
def padded_with_the_last_picture(root: Path) -> list[Take]:
    """Half of the episodes are padded to the longest: rows of zeros, and the last picture once more."""

    def padded(take: Take) -> Take:
        rows = np.minimum(np.arange(40), 27)
        state, action = (values * (np.arange(40) < 28)[:, None].astype(np.float32) for values in (take.state, take.action))
        return replace(take, state=state, action=action, pictures=take.pictures[rows])

    return write(root, some(takes(8), padded, lambda i: i % 2 == 1))
