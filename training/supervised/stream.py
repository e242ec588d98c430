"""The stream of training batches of every data module, and its place in it, which a checkpoint keeps.

Read `data.py` next: what is drawn from recorded episodes.
"""

import warnings
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from training.supervised.batches import Batch, BatchStream


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


def whole_batches(batches: list[Batch]) -> DataLoader:
    """A loader over ready-made batches."""
    return DataLoader(batches, batch_size=None)  # pyright: ignore[reportArgumentType] - a list is a dataset
