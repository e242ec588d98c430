"""Datasets whose numbers, statistics, times or videos are wrong, one thing in each.

Read `doubtful.py` next.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from museum.cases import case
from museum.healthy import describe
from museum.recorder import (
    CAMERA,
    DATA,
    EPISODES,
    FPS,
    VIDEO,
    Take,
    encode,
    feature,
    takes,
    write,
    write_json,
    write_lines,
    write_v2,
)
from toy_datasets import edit_column

from worldsim.data import lerobot_format as fmt

V2_VIDEO = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"


def stamp(root: Path, times: np.ndarray, *, episode: int = 1) -> None:
    """Other time stamps in one episode of 40 frames."""
    edit_column(root / DATA, "timestamp", {40 * episode + i: float(time) for i, time in enumerate(times)})


def restate(root: Path, key: str, **changes: Any) -> None:
    """Other statistics of a feature in `stats.json`."""
    stats = fmt.read_json(root / fmt.STATS)
    write_json(root / fmt.STATS, {**stats, key: {**stats[key], **changes}})


# Values


@case("error values", "B22; DATA-107")
def no_number_in_an_action(root: Path) -> None:
    """NaN in one action."""
    write(root, takes())
    edit_column(root / DATA, "action", {50: [float("nan"), 0.0]})


@case("error values", "DATA-107")
def infinity_in_a_state(root: Path) -> None:
    """Infinity in one state."""
    write(root, takes())
    edit_column(root / DATA, "observation.state", {50: [float("inf"), 0.0]})


@case("warning values", "DATA-107")
def no_number_in_a_feature(root: Path) -> list[Take]:
    """NaN in a force, which worldsim does not learn from."""
    return write(root, takes(), extra={"force": (feature("float32", [1]), [0.5] * 159 + [float("nan")])})


@case("error values")
def a_label_of_two(root: Path) -> None:
    """success is 2 in one frame."""
    write(root, takes())
    edit_column(root / DATA, "success", {39: 2.0})


@case("error statistics", "STATS-303")
def statistics_of_another_dataset(root: Path) -> list[Take]:
    """stats.json says ten times the range of the actions."""
    made = write(root, takes())
    restate(root, "action", min=[-10.0, -10.0], max=[10.0, 10.0], std=[5.0, 5.0])
    return made


@case("error statistics", "STATS-304")
def quantiles_the_wrong_way_round(root: Path) -> list[Take]:
    """q01 and q99 of the actions are exchanged in stats.json."""
    made = write(root, takes())
    said = fmt.read_json(root / fmt.STATS)["action"]
    restate(root, "action", q01=said["q99"], q99=said["q01"])
    return made


@case("warning statistics", "B27")
def rough_quantiles(root: Path) -> list[Take]:
    """q01 and q99 as means of episodes that hardly overlap: a third of the range is cut off."""
    made = [replace(take, action=take.action / 4 + i, state=take.state / 4 + i) for i, take in enumerate(takes())]
    write(root, made)
    restate(root, "action", q01=[1.2] * 2, q10=[1.3] * 2, q50=[1.5] * 2, q90=[1.7] * 2, q99=[1.8] * 2)
    return made


@case("warning statistics", "META-503; STATS-302")
def statistics_of_a_longer_episode(root: Path) -> list[Take]:
    """An episode carries statistics from before it was cut."""
    made = write(root, takes())
    edit_column(root / EPISODES, "stats/action/count", {1: [55]})
    edit_column(root / EPISODES, "stats/action/max", {1: [3.0, 3.0]})
    return made


@case("warning statistics", "STATS-302")
def statistics_of_another_episode_in_v2(root: Path) -> list[Take]:
    """The same in LeRobot v2.1."""
    made = write_v2(root, takes())
    path = root / "meta/episodes_stats.jsonl"
    rows = [fmt.json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["stats"]["action"]["max"] = [3.0, 3.0]
    write_lines(path, rows)
    return made


# Time


@case("error time", "TIME-201")
def time_that_runs_backwards(root: Path) -> None:
    """Time stamps fall within an episode."""
    write(root, takes())
    stamp(root, np.arange(40)[::-1] / FPS)


@case("error time", "B11")
def frames_dropped(root: Path) -> None:
    """Wall-clock time stamps that show where frames were dropped."""
    write(root, takes())
    stamp(root, np.cumsum([0.1 + 0.2 * (i % 7 == 6) for i in range(40)]) - 0.1)


@case("error time", "B10")
def another_rate(root: Path) -> None:
    """info.json says 10 frames per second, the time stamps say 20."""
    write(root, takes())
    for episode in range(4):
        stamp(root, np.arange(40) / 20, episode=episode)


@case("warning time", "TIME-202")
def steps_of_unequal_length(root: Path) -> list[Take]:
    """Time stamps jitter by 20 ms."""
    made = write(root, takes())
    stamp(root, np.arange(40) / FPS + 0.02 * (np.arange(40) % 2))
    return made


@case("warning time", "TIME-203")
def a_clock_that_was_not_reset(root: Path) -> list[Take]:
    """Time stamps of an episode begin at 100 s."""
    made = write(root, takes())
    stamp(root, 100 + np.arange(40) / FPS)
    return made


@case("warning time", "TIME-204")
def a_clock_that_drifts(root: Path) -> list[Take]:
    """Each of 1,000 steps is .09 ms too long, which LeRobot accepts; in the end it is most of a frame."""
    made = write(root, takes(2, 1000))
    times = np.arange(1000) * (1 / FPS + 9e-5)
    edit_column(root / DATA, "timestamp", {i: float(time) for i, time in enumerate(times)})
    return made


# Videos


@case("warning videos", "TIME-205")
def a_window_beside_the_frames(root: Path) -> list[Take]:
    """An episode begins a third of a frame after one of its video."""
    made = write(root, takes(), storage="video")
    edit_column(root / EPISODES, f"videos/{CAMERA}/from_timestamp", {1: 4.0 + 0.033})
    edit_column(root / EPISODES, f"videos/{CAMERA}/to_timestamp", {1: 8.0 + 0.033})
    return made


@case("warning videos", "META-504")
def a_window_that_is_too_short(root: Path) -> list[Take]:
    """to_timestamp of an episode is a second early."""
    made = write(root, takes(), storage="video")
    edit_column(root / EPISODES, f"videos/{CAMERA}/to_timestamp", {1: 7.0})
    return made


@case("error files", "VIDEO-401")
def no_video(root: Path) -> None:
    """The video is missing."""
    write(root, takes(), storage="video")
    (root / VIDEO).unlink()


@case("error videos", "VIDEO-401b")
def a_video_cut_off(root: Path) -> None:
    """The video ends in the middle of the file."""
    write(root, takes(), storage="video")
    (root / VIDEO).write_bytes((root / VIDEO).read_bytes()[:2000])


@case("error videos", "VIDEO-402")
def a_short_video_in_v2(root: Path) -> None:
    """A video of LeRobot v2.1 lacks its last ten frames."""
    made = write_v2(root, takes())
    encode(root / V2_VIDEO, made[1].pictures[:30])


@case("error videos", "VIDEO-404; B10")
def a_video_at_another_rate(root: Path) -> None:
    """A video of 30 frames per second, where info.json says 10."""
    made = write(root, takes(), storage="video")
    encode(root / VIDEO, np.concatenate([take.pictures for take in made]).repeat(3, axis=0), fps=30)


@case("error videos", "VIDEO-405")
def a_video_that_lacks_frames(root: Path) -> None:
    """The last ten frames of the last episode are not in the video."""
    made = write(root, takes(), storage="video")
    encode(root / VIDEO, np.concatenate([take.pictures for take in made])[:-10])


@case("warning videos")
def a_video_of_another_size(root: Path) -> None:
    """info.json says 32 x 32 pixels, the video has 64 x 64."""
    made = write(root, takes(), storage="video")
    encode(root / VIDEO, np.concatenate([take.pictures for take in made]).repeat(2, axis=1).repeat(2, axis=2))


@case("error files")
def pictures_of_another_size(root: Path) -> None:
    """info.json says 48 x 48 pixels, the pictures have 32 x 32."""
    write(root, takes())
    describe(root, CAMERA, shape=[48, 48, 3])


@case("error files")
def a_picture_that_is_none(root: Path) -> None:
    """The bytes of the first picture are those of nothing."""
    write(root, takes())
    edit_column(root / DATA, CAMERA, {0: {"bytes": b"not a picture", "path": None}})


@case("error videos", "B10")
def a_video_that_runs_slow(root: Path) -> None:
    """A video whose clock is 2.5 % slow against the table, so that at some moment it shows no frame."""
    made = write(root, takes(1), storage="video")
    encode(root / VIDEO, made[0].pictures, fps=9.75)


@case("warning videos", "B10")
def a_video_that_runs_fast(root: Path) -> None:
    """A video whose clock is 2.5 % fast against the table: within four seconds the pictures are a frame early."""
    made = write(root, takes(1), storage="video")
    encode(root / VIDEO, np.concatenate([made[0].pictures, made[0].pictures[-1:]]), fps=10.25)
