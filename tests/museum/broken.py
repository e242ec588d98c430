"""Datasets whose bookkeeping, files or rows are broken, one thing in each.

Read `broken_values.py` next.
"""

from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from museum.cases import case
from museum.healthy import describe
from museum.recorder import (
    CAMERA,
    DATA,
    EPISODES,
    FPS,
    Take,
    feature,
    save,
    takes,
    write,
    write_json,
    write_v2,
)
from toy_datasets import drop_column, edit_column, edit_info

from worldsim.data import lerobot_format as fmt

# Meta


@case("refused no LeRobot dataset", "STRUCT-001")
def no_info(root: Path) -> None:
    """meta/info.json is missing."""
    write(root, takes())
    (root / fmt.INFO).unlink()


@case("refused not valid JSON", "STRUCT-001")
def info_cut_off(root: Path) -> None:
    """meta/info.json ends in the middle."""
    write(root, takes())
    (root / fmt.INFO).write_text((root / fmt.INFO).read_text()[:200])


@case("refused total_frames", "STRUCT-002")
def no_count_of_frames(root: Path) -> None:
    """info.json lacks total_frames."""
    write(root, takes())
    info = fmt.read_json(root / fmt.INFO)
    write_json(root / fmt.INFO, {key: value for key, value in info.items() if key != "total_frames"})


@case("refused fps", "STRUCT-002b")
def no_rate(root: Path) -> None:
    """fps is 0."""
    write(root, takes())
    edit_info(root, fps=0)


@case("refused v9.0", "STRUCT-003")
def a_version_of_the_future(root: Path) -> None:
    """codebase_version v9.0."""
    write(root, takes())
    edit_info(root, codebase_version="v9.0")


@case("refused worldsim adopt", "B21")
def other_names(root: Path) -> None:
    """Features named state, actions and image."""
    write(root, takes())
    info = fmt.read_json(root / fmt.INFO)
    names = {"observation.state": "state", "action": "actions", CAMERA: "image"}
    edit_info(root, features={names.get(key, key): said for key, said in info["features"].items()})
    table = pq.read_table(root / DATA)
    save(root / DATA, table.rename_columns([names.get(name, name) for name in table.column_names]))


@case("refused observation.state")
def no_state(root: Path) -> None:
    """Pictures and actions, and no state."""
    write(root, takes())
    info = fmt.read_json(root / fmt.INFO)
    edit_info(root, features={key: said for key, said in info["features"].items() if key != "observation.state"})
    drop_column(root / DATA, "observation.state")


@case("error counters", "STRUCT-004")
def no_episodes(root: Path) -> None:
    """meta/episodes is missing."""
    write(root, takes())
    (root / EPISODES).unlink()


@case("error files", "STRUCT-005")
def no_tasks(root: Path) -> None:
    """meta/tasks.parquet is missing."""
    write(root, takes())
    (root / fmt.TASKS).unlink()


@case("error files", "STRUCT-006")
def no_data_file(root: Path) -> None:
    """One of two data files is missing."""
    write(root, takes(), files=2)
    (root / "data/chunk-000/file-001.parquet").unlink()


@case("error counters", "STRUCT-007")
def more_episodes_counted(root: Path) -> None:
    """info.json counts 5 episodes of 4."""
    write(root, takes())
    edit_info(root, total_episodes=5)


@case("error counters", "B25")
def fewer_episodes_counted(root: Path) -> None:
    """info.json counts 1 episode of 4, and whoever records next would write over the rest."""
    write(root, takes())
    edit_info(root, total_episodes=1, total_frames=40, splits={"train": "0:1"})


@case("error counters", "DATA-106; META-502")
def other_frames_counted(root: Path) -> None:
    """info.json counts 150 frames of 160."""
    write(root, takes())
    edit_info(root, total_frames=150)


