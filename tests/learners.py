"""What the tests of learners share: moments to start from, and runs of a few iterations."""

from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch.utils.data import DataLoader

from training.rl.arena import DreamArena
from worldsim.core import checkpoint

SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc")


def starts(batch: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "images": {"front": torch.randint(0, 256, (batch, 2, 64, 64, 3), generator=generator, dtype=torch.uint8)},
        "state": 0.1 * torch.randn(batch, 2, 4, generator=generator),
        "instruction": tuple(SENTENCES[i % 2] for i in range(batch)),
    }


def fit(module, batch: dict, folder: Path, iterations: int, *callbacks: Callback) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=iterations,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
        callbacks=list(callbacks),
    )
    trainer.fit(module, DataLoader([{**batch, "seed": i} for i in range(iterations)], batch_size=None))
    checkpoint.save(module.policy, folder)
    return trainer


def arena(models: dict[str, Any]) -> DreamArena:
    return DreamArena(models["world_model"], models["reflector"])
