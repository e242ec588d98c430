"""The frames of datasets larger than memory, and the windows that the learners draw from them.

Pictures lie decoded on the disk (`frame_cache.py`), at the size at which they are seen, and only those that a batch asks for are
read; what is a few numbers per frame is in memory. Read `windows.py` next, then `training/supervised/data.py`: it draws batches.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from worldsim.core.channels import Feature
from worldsim.core.spec import Spec, match
from worldsim.core.types import Episode
from worldsim.data.dataset_spec import OVERLAY
from worldsim.data.frame_cache import FrameFile, open_frames
from worldsim.data.lerobot_reader import Dataset

Views = Mapping[str, Sequence[int] | None]


@dataclass(frozen=True)
class Frames:
    """The pictures of one camera, row by row, part by part: what is indexed is read, and is a copy.

    Attributes:
        parts: files of frames, all of one size, and which of their frames are meant.
    """

    parts: tuple[tuple[FrameFile, range], ...]

    def __len__(self) -> int:
        return sum(len(rows) for _, rows in self.parts)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Rows, height, width and 3."""
        return (len(self), *self.parts[0][0].size, 3)

    def __getitem__(self, index: Tensor | slice) -> UInt8[Tensor, "*i h w 3"]:
        """The frames of rows, which may have any shape."""
        index = torch.arange(len(self))[index] if isinstance(index, slice) else index
        rows, shape = index.flatten().numpy(), (*index.shape, *self.shape[1:])
        if not len(rows):
            return torch.empty(shape, dtype=torch.uint8)
        if not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(f"rows must be in [0, {len(self)}), got {rows.min()} to {rows.max()}")
        part, size = np.searchsorted(self._ends, rows, side="right"), math.prod(shape[-3:])
        files, places = [file.mapped for file, _ in self.parts], size * (rows + self._offsets[part])
        frames = [files[i][place : place + size] for i, place in zip(part.tolist(), places.tolist(), strict=True)]
        return torch.frombuffer(bytearray().join(frames), dtype=torch.uint8).reshape(shape)

    @cached_property
    def _ends(self) -> Int[np.ndarray, " p"]:
        """The row after the last one of each part."""
        return np.cumsum([len(rows) for _, rows in self.parts])

    @cached_property
    def _offsets(self) -> Int[np.ndarray, " p"]:
        """What is added to a row of each part to find it in its file."""
        return np.array([rows.stop for _, rows in self.parts]) - self._ends


