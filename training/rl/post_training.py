"""What every post-training learner is: a policy that improves, its frozen starting point, and a moving average that is shipped.

`analytic.py` differentiates through dreams, `rollout_learner.py` learns from rollouts; `training/guards/guard.py` watches both.
"""

import copy
import warnings
from dataclasses import replace
from typing import Any, TypeVar

import torch
from diffusers.training_utils import EMAModel
from lightning import LightningModule
from torch import Tensor, nn

from training.rl.foresight import Foretold, check_memory
from training.supervised.batches import Batch
from worldsim.core.interfaces import FlowPolicy, Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Observation
from worldsim.core.views import Views

N = TypeVar("N", bound=nn.Module)


def frozen(model: N) -> N:
    """`model` itself, in evaluation mode and without gradients for its parameters."""
    return model.requires_grad_(False).eval()


class PostTraining(LightningModule):
    """Base of the learners.

    Args:
        policy: where it starts from, and the reference; a copy learns.
        ema_decay: of the average that is shipped; 0 ships the last iterate.

    Attributes:
        views: cameras whose frames a dream starts from, asked by `StartData`.
        context: so many of them.
    """

    views: Views = {}
    context: int = 1

    def __init__(self, policy: Policy, ema_decay: float):
        if not isinstance(policy, FlowPolicy):
            raise ValueError(
                f"{type(self).__name__} changes how a flow is sampled, {type(policy).__name__} is no FlowPolicy; "
                "record what it does (worldsim collect actor=policy) and clone that with experiment=policy"
            )
        super().__init__()
        self.automatic_optimization = False
        self.policy = copy.deepcopy(policy).eval()
        self.reference = frozen(copy.deepcopy(policy))
        self.ema = EMAModel(self.policy.parameters(), decay=ema_decay, foreach=True)
        self.told: dict[str, Tensor] = {}
        self._foreseen = False

    @property
    def iteration(self) -> int:
        """Iterations begun, this one included, over all epochs and those before a resumption: what a warm-up counts."""
        return self.trainer.fit_loop.epoch_loop.batch_progress.total.ready

    def tell(self, metrics: dict[str, Tensor], **options: Any) -> None:
        """Log scalars of this iteration, as "train/<name>"; `told` holds them until the next one for guards to look at."""
        named = {f"train/{name}": value.detach() for name, value in metrics.items()}
        self.told |= named
        self.log_dict(named, **options)

    def log_spread(self, obs: Observation, noise: Noise) -> None:
        """Log how far apart the shipped sampler's actions lie under two draws of noise, root of the mean square, at most 16 rows.

        It is what is left of a policy's chance, whatever the chain that explores.
        """
        rows = slice(min(16, len(noise)))
        with torch.no_grad():
            features = self.policy.encode(obs[rows])
            shape = (self.policy.action_horizon, self.policy.action_dim)
            starts = (replace(noise[rows], stream=stream).normal("policy", *shape) for stream in (1, 2))
            one, other = (self.policy.sample(features, start) for start in starts)
        self.tell({"action_spread": (one - other).square().mean().sqrt()})

    @property
    def warmup(self) -> int:
        """Iterations at the beginning of a run in which the policy does not learn yet."""
        return 0

    def on_fit_start(self) -> None:
        """The average lives where the policy does; a run that ends before the policy learns says so."""
        self.ema.to(self.device)
        if (planned := self.trainer.estimated_stepping_batches) <= self.warmup:
            warnings.warn(
                f"only the critic will learn: the policy waits for {self.warmup} iterations, and {planned} are planned; raise "
                "trainer.limit_train_batches, or lower +model.critic_warmup=... (analytic) or model.advantage.warmup=...",
                stacklevel=2,
            )

    def foresee(self, batch: Batch) -> Foretold | None:
        """What an iteration from starts like these will take; None where nobody knows. For it a few of them are played and learned
        from, without a step."""
        return None

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Before the first iteration, and the first after a resumption: is there memory for it?

        Raises:
            ValueError: if there is not.
        """
        if self._foreseen:
            return
        self._foreseen = True
        devices = [self.device] if self.device.type == "cuda" else []
        training = {module: module.training for module in self.modules()}
        with self.trainer.precision_plugin.train_step_context(), torch.random.fork_rng(devices):
            self.eval()  # as a rollout is played; a dropout of training would only change what is dropped
            foretold = self.foresee(batch)
        for module, was in training.items():
            module.training = was
        if foretold is not None:
            check_memory(foretold, len(batch["instruction"]), self.device)

    def shipped(self) -> dict[str, Tensor]:
        """Weights of the policy that would be shipped now: the moving average, detached copies."""
        self.ema.store(self.policy.parameters())
        self.ema.copy_to(self.policy.parameters())
        weights = {name: value.detach().clone() for name, value in self.policy.state_dict().items()}
        self.ema.restore(self.policy.parameters())
        return weights

    def roll_back(self, weights: dict[str, Tensor]) -> None:
        """Go back to weights that `shipped` gave, average and optimiser memory included."""
        self.policy.load_state_dict(weights)
        with torch.no_grad():
            for shadow, parameter in zip(self.ema.shadow_params, self.policy.parameters(), strict=True):
                shadow.copy_(parameter)
        for optimizer in self.trainer.optimizers:
            optimizer.state.clear()

    def on_train_end(self) -> None:
        """The averaged policy is what comes out; `worldsim fit` leaves it in the run's folder."""
        self.policy.load_state_dict(self.shipped())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
