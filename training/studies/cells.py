"""What studies of many cells share: stages that are skipped when they are done, a pace, gains paired by start, means over seeds.

A cell is a plain `worldsim fit` command with some overrides; `algorithms.py` compares learners, `world_models.py` worlds."""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import json
import time
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from training.app.stages import Stage, execute
from worldsim.core.files import write_json
from worldsim.measure.metrics import seeds_interval


class Pace(Callback):
    """Writes iterations and seconds of a run, or of what a resumed one still had to do, to `<default_root_dir>/pace.json`; the
    first iteration, which compiles kernels and fills caches, costs no seconds."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Look at the clock."""
        self.ends_s.append(time.monotonic())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        pace = {"iterations": len(self.ends_s), "seconds": self.ends_s[-1] - self.ends_s[0] if self.ends_s else 0.0}
        write_json(Path(trainer.default_root_dir) / "pace.json", pace)


def fitting(folder: Path, seconds: float) -> int:
    """How many iterations fit into so many seconds, by the pace of a calibration.

    Raises:
        ValueError: if it made fewer than two.
    """
    pace = json.loads((folder / "pace.json").read_text())
    if pace["iterations"] < 2:
        raise ValueError(f"{folder.name} made {pace['iterations']} iteration while it was timed; raise calibration_seconds")
    return round(seconds * (pace["iterations"] - 1) / pace["seconds"])


def run_stages(todo: list[Stage], out: Path, jobs: int) -> None:
    """Execute them, and say which is done."""
    began = time.monotonic()
    for number, name in enumerate(execute(todo, out, jobs=jobs), start=1):
        print(f"  {number}/{len(todo)} {name} done, {time.monotonic() - began:.0f} s", flush=True)


def mean_over_seeds(per_seed: list[float], of_one: list[float]) -> dict[str, Any]:
    """Mean over seeds, with an interval that counts seeds as what was drawn; of a single seed its own, over its starts."""
    interval = list(seeds_interval(per_seed)) if len(per_seed) > 1 else of_one
    return {"mean": sum(per_seed) / len(per_seed), "ci95": interval}


def gain_text(gain: dict[str, Any]) -> str:
    """A gain in points with its interval."""
    return f"{gain['points']:+.1f} [{gain['ci95'][0]:+.1f}, {gain['ci95'][1]:+.1f}]"


def outcomes_of(entry: dict[str, Any]) -> Tensor:
    """Success by start of a policy in an evaluation."""
    return torch.tensor([letter == "1" for letter in entry["outcomes"]])
