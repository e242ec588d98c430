"""A few frames of a few episodes, as small pictures with the states beside them: all that a check of cameras decodes.

`CLIP` frames in a row come from the middle of each of `LOOKS` episodes. Read `picture_suspicions.py` next, which looks at them.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.error import FFmpegError
from jaxtyping import Float

from worldsim.data import lerobot_format as fmt
from worldsim.data.columns import pictures
from worldsim.data.contents import Contents
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.suspicions import Rows
from worldsim.data.video import decode_images, video_frames

LOOKS, CLIP = 8, 48
SIDE = 32  # pixels at which frames are compared: what a codec adds averages out there
SAME = 1.0  # grey levels


class Clip(NamedTuple):
    """Frames in a row, and how far the state went.

    Attributes:
        episode: of which they are.
        first: its frame with which they begin.
        frames: [n, 32, 32, 3] in grey levels.
        states: [n, s], each channel in its standard deviations.
    """

    episode: EpisodeFiles
    first: int
    frames: Float[np.ndarray, "n 32 32 3"]
    states: Float[np.ndarray, "n s"]


def clips_of(contents: Contents, key: str, states: Rows) -> Iterator[Clip]:
    """Clips of camera `key`; none of what cannot be decoded, which another check says, or `damages` if it is a video."""
    there = [episode for episode in contents.held if episode in states and episode.length > 1]
    if not there:
        return
    spread = np.concatenate([*states.values()]).std(axis=0)
    for i in np.unique(np.linspace(0, len(there) - 1, LOOKS).round().astype(int)):
        episode = there[i]
        first = max(0, (episode.length - CLIP) // 2)
        number = min(CLIP, episode.length - first)
        try:
            small = small_frames(contents, key, episode, first, number)
        except (ValueError, FileNotFoundError, pa.ArrowInvalid) as error:
            if isinstance(error, ValueError) and isinstance(error.__cause__, FFmpegError):  # no other check decodes it
                contents.damages.append(error)
            continue
        rows = states[episode][first : first + number].astype(float) / np.where(spread > 0, spread, 1)
        if len(small) == len(rows):
            yield Clip(episode, first, small, rows)


def small_frames(contents: Contents, key: str, episode: EpisodeFiles, first: int, number: int) -> Float[np.ndarray, "n 32 32 3"]:
    """Some frames of an episode in a row, from `first` on, at a few pixels.

    Raises:
        FileNotFoundError: if their file is missing.
        ValueError: if they are damaged or of another size.
        pa.ArrowInvalid: if their table is damaged.
    """
    frames = _decoded(contents, key, episode, first, number)
    return np.stack([cv2.resize(frame, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(float) for frame in frames])


def _decoded(contents: Contents, key: str, episode: EpisodeFiles, first: int, number: int) -> list[np.ndarray]:
    fps, size = contents.info["fps"], fmt.resolution(key, contents.features[key])
    if contents.features[key]["dtype"] == "video":
        path, start_s = episode.videos[key]
        return [*video_frames(path, start_s=start_s + first / fps, num_frames=number, fps=fps)]
    table = pq.read_table(episode.data, columns=[key], filters=[("episode_index", "=", episode.index)])
    return decode_images(episode.data, key, size, pictures(episode.data, table, key)[first : first + number])
