"""Episodes as one flat table of frames in memory, and the windows that the learners draw from it.

A 64x64 frame is 12 kB, so 40,000 frames of play fit in half a gigabyte and a batch is one indexing operation. Read
`training/supervised/data.py` next: it draws batches from here.
"""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldsim.core.types import Episode
from worldsim.data.columns import clamped_actions
from worldsim.data.lerobot import Dataset


@dataclass(frozen=True)
class FrameTable:
    """All frames of n episodes, one after the other; row r holds frame r and the action that followed it.

    Attributes:
        frames: RGB of one camera, [r, h, w, 3].
        state: proprioception, [r, s].
        action: the action taken at this frame, [r, ad]; 0 at an episode's last frame.
        success: of this frame, 1 or 0, [r]; NaN where nobody judged it, so ask `== 1`.
        progress: of this frame in [0, 1], [r]; NaN where nobody judged it.
        first, last: rows of the first and last frame of this row's episode, [r].
        episode: number of this row's episode, [r].
        instruction: of each episode, length n.
        source: of each episode, length n.
    """

    frames: UInt8[Tensor, "r h w 3"]
    state: Float[Tensor, "r s"]
    action: Float[Tensor, "r ad"]
    success: Float[Tensor, " r"]
    progress: Float[Tensor, " r"]
    first: Int[Tensor, " r"]
    last: Int[Tensor, " r"]
    episode: Int[Tensor, " r"]
    instruction: tuple[str, ...]
    source: tuple[str, ...]

    @classmethod
    def from_episodes(cls, episodes: Iterable[Episode], camera: str) -> "FrameTable":
        """Concatenate episodes.

        Raises:
            ValueError: if there are none, or one lacks the camera.
        """
        episodes = list(episodes)
        if not episodes:
            raise ValueError("no episodes to learn from; collect some first: worldsim collect world=push_block episodes=50")
        lacking = [sorted(e.images) for e in episodes if camera not in e.images]
        if lacking:
            raise ValueError(f"the data has cameras {lacking[0]}, not {camera!r}; set camera to one of them")
        length = torch.tensor([len(e) + 1 for e in episodes])
        end = length.cumsum(0)
        return cls(
            frames=torch.cat([e.images[camera] for e in episodes]),
            state=torch.cat([e.state for e in episodes]),
            action=torch.cat([torch.cat([e.action, torch.zeros_like(e.action[:1])]) for e in episodes]),
            success=torch.cat([e.success.float() for e in episodes]),
            progress=torch.cat([e.progress for e in episodes]),
            first=(end - length).repeat_interleave(length),
            last=(end - 1).repeat_interleave(length),
            episode=torch.arange(len(episodes)).repeat_interleave(length),
            instruction=tuple(e.instruction for e in episodes),
            source=tuple(e.source for e in episodes),
        )

    @classmethod
    def read(cls, roots: str | Path | Sequence[str | Path], camera: str, *, held_out: float = 0.0) -> "FrameTable":
        """Read LeRobot datasets, without the episodes that `read_held_out` reads; warns of actions that would be clamped.

        Raises:
            FileNotFoundError: if a dataset is missing.
            ValueError: if one lacks the camera, or holds what `Dataset` refuses.
        """
        episodes: list[Episode] = []
        for data in _open(roots, camera):
            number = training_episodes(data.num_episodes, held_out)
            if held_out and data.num_episodes == 1:
                warnings.warn(f"{data.root} has one episode: it is trained on, and none is held out", stacklevel=2)
            read = list(data.episodes(range(number)))
            _warn_of_clamped_actions(data, read)
            episodes += read
        return cls.from_episodes(episodes, camera)

    @classmethod
    def read_held_out(cls, roots: str | Path | Sequence[str | Path], camera: str, *, held_out: float) -> "FrameTable | None":
        """The episodes that `read` leaves out, the last ones of each dataset; None if there are none.

        Raises:
            FileNotFoundError: if a dataset is missing.
            ValueError: if one lacks the camera, or holds what `Dataset` refuses.
        """
        episodes: list[Episode] = []
        for data in _open(roots, camera):
            episodes += data.episodes(range(training_episodes(data.num_episodes, held_out), data.num_episodes))
        return cls.from_episodes(episodes, camera) if episodes else None

    def window(self, row: Int[Tensor, " b"], *, context: int, horizon: int) -> dict[str, Tensor]:
        """Frames row-context+1 ... row+horizon around each row; before an episode's start its first frame is repeated.

        Returns:
            frames [b, context+horizon, h, w, 3] uint8, state [b, context+horizon, s], action [b, horizon, ad] (from `row` on) and
            valid [b, horizon], False where the frame lies beyond the episode's end (the last frame is repeated there).
        """
        rows = row[:, None] + torch.arange(1 - context, horizon + 1)
        rows = rows.clamp(self.first[row, None], self.last[row, None])
        frames = self.frames.index_select(0, rows.flatten()).unflatten(0, rows.shape)  # much faster than self.frames[rows]
        return {"frames": frames, "state": self.state[rows], **self.actions(row, horizon)}

    def actions(self, row: Int[Tensor, " b"], horizon: int) -> dict[str, Tensor]:
        """The part of `window` that has no frames: action [b, horizon, ad] and valid [b, horizon]."""
        rows, last = row[:, None] + torch.arange(horizon), self.last[row, None]
        return {"action": self.action[rows.minimum(last)], "valid": rows < last}

    @property
    def sizes(self) -> Mapping[str, int | list[int]]:
        """What models are built for: state_dim, action_dim and image as [height, width]."""
        return {"state_dim": self.state.shape[1], "action_dim": self.action.shape[1], "image": list(self.frames.shape[1:3])}

    @property
    def acting_rows(self) -> Int[Tensor, " m"]:
        """Rows at which an action was taken: all but each episode's last."""
        return (torch.arange(len(self.last)) < self.last).nonzero().flatten()