@case("error counters", "B15")
def fewer_tasks_counted(root: Path) -> None:
    """info.json counts 1 task of 2, both of which episodes have."""
    write(root, takes())
    edit_info(root, total_tasks=1)


@case("error files", "STRUCT-008")
def a_data_file_too_many(root: Path) -> None:
    """A data file that no episode names."""
    write(root, takes())
    (root / "data/chunk-000/file-007.parquet").write_bytes((root / DATA).read_bytes())


@case("error files", "STRUCT-008")
def a_data_file_too_many_in_v2(root: Path) -> None:
    """The same in LeRobot v2.1."""
    write_v2(root, takes())
    first = root / "data/chunk-000/episode_000000.parquet"
    first.with_name("episode_000009.parquet").write_bytes(first.read_bytes())


@case("warning splits")
def a_split_beyond(root: Path) -> list[Take]:
    """A split of episodes that are not there."""
    made = write(root, takes())
    edit_info(root, splits={"train": "0:3", "test": "3:9"})
    return made


@case("warning splits")
def splits_that_overlap(root: Path) -> list[Take]:
    """What is tested was trained on."""
    made = write(root, takes())
    edit_info(root, splits={"train": "0:4", "test": "2:4"})
    return made


@case("warning index", "META-501")
def other_ranges(root: Path) -> list[Take]:
    """dataset_to_index of an episode is that of another conversion."""
    made = write(root, takes())
    edit_column(root / EPISODES, "dataset_to_index", {1: 75})
    edit_column(root / EPISODES, "dataset_from_index", {2: 75})
    return made


@case("error counters", "META-501")
def a_number_twice(root: Path) -> None:
    """Two episodes have one number."""
    write(root, takes(), numbers=[0, 1, 1, 2])


@case("warning tasks")
def another_task_in_meta(root: Path) -> list[Take]:
    """meta/episodes names the other task."""
    made = write(root, takes())
    edit_column(root / EPISODES, "tasks", {0: ["reach for the blue disc"]})
    return made


# Files and columns


@case("error files", "DATA-101")
def a_data_file_cut_off(root: Path) -> None:
    """A data file ends in the middle."""
    write(root, takes(), files=2)
    path = root / "data/chunk-000/file-001.parquet"
    path.write_bytes(path.read_bytes()[:3000])


@case("error files", "DATA-102")
def no_actions(root: Path) -> None:
    """The data file lacks the column action."""
    write(root, takes())
    drop_column(root / DATA, "action")


@case("warning features", "DATA-102")
def a_column_of_words_missing(root: Path) -> list[Take]:
    """info.json lists a feature of strings that has no column."""
    made = write(root, takes())
    describe(root, "operator", dtype="string", shape=[1])
    return made


@case("warning features")
def a_column_too_many(root: Path) -> list[Take]:
    """A column that info.json does not list."""
    made = write(root, takes(), extra={"force": (feature("float32", [1]), [0.5] * 160)})
    info = fmt.read_json(root / fmt.INFO)
    edit_info(root, features={key: said for key, said in info["features"].items() if key != "force"})
    return made


@case("error files", "DATA-103")
def a_wider_state(root: Path) -> None:
    """info.json says 3 numbers of the state, the rows hold 2."""
    write(root, takes())
    describe(root, "observation.state", shape=[3], names=["shoulder", "elbow", "wrist"])


@case("warning features", "DATA-103")
def a_wider_feature(root: Path) -> list[Take]:
    """info.json says 3 numbers of a force, the rows hold 2."""
    return write(root, takes(), extra={"force": (feature("float32", [3]), [[0.5, i / 160] for i in range(160)])})


@case("warning features")
def words_called_numbers(root: Path) -> list[Take]:
    """A feature of int64 whose column holds words."""
    return write(root, takes(), extra={"operator": (feature("int64", [1]), ["somebody"] * 160)})


