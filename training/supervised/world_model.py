"""Training of a world model on recorded windows: `worldsim fit experiment=world_model`. Read `training/supervised/reflector.py`
next."""

from typing import Any

import torch
from diffusers.training_utils import EMAModel
from lightning import LightningModule
from torch import Tensor

from training.supervised.batches import Batch, drawn_by_batch, generator_of
from training.supervised.optim import decayed_adamw
from worldsim.core import checkpoint
from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.measure.metrics import psnr


class WorldModelTraining(LightningModule):
    """Fits codec and statistics once, then minimises `WorldModel.loss`; exports the exponential moving average.

    Args:
        world_model: the model.
        lr: peak learning rate of AdamW.
        ema_decay: of the exported weights.
        weights: folder of an exported world model to continue from, or null.
    """

    def __init__(self, world_model: WorldModel, lr: float = 1e-3, ema_decay: float = 0.99, weights: str | None = None):
        super().__init__()
        self.world_model, self.lr, self.ema_decay, self.weights = world_model, lr, ema_decay, weights
        self.ema: EMAModel | None = None
        if weights is not None:
            checkpoint.load_weights(world_model, weights)

    def setup(self, stage: str) -> None:
        if self.weights is None:  # weights know what their numbers mean, and the data were joined with that
            table = self.trainer.datamodule.table  # type: ignore[attr-defined]
            rows = torch.arange(len(table.state))[:: max(1, len(table.state) // 512)]
            self.world_model.fit_statistics(table.pictures(rows), table.spec)

    def on_fit_start(self) -> None:
        if self.ema is None:
            self.ema = EMAModel(self.world_model.parameters(), decay=self.ema_decay, foreach=True)

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, scalars = self.world_model.loss(batch, generator_of(batch, self.device))
        self.log_dict({f"train/{name}": value for name, value in scalars.items()}, prog_bar=True)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        assert self.ema is not None
        self.ema.step(self.world_model.parameters())

    def on_train_end(self) -> None:
        """Ship the averaged weights."""
        assert self.ema is not None
        self.ema.copy_to(self.world_model.parameters())
        checkpoint.save(self.world_model, self.trainer.default_root_dir)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """PSNR of an open-loop dream over the held-out windows, the mean of all cameras."""
        model, horizon = self.world_model, self.world_model.action_horizon
        noise = Noise.rows(0, len(batch["action"]), self.device)
        first = {name: frames[:, : model.context] for name, frames in batch["images"].items()}
        state = model.init(first, batch["state"][:, : model.context], batch["instruction"])
        for chunk in range(batch["action"].shape[1] // horizon):
            span = slice(chunk * horizon, (chunk + 1) * horizon)
            state, images, _ = model.step(state, batch["action"][:, span], noise.at(chunk * horizon))
            real = {name: frames[:, model.context :][:, span][:, -1] for name, frames in batch["images"].items()}
            scores = [psnr(frames[:, -1].float().clamp(0, 1), real[name]) for name, frames in images.items()]
            score = torch.stack(scores).mean(0)[batch["valid"][:, span][:, -1]].mean()
            self.log(f"val/psnr_at_{(chunk + 1) * horizon}", score, prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.world_model.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        assert self.ema is not None
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema = EMAModel(self.world_model.parameters(), decay=self.ema_decay, foreach=True)
        self.ema.load_state_dict(checkpoint["ema"])
