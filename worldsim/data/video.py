"""Frames to bytes and back: PNG images and the AV1 videos of LeRobot datasets.

The two codecs live apart from the dataset format so that each can be tested and measured alone, and so that everything else
sees only uint8 RGB arrays. Read `lerobot.py` next: it decides which frames go where.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import av
import cv2
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.video.stream import VideoStream
from jaxtyping import Float, UInt8

from worldsim.data import damaged

# LeRobot's encoder settings: a key frame every second frame makes random access cheap.
CODEC, PIXEL_FORMAT, OPTIONS = "libsvtav1", "yuv420p", {"g": "2", "crf": "30", "preset": "12"}
MIN_SIDE = 4  # pixels; the encoder refuses less
RATE_TOLERANCE = 0.03  # 29.97 Hz passes for 30 Hz, and whole milliseconds (33, 33, 34) do; 24 Hz does not pass for 25 Hz
os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder otherwise prints a banner per file to stderr


def encode_png(frames: UInt8[np.ndarray, "n h w 3"]) -> list[bytes]:
    """Lossless PNG of each RGB frame, at the fastest compression level."""
    encoded = [cv2.imencode(".png", cv2.cvtColor(f, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1] for f in frames]
    return [png.tobytes() for png in encoded]


def decode_images(path: Path, key: str, size: tuple[int, int], encoded: Sequence[bytes | None]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """RGB frames from PNG or JPEG bytes.

    Args:
        path: the file that holds them, for errors.
        key: their feature, for errors.
        size: (height, width) that they must have.
        encoded: the bytes of each frame.

    Raises:
        ValueError: if the bytes are not an image of that size.
    """
    frames = []
    for data in encoded:
        frame = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if frame is None:
            raise ValueError(
                f"{path}: the bytes of an image of {key} are missing or not a PNG or JPEG, or link to an image file; copy the file "
                "again, or convert the dataset with images inside"
            )
        if frame.shape[:2] != size:
            got, expected = (" x ".join(map(str, sides)) for sides in (frame.shape[:2], size))
            pixels = f"{got} pixels (height x width), expected {expected}"
            raise ValueError(f"{path}: an image of {key} has {pixels}; correct the shape in meta/info.json")
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    return frames


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: int, height: int, width: int) -> None:
    """Encode RGB frames as an AV1 mp4 in which frame i is shown at i / fps seconds."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXEL_FORMAT
        with as_scheduled():
            stream.codec_context.open()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


@contextmanager
def as_scheduled() -> Iterator[None]:
    """This thread, and those that are started meanwhile, are scheduled as this one was: for root SVT-AV1 makes real-time threads of
    whoever opens it and of its own, and they would go before everything else on the machine, as would all that they start."""
    if not hasattr(os, "sched_setscheduler"):
        yield
        return
    before, there = (os.sched_getscheduler(0), os.sched_getparam(0)), {*os.listdir("/proc/self/task")}
    try:
        yield
    finally:
        for thread in {"0", *os.listdir("/proc/self/task")} - there:  # 0 is this one
            with suppress(ProcessLookupError):
                os.sched_setscheduler(int(thread), *before)


def video_frames(path: Path, *, start_s: float, num_frames: int, fps: float) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """Decode `num_frames` RGB frames, one at a time: the ones shown at `start_s` + i / fps seconds, or nearest to it.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or runs at another rate, or, after the last one, if no frame was within half a step of a wanted
            time.
    """
    wanted, lost = [*(start_s + np.arange(num_frames) / fps)], []
    number, before = 0, None
    for time, frame in _shown(path, start_s, wanted[-1], fps):
        while number < num_frames and wanted[number] <= time:
            nearer = before if before and wanted[number] - before[0] <= time - wanted[number] else (time, frame)
            lost += [wanted[number]] if abs(nearer[0] - wanted[number]) > 0.5 / fps * (1 + 1e-6) else []
            yield nearer[1].to_ndarray(format="rgb24")
            number += 1
        before = (time, frame)
    for late in wanted[number:]:
        if before is None or late - before[0] > 0.5 / fps * (1 + 1e-6):
            lost.append(late)
        else:
            yield before[1].to_ndarray(format="rgb24")
    if lost:
        raise ValueError(
            f"video file {path} shows no frame at {lost[0]:.3f} s, nor within half a step of it: {len(lost)} of {num_frames} "
            f"frames are lost; copy or encode it again"
        )


def _shown(path: Path, first_s: float, last_s: float, fps: float) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames around a span of time, in order, and when they are shown [s]."""
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            check_rate(path, stream, fps)
            if first_s > 0:
                container.seek(int(first_s * av.time_base))
            for frame in container.decode(stream):
                time = -1.0 if frame.time is None else frame.time
                if time >= first_s - 0.5 / fps:
                    yield time, frame
                if time >= last_s - 0.01 / fps:
                    break
    except FFmpegError as error:
        raise _undecodable(path, error) from error


def check_rate(path: Path, stream: VideoStream, fps: float) -> None:
    """ValueError if a video runs at another rate than `fps`, by what it says of itself and on average."""
    rates = [float(rate) for rate in (stream.guessed_rate, stream.average_rate) if rate]
    if rates and all(abs(rate / fps - 1) > RATE_TOLERANCE for rate in rates):  # the first forgives lost frames, the other jitter
        raise ValueError(
            f"video file {path} shows {rates[-1]:.4g} frames per second, the dataset says {fps:.4g}; encode it again at that rate"
        )


def frame_times(path: Path, fps: float) -> Float[np.ndarray, " n"]:
    """When each frame of a video of rate `fps` is shown [s], in order; nothing is decoded.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or runs at another rate.
    """
    try:
        with _open(path) as container:
            stream = container.streams.video[0]
            check_rate(path, stream, fps)
            return np.sort([float(packet.pts * packet.time_base) for packet in container.demux(stream) if packet.pts is not None])
    except FFmpegError as error:
        raise _undecodable(path, error) from error


def rotation(path: Path) -> int:
    """By how many degrees, anticlockwise, a video asks to be turned when it is shown.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged.
    """
    try:
        with _open(path) as container:
            return next((frame.rotation % 360 for frame in container.decode(container.streams.video[0])), 0)
    except FFmpegError as error:
        raise _undecodable(path, error) from error


def _undecodable(path: Path, error: FFmpegError) -> ValueError:
    """What to raise where a video is damaged, in one line."""
    return ValueError(f"video file {path} cannot be decoded ({error}); {damaged.remedy(path)}")


def _open(path: Path) -> InputContainer:
    if not path.is_file():
        raise FileNotFoundError(f"video file {path} is missing; copy the dataset again with its videos/ folder")
    container = av.open(str(path))
    if not container.streams.video:
        container.close()
        raise ValueError(f"video file {path} has no video stream; copy it again")
    return container