def training_episodes(number: int, held_out: float) -> int:
    """How many of a dataset's episodes training sees: the share 1 - `held_out` of them, but one at least, and not all if it is > 0.

    With a single episode there is nothing to hold out.
    """
    share = round((1 - held_out) * number)
    return number if held_out == 0 or number < 2 else min(max(share, 1), number - 1)


def _open(roots: str | Path | Sequence[str | Path], camera: str) -> list[Dataset]:
    """The datasets, of which nothing but this camera will be decoded; ValueError if they do not go together."""
    datasets = [Dataset(root, cameras=[camera]) for root in ([roots] if isinstance(roots, str | Path) else roots)]
    kinds = [(len(d.state_names), len(d.action_names), d.cameras[camera], d.fps) for d in datasets]
    for data, kind in zip(datasets, kinds, strict=True):
        for name, one, other in zip(("numbers of state", "numbers of an action", "pixels", "fps"), kind, kinds[0], strict=True):
            if one != other:
                raise ValueError(
                    f"{data.root} has {one} {name}, {datasets[0].root} has {other}; learn from datasets that are alike"
                )
    return datasets


def _warn_of_clamped_actions(data: Dataset, episodes: Sequence[Episode]) -> None:
    """Say which share of a dataset's actions is beyond [-1, 1], where worlds, servers and bundles clamp them."""
    if episodes and (found := clamped_actions(data.action_names, torch.cat([e.action for e in episodes]).numpy())):
        warnings.warn(f"{data.root}: {found}; scale the dataset's actions, unless that is meant", stacklevel=3)


@dataclass(frozen=True)
class Mirror:
    """The left-right symmetry of a scene, for data augmentation: frames flip, states and actions change sign.

    Attributes:
        state: factor of each state dimension, 1 or -1.
        action: factor of each action dimension, 1 or -1.
    """

    state: tuple[float, ...]
    action: tuple[float, ...]

    def check(self, table: FrameTable) -> None:
        """ValueError if it has not one factor for each dimension of the table's state and action."""
        for name, factors, size in (("state", self.state, table.state.shape[1]), ("action", self.action, table.action.shape[1])):
            if len(factors) != size:
                raise ValueError(
                    f"mirror.{name} has {len(factors)} factors, the data have {size} numbers; give one each, or mirror=null"
                )

    def __call__(self, batch: dict, which: Bool[Tensor, " b"]) -> dict:
        """`batch` with the rows `which` mirrored: the entries "frames" [b, ..., h, w, 3], "state" and "action", if present."""

        def signs(factors: tuple[float, ...], values: Tensor) -> Tensor:
            shape = (-1, *([1] * (values.ndim - 1)))
            return torch.where(which.reshape(shape), torch.tensor(factors), 1.0)

        mirrored = dict(batch)
        pairs = zip(batch["frames"], which.tolist(), strict=True)
        mirrored["frames"] = torch.stack([frames.flip(-2) if flipped else frames for frames, flipped in pairs])
        for name, factors in (("state", self.state), ("action", self.action)):
            if name in batch:
                mirrored[name] = batch[name] * signs(factors, batch[name])
        return mirrored


def shift(frames: UInt8[Tensor, "*b h w 3"], pixels: tuple[int, int]) -> UInt8[Tensor, "*b h w 3"]:
    """Frames moved by (down, right) pixels; the border is repeated."""
    (down, right), (height, width) = pixels, frames.shape[-3:-1]
    top, bottom, left, end = max(down, 0), height + min(down, 0), max(right, 0), width + min(right, 0)
    moved = torch.empty_like(frames)
    moved[..., top:bottom, left:end, :] = frames[..., top - down : bottom - down, left - right : end - right, :]
    moved[..., top:bottom, :left, :] = moved[..., top:bottom, left : left + 1, :]
    moved[..., top:bottom, end:, :] = moved[..., top:bottom, end - 1 : end, :]
    moved[..., :top, :, :] = moved[..., top : top + 1, :, :]
    moved[..., bottom:, :, :] = moved[..., bottom - 1 : bottom, :, :]
    return moved