@case("warning cameras", "B21")
def pictures_called_numbers(root: Path) -> list[Take]:
    """A camera stored as dtype uint8 [84, 84, 3] that no reader shows."""
    return write(root, takes(), extra={"obs.agentview_image": (feature("uint8", [84, 84, 3]), [0] * 160)})


@case("error cameras", "B20")
def depth_that_nobody_marked(root: Path) -> None:
    """A depth map of two sides that is called an image."""
    made = takes()
    write(root, made)
    describe(root, CAMERA, shape=[32, 32], names=["height", "width"])


@case("error counters", "DATA-104; META-502")
def a_length_that_is_wrong(root: Path) -> None:
    """meta/episodes says 39 frames of an episode of 40."""
    write(root, takes())
    edit_column(root / EPISODES, "length", {1: 39})


@case("error order", "DATA-105a")
def rows_of_another_episode(root: Path) -> None:
    """A frame of one episode carries the number of the next, and the other way round."""
    write(root, takes())
    edit_column(root / DATA, "episode_index", {39: 1, 45: 0})


@case("error files", "DATA-105a")
def rows_of_another_episode_in_v2(root: Path) -> None:
    """The file of episode 1 of LeRobot v2.1 holds rows that say 0."""
    write_v2(root, takes())
    edit_column(root / "data/chunk-000/episode_000001.parquet", "episode_index", dict.fromkeys(range(40), 0))


@case("warning order", "DATA-105b")
def a_frame_left_out(root: Path) -> list[Take]:
    """frame_index goes from 19 to 21, and the time stamps do as if nothing was lost."""
    made = write(root, takes())
    edit_column(root / DATA, "frame_index", {40 + i: i + 1 for i in range(20, 40)})
    return made


@case("error order", "B24")
def rollouts_joined(root: Path) -> None:
    """Two rollouts in one episode: numbers and times of frames begin again in the middle."""
    write(root, takes())
    edit_column(root / DATA, "frame_index", {40 + i: i - 20 for i in range(20, 40)})
    edit_column(root / DATA, "timestamp", {40 + i: (i - 20) / FPS for i in range(20, 40)})


@case("warning index", "DATA-105c")
def an_index_that_jumps(root: Path) -> list[Take]:
    """index does not count on from one episode to the next."""
    made = write(root, takes())
    edit_column(root / DATA, "index", {i: i + 1000 for i in range(80, 160)})
    for column in ("dataset_from_index", "dataset_to_index"):
        said = pq.read_table(root / EPISODES)[column].to_pylist()
        edit_column(root / EPISODES, column, {i: said[i] + 1000 for i in (2, 3)})
    return made


@case("error tasks", "DATA-109")
def a_task_without_a_name(root: Path) -> None:
    """Frames have task 7, which no sentence says."""
    write(root, takes())
    edit_column(root / DATA, "task_index", dict.fromkeys(range(40, 80), 7))


@case("warning tasks", "B13")
def a_task_that_changes(root: Path) -> list[Take]:
    """An episode has another task from frame 20 on, so it is two."""
    made = write(root, takes())
    edit_column(root / DATA, "task_index", dict.fromkeys(range(20, 40), 1))
    edit_column(root / EPISODES, "tasks", {0: [made[0].task, made[1].task]})
    cut = [
        {f: getattr(made[0], f)[part] for f in ("state", "action", "pictures", "success", "progress")}
        for part in (slice(20), slice(20, 40))
    ]
    return [replace(made[0], **cut[0]), replace(made[0], **cut[1], task=made[1].task), *made[1:]]


@case("error tasks", "B13")
def a_task_that_changes_unsaid(root: Path) -> None:
    """The same, but meta/episodes says one task, so that either is wrong."""
    write(root, takes())
    edit_column(root / DATA, "task_index", dict.fromkeys(range(20, 40), 1))


@case("warning episodes", "B29")
def one_frame(root: Path) -> list[Take]:
    """An episode of one frame, and thus of no action."""
    made = takes()
    write(root, [*made, *takes(1, 1)])
    return made
