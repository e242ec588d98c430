"""Frames to bytes and back: PNG images and the AV1 videos of LeRobot datasets.

The two codecs live apart from the dataset format so that each can be tested and measured alone, and so that everything else
sees only uint8 RGB arrays. Read `lerobot.py` next: it decides which frames go where.
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
from av.error import FFmpegError
from jaxtyping import UInt8

# LeRobot's encoder settings: a key frame every second frame makes random access cheap.
CODEC, PIXEL_FORMAT, OPTIONS = "libsvtav1", "yuv420p", {"g": "2", "crf": "30", "preset": "12"}
os.environ.setdefault("SVT_LOG", "1")  # errors only: the encoder otherwise prints a banner per file to stderr


def encode_png(frames: UInt8[np.ndarray, "n h w 3"]) -> list[bytes]:
    """Lossless PNG of each RGB frame, at the fastest compression level."""
    encoded = [cv2.imencode(".png", cv2.cvtColor(f, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1])[1] for f in frames]
    return [png.tobytes() for png in encoded]


def decode_images(encoded: Sequence[bytes]) -> list[UInt8[np.ndarray, "h w 3"]]:
    """RGB frames from PNG or JPEG bytes.

    Raises:
        ValueError: if the bytes are not an image.
    """
    frames = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None for data in encoded]
    if any(frame is None for frame in frames):
        raise ValueError("the bytes of an image are missing or not a PNG or JPEG; the data file is damaged or links to image files")
    return [cv2.cvtColor(frame, cv2.COLOR_BGR2RGB) for frame in frames if frame is not None]


def write_video(path: Path, frames: Iterable[UInt8[np.ndarray, "h w 3"]], *, fps: int, height: int, width: int) -> None:
    """Encode RGB frames as an AV1 mp4 in which frame i is shown at i / fps seconds."""
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(CODEC, rate=fps, options=OPTIONS)
        stream.width, stream.height, stream.pix_fmt = width, height, PIXEL_FORMAT
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode(None))


def read_video(path: Path, *, start_s: float, num_frames: int, fps: float) -> UInt8[np.ndarray, "n h w 3"]:
    """Decode `num_frames` consecutive RGB frames, the first one shown at `start_s` seconds.

    Raises:
        FileNotFoundError: if the file is missing.
        ValueError: if it is damaged or ends too early.
    """
    if not path.is_file():
        raise FileNotFoundError(f"video file {path} is missing; copy the dataset again with its videos/ folder")
    frames: list[np.ndarray] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            if start_s > 0:
                container.seek(int(start_s * av.time_base))
            for frame in container.decode(stream):
                if len(frames) < num_frames and frame.time >= start_s - 0.5 / fps:
                    frames.append(frame.to_ndarray(format="rgb24"))
                if len(frames) == num_frames:
                    break
    except FFmpegError as error:
        raise ValueError(f"video file {path} cannot be decoded ({error}); copy it again") from error
    if len(frames) < num_frames:
        raise ValueError(f"video file {path} has {len(frames)} frames after {start_s:.3f} s, expected {num_frames}; copy it again")
    return np.stack(frames)
