"""Mistakes of recording, merging, converting and copying, and unusual sound datasets, by somebody who had not read the doctor.

They came from what goes wrong in camera drivers, teleoperation scripts and converters, and only then was the doctor asked: so it is
held to more than its authors thought of. Read `strangers_numbers.py` next: what it was silent about.
"""

import os
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from museum.cases import case
from museum.healthy import describe
from museum.recorder import (
    CAMERA,
    DATA,
    EPISODES,
    FPS,
    SIZE,
    VIDEO,
    Take,
    draw,
    encode,
    feature,
    png,
    save,
    takes,
    write,
    write_lines,
    write_v2,
)
from toy_datasets import edit_column, edit_info

from worldsim.data import lerobot_format as fmt

WRIST = "observation.images.wrist"


def late(pictures: np.ndarray, steps: int) -> np.ndarray:
    """Pictures that wait in a buffer: [n, h, w, 3] in, the same number out, each some steps later."""
    return np.concatenate([pictures[:1].repeat(steps, axis=0), pictures[:-steps]])


def replace_column(path: Path, name: str, values: pa.Array) -> None:
    """Another column in a parquet file, also of another type."""
    table = pq.read_table(path)
    save(path, table.set_column(table.schema.get_field_index(name), name, values))


def video(index: int) -> str:
    """Where v2.1 has the video of an episode."""
    return f"videos/chunk-000/{CAMERA}/episode_{index:06d}.mp4"


