"""Data for a judge of dreams: frames that a world model dreamed along recorded actions, with what physics recorded at that moment.

A reflector that has seen real frames only takes a near miss in a blurred dream for a hit. One that also learned from such frames
says how much a dreamed success is worth. Read `judges.py` next."""

from contextlib import nullcontext

import torch
from jaxtyping import Int, UInt8
from torch import Tensor
from torch.utils.data import DataLoader

from training.data import Batch, ReflectorData, labels, whole_batches
from worldsim import checkpoint
from worldsim.data.windows import FrameTable, Mirror
from worldsim.interfaces import WorldModel
from worldsim.sim.scene import Paraphrases


class DreamedReflectorData(ReflectorData):
    """As `ReflectorData`, but a share of each batch, and all held-out frames, are dreamed open loop along recorded actions.

    Args:
        world_model: folder of an exported world model.
        dreams: how many, drawn once; an eighth as many for the held-out episodes.
        chunks: length of a dream in calls of the world model, at most to the end of the recorded episode.
        first_share: share of dreams that start with an episode; the others start anywhere in it.
        dreamed_share: share of dreamed frames in a batch.
        others: as `ReflectorData`.
    """

    def __init__(
        self,
        roots: list[str],
        world_model: str,
        camera: str = "front",
        batch_size: int = 96,
        held_out: float = 0.1,
        seed: int = 0,
        mirror: Mirror | None = None,
        success_share: float = 0.25,
        max_shift: int = 4,
        paraphrases: Paraphrases | None = None,
        dreams: int = 1500,
        chunks: int = 10,
        first_share: float = 0.3,
        dreamed_share: float = 0.5,
    ):
        super().__init__(roots, camera, batch_size, held_out, seed, mirror, success_share, max_shift, paraphrases)
        if dreams < 8 or chunks < 1:
            raise ValueError(f"a judge needs dreams >= 8 and chunks >= 1, got {dreams} and {chunks}; 1500 and 10 are usual")
        self.world_model, self.dreams, self.chunks = world_model, dreams, chunks
        self.first_share, self.dreamed_share = first_share, dreamed_share

    def setup(self, stage: str) -> None:
        super().setup(stage)
        model, generator = checkpoint.load(self.world_model, WorldModel).eval(), torch.Generator().manual_seed(self.seed)
        with self.trainer.precision_plugin.forward_context() if self.trainer else nullcontext():
            self.dreamed, self.moments = self._dream(model, self.table, self.dreams, generator)
            self.held_out_dreamed, self.held_out_moments = self._dream(model, self.calibration, self.dreams // 8, generator)
        self.dreamed_successes = self.table.success[self.moments].nonzero().flatten()
        if len(self.dreamed_successes) == 0:
            raise ValueError(f"no dream along {self.roots} passes a recorded success; raise data.dreams={self.dreams}")

    def draw(self, generator: torch.Generator) -> Batch:
        real = super().draw(generator)
        index = self.enriched(len(self.moments), self.dreamed_successes, generator)
        dreamed = self.labelled(self.dreamed[index], self.moments[index], generator)
        which = torch.rand(self.batch_size, generator=generator) < self.dreamed_share
        sentences = zip(which.tolist(), dreamed["instruction"], real["instruction"], strict=True)
        merged = {
            name: torch.where(which.reshape(-1, *[1] * (real[name].ndim - 1)), dreamed[name], real[name])
            for name in ("frames", "success", "progress")
        }
        return merged | {"instruction": tuple(imagined if chosen else seen for chosen, imagined, seen in sentences)}

    def val_dataloader(self) -> DataLoader:
        """Dreams along the held-out episodes, 256 frames a batch."""
        parts = zip(self.held_out_dreamed.split(256), self.held_out_moments.split(256), strict=True)
        return whole_batches([{**labels(self.calibration, rows), "frames": frames} for frames, rows in parts])

    @torch.no_grad()
    def _dream(
        self, model: WorldModel, table: FrameTable, number: int, generator: torch.Generator
    ) -> tuple[UInt8[Tensor, "n h w 3"], Int[Tensor, " n"]]:
        """Frames of `number` dreams, and the row of the table that each of them foretells."""
        candidates, horizon = table.acting_rows, model.action_horizon
        rows = candidates[torch.randint(len(candidates), (number,), generator=generator)]
        rows = torch.where(torch.rand(number, generator=generator) < self.first_share, table.first[rows], rows)
        frames, moments = [], []
        for part in rows.split(self.batch_size):
            window = table.window(part, context=model.context, horizon=self.chunks * horizon)
            state = model.init(window["frames"][:, : model.context], window["state"][:, : model.context])
            for first in range(0, self.chunks * horizon, horizon):
                span = slice(first, first + horizon)
                valid = window["valid"][:, span]
                if not valid.any():
                    break
                state, predicted, _ = model.step(state, window["action"][:, span], model.noise(len(part), generator))
                frames.append((255 * predicted.float().clamp(0, 1)).round().byte()[valid])
                moments.append((part[:, None] + first + torch.arange(1, horizon + 1))[valid])
        return torch.cat(frames), torch.cat(moments)
