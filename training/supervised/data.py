"""Lightning DataModules: each draws whole batches at random from a `FrameStore`.

Batch number i depends only on (seed, i), so a resumed run sees the batches that an uninterrupted one would have seen.
Read `training/supervised/world_model.py` next.
"""

import warnings
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from training.supervised.augmentation import Augmentation
from training.supervised.batches import Batch, BatchStream
from worldsim.core.checkpoint import Configured
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.sizes import check_names, check_sizes
from worldsim.core.types import Observation
from worldsim.core.views import Views
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore
from worldsim.data.windows import shift


class StreamData(LightningDataModule):
    """A stream of training batches that knows its place, so that a resumed run goes on with the next one.

    Args:
        seed: of the batches.
    """

    def __init__(self, seed: int):
        super().__init__()
        self.seed = seed
        self._resumed = 0  # number of the batch with which a resumed run begins

    @property
    def module(self) -> Any:
        """What learns from the batches; its models say how long contexts, windows and chunks are."""
        if self.trainer is None:
            raise ValueError(
                f"{type(self).__name__} asks the module that learns for its sizes; use Trainer.fit(module, datamodule=...)"
            )
        return self.trainer.lightning_module

    def draw(self, generator: torch.Generator) -> Batch:
        """One training batch."""
        raise NotImplementedError

    def train_dataloader(self) -> DataLoader:
        rank, ranks = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return DataLoader(BatchStream(self.draw, self.seed, self.next_batch, rank, ranks), batch_size=None)

    def next_batch(self) -> int:
        """Number of the batch that comes next among those of this rank, over all epochs."""
        # A learner that asks for the length of its run makes Lightning open the stream before it has restored its counters.
        return max(self._resumed, self.trainer.fit_loop.total_batch_idx + 1) if self.trainer else 0

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream, for the run's checkpoint."""
        return {"next_batch": self.next_batch()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._resumed = state_dict["next_batch"]
        # Lightning looks for the place in the loader and warns of unreliable results if it is not there.
        warnings.filterwarnings("ignore", "You're resuming from a checkpoint that ended before the epoch ended")


class TableData(StreamData):
    """What the data modules of episodes share: the datasets, the held-out share and the stream of batches.

    Args:
        roots: LeRobot datasets to learn from.
        batch_size: rows per batch.
        held_out: share of each dataset's episodes, its last ones, that training never sees; if it is not 0, at least one of them.
        seed: of the batches.
        augmentation: what may be done to this task's episodes.
    """

    def __init__(
        self,
        roots: list[str],
        batch_size: int = 64,
        held_out: float = 0.05,
        seed: int = 0,
        augmentation: Augmentation | None = None,
    ):
        super().__init__(seed)
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {held_out}; 0.05 keeps every twentieth episode for validation")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; set data.batch_size to the rows of a batch")
        self.roots, self.batch_size, self.held_out = roots, batch_size, held_out
        self.augmentation = augmentation or Augmentation()

    @property
    def learner(self) -> Any:
        """What sees the frames; it says which cameras are read, and at which size."""
        raise NotImplementedError

    @property
    def views(self) -> Views:
        """Cameras that are read, and the size at which they are."""
        return self.learner.views

    def setup(self, stage: str) -> None:
        table = FrameStore.read(self.roots, self.views, held_out=self.held_out)
        self.table = self._as_learned(table)
        mirror = self.augmentation.mirror
        self.mirror = None if mirror is None else mirror.ordered(table.spec, self.table.spec)
        self.instructions = sorted(set(self.table.instruction))
        if self.trainer is not None:
            check_sizes(self.trainer.lightning_module, self.table.spec)

    def unseen(self) -> FrameStore | None:
        """The episodes that training never sees, each once even where a dataset counts twice; None if there are none."""
        once = list(dict.fromkeys(str(Path(root).resolve()) for root in self.roots))
        held_out = FrameStore.read_held_out(once, self.views, held_out=self.held_out)
        return None if held_out is None else self._as_learned(held_out)

    def _as_learned(self, table: FrameStore) -> FrameStore:
        """The table in the order of channels that models of the module have learned: a world model's, if there is one, in which
        dreams begin."""
        learner: Any = torch.nn.Module() if self.trainer is None else self.trainer.lightning_module
        known = [part for part in learner.modules() if isinstance(part, Configured) and part.spec is not None]
        for part in sorted(known, key=lambda part: not isinstance(part, WorldModel))[:1]:
            table = table.ordered(part.spec, f"the {type(part).__name__}")  # type: ignore[arg-type]
            check_names(learner, table.spec, "the data")
        return table

    def augmented(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Half of the rows mirrored, if the scene has that symmetry."""
        if self.mirror is None:
            return batch
        return self.mirror(batch, torch.rand(self.batch_size, generator=generator) < 0.5)

    def heard(self, sentences: tuple[str, ...], generator: torch.Generator) -> tuple[str, ...]:
        """Each in one of its wordings, if the task has some."""
        paraphrases = self.augmentation.paraphrases
        return sentences if paraphrases is None else paraphrases(sentences, generator)

    def rows(self, candidates: Tensor, generator: torch.Generator) -> Tensor:
        """`batch_size` rows drawn uniformly from `candidates`."""
        return candidates[torch.randint(len(candidates), (self.batch_size,), generator=generator)]


class WorldModelData(TableData):
    """Windows of the world model's `context` frames and `horizon` future frames and actions, from any moment of any episode, and
    what the robot was told."""

    def __init__(self, roots: list[str], batch_size: int = 48, **others: Any):
        super().__init__(roots, batch_size=batch_size, **others)

    @property
    def learner(self) -> WorldModel:
        return self.module.world_model

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.context, self.horizon = self.learner.context, self.learner.horizon
        held_out = self.unseen() or self.table
        rows = held_out.acting_rows
        self.validation = self._windows(held_out, rows[:: max(1, len(rows) // 128)][:128])

    def draw(self, generator: torch.Generator) -> Batch:
        return self.augmented(self._windows(self.table, self.rows(self.table.acting_rows, generator)), generator)

    def _windows(self, table: FrameStore, rows: Tensor) -> Batch:
        return table.window(rows, context=self.context, horizon=self.horizon) | {"instruction": table.sentences(rows)}

    def val_dataloader(self) -> DataLoader:
        return whole_batches([self.validation])


class ReflectorData(TableData):
    """Frames, each with those before it that the reflector looks back on, with instruction, success and progress.

    A share of each batch are successes, which are rare in the data.

    Frames of which nobody said either are not drawn; what is unknown of the others is NaN.

    Attributes:
        successes: rows of the table that are a success.
        calibration: the episodes that calibrate: those held out, or all where none are.
        calibrates_unseen: training does not see those.

    Args:
        success_share: share of successful frames in a batch.
        max_shift: the batch is moved by up to so many pixels in each direction, for more layouts than were recorded.
        others: as `TableData`.
    """

    def __init__(
        self,
        roots: list[str],
        batch_size: int = 96,
        held_out: float = 0.1,
        success_share: float = 0.25,
        max_shift: int = 4,
        **others: Any,
    ):
        super().__init__(roots, batch_size=batch_size, held_out=held_out, **others)
        self.success_share, self.max_shift = success_share, max_shift

    @property
    def learner(self) -> Reflector:
        return self.module.reflector

    def setup(self, stage: str) -> None:
        judged = {root: Dataset(root).judged_share() for root in self.roots}
        for root, shares in judged.items():
            if not any(shares.values()):
                raise ValueError(f"nobody judged success or progress in {root}; leave it out of a reflector's data.roots")
            if partly := [f"{name} of {100 * share:.1f} %" for name, share in shares.items() if share < 1]:
                warnings.warn(
                    f"{root}: somebody judged {' and '.join(partly)} of the frames; the reflector learns from those alone",
                    stacklevel=2,
                )
        super().setup(stage)
        self.context = self.learner.context
        self.successes = (self.table.success == 1).nonzero().flatten()
        if len(self.successes) == 0:
            raise ValueError(
                f"none of the frames in {self.roots} is a success; record successful episodes for the reflector to learn from"
            )
        self.judged = is_judged(self.table).nonzero().flatten()
        held_out = self.unseen()
        self.calibration, self.calibrates_unseen = self.table if held_out is None else held_out, held_out is not None

    def draw(self, generator: torch.Generator) -> Batch:
        rows = self.enriched(self.judged, self.successes, generator)
        return self.labelled(self.clip(self.table, rows), rows, generator)

    def clip(self, table: FrameStore, rows: Tensor) -> dict[str, Tensor]:
        """What the reflector sees of each row: it and the frames before it."""
        return table.window(rows, context=self.context, horizon=0)["images"]

    def enriched(self, candidates: Tensor, successes: Tensor, generator: torch.Generator) -> Tensor:
        """`batch_size` of `candidates`, a share of them from `successes`."""
        anywhere = self.rows(candidates, generator)
        chosen = torch.rand(self.batch_size, generator=generator) < self.success_share
        return torch.where(chosen, self.rows(successes, generator), anywhere)

    def labelled(self, images: dict[str, Tensor], rows: Tensor, generator: torch.Generator) -> Batch:
        """Augmented pictures with what was recorded at `rows`."""
        batch = self.augmented({**labels(self.table, rows), "images": moved(images, self.max_shift, generator)}, generator)
        return batch | {"instruction": self.heard(batch["instruction"], generator)}

    def val_dataloader(self) -> DataLoader:
        """The episodes that calibrate, 256 frames a batch, with their numbers as ``episode``; the calibration needs them all."""
        table = self.calibration
        parts = torch.arange(len(table.success)).split(256)
        return whole_batches([{**labels(table, r), "images": self.clip(table, r), "episode": table.episode[r]} for r in parts])


class DemonstrationData(TableData):
    """Behaviour cloning: observations with the policy's chunk of actions that followed; beyond an episode's end `valid` is False.

    Args:
        max_shift: the images of a batch are moved by up to so many pixels in each direction. A shift of the scene leaves the action
            as it is, but not an absolute position: the policy must not read one (`FlowVLA.state_used`).
        others: as `TableData`.
    """

    def __init__(self, roots: list[str], batch_size: int = 128, held_out: float = 0.0, max_shift: int = 0, **others: Any):
        super().__init__(roots, batch_size=batch_size, held_out=held_out, **others)
        self.max_shift = max_shift

    @property
    def learner(self) -> Policy:
        return self.module.policy

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.action_horizon = self.learner.action_horizon

    def draw(self, generator: torch.Generator) -> Batch:
        rows = self.rows(self.table.acting_rows, generator)
        seen = {"images": self.table.pictures(rows), "state": self.table.state[rows]}
        batch = self.augmented({**seen, **self.table.actions(rows, self.action_horizon)}, generator)
        images = moved(batch["images"], self.max_shift, generator)
        sentences = self.heard(self.table.sentences(rows), generator)
        obs = Observation(images, batch["state"], sentences)
        return {"obs": obs, "action": batch["action"], "valid": batch["valid"]}


class StartData(TableData):
    """Real moments from anywhere in real episodes, with an instruction drawn at random: where dreams for learning begin.

    Args:
        first_share: share of starts at the beginning of an episode.
        pool: the starts are so many pairs of moment and instruction, drawn once; batches name them as ``start`` [b], so that a
            learner can remember how hard each is (`sampling.BetaStarts`). Null draws afresh for every batch.
        others: as `TableData`.
    """

    def __init__(self, roots: list[str], held_out: float = 0.0, first_share: float = 0.25, pool: int | None = None, **others: Any):
        super().__init__(roots, held_out=held_out, **others)
        self.first_share, self.pool = first_share, pool

    @property
    def learner(self) -> Any:
        return self.module

    def setup(self, stage: str) -> None:
        super().setup(stage)
        self.context: int = self.learner.context
        if self.pool is not None:
            self.pooled = self.moments(self.pool, torch.Generator().manual_seed(self.seed))

    def moments(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Rows of the table and numbers of instructions, [number] each."""
        candidates = self.table.acting_rows
        rows = candidates[torch.randint(len(candidates), (number,), generator=generator)]
        first = torch.rand(number, generator=generator) < self.first_share
        rows = torch.where(first, self.table.first[rows], rows)
        return rows, torch.randint(len(self.instructions), (number,), generator=generator)

    def draw(self, generator: torch.Generator) -> Batch:
        start: Batch = {}
        if self.pool is None:
            rows, wishes = self.moments(self.batch_size, generator)
        else:
            start["start"] = torch.randint(self.pool, (self.batch_size,), generator=generator)
            rows, wishes = (values[start["start"]] for values in self.pooled)
        window = self.table.window(rows, context=self.context, horizon=0)
        moment = {"images": window["images"], "state": window["state"]}
        return start | self.augmented(moment, generator) | {"instruction": tuple(self.instructions[i] for i in wishes.tolist())}


class KeyframeStarts(StartData):
    """Starts at decisive moments: where the recorded progress changes most within the next steps (WoVR, arXiv:2602.13977).

    Short dreams from there, with the critic's value for what follows, spend no time on approaching. Use a small `chunks` and, for
    branches of each keyframe, a group size above 1.

    Args:
        lookahead: control steps over which progress is compared.
        sharpness: probability of a moment is proportional to (progress change)^sharpness, plus a small constant. Where nobody
            said how far the task was, the change is taken to be 0.
        others: as `StartData`.
    """

    def __init__(self, roots: list[str], first_share: float = 0.0, lookahead: int = 8, sharpness: float = 1.0, **others: Any):
        super().__init__(roots, first_share=first_share, **others)
        self.lookahead, self.sharpness = lookahead, sharpness

    def moments(self, number: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As `StartData.moments`, decisive moments first."""
        rows = self.table.acting_rows
        ahead = torch.minimum(rows + self.lookahead, self.table.last[rows])
        change = (self.table.progress[ahead] - self.table.progress[rows]).abs()
        if change.isnan().all():
            raise ValueError(
                f"nobody recorded progress in {self.roots}, so they have no keyframes; use training.supervised.data.StartData"
            )
        change = change.nan_to_num()
        weight = change**self.sharpness + 0.01
        rows = rows[torch.multinomial(weight, number, replacement=True, generator=generator)]
        first = torch.rand(number, generator=generator) < self.first_share
        rows = torch.where(first, self.table.first[rows], rows)
        return rows, torch.randint(len(self.instructions), (number,), generator=generator)


def is_judged(table: FrameStore) -> Tensor:
    """Which rows somebody judged, success or progress, [r]."""
    return ~(table.success.isnan() & table.progress.isnan())


def labels(table: FrameStore, rows: Tensor) -> Batch:
    """Instruction, success and progress of some rows."""
    return {"instruction": table.sentences(rows), "success": table.success[rows], "progress": table.progress[rows]}


def moved(images: dict[str, Tensor], most: int, generator: torch.Generator) -> dict[str, Tensor]:
    """All pictures moved alike, by up to `most` pixels in each direction."""
    down, right = torch.randint(-most, most + 1, (2,), generator=generator).tolist()
    return {name: shift(frames, (down, right)) for name, frames in images.items()}


def whole_batches(batches: list[Batch]) -> DataLoader:
    """A loader over ready-made batches."""
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType] - a list is a dataset
