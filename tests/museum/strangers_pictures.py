"""More by the stranger of `strangers.py`: cameras, videos, files, sentences, labels and statistics.

The doctor was silent about them, or answered badly, when they were written. Read `visit.py` next, which judges them.
"""

import struct
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from museum.cases import case
from museum.recorder import (
    CAMERA,
    DATA,
    EPISODES,
    VIDEO,
    Take,
    described,
    encode,
    feature,
    png,
    takes,
    write,
    write_json,
    write_v2,
)
from museum.strangers import WRIST, late, video
from museum.strangers_numbers import later, some
from toy_datasets import edit_column, edit_info

from worldsim.data import lerobot_format as fmt

# Cameras


@case("warning pictures", "stranger")
def blue_for_red(root: Path) -> list[Take]:
    """OpenCV's BGR was written as RGB after the camera script changed: in half of the episodes red and blue are exchanged."""
    return write(root, later(lambda t: replace(t, pictures=t.pictures[..., ::-1].copy())))


@case("warning pictures", "stranger")
def upside_down(root: Path) -> list[Take]:
    """The camera was mounted upside down in the later half of the episodes."""
    return write(root, later(lambda t: replace(t, pictures=t.pictures[:, ::-1, ::-1].copy())))


@case("warning pictures", "stranger")
def half_the_rate(root: Path) -> list[Take]:
    """A camera of 5 Hz at an arm of 10 Hz: each picture stands twice."""
    return write(root, [replace(t, pictures=t.pictures[::2].repeat(2, axis=0)) for t in takes(8)])


@case("warning pictures", "stranger")
def a_camera_that_falls_behind(root: Path) -> list[Take]:
    """A free-running camera of 8 Hz paired by number with rows of 10 Hz: the picture is later the longer an episode runs."""
    return write(root, [replace(t, pictures=t.pictures[np.round(np.arange(40) * 0.8).astype(int)]) for t in takes(8)])


@case("warning pictures", "stranger")
def stale_first_picture(root: Path) -> list[Take]:
    """The first two pictures of each episode are the last of the one before, from the driver's buffer."""
    made = takes(8)
    old = [made[0].pictures[:1], *(take.pictures[-1:] for take in made[:-1])]
    stale = [np.concatenate([before.repeat(2, axis=0), t.pictures[2:]]) for before, t in zip(old, made, strict=True)]
    return write(root, [replace(t, pictures=pictures) for t, pictures in zip(made, stale, strict=True)])


@case("warning lag", "stranger")
def one_episode_late(root: Path) -> list[Take]:
    """In one episode of eight the camera's buffer was never emptied: its pictures are 4 frames late."""
    return write(root, some(takes(8), lambda t: replace(t, pictures=late(t.pictures, 4)), lambda i: i == 3))


@case("warning pictures", "stranger")
def one_camera_twice(root: Path) -> list[Take]:
    """Both cameras were opened as /dev/video0: the wrist camera's pictures are the front camera's."""
    made = takes(8)
    pictures = [png(picture) for take in made for picture in take.pictures]
    return write(root, made, extra={WRIST: (feature("image", [32, 32, 3]), pictures)})


@case("warning pictures", "stranger")
def cameras_swapped(root: Path) -> list[Take]:
    """After a replug two cameras were exchanged in the later half of the episodes."""
    made = takes(8)
    other = [255 - take.pictures[:, :, ::-1] for take in made]
    front = [*(take.pictures for take in made[:4]), *other[4:]]
    wrist = [*other[:4], *(take.pictures for take in made[4:])]
    shown = [replace(take, pictures=pictures) for take, pictures in zip(made, front, strict=True)]
    column = [png(picture) for pictures in wrist for picture in pictures]
    return write(root, shown, extra={WRIST: (feature("image", [32, 32, 3]), column)})


@case("warning pictures", "stranger")
def videos_of_other_episodes(root: Path) -> list[Take]:
    """An episode was deleted, and rows were renumbered, but not the pictures: each episode has those of the next."""
    made = takes(9)
    return write(root, [replace(take, pictures=following.pictures) for take, following in zip(made[:8], made[1:], strict=True)])


@case("warning pictures", "stranger")
def deleted_but_not_the_video(root: Path) -> list[Take]:
    """Episode 1 of v2.1 was deleted and the rows of the later ones renumbered, but not their videos, of which the last went."""
    made = takes(5)
    kept = write_v2(root, [made[0], *made[2:]])
    for i in range(4):
        encode(root / video(i), made[i].pictures)
    return [replace(take, pictures=made[i].pictures) for i, take in enumerate(kept)]


# Files


@case("error files", "stranger")
def pictures_before_the_crop(root: Path) -> None:
    """One episode was recorded before the crop was set: its PNGs have 48 x 64 pixels."""
    made = write(root, takes())
    edit_column(root / DATA, CAMERA, {80 + i: png(cv2.resize(picture, (64, 48))) for i, picture in enumerate(made[2].pictures)})


@case("error files")
def a_picture_cut_off(root: Path) -> None:
    """One PNG in the middle of an episode ends early, as after a full disk."""
    made = write(root, takes())
    whole = png(made[1].pictures[20])
    edit_column(root / DATA, CAMERA, {60: {**whole, "bytes": whole["bytes"][:60]}})


