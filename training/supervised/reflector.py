"""Training of a reflector that has a logit (`Reflector.raw`), and its calibration: fitted on held-out episodes, reported on others.

What nobody judged (NaN) teaches nothing and counts nowhere. Read `training/supervised/bc.py` next."""

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from lightning import LightningModule
from torch import Tensor

from reflectors.calibration import calibration_half, fit_platt
from training.supervised.batches import Batch, drawn_by_batch, generator_of
from training.supervised.data import ReflectorData
from training.supervised.optim import decayed_adamw
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Reflector
from worldsim.core.types import float_image
from worldsim.measure.metrics import auc, best_f1_threshold, expected_calibration_error, f1_score


class ReflectorTraining(LightningModule):
    """Binary cross-entropy on success and a Huber loss on progress; the end of training calibrates and chooses the threshold.

    `calibration.json` says how many episodes and judged frames chose scale, bias and threshold (``calibration_episodes``,
    ``calibration_frames``) and on how many others the figures are (``report_episodes``, ``report_frames``): auc, f1 at that
    threshold, ece and progress_error. With fewer than two held-out episodes everything calibrates and there are no figures.

    Args:
        reflector: the model, with `raw`, and buffers `scale`, `bias` and `threshold`.
        lr: peak learning rate of AdamW.
        progress_weight: weight of the progress loss.
        noise: standard deviation of the noise on the pixels (0..1), so that dreamed frames are not out of distribution.
        weights: folder of an exported reflector to continue from, or null.
    """

    def __init__(
        self,
        reflector: Reflector,
        lr: float = 1e-3,
        progress_weight: float = 20.0,
        noise: float = 0.02,
        weights: str | None = None,
    ):
        super().__init__()
        self.reflector, self.lr, self.progress_weight, self.noise = reflector, lr, progress_weight, noise
        if weights is not None:
            checkpoint.load_weights(self.reflector, weights)

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        generator, images = generator_of(batch, self.device), {}
        for name, frames in batch["images"].items():
            noise = torch.randn(frames.shape, generator=generator, device=self.device)
            images[name] = float_image(frames) + self.noise * noise
        logit, progress = self.reflector.raw(images, batch["instruction"])
        judged, measured = ~batch["success"].isnan(), ~batch["progress"].isnan()
        success_loss = progress_loss = progress_error = 0.0 * (logit + progress).sum()  # what a batch without labels teaches
        if judged.any():
            success_loss = F.binary_cross_entropy_with_logits(logit[judged], batch["success"][judged])
        if measured.any():
            progress_loss = F.huber_loss(progress[measured], batch["progress"][measured], delta=0.1)
            progress_error = (progress - batch["progress"])[measured].abs().mean()
        self.log_dict({"train/success_loss": success_loss, "train/progress_loss": progress_loss}, prog_bar=True)
        self.log("train/progress_error", progress_error, prog_bar=True)
        return success_loss + self.progress_weight * progress_loss

    def on_train_end(self) -> None:
        """Calibrate on one half of the held-out episodes, measure on the other, and ship the reflector with the figures."""
        self.reflector.eval()
        data: ReflectorData = self.trainer.datamodule  # type: ignore[attr-defined]
        held_out = list(data.val_dataloader())
        with torch.no_grad():  # in single precision, as evaluations are
            judged = [
                self.reflector.raw({n: f.to(self.device) for n, f in batch["images"].items()}, batch["instruction"])
                for batch in held_out
            ]
        logit, progress = (torch.cat(parts).cpu() for parts in zip(*judged, strict=True))
        success, truth, episode = (torch.cat([batch[name] for batch in held_out]) for name in ("success", "progress", "episode"))
        fitted = calibration_half(episode, success)
        if not data.calibrates_unseen or fitted.all():
            warnings.warn(
                "fewer than two held-out episodes: the reflector is calibrated on what there is, and calibration.json has no "
                "figures, which would be of frames that something was fitted to; record more episodes, or raise +data.held_out=...",
                stacklevel=2,
            )
            fitted = torch.ones_like(fitted)
        known = ~success.isnan()
        scores: dict[str, float] = {"threshold": self._calibrate(logit[fitted & known], success[fitted & known] == 1)}
        if not fitted.all():
            scores |= self._figures(logit[~fitted & known], success[~fitted & known] == 1)
            errors = (progress - truth)[~fitted & ~truth.isnan()].abs()
            scores |= {"progress_error": float(errors.mean())} if len(errors) else {}
        for name, half in (("calibration", fitted), ("report", ~fitted)):
            scores |= {f"{name}_episodes": len(episode[half].unique()), f"{name}_frames": int((half & known).sum())}
        checkpoint.save(self.reflector, self.trainer.default_root_dir)
        write_json(Path(self.trainer.default_root_dir) / "calibration.json", scores)

    def _calibrate(self, logit: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> float:
        """Platt scaling, then the threshold of best F1."""
        if success.all() or not success.any():
            warnings.warn(
                "the episodes that calibrate show no success or nothing else: the reflector stays uncalibrated, threshold 0.5",
                stacklevel=2,
            )
            return 0.5
        scale, bias = fit_platt(logit, success)
        threshold, _ = best_f1_threshold((scale * logit + bias).sigmoid(), success)
        self.reflector.scale.fill_(scale)
        self.reflector.bias.fill_(bias)
        self.reflector.threshold.fill_(threshold)
        return threshold

    def _figures(self, logit: Float[Tensor, " n"], success: Bool[Tensor, " n"]) -> dict[str, float]:
        """What frames that calibrated nothing say of the calibrated reflector."""
        if success.all() or not success.any():
            warnings.warn(
                "the held-out episodes that did not calibrate show no success or nothing else: calibration.json has neither auc, "
                "f1 nor ece; record more episodes, or raise +data.held_out=...",
                stacklevel=2,
            )
            return {}
        p, threshold = (self.reflector.scale.cpu() * logit + self.reflector.bias.cpu()).sigmoid(), float(self.reflector.threshold)
        return {"auc": auc(p, success), "f1": f1_score(p, success, threshold), "ece": expected_calibration_error(p, success)}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on the held-out episodes."""
        logit, progress = self.reflector.raw(batch["images"], batch["instruction"])
        judged, measured = ~batch["success"].isnan(), ~batch["progress"].isnan()
        if judged.any():
            loss = F.binary_cross_entropy_with_logits(logit[judged], batch["success"][judged])
            self.log("val/success_loss", loss, batch_size=int(judged.sum()))
        if measured.any():
            error = (progress - batch["progress"])[measured].abs().mean()
            self.log("val/progress_error", error, prog_bar=True, batch_size=int(measured.sum()))

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.reflector.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