@dataclass(frozen=True)
class FrameStore:
    """All frames of n episodes, one after the other; row r holds frame r and the action that followed it.

    Attributes:
        images: the pictures of each camera, [r, h, w, 3]; cameras may differ in size.
        spec: what the numbers mean, with the statistics of these episodes.
        state: proprioception in native units, [r, s].
        action: the action taken at this frame, in native units, [r, ad]; 0 at an episode's last frame.
        success: of this frame, 1 or 0, [r]; NaN where nobody judged it, so ask `== 1`.
        progress: of this frame in [0, 1], [r]; NaN where nobody judged it.
        first, last: rows of the first and last frame of this row's episode, [r].
        episode: number of this row's episode, [r].
        instruction: of each episode, length n.
        source: of each episode, length n.
        origin: of each episode its dataset and its position there, length n.
    """

    images: Mapping[str, Frames]
    spec: Spec
    state: Float[Tensor, "r s"]
    action: Float[Tensor, "r ad"]
    success: Float[Tensor, " r"]
    progress: Float[Tensor, " r"]
    first: Int[Tensor, " r"]
    last: Int[Tensor, " r"]
    episode: Int[Tensor, " r"]
    instruction: tuple[str, ...]
    source: tuple[str, ...]
    origin: tuple[tuple[str, int], ...]

    @classmethod
    def read(cls, roots: str | Path | Sequence[str | Path], views: Views, *, held_out: float = 0.0) -> "FrameStore":
        """Open LeRobot datasets, without the episodes that `read_held_out` reads; warns of actions beyond their limits.

        Channels are matched by name: the first dataset says their order.

        Frames are decoded only if nobody did before, and only those of the cameras in `views`.

        Args:
            roots: the datasets.
            views: height and width of each camera that is wanted; None for those with which it was recorded.
            held_out: share of episodes to leave out, see `training_episodes`.

        Raises:
            FileNotFoundError: if a dataset is missing.
            ValueError: if one lacks a camera, or holds what `Dataset` refuses; if frames have no room on the disk.
        """
        parts = []
        for data in _open(roots, views):
            numbers = range(training_episodes(data.episode_indices, held_out))
            if held_out and data.num_episodes == 1:
                warnings.warn(f"{data.root} has one episode: it is trained on, and none is held out", stacklevel=2)
            parts.append(_Part.read(data, numbers))
            _warn_of_clipped_actions(data, parts[-1].episodes)
        if not any(part.numbers for part in parts):
            raise ValueError("no episodes to learn from; collect some first: worldsim collect world=push_block episodes=50")
        return cls._join(parts, views)

    @classmethod
    def read_held_out(cls, roots: str | Path | Sequence[str | Path], views: Views, *, held_out: float) -> "FrameStore | None":
        """The episodes that `read` leaves out, the last ones of each dataset; None if there are none.

        Raises:
            FileNotFoundError, ValueError: as `read`.
        """
        unseen = [(data, training_episodes(data.episode_indices, held_out)) for data in _open(roots, views)]
        parts = [_Part.read(data, range(first, data.num_episodes)) for data, first in unseen]
        return cls._join(parts, views) if any(part.numbers for part in parts) else None

    @classmethod
    def _join(cls, parts: Sequence["_Part"], views: Views) -> "FrameStore":
        parts = [part for part in parts if part.numbers]
        episodes, spec = [episode for part in parts for episode in part.episodes], parts[0].data.spec
        state = torch.cat([e.state[:, part.order(parts[0].data, "state")] for part in parts for e in part.episodes])
        action = [e.action[:, part.order(parts[0].data, "action")] for part in parts for e in part.episodes]
        length = torch.tensor([len(e) + 1 for e in episodes])
        end = length.cumsum(0)
        return cls(
            images={camera: Frames(tuple(part.frames(camera, size) for part in parts)) for camera, size in views.items()},
            spec=spec.fitted(state.numpy(), torch.cat(action).numpy()),
            state=state,
            action=torch.cat([torch.cat([a, torch.zeros_like(a[:1])]) for a in action]),
            success=torch.cat([e.success.float() for e in episodes]),
            progress=torch.cat([e.progress for e in episodes]),
            first=(end - length).repeat_interleave(length),
            last=(end - 1).repeat_interleave(length),
            episode=torch.arange(len(episodes)).repeat_interleave(length),
            instruction=tuple(e.instruction for e in episodes),
            source=tuple(e.source for e in episodes),
            origin=tuple((str(part.data.root), number) for part in parts for number in part.numbers),
        )

    def ordered(self, spec: Spec, who: str) -> "FrameStore":
        """The same frames with states and actions in the order of another specification's channels; statistics stay with the names.

        Raises:
            ValueError: if a channel is missing, or is of another unit or kind.
        """
        parts = {feature: (getattr(spec, feature), getattr(self.spec, feature)) for feature in ("state", "action")}
        orders = {f: [*match(*pair, what=f, who=who, where="the data", exact=True)] for f, pair in parts.items()}
        state, action = (getattr(self, feature)[:, order] for feature, order in orders.items())
        channels = {feature: tuple(getattr(self.spec, feature)[i] for i in order) for feature, order in orders.items()}
        ordered = replace(self.spec, **channels, state_statistics=None, action_statistics=None)
        fitted = ordered.fitted(state.numpy(), action[self.acting_rows].numpy())
        return replace(self, state=state, action=action, spec=fitted)

    @property
    def frames(self) -> Frames:
        """The pictures of the only camera."""
        if len(self.images) != 1:
            raise ValueError(f"there are the cameras {', '.join(self.images)}; say which: images[CAMERA]")
        return next(iter(self.images.values()))

    def pictures(self, row: Int[Tensor, "*i"]) -> dict[str, UInt8[Tensor, "*i h w 3"]]:
        """What every camera shows at some rows."""
        return {camera: frames[row] for camera, frames in self.images.items()}

    def at(self, row: Int[Tensor, " b"], seconds: Float[Tensor, " t"]) -> Int[Tensor, "b t"]:
        """The rows nearest in time to so many seconds after each row, within its episode: beyond, its first or last.

        `Dataset` refuses time stamps half a step or more from their place at `fps`, so a row is a step of 1/fps.
        """
        steps = (seconds.double() * self.spec.fps).round().long()
        return (row[:, None] + steps).clamp(self.first[row, None], self.last[row, None])

    def window(self, row: Int[Tensor, " b"], *, context: int, horizon: int) -> dict[str, Any]:
        """Frames row-context+1 ... row+horizon around each row; before an episode's start its first frame is repeated.

        Returns:
            images [b, context+horizon, h, w, 3] uint8 by camera, state [b, context+horizon, s], action [b, horizon, ad] (from `row`
            on) and valid [b, horizon], False where the frame lies beyond the episode's end (the last frame is repeated there).
        """
        rows = self.at(row, torch.arange(1 - context, horizon + 1) / self.spec.fps)
        return {"images": self.pictures(rows), "state": self.state[rows], **self.actions(row, horizon)}

    def actions(self, row: Int[Tensor, " b"], horizon: int) -> dict[str, Tensor]:
        """The part of `window` that has no frames: action [b, horizon, ad] and valid [b, horizon]."""
        rows, last = row[:, None] + torch.arange(horizon), self.last[row, None]
        return {"action": self.action[rows.minimum(last)], "valid": rows < last}

    def sentences(self, row: Int[Tensor, " b"]) -> tuple[str, ...]:
        """The instruction of each row's episode."""
        return tuple(self.instruction[i] for i in self.episode[row].tolist())

    @cached_property
    def acting_rows(self) -> Int[Tensor, " m"]:
        """Rows at which an action was taken: all but each episode's last."""
        return (torch.arange(len(self.last)) < self.last).nonzero().flatten()