@case("error files", "stranger")
def a_damaged_video(root: Path) -> None:
    """Bytes in the middle of the video were overwritten: its packets are all there."""
    write(root, takes(), storage="video")
    content = bytearray((root / VIDEO).read_bytes())
    start = content.find(b"mdat")
    middle = start + (len(content) - start) // 3
    content[middle : middle + 800] = b"\x55" * 800
    (root / VIDEO).write_bytes(bytes(content))


@case("warning videos", "stranger")
def a_phone_held_sideways(root: Path) -> list[Take]:
    """The videos say that they must be turned by 180 degrees."""
    made = write_v2(root, takes())
    for path in (root / "videos").rglob("*.mp4"):
        content = bytearray(path.read_bytes())
        matrix = content.find(b"tkhd") + 44  # after the name: version and flags, times, number, length, layer, volume
        content[matrix : matrix + 36] = struct.pack(">9i", -65536, 0, 0, 0, -65536, 0, 32 << 16, 32 << 16, 1 << 30)
        path.write_bytes(bytes(content))
    return made


@case("warning videos", "stranger")
def one_frame_short_each(root: Path) -> None:
    """from_timestamp was summed from durations that are a frame short: each later episode begins a frame earlier in the video."""
    write(root, takes(), storage="video")
    for name, shift in (("from_timestamp", 0), ("to_timestamp", 1)):
        edit_column(root / EPISODES, f"videos/{CAMERA}/{name}", {i: 3.9 * (i + shift) for i in range(4)})


@case("error files", "stranger")
def paths_of_windows(root: Path) -> None:
    """data_path with backslashes, from os.path.join on Windows."""
    write(root, takes())
    edit_info(root, data_path="data\\chunk-{chunk_index:03d}\\file-{file_index:03d}.parquet")


@case("error files", "stranger")
def torn_statistics_of_episodes(root: Path) -> None:
    """The last line of meta/episodes_stats.jsonl is cut off."""
    write_v2(root, takes())
    path = root / "meta/episodes_stats.jsonl"
    path.write_text(path.read_text() + '{"episode_index": 1, "st')


@case("fine", "stranger")
def blank_lines_at_the_end(root: Path) -> list[Take]:
    """Lines of JSON with the line ends of Windows, and an empty one at the end."""
    made = write_v2(root, takes())
    for path in (root / "meta").glob("*.jsonl"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    return made


# Words, labels and statistics


@case("warning tasks", "stranger")
def sentence_of_the_example(root: Path) -> list[Take]:
    """All episodes have the sentence of the example that the script was copied from, whatever they show."""
    return write(root, [replace(t, task="dataset task description") for t in takes()])


@case("warning tasks", "stranger")
def one_task_spelled_twice(root: Path) -> list[Take]:
    """One task in two spellings that differ by a blank, an upper case letter and a full stop."""
    spellings = ("reach for the red disc", "Reach for the red disc. ")
    return write(root, [replace(take, task=spellings[i % 2]) for i, take in enumerate(takes())])


@case("warning tasks", "stranger")
def subtasks_by_the_frame(root: Path) -> None:
    """task_index changes within the episodes, which name both sentences: each is read as two."""
    write(root, takes())
    edit_column(root / DATA, "task_index", {i: int(i % 40 >= 20) for i in range(160)})
    edit_column(root / EPISODES, "tasks", {i: ["reach for the red disc", "reach for the blue disc"] for i in range(4)})


@case("warning labels", "stranger")
def success_of_the_whole_episode(root: Path) -> list[Take]:
    """Success is the label of the episode, written into each of its frames from the first."""
    return write(root, [replace(t, success=np.ones_like(t.success)) for t in takes(8)])


@case("warning labels", "stranger")
def success_one_row_late(root: Path) -> list[Take]:
    """Labels are shifted by one row over the whole table: the first frame of an episode has the last one of the one before."""
    made = takes(8)
    shifted = np.roll(np.concatenate([t.success for t in made]), 1).reshape(8, 40)
    return write(root, [replace(take, success=success) for take, success in zip(made, shifted, strict=True)])


@case("warning statistics", "stranger")
def statistics_of_bytes(root: Path) -> list[Take]:
    """Statistics of pictures count from 0 to 255, where LeRobot's count from 0 to 1."""
    made = write(root, takes())
    levels = described(np.concatenate([t.pictures for t in made]).reshape(-1, 3))
    image = {name: np.reshape(levels[name], (3, 1, 1)).tolist() for name in ("min", "max", "mean", "std")}
    write_json(root / fmt.STATS, {**fmt.read_json(root / fmt.STATS), CAMERA: {**image, "count": [160]}})
    return made


@case("warning statistics", "stranger")
def statistics_of_one_episode(root: Path) -> list[Take]:
    """After a merge stats.json is still that of the first part, one episode."""
    made = write(root, later(lambda t: replace(t, state=t.state * 1.5, action=t.action * 1.5)))
    write_json(root / fmt.STATS, {"observation.state": described(made[0].state), "action": described(made[0].action)})
    return made


@case("warning statistics", "stranger")
def statistics_of_a_subset(root: Path) -> list[Take]:
    """stats.json is of the first 4 of 8 episodes, the later of which move three times as far."""
    made = write(root, later(lambda t: replace(t, state=t.state * 3, action=t.action * 3)))
    state, action = (np.concatenate([getattr(take, name) for take in made[:4]]) for name in ("state", "action"))
    write_json(root / fmt.STATS, {"observation.state": described(state), "action": described(action)})
    return made