def packed(path: Path, source: Path, *, late_s: float = 0.0, **options: str) -> None:
    """A video with the packets of another as they are, shown later."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = old.streams.video[0]
        assert stream.time_base is not None
        copy, shift = new.add_stream_from_template(stream), round(late_s / stream.time_base)
        for packet in old.demux(stream):
            if packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts + shift, packet.dts + shift, copy
                new.mux(packet)


@case("warning lag", "stranger")
def leader_and_follower_swapped(root: Path) -> list[Take]:
    """The leader's joints were written as state, the follower's as action."""
    return write(root, [replace(t, state=t.action, action=t.state) for t in takes(8)])


@case("warning lag", "stranger")
def second_camera_late(root: Path) -> list[Take]:
    """Of two cameras the second is 3 frames late."""
    made = takes(8)
    pictures = [png(picture) for take in made for picture in late(take.pictures, 3)]
    return write(root, made, extra={WRIST: (feature("image", [SIZE, SIZE, 3]), pictures)})


@case("warning lag", "stranger")
def camera_began_first(root: Path) -> list[Take]:
    """The camera ran 5 frames before the arm: v2.1 videos of 45 pictures for 40 rows, the first of which belong to none."""
    made = takes(8)
    write_v2(root, made)
    for i, take in enumerate(made):
        encode(root / video(i), np.concatenate([take.pictures[:1].repeat(5, axis=0), take.pictures]))
    return [replace(take, pictures=late(take.pictures, 5)) for take in made]


@case("warning pictures", "stranger")
def floats_as_bytes(root: Path) -> list[Take]:
    """Pictures between 0 and 1 were cast to uint8: all of them are black."""
    return write(root, [replace(t, pictures=(t.pictures / 255).astype(np.uint8)) for t in takes(8)])


@case("warning pictures", "stranger")
def padded_episodes(root: Path) -> list[Take]:
    """Half of the episodes were padded to the longest, as arrays of HDF5 are: their last 12 rows are zeros, pictures too."""
    made, kept = takes(8), np.arange(40) < 28
    for i, take in enumerate(made[1::2]):
        state, action = (values * kept[:, None].astype(np.float32) for values in (take.state, take.action))
        made[2 * i + 1] = replace(take, state=state, action=action, pictures=take.pictures * kept[:, None, None, None])
    return write(root, made)


@case("warning labels", "stranger")
def way_back_recorded_too(root: Path) -> list[Take]:
    """The arm is brought back in the same episode: success in the middle, and none at the end."""
    made = []
    for take in takes():
        state = np.concatenate([take.state, take.state[::-1]])
        action, success = np.concatenate([state[1:], state[-1:]]), np.concatenate([take.success, 0 * take.success])
        made.append(Take(state, action, draw(state), take.task, success, np.concatenate([take.progress, take.progress[::-1]])))
    return write(root, made)


@case("error values", "stranger")
def progress_in_percent(root: Path) -> list[Take]:
    """Progress from 0 to 100."""
    return write(root, [replace(t, progress=100 * t.progress) for t in takes()])


@case("error time", "stranger")
def wall_clock(root: Path) -> list[Take]:
    """timestamp is time.time() in float32, where 128 s are one step."""
    made = write(root, takes())
    replace_column(root / DATA, "timestamp", pa.array((1.7e9 + np.arange(160) / FPS).astype(np.float32)))
    return made


@case("error videos", "stranger")
def cut_without_encoding(root: Path) -> list[Take]:
    """A video of v2.1 was cut by copying its stream: its first picture is shown at 0.5 s."""
    made = write_v2(root, takes())
    packed(root / "cut.mp4", root / video(1), late_s=0.5)
    os.replace(root / "cut.mp4", root / video(1))
    return made


@case("error videos", "stranger")
def windows_of_a_joined_video(root: Path) -> list[Take]:
    """A converter to v3.0 left each episode its video, and counts from_timestamp as if they were one."""
    made = write(root, takes(), storage="video")
    for i, take in enumerate(made):
        encode((root / VIDEO).with_name(f"file-{i:03d}.mp4"), take.pictures)
    edit_column(root / EPISODES, f"videos/{CAMERA}/file_index", {i: i for i in range(4)})
    return made


@case("error videos", "stranger")
def cut_off_upload(root: Path) -> list[Take]:
    """A video whose index comes first was cut off: 160 pictures are announced, the last third is missing."""
    made = write(root, takes(), storage="video")
    packed(root / "fast.mp4", root / VIDEO, movflags="faststart")
    whole = (root / "fast.mp4").read_bytes()
    assert whole.find(b"moov") < whole.find(b"mdat")
    (root / "fast.mp4").unlink()
    (root / VIDEO).write_bytes(whole[: len(whole) * 2 // 3])
    return made


@case("error videos", "stranger")
def pointers_of_large_files(root: Path) -> list[Take]:
    """Cloned without git-lfs: the video is three lines of text."""
    made = write(root, takes(), storage="video")
    (root / VIDEO).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")
    return made


@case("error files", "stranger")
def pictures_left_at_home(root: Path) -> list[Take]:
    """The data file names pictures by their paths on the computer that recorded, and holds none of them."""
    made = write(root, takes())
    rows = [{"bytes": None, "path": f"/home/bob/images/front/frame_{i:06d}.png"} for i in range(160)]
    replace_column(root / DATA, CAMERA, pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()})))
    return made


@case("error files", "stranger")
def arms_of_two_widths(root: Path) -> list[Take]:
    """Merged from an arm of two joints and one of three."""
    made = write(root, takes())
    rows = pq.read_table(root / DATA)["action"].to_pylist()
    replace_column(root / DATA, "action", pa.array([row + [0.0] * (i >= 80) for i, row in enumerate(rows)]))
    return made


@case("error files", "stranger")
def two_sentences_of_one_number(root: Path) -> list[Take]:
    """tasks.jsonl of two datasets, one after the other: task 0 has two sentences."""
    made = write_v2(root, takes())
    write_lines(root / "meta/tasks.jsonl", [{"task_index": 0, "task": task} for task in ("reach for the red disc", "wipe")])
    return made


@case("error files", "stranger")
def chunks_of_another_size(root: Path) -> list[Take]:
    """v2.1 with two episodes in a chunk, under an info.json that says 1000."""
    made = write_v2(root, takes())
    for path in sorted([*root.rglob("*_000002.*"), *root.rglob("*_000003.*")]):
        target = Path(str(path).replace("chunk-000", "chunk-001"))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return made


@case("error order", "stranger")
def rows_shuffled(root: Path) -> list[Take]:
    """A tool for data frames removed duplicates and left the rows in no order."""
    made = write(root, takes())
    save(root / DATA, pq.read_table(root / DATA).take(np.random.default_rng(0).permutation(160)))
    return made


@case("refused BOM", "stranger")
def saved_by_an_editor(root: Path) -> list[Take]:
    """info.json begins with a byte order mark, as some editors of Windows write it."""
    made = write(root, takes())
    (root / fmt.INFO).write_bytes(b"\xef\xbb\xbf" + (root / fmt.INFO).read_bytes())
    return made


@case("fine", "stranger")
def chunks_of_two(root: Path) -> list[Take] | None:
    """v2.1 with two episodes in a chunk, and info.json says so."""
    made = chunks_of_another_size(root)
    edit_info(root, chunks_size=2)
    return made


@case("fine", "stranger")
def a_video_for_each_episode(root: Path) -> list[Take] | None:
    """v3.0 in which every episode has a video of its own, from 0 s."""
    made = windows_of_a_joined_video(root)
    for name, value in (("from_timestamp", 0.0), ("to_timestamp", 4.0)):
        edit_column(root / EPISODES, f"videos/{CAMERA}/{name}", dict.fromkeys(range(4), value))
    return made


@case("fine", "stranger")
def written_by_polars(root: Path) -> list[Take]:
    """Large lists and strings, small row groups, another compression and order of columns."""
    made = write(root, takes())
    for path in (root / DATA, root / EPISODES, root / "meta/tasks.parquet"):
        table, large = pq.read_table(path), {}
        for name in reversed(table.column_names):
            kind = table.schema.field(name).type
            if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
                kind = pa.large_list(pa.large_string() if pa.types.is_string(kind.value_type) else kind.value_type)
            large[name] = pa.array(table[name].to_pylist(), pa.large_string() if pa.types.is_string(kind) else kind)
        pq.write_table(pa.table(large), path, row_group_size=17, compression="zstd")
    return made


@case("fine", "stranger")
def links_of_a_cache(root: Path) -> list[Take]:
    """As the hub's cache keeps it: every file is a link to a blob."""
    made = write(root, takes(), storage="video")
    files = sorted(path for path in root.rglob("*") if path.is_file())
    (root / "blobs").mkdir()
    for i, path in enumerate(files):
        os.replace(path, root / f"blobs/{i:040x}")
        path.symlink_to(os.path.relpath(root / f"blobs/{i:040x}", path.parent))
    return made


