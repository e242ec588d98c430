"""Batches, and the chance in learning from them: a pure function of (seed, rank, number of the batch).

Read `training/supervised/data.py` next.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch.utils.data import IterableDataset

Batch = dict[str, Any]


class BatchStream(IterableDataset):
    """Endless batches `draw(generator)`, each from its own generator seeded with (seed, number of the batch), and with a ``seed``.

    Args:
        draw: makes one batch.
        seed: with the process rank mixed in by the data module.
        start: gives the number of the first batch, asked when that is drawn.
    """

    def __init__(self, draw: Callable[[torch.Generator], Batch], seed: Sequence[int], start: Callable[[], int] = lambda: 0):
        self.draw, self.seed, self.start = draw, tuple(seed), start

    def __iter__(self) -> Iterator[Batch]:
        number = self.start()
        while True:
            batch, learning = (int(word) >> 1 for word in np.random.SeedSequence([*self.seed, number]).generate_state(2, np.uint64))
            yield {**self.draw(torch.Generator().manual_seed(batch)), "seed": learning}
            number += 1


def seed_of(batch: Batch) -> int:
    """The seed of whatever chance a learner needs for this batch, so that learning too depends on (seed, rank, batch number) alone.

    Raises:
        ValueError: if the batch has none.
    """
    if "seed" not in batch:
        raise ValueError(f"a batch needs an entry 'seed', an integer that no other batch has, got {sorted(batch)}; see BatchStream")
    return int(batch["seed"])


def generator_of(batch: Batch, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by the batch; see `seed_of`."""
    return torch.Generator(device).manual_seed(seed_of(batch))


def drawn_by_batch(training_step: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a `training_step(self, batch, ...)` whose layers are noisy while training, like dropout or `TextEncoder`.

    Such layers know torch's global generators only: these are seeded by the batch for the step and are as before after it.
    """

    @functools.wraps(training_step)
    def step(self: LightningModule, batch: Batch, *args: Any) -> Any:
        cuda = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(cuda):
            seed = seed_of(batch) ^ 1  # not the numbers of `generator_of`
            torch.default_generator.manual_seed(seed)
            if cuda:
                torch.cuda.manual_seed(seed)
            return training_step(self, batch, *args)

    return step
