"""Behaviour cloning by the loss of the policy's own family, flow matching for a flow. Read `training/rl/analytic.py` next."""

from typing import Any

from lightning import LightningModule
from torch import Tensor

from training.supervised.batches import Batch, drawn_by_batch, generator_of
from training.supervised.optim import decayed_adamw
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy


class BehaviourCloning(LightningModule):
    """What the policy's own family learns from demonstrations: flow matching, denoising, or anything else (`Policy.loss`).

    Args:
        policy: the model.
        lr: peak learning rate of AdamW.
        weights: folder of an exported policy to continue from, or null.
    """

    def __init__(self, policy: Policy, lr: float = 6e-4, weights: str | None = None):
        super().__init__()
        self.policy, self.lr, self.weights = policy, lr, weights
        if weights is not None:
            checkpoint.load_weights(policy, weights)

    def setup(self, stage: str) -> None:
        if self.weights is not None:  # which know what their numbers mean, and the data were joined with that
            return
        self.policy.fit_statistics(self.trainer.datamodule.table.spec)  # type: ignore[attr-defined]

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss, scalars = self.policy.loss(batch, generator_of(batch, self.device))
        self.log("train/loss", loss, prog_bar=True)
        self.log_dict({f"train/{name}": value for name, value in scalars.items()})
        return loss

    def on_train_end(self) -> None:
        checkpoint.save(self.policy, self.trainer.default_root_dir)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.policy.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
