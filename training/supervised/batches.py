"""Batches, and the chance in learning from them: a pure function of (seed, number of the batch).

Read `training/supervised/data.py` next.
"""

import functools
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import numpy as np
import torch
from lightning import LightningModule
from torch.utils.data import IterableDataset, get_worker_info

Batch = dict[str, Any]


class BatchStream(IterableDataset):
    """Endless batches `draw(generator)`, each from its own generator seeded with (seed, number of the batch), and with a ``seed``.

    There is one stream, whoever draws it. Batch i goes to rank i mod `ranks`, so that together they learn from the batches that a
    single process would have seen; and within a rank every worker of a `DataLoader` draws each n-th batch, which the loader puts in
    their order again. None is drawn twice, and nothing depends on the number of workers.

    Args:
        draw: makes one batch.
        seed: of the stream.
        start: gives the number of the first batch among those of this rank, asked when that is drawn.
        rank: of this process.
        ranks: how many processes learn together.
    """

    def __init__(
        self,
        draw: Callable[[torch.Generator], Batch],
        seed: int,
        start: Callable[[], int] = lambda: 0,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.draw, self.seed, self.start, self.rank, self.ranks = draw, seed, start, rank, ranks

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for own in count(self.start() + first, step):
            seeds = np.random.SeedSequence([self.seed, 0, own * self.ranks + self.rank])  # 0: the training stream of this seed
            batch, learning = (int(word) >> 1 for word in seeds.generate_state(2, np.uint64))
            yield {**self.draw(torch.Generator().manual_seed(batch)), "seed": learning}


def seed_of(batch: Batch) -> int:
    """The seed of whatever chance a learner needs for this batch, so that learning too depends on (seed, batch number) alone.

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
