"""Behaviour cloning by flow matching, or by the loss of the policy's own family. Read `training/rl/analytic.py` next."""

from typing import Any

from lightning import LightningModule
from torch import Tensor

from training.supervised.batches import Batch, drawn_by_batch, generator_of
from training.supervised.optim import decayed_adamw
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.sizes import check_names


class BehaviourCloning(LightningModule):
    """Flow matching (or denoising) on the demonstrations' action chunks.

    Args:
        policy: the model.
        lr: peak learning rate of AdamW.
        repeats: noise samples per observation; the visual trunk runs once for all of them.
        weights: folder of an exported policy to continue from, or null.
    """

    def __init__(self, policy: Policy, lr: float = 6e-4, repeats: int = 4, weights: str | None = None):
        super().__init__()
        self.policy, self.lr, self.repeats, self.weights = policy, lr, repeats, weights

    def setup(self, stage: str) -> None:
        if self.weights is not None:
            checkpoint.load_weights(self.policy, self.weights)
            check_names(self.policy, self.trainer.datamodule.table.spec, "the data")  # type: ignore[attr-defined]
            return
        self.policy.fit_statistics(self.trainer.datamodule.table.spec)  # type: ignore[attr-defined]

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        features = self.policy.encode(batch["obs"]).repeat(self.repeats, 1)
        action = batch["action"].repeat(self.repeats, 1, 1)
        mask = batch["valid"].repeat(self.repeats, 1)[..., None]
        loss = self.policy.cloning_loss(features, action, mask, generator_of(batch, self.device))
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def on_train_end(self) -> None:
        checkpoint.save(self.policy, self.trainer.default_root_dir)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.policy.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