def training_episodes(indices: Sequence[int], held_out: float) -> int:
    """How many of a dataset's episodes training sees: the share 1 - `held_out` of them, but one at least, and not all if it is > 0.

    With a single episode there is nothing to hold out.

    Args:
        indices: their numbers; parts of one recording, which have one number, stay together.
        held_out: share to leave out.
    """
    number = len(indices)
    if held_out == 0 or number < 2:
        return number
    wished = round((1 - held_out) * number)
    cuts = [i for i in range(1, number) if indices[i] != indices[i - 1]]
    return min(cuts, key=lambda cut: (abs(cut - wished), cut), default=number)


class _Part(NamedTuple):
    """Consecutive episodes of a dataset, read but for their pictures."""

    data: Dataset
    numbers: range
    episodes: Sequence[Episode]

    @classmethod
    def read(cls, data: Dataset, numbers: range) -> "_Part":
        return cls(data, numbers, [*Dataset(data.root, cameras=[]).episodes(numbers)])

    def order(self, first: Dataset, feature: Feature) -> list[int]:
        """Which of its columns stands where the first dataset has a channel; ValueError if it has others."""
        wanted, there = (getattr(data.spec, feature) for data in (first, self.data))
        return [*match(wanted, there, what=feature, who=str(first.root), where=str(self.data.root), exact=True)]

    def frames(self, camera: str, size: Sequence[int] | None) -> tuple[FrameFile, range]:
        height, width = self.data.cameras[camera] if size is None else size
        lengths, (first, last) = self.data.lengths, (self.numbers.start, self.numbers.stop)
        return open_frames(self.data, camera, (height, width)), range(sum(lengths[:first]), sum(lengths[:last]))


def _open(roots: str | Path | Sequence[str | Path], views: Views) -> list[Dataset]:
    """The datasets, of which nothing but these cameras will be decoded; ValueError if they do not go together."""
    datasets = [Dataset(root, cameras=[*views]) for root in ([roots] if isinstance(roots, str | Path) else roots)]
    native = [camera for camera, size in views.items() if size is None]
    names = ("fps", *["pixels"] * len(native))
    kinds = [(d.fps, *(d.cameras[camera] for camera in native)) for d in datasets]
    for data, kind in zip(datasets, kinds, strict=True):
        for name, one, other in zip(names, kind, kinds[0], strict=True):
            if one != other:
                raise ValueError(
                    f"{data.root} has {one} {name}, {datasets[0].root} has {other}; learn from datasets that are alike"
                )
    return datasets


def _warn_of_clipped_actions(data: Dataset, episodes: Sequence[Episode]) -> None:
    """Say which of a dataset's actions lie beyond their limits, where worlds, servers and bundles clip them."""
    if episodes and (found := data.spec.clipped(torch.cat([e.action for e in episodes]).numpy())):
        warnings.warn(f"{data.root}: {found}; correct the limits in {OVERLAY}, unless that is meant", stacklevel=3)
