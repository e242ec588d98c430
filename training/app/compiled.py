"""Compiled dreams: `torch.compile` for the networks of a learner's world models, where that wins.

A callback rather than a default: it takes a while, once per machine and model (inductor keeps what it made), and brings little
on a CPU (docs/results/speed.md). `+trainer.callbacks.compile._target_=training.app.compiled.Compiled` switches it on.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import nn

from worldsim.core.interfaces import WorldModel

Backend = str | Callable[..., Any]


def compile_networks(model: nn.Module, device: torch.device, backend: Backend = "inductor") -> bool:
    """Have each part of a model that is a network of its own compiled when it is first called, for batches of any size; its weights
    and their names stay as they are.

    Args:
        model: a world model, for instance.
        device: where it computes.
        backend: of `torch.compile`.

    Returns:
        Whether there is a compiler; where there is none the model stays as it is.
    """
    try:
        torch.compile(torch.neg, backend=backend)(torch.zeros(1, device=device))
    except RuntimeError as error:  # what Dynamo and its backends raise where a toolchain is missing or broken
        warnings.warn(
            f"nothing is compiled on {device}, as torch.compile fails: {type(error).__name__}: {str(error).partition(chr(10))[0]}",
            stacklevel=2,
        )
        return False
    for part in model.children():
        part.compile(dynamic=True, backend=backend)
    return True


class Compiled(Callback):
    """Compiles what dreams in a learner.

    Args:
        backend: of `torch.compile`.
    """

    def __init__(self, backend: Backend = "inductor"):
        self.backend = backend

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before the first dream."""
        for part in pl_module.modules():
            if isinstance(part, WorldModel) and not compile_networks(part, pl_module.device, self.backend):
                return
