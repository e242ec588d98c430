"""Datasets that can be read and that nobody meant to record so: what a world model would believe.

Read `visit.py` next.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from museum.cases import case
from museum.healthy import describe
from museum.recorder import CAMERA, DATA, Take, changed, draw, feature, save, takes, write
from toy_datasets import edit_column, edit_info


def all_of(made: list[Take], field: str, change) -> list[Take]:
    """The episodes, with one of their arrays changed in all."""
    return [replace(take, **{field: change(getattr(take, field))}) for take in made]


@case("warning pictures")
def a_frozen_camera(root: Path) -> list[Take]:
    """The camera hangs for 25 frames of an episode while the arm moves on."""
    made = takes()
    pictures = made[2].pictures.copy()
    pictures[10:35] = pictures[10]
    return write(root, changed(made, 2, pictures=pictures))


@case("warning pictures")
def a_frozen_camera_in_a_video(root: Path) -> list[Take]:
    """The same in a video, whose codec makes no two pictures quite the same."""
    made = takes()
    pictures = made[2].pictures.copy()
    pictures[10:35] = pictures[10]
    return write(root, changed(made, 2, pictures=pictures), storage="video")


@case("warning pictures")
def black_frames(root: Path) -> list[Take]:
    """Five frames of an episode are black."""
    made = takes()
    pictures = made[1].pictures.copy()
    pictures[12:17] = 0
    return write(root, changed(made, 1, pictures=pictures))


@case("warning pictures")
def a_covered_camera(root: Path) -> list[Take]:
    """One episode shows nothing but grey."""
    made = takes()
    return write(root, changed(made, 1, pictures=np.full_like(made[1].pictures, 90)), storage="video")


@case("warning lag")
def a_camera_that_is_late(root: Path) -> list[Take]:
    """Pictures come three frames after the states that they show."""
    made = [replace(take, pictures=take.pictures[np.maximum(0, np.arange(40) - 3)]) for take in takes(8)]
    return write(root, made)


@case("warning lag")
def a_camera_that_is_late_in_a_video(root: Path) -> list[Take]:
    """The same in a video, by two frames."""
    made = [replace(take, pictures=take.pictures[np.maximum(0, np.arange(40) - 2)]) for take in takes(8)]
    return write(root, made, storage="video")


@case("warning lag")
def a_camera_that_is_early(root: Path) -> list[Take]:
    """Pictures come two frames before the states that they show."""
    made = [replace(take, pictures=take.pictures[np.minimum(39, np.arange(40) + 2)]) for take in takes(8)]
    return write(root, made)


@case("warning channels", "DATA-108; B2")
def a_dead_joint(root: Path) -> list[Take]:
    """The elbow is 0 in all frames."""
    made = all_of(takes(), "state", lambda state: state * np.array([1, 0], np.float32))
    return write(root, [replace(take, pictures=draw(take.state)) for take in made])


@case("warning channels")
def a_joint_that_stuck(root: Path) -> list[Take]:
    """The elbow stands still through one episode, while it is told to move."""
    made = takes()
    state = made[1].state.copy()
    state[:, 1] = state[0, 1]
    return write(root, changed(made, 1, state=state, pictures=draw(state)))


@case("warning channels", "DATA-108")
def a_dead_action(root: Path) -> list[Take]:
    """One channel of the action is .5 in all frames."""
    made = [replace(take, action=np.stack([take.action[:, 0], np.full(40, 0.5, np.float32)], 1)) for take in takes()]
    return write(root, made)


@case("warning actions", "score: saturation")
def clipped_actions(root: Path) -> list[Take]:
    """Actions are clipped to a third of where they want to go."""
    return write(root, all_of(takes(), "action", lambda action: action.clip(-0.5, 0.5)))


@case("warning duplicates", "score: duplicate")
def an_episode_twice(root: Path) -> list[Take]:
    """Two of the episodes are the same recording."""
    made = takes()
    return write(root, [*made, made[1]])


@case("warning units")
def degrees_called_radians(root: Path) -> list[Take]:
    """Joints in degrees, and a file that says rad."""
    made = [replace(t, state=np.degrees(t.state), action=np.degrees(t.action)) for t in takes()]
    write(root, made)
    (root / "meta/spec.yaml").write_text('state: {"*": {unit: rad}}\naction: {"*": {unit: rad}}\n')
    return made


@case("warning units")
def radians_called_degrees(root: Path) -> list[Take]:
    """Joints in radians, and a file that says deg."""
    made = write(root, takes())
    (root / "meta/spec.yaml").write_text('state: {"*": {unit: deg}}\n')
    return made


@case("warning units", "B1")
def states_and_actions_in_other_units(root: Path) -> list[Take]:
    """States in radians, actions in degrees, and nothing that says so."""
    return write(root, all_of(takes(), "action", np.degrees))


@case("warning actions", "B3")
def actions_beyond_their_limits(root: Path) -> list[Take]:
    """A file says that actions are at most .2, and most are larger."""
    made = write(root, takes())
    (root / "meta/spec.yaml").write_text('action: {"*": {limits: [-0.2, 0.2]}}\n')
    return made


@case("warning labels")
def nobody_judged(root: Path) -> list[Take]:
    """success and progress are unknown everywhere."""
    return write(root, [replace(t, success=t.success * np.nan, progress=t.progress * np.nan) for t in takes()])


@case("warning labels")
def labels_missing_in_one(root: Path) -> list[Take]:
    """success is unknown in one episode of four."""
    made = takes()
    return write(root, changed(made, 1, success=made[1].success * np.nan))


@case("warning labels")
def nothing_succeeds(root: Path) -> list[Take]:
    """success is 0 in all frames of all demonstrations."""
    return write(root, all_of(takes(), "success", np.zeros_like))


@case("warning labels")
def success_at_the_beginning(root: Path) -> list[Take]:
    """Labels are turned round: demonstrations begin with success and end without."""
    return write(root, all_of(takes(), "success", lambda success: success[::-1]))


@case("warning labels")
def labels_that_contradict_each_other(root: Path) -> list[Take]:
    """next.success says success where success says none."""
    return write(root, takes(), extra={"next.success": (feature("bool", [1]), [i % 40 > 20 for i in range(160)])})


@case("warning labels")
def progress_against_success(root: Path) -> list[Take]:
    """progress falls from 1 to 0 while the task is being done."""
    return write(root, all_of(takes(), "progress", lambda progress: progress[::-1].copy()))


@case("warning tasks", "STRUCT-005")
def a_task_without_words(root: Path) -> list[Take]:
    """The sentence of a task is empty."""
    return write(root, [replace(take, task=take.task * (i % 2)) for i, take in enumerate(takes())])


@case("warning tasks")
def a_sentence_twice(root: Path) -> list[Take]:
    """Two tasks have one sentence."""
    made = [replace(take, task="reach") for take in takes()]
    write(root, made)
    save(root / "meta/tasks.parquet", pa.table({"task_index": [0, 1], "task": ["reach", "reach"]}))
    edit_column(root / DATA, "task_index", dict.fromkeys(range(40), 1))
    edit_info(root, total_tasks=2)
    return made


@case("warning cameras")
def no_camera(root: Path) -> list[Take]:
    """States and actions, and no camera."""
    made = write(root, takes())
    describe(root, CAMERA, info={"is_depth_map": True})
    return made
