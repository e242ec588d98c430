"""Training of the instant reflector and its calibration on held-out episodes. Read `training/bc.py` next."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from lightning import LightningModule
from torch import Tensor

from reflectors.calibration import fit_platt
from reflectors.instant import InstantReflector
from training.data import Batch
from training.optim import decayed_adamw
from worldsim import checkpoint
from worldsim.files import write_json
from worldsim.metrics import auc, best_f1_threshold, expected_calibration_error
from worldsim.types import float_image


class ReflectorTraining(LightningModule):
    """Binary cross-entropy on success and a Huber loss on progress; the end of training calibrates and chooses the threshold.

    Args:
        reflector: the model.
        lr: peak learning rate of AdamW.
        progress_weight: weight of the progress loss.
        noise: standard deviation of the noise on the pixels (0..1), so that dreamed frames are not out of distribution.
        weights: folder of an exported reflector to continue from, or null.
    """

    def __init__(
        self,
        reflector: InstantReflector,
        lr: float = 1e-3,
        progress_weight: float = 20.0,
        noise: float = 0.02,
        weights: str | None = None,
    ):
        super().__init__()
        self.reflector, self.lr, self.progress_weight, self.noise = reflector, lr, progress_weight, noise
        if weights is not None:
            checkpoint.load_weights(self.reflector, weights)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        frames = float_image(batch["frames"])
        logit, progress = self.reflector.raw(frames + self.noise * torch.randn_like(frames), batch["instruction"])
        success_loss = F.binary_cross_entropy_with_logits(logit, batch["success"].float())
        progress_loss = F.huber_loss(progress, batch["progress"], delta=0.1)
        self.log_dict({"train/success_loss": success_loss, "train/progress_loss": progress_loss}, prog_bar=True)
        self.log("train/progress_error", (progress - batch["progress"]).abs().mean(), prog_bar=True)
        return success_loss + self.progress_weight * progress_loss

    def on_train_end(self) -> None:
        """Calibrate on the held-out episodes and ship the reflector with the figures."""
        self.reflector.eval()
        held_out = self.trainer.datamodule.val_dataloader()  # type: ignore[attr-defined]
        with torch.no_grad(), self.trainer.precision_plugin.forward_context():
            judged = [(*self.reflector.raw(batch["frames"].to(self.device), batch["instruction"]), batch) for batch in held_out]
        logit = torch.cat([part[0] for part in judged]).cpu()
        success = torch.cat([part[2]["success"] for part in judged])
        progress_error = torch.cat([(part[1].cpu() - part[2]["progress"]).abs() for part in judged]).mean()
        scores = {**self._calibrate(logit, success), "progress_error": float(progress_error), "held_out_frames": len(success)}
        checkpoint.save(self.reflector, self.trainer.default_root_dir)
        write_json(Path(self.trainer.default_root_dir) / "calibration.json", scores)

    def _calibrate(self, logit: Tensor, success: Tensor) -> dict[str, float]:
        """Platt scaling, then the threshold of best F1."""
        if success.all() or not success.any():
            warnings.warn(
                "the held-out episodes show no success or nothing else: the reflector stays uncalibrated, threshold 0.5",
                stacklevel=2,
            )
            return {"threshold": 0.5}
        scale, bias = fit_platt(logit, success)
        p = (scale * logit + bias).sigmoid()
        threshold, f1 = best_f1_threshold(p, success)
        self.reflector.scale.fill_(scale)
        self.reflector.bias.fill_(bias)
        self.reflector.threshold.fill_(threshold)
        return {"auc": auc(p, success), "f1": f1, "threshold": threshold, "ece": expected_calibration_error(p, success)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on the held-out episodes."""
        logit, progress = self.reflector.raw(batch["frames"], batch["instruction"])
        self.log("val/success_loss", F.binary_cross_entropy_with_logits(logit, batch["success"].float()), batch_size=len(logit))
        self.log("val/progress_error", (progress - batch["progress"]).abs().mean(), prog_bar=True, batch_size=len(logit))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.reflector.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
