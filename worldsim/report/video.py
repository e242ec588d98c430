"""Frames to files that people can watch: mp4 through PyAV, tiles, captioned comparisons, filmstrips and PNG.

Worlds are 64 pixels wide and browsers are not, so small frames are enlarged by whole factors without smoothing: what the
policy sees is what the viewer sees. Every function takes uint8 RGB as NumPy or torch; read `page.py` next.
"""

import math
import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import UInt8
from torch import Tensor

Video = UInt8[np.ndarray, "t h w 3"] | UInt8[Tensor, "t h w 3"]
Image = UInt8[np.ndarray, "h w 3"]

_GAP = 2  # pixels between tiles
_DARK = 28  # grey of gaps and caption bars
_BAR = 26  # height of a caption bar in pixels


def write_mp4(path: Path, frames: Video, fps: float, min_side: int = 256) -> Path:
    """Write an H.264 video (yuv420p, crf 18) that every browser plays; `path` appears complete or not at all.

    Args:
        path: the file to write; its folder must exist.
        frames: at least one.
        fps: frames per second of playback.
        min_side: frames smaller than this many pixels are enlarged by the least sufficient whole factor. An odd width or
            height repeats its last line, because yuv420p needs even sizes.

    Raises:
        ValueError: if the frames are not uint8 [t, h, w, 3] with t >= 1, or fps is not positive.
    """
    if not fps > 0:
        raise ValueError(f"fps must be positive, got {fps}; use the world's `fps`")
    video = enlarge(frames, min_side)
    video = np.pad(video, ((0, 0), (0, video.shape[1] % 2), (0, video.shape[2] % 2), (0, 0)), mode="edge")
    partial = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(partial), "w", format="mp4", options={"movflags": "faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "18"})
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
            container.mux(stream.encode(None))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def enlarge(frames: Video, min_side: int = 256) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Frames repeated pixel by pixel, by the least whole factor that makes the shorter side at least `min_side` pixels.

    Raises:
        ValueError: if the frames are not uint8 [t, h, w, 3] with t >= 1.
    """
    video = _frames(frames)
    factor = max(1, math.ceil(min_side / min(video.shape[1:3])))
    return video.repeat(factor, axis=1).repeat(factor, axis=2)


def tile(videos: Sequence[Video], columns: int) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Videos of one size in a grid, row by row; shorter ones hold their last frame, unused cells stay dark.

    Args:
        videos: a list, or a tensor [n, t, h, w, 3]; n >= 1.
        columns: cells per row, at least 1.

    Raises:
        ValueError: if there is no video, sizes differ, or columns < 1.
    """
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    held = _hold(videos)
    t, h, w, _ = held[0].shape
    columns = min(columns, len(held))
    rows = math.ceil(len(held) / columns)
    canvas = np.full((t, rows * (h + _GAP) - _GAP, columns * (w + _GAP) - _GAP, 3), _DARK, np.uint8)
    for index, video in enumerate(held):
        top, left = index // columns * (h + _GAP), index % columns * (w + _GAP)
        canvas[:, top : top + h, left : left + w] = video
    return canvas


def side_by_side(
    left: Video, right: Video, labels: tuple[str, str] = ("real", "dream"), min_side: int = 256
) -> UInt8[np.ndarray, "t h2 w2 3"]:
    """Two videos of one size beside each other, enlarged to `min_side` pixels, under a caption bar; the shorter one holds.

    Args:
        left: drawn on the left.
        right: of the same size as `left`.
        labels: a caption for each, ASCII (OpenCV's font has nothing else); shrunk where it would not fit.
        min_side: see `enlarge`.

    Raises:
        ValueError: if the sizes differ or the frames are not uint8 [t, h, w, 3].
    """
    pictures = tile([enlarge(video, min_side) for video in _hold([left, right])], columns=2)
    width = (pictures.shape[2] - _GAP) // 2
    bar = np.full((_BAR, pictures.shape[2], 3), _DARK, np.uint8)
    for text, x in zip(labels, (0, width + _GAP), strict=True):
        (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, 0.5, 1)
        scale = 0.5 * min(1.0, (width - 16) / max(1, text_width))
        cv2.putText(bar, text, (x + 8, _BAR - 9), cv2.FONT_HERSHEY_SIMPLEX, scale, (235, 235, 235), 1, cv2.LINE_AA)
    return np.concatenate([np.broadcast_to(bar, (len(pictures), *bar.shape)), pictures], axis=1)


def filmstrip(frames: Video, count: int) -> Image:
    """`count` evenly spaced frames from the first to the last, left to right; a video shorter than that repeats frames.

    Raises:
        ValueError: if count < 1 or the frames are not uint8 [t, h, w, 3] with t >= 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    video = _frames(frames)
    chosen = video[np.linspace(0, len(video) - 1, count).round().astype(int)]
    return tile(list(chosen[:, None]), columns=count)[0]


def png_bytes(image: UInt8[np.ndarray, "h w 3"] | UInt8[Tensor, "h w 3"]) -> bytes:
    """The image as a PNG file's content.

    Raises:
        ValueError: if the image is not uint8 [h, w, 3].
    """
    return cv2.imencode(".png", cv2.cvtColor(_frames(image[None])[0], cv2.COLOR_RGB2BGR))[1].tobytes()


def _frames(video: Video) -> UInt8[np.ndarray, "t h w 3"]:
    array = video.cpu().numpy() if isinstance(video, Tensor) else video
    if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or 0 in array.shape:
        raise ValueError(
            f"frames must be non-empty uint8 [t, h, w, 3], got {array.dtype} {list(array.shape)}; scale floats to 0..255"
        )
    return array


def _hold(videos: Sequence[Video]) -> list[UInt8[np.ndarray, "t h w 3"]]:
    """The videos at the length of the longest; the last frame of a shorter one stays."""
    arrays = [_frames(video) for video in videos]
    sizes = sorted({array.shape[1:3] for array in arrays})
    if len(sizes) != 1:
        raise ValueError(f"need at least one video and one frame size, got sizes (h, w) {sizes}")
    longest = max(len(array) for array in arrays)
    return [np.pad(array, ((0, longest - len(array)), (0, 0), (0, 0), (0, 0)), mode="edge") for array in arrays]
