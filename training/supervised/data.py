"""Lightning DataModules: each draws whole batches at random from a `FrameStore`.

Batch number i depends only on (seed, i), so a resumed run sees the batches that an uninterrupted one would have seen.
Read `training/supervised/world_model.py` next.
"""

import math
import warnings
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from training.supervised.augmentation import Augmentation
from training.supervised.batches import Batch
from training.supervised.stream import StreamData, whole_batches
from worldsim.core.checkpoint import Configured
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.sizes import check_names, check_sizes
from worldsim.core.types import Observation
from worldsim.core.views import Views
from worldsim.data.labels import Label, Outcome
from worldsim.data.store import FrameStore
from worldsim.data.windows import shift

FEW = 20  # episodes; fewer are worth a warning


class TableData(StreamData):
    """What the data modules of episodes share: the datasets, the held-out share and the stream of batches.

    Args:
        roots: LeRobot datasets to learn from.
        batch_size: rows per batch.
        held_out: share of each dataset's episodes, its last ones, that training never sees; if it is not 0, at least one of them.
        seed: of the batches.
        augmentation: what may be done to this task's episodes.
        label: who says success and progress; null: what was recorded.
        weights: share of the rows of a batch that each dataset gives; null: as much as it has.
    """

    def __init__(
        self,
        roots: list[str],
        batch_size: int = 64,
        held_out: float = 0.05,
        seed: int = 0,
        augmentation: Augmentation | None = None,
        label: Label | None = None,
        weights: list[float] | None = None,
    ):
        super().__init__(seed)
        if not 0 <= held_out < 1:
            raise ValueError(f"held_out must be in [0, 1), got {held_out}; 0.05 keeps every twentieth episode for validation")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}; set data.batch_size to the rows of a batch")
        if weights is not None and (len(weights) != len(roots) or min(weights) < 0 or not 0 < sum(weights) < math.inf):
            raise ValueError(f"data.weights is {weights}, expected a number from 0 on for each of {len(roots)} roots, one above 0")
        self.roots, self.batch_size, self.held_out, self.weights = roots, batch_size, held_out, weights
        self.augmentation, self.label = augmentation or Augmentation(), label or Outcome()

    @property
    def learner(self) -> Any:
        """What sees the frames; it says which cameras are read, and at which size."""
        raise NotImplementedError

    @property
    def views(self) -> Views:
        """Cameras that are read, and the size at which they are."""
        return self.learner.views

    def setup(self, stage: str) -> None:
        table = self.label(FrameStore.read(self.roots, self.views, held_out=self.held_out))
        self.table = self._as_learned(table)
        if (episodes := len(table.instruction)) < FEW:
            warnings.warn(f"{episodes} episodes to learn from: whether it carries beyond them, they cannot tell", stacklevel=2)
        if self.weights is not None and len(self.ends) < len(self.roots):
            raise ValueError(f"data.weights: one of {self.roots} has no episode to learn from; leave it out")
        mirror = self.augmentation.mirror
        self.mirror = None if mirror is None else mirror.ordered(table.spec, self.table.spec)
        self.instructions = sorted(set(self.table.instruction))
        if self.trainer is not None:
            check_sizes(self.trainer.lightning_module, self.table.spec)

    @property
    def ends(self) -> Tensor:
        """The row after the last one of each dataset, of those that somebody looks at."""
        return torch.tensor([len(rows) for _, rows in next(iter(self.table.images.values())).parts]).cumsum(0)

    def unseen(self) -> FrameStore | None:
        """The episodes that training never sees, each once even where a dataset counts twice; None if there are none."""
        once = list(dict.fromkeys(str(Path(root).resolve()) for root in self.roots))
        held_out = FrameStore.read_held_out(once, self.views, held_out=self.held_out)
        return None if held_out is None else self._as_learned(self.label(held_out))

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
        """Half of the rows mirrored, if the scene has that symmetry, and all in other light, if that is wanted."""
        if self.mirror is not None:
            batch = self.mirror(batch, torch.rand(self.batch_size, generator=generator) < 0.5)
        if self.augmentation.colour is not None:
            batch = batch | {"images": self.augmentation.colour(batch["images"], generator)}
        return batch

    def heard(self, sentences: tuple[str, ...], generator: torch.Generator) -> tuple[str, ...]:
        """Each in one of its wordings, if the task has some."""
        paraphrases = self.augmentation.paraphrases
        return sentences if paraphrases is None else paraphrases(sentences, generator)

    def rows(self, candidates: Tensor, generator: torch.Generator, number: int | None = None) -> Tensor:
        """`batch_size` rows, or so many, of `candidates`, which rise: uniformly, or so many from each dataset as it weighs."""
        b = self.batch_size if number is None else number
        if self.weights is None:
            return candidates[torch.randint(len(candidates), (b,), generator=generator)]
        end = torch.searchsorted(candidates, self.ends)
        there = end.diff(prepend=end.new_zeros(1))
        weights = torch.tensor(self.weights, dtype=torch.float64) * (there > 0)
        root = torch.multinomial(weights if weights.any() else there.double(), b, replacement=True, generator=generator)
        return candidates[end[root] - there[root] + (torch.rand(b, generator=generator) * there[root]).long()]


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
        super().setup(stage)
        self._check_judged()
        self.context = self.learner.context
        self.successes = (self.table.success == 1).nonzero().flatten()
        if len(self.successes) == 0:
            found = f"none of the frames in {self.roots} is a success"
            if self.table.progress.isnan().all():
                raise ValueError(
                    f"{found}; record successful episodes for the reflector to learn from, or let label=time_to_go take the ends "
                    "of demonstrations for such"
                )
            warnings.warn(f"{found}: the reflector learns progress alone, and dreams do not end in success", stacklevel=2)
        self.judged = is_judged(self.table).nonzero().flatten()
        held_out = self.unseen()
        self.calibration, self.calibrates_unseen = self.table if held_out is None else held_out, held_out is not None

    def _check_judged(self) -> None:
        """ValueError if there is a dataset of which nobody says success or progress; a warning if only of parts."""
        for start, end in pairwise([0, *self.ends.tolist()]):
            own, (root, _) = slice(start, end), self.table.origin[int(self.table.episode[start])]
            known = {name: float((~getattr(self.table, name)[own].isnan()).float().mean()) for name in ("success", "progress")}
            if not any(known.values()):
                raise ValueError(
                    f"nobody judged success or progress in {root}; leave it out of a reflector's data.roots, or say who does: "
                    "label=demo_end|time_to_go|human"
                )
            if partly := [f"{name} of {100 * share:.1f} %" for name, share in known.items() if share < 1]:
                warnings.warn(
                    f"{root}: somebody judged {' and '.join(partly)} of the frames; the reflector learns from those alone",
                    stacklevel=3,
                )

    def draw(self, generator: torch.Generator) -> Batch:
        rows = self.enriched(self.judged, self.successes, generator)
        return self.labelled(self.clip(self.table, rows), rows, generator)

    def clip(self, table: FrameStore, rows: Tensor) -> dict[str, Tensor]:
        """What the reflector sees of each row: it and the frames before it."""
        return table.window(rows, context=self.context, horizon=0)["images"]

    def enriched(self, candidates: Tensor, successes: Tensor, generator: torch.Generator) -> Tensor:
        """`batch_size` of `candidates`, a share of them from `successes`, if there are some."""
        anywhere = self.rows(candidates, generator)
        if len(successes) == 0:
            return anywhere
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
        rows = self.rows(candidates, generator, number)
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
        if self.weights is not None:
            root = torch.searchsorted(self.ends, rows, right=True)
            weight = weight * torch.tensor(self.weights)[root] / root.bincount(minlength=len(self.ends))[root]
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