@case("fine", "stranger")
def sentences_of_the_world(root: Path) -> list[Take]:
    """Sentences in Japanese, and with quotes, an emoji and a line break."""
    words = ["赤い円盤に手を伸ばす", 'put the "big" disc 🥏 left\nthen stop']
    return write(root, [replace(take, task=words[i % 2]) for i, take in enumerate(takes())])


@case("fine", "stranger")
def episodes_in_two_tables(root: Path) -> list[Take]:
    """The table of episodes in two chunks, as after a long recording."""
    made, table = write(root, takes()), pq.read_table(root / EPISODES)
    save(root / EPISODES, table.slice(0, 2))
    save(root / EPISODES.replace("chunk-000", "chunk-001"), table.slice(2))
    return made


@case("fine", "stranger")
def a_microphone(root: Path) -> list[Take]:
    """A camera with a microphone: in each video the sound comes before the pictures."""
    made = write_v2(root, takes())
    for i, take in enumerate(made):
        with av.open(str(root / video(i)), "w") as container:
            sound = container.add_stream("aac", rate=44100)
            shown = container.add_stream("libx264", rate=FPS, options={"g": "2", "crf": "20"})
            shown.width, shown.height, shown.pix_fmt = SIZE, SIZE, "yuv420p"
            silence = av.AudioFrame.from_ndarray(np.zeros((1, 4 * 44100), np.float32), format="fltp", layout="mono")
            silence.rate = 44100
            container.mux([*sound.encode(silence), *sound.encode(None)])
            for picture in take.pictures:
                container.mux(shown.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(shown.encode(None))
    return made


@case("fine", "stranger")
def pictures_with_opacity(root: Path) -> list[Take]:
    """A simulator's PNGs of four channels, opaque everywhere, described as three."""
    made = write(root, takes())
    pictures = np.concatenate([take.pictures for take in made])
    opaque = np.concatenate([pictures[..., ::-1], np.full((160, SIZE, SIZE, 1), 255, np.uint8)], axis=3)
    rows = [{"bytes": cv2.imencode(".png", picture)[1].tobytes(), "path": None} for picture in opaque]
    edit_column(root / DATA, CAMERA, dict(enumerate(rows)))
    return made


@case("fine", "stranger")
def a_rate_of_television(root: Path) -> list[Take]:
    """29.97 frames per second, and time stamps that follow."""
    made = write(root, takes())
    edit_info(root, fps=30000 / 1001)
    edit_column(root / DATA, "timestamp", {i: (i % 40) * 1001 / 30000 for i in range(160)})
    return made


@case("fine", "stranger")
def a_name_with_slashes(root: Path) -> list[Take]:
    """A camera named observation/images/front, as in HDF5."""
    made, table, info = write(root, takes()), pq.read_table(root / DATA), fmt.read_json(root / fmt.INFO)
    name = CAMERA.replace(".", "/")
    save(root / DATA, table.rename_columns([key.replace(CAMERA, name) for key in table.column_names]))
    edit_info(root, features={key.replace(CAMERA, name): said for key, said in info["features"].items()})
    return made


@case("fine", "stranger")
def touch(root: Path) -> list[Take]:
    """A further feature of 4 x 4 numbers, of a tactile sensor."""
    pressed = [np.full((4, 4), i / 10).tolist() for i in range(160)]
    return write(root, takes(), extra={"observation.touch": (feature("float32", [4, 4]), pressed)})


@case("fine", "stranger")
def success_as_booleans(root: Path) -> list[Take]:
    """success is true or false."""
    made = write(root, takes())
    replace_column(root / DATA, "success", pa.array(np.concatenate([take.success for take in made]) > 0))
    describe(root, "success", dtype="bool")
    return made


@case("fine", "stranger")
def a_camera_that_ran_on(root: Path) -> list[Take]:
    """v2.1 videos of 45 pictures for 40 rows, the last of which belong to none."""
    made = write_v2(root, takes())
    for i, take in enumerate(made):
        encode(root / video(i), np.concatenate([take.pictures, take.pictures[-1:].repeat(5, axis=0)]))
    return made
