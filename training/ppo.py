"""Post-training by policy gradients in a `DreamWorld`: Flow-SDE chains with PPO, or with group-relative advantages (GRPO).

They need no gradient of the world, so they also work where a reflector or a simulator is not differentiable. Read
`algorithms/flow_sde.py` for the chains and `algorithms/losses.py` for the clipped loss."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn

from training.algorithms.advantages import gae, grpo, normalize
from training.algorithms.flow_sde import chain_logprob
from training.algorithms.losses import ppo_clip, value_huber
from training.data import Batch
from training.imagine import Critic
from training.optim import decayed_adamw
from training.rollout import collect_rollout
from worldsim import checkpoint
from worldsim.dream import DreamWorld, Starts
from worldsim.interfaces import Policy, Reflector, WorldModel
from worldsim.types import Observation, Rollout


class ClippedPostTraining(LightningModule, ABC):
    """Rollouts in imagination, then epochs of clipped policy updates on them. Subclasses choose the advantage.

    One batch of `StartData` gives the starts of one iteration; each is dreamed `group_size` times.

    Args:
        policy, world_model, reflector: folders of exported models.
        group_size: n, dreams per start.
        chunks: decisions per dream.
        noise_level: a of Flow-SDE.
        gamma, lam: discount per decision, and lambda of GAE.
        epochs: passes over a rollout.
        minibatch: decisions per update.
        lr, critic_lr: peak learning rates.
        warmup: iterations in which only the critic learns.
        anchor: weight of the squared distance to the starting policy's velocity.
        clip: largest gradient norm.
    """

    def __init__(
        self,
        policy: str,
        world_model: str,
        reflector: str,
        group_size: int = 1,
        chunks: int = 8,
        noise_level: float = 0.5,
        gamma: float = 0.95,
        lam: float = 0.95,
        epochs: int = 2,
        minibatch: int = 256,
        lr: float = 2e-4,
        critic_lr: float = 5e-4,
        warmup: int = 2,
        anchor: float = 0.02,
        clip: float = 0.5,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.policy: Policy = checkpoint.load(policy, Policy)
        self.reference: Policy = checkpoint.load(policy, Policy).requires_grad_(False)
        self.world_model: WorldModel = checkpoint.load(world_model, WorldModel).requires_grad_(False)
        self.reflector: Reflector = checkpoint.load(reflector, Reflector).requires_grad_(False)
        self.critic = Critic(**{key: self.reflector.arguments[key] for key in ("features", "channels", "blocks")})
        self.critic.trunk.load_state_dict(self.reflector.get_submodule("trunk").state_dict())

    @abstractmethod
    def advantage(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Advantage and the critic's target of every decision, [b, t] each."""

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        h = self.settings
        # Dropout-free evaluation mode throughout: the log-probability of an unchanged policy must not change.
        self.eval()
        generator = torch.Generator().manual_seed(int(torch.randint(2**62, ())))
        rollout = self._imagine(batch, generator)
        advantage, target = self.advantage(rollout)
        advantage = normalize(advantage, rollout.valid)
        totals: dict[str, list[Tensor]] = {}
        for rows in self._minibatches(rollout.valid, generator):
            for name, value in self._update(rollout, rows, advantage, target, learn_policy=batch_idx >= h.warmup).items():
                totals.setdefault(name, []).append(value.detach())
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.log_dict({f"train/{name}": torch.stack(values).mean() for name, values in totals.items()})
        scalars = {
            "return": (rollout.reward * rollout.valid).sum(1).mean(),
            "imagined_success": rollout.terminated.any(1).float().mean(),
            "usable_fraction": (advantage.abs() > 1e-6).float().mean(),
        }
        self.log_dict({f"train/{name}": value for name, value in scalars.items()}, prog_bar=True)

    def _imagine(self, batch: Batch, generator: torch.Generator) -> Rollout:
        n = len(batch["instruction"])
        h = self.settings
        starts = Starts(batch["frames"], batch["state"], tuple(batch["instruction"]))  # the loader turns tuples into lists
        world = DreamWorld(self.world_model, self.reflector, starts, num_envs=n * h.group_size)
        which = torch.arange(n).repeat_interleave(h.group_size)
        obs, _ = world.reset(seed=int(torch.randint(2**31, (), generator=generator)), options={"start": which})
        return collect_rollout(
            self.policy, self.critic, world, obs, chunks=h.chunks, noise_level=h.noise_level, group=which, generator=generator
        )

    def _minibatches(self, valid: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        rows, columns = valid.nonzero(as_tuple=True)
        for _ in range(self.settings.epochs):
            order = torch.randperm(len(rows), generator=generator)
            for part in order.split(self.settings.minibatch):
                yield rows[part], columns[part]

    def _update(
        self, rollout: Rollout, rows: tuple[Tensor, Tensor], advantage: Tensor, target: Tensor, *, learn_policy: bool
    ) -> dict[str, Tensor]:
        h = self.settings
        policy_optimizer, critic_optimizer = self.optimizers()  # type: ignore[misc]
        frames, state, chain = rollout.images[rows], rollout.state[rows], rollout.chain[rows]
        sentences = tuple(rollout.instruction[i] for i in rows[0].tolist())
        value = self.critic(frames, sentences)
        mask = torch.ones_like(value, dtype=torch.bool)
        critic_loss = value_huber(value, target[rows], rollout.value[rows], mask=mask)
        critic_optimizer.zero_grad()
        self.manual_backward(critic_loss)
        nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
        critic_optimizer.step()
        if not learn_policy:
            return {"critic_loss": critic_loss}

        obs = Observation({self.world_model.camera: frames}, state, sentences)
        features = self.policy.encode(obs)
        logprob = chain_logprob(lambda x, t: self.policy.velocity(features, x, t), chain, noise_level=h.noise_level)
        # Every denoising transition carries the decision's advantage (two-layer MDP, arXiv:2510.25889).
        repeated = advantage[rows][:, None].expand_as(logprob)
        loss, metrics = ppo_clip(logprob, rollout.logprob[rows], repeated, mask=torch.ones_like(logprob, dtype=torch.bool))
        with torch.no_grad():
            reference = self.reference.encode(obs)
        noise, t = chain[:, 0], torch.ones(len(chain))
        gap = (self.policy.velocity(features, noise, t) - self.reference.velocity(reference, noise, t)).square().mean()
        policy_optimizer.zero_grad()
        self.manual_backward(loss + h.anchor * gap)
        nn.utils.clip_grad_norm_(self.policy.parameters(), h.clip)
        policy_optimizer.step()
        return {"critic_loss": critic_loss, "policy_loss": loss, "anchor_gap": gap, **metrics}

    def on_train_end(self) -> None:
        checkpoint.save(self.policy, self.trainer.default_root_dir)

    def configure_optimizers(self) -> Any:
        h = self.settings
        optimizer, schedule = decayed_adamw(
            self.policy.parameters(), lr=h.lr, total_steps=int(self.trainer.estimated_stepping_batches), floor=0.1
        )
        return [optimizer, torch.optim.AdamW(self.critic.parameters(), lr=h.critic_lr)], [schedule]


class PPOPostTraining(ClippedPostTraining):
    """PPO with a critic and GAE (pi_RL, arXiv:2510.25889)."""

    def advantage(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return gae(
            rollout.reward,
            rollout.value,
            rollout.final_value,
            terminated=rollout.terminated,
            valid=rollout.valid,
            gamma=self.settings.gamma,
            lam=self.settings.lam,
        )


class GRPOPostTraining(ClippedPostTraining):
    """Group-relative advantages: each dream against the others from its start (arXiv:2402.03300); `group_size` >= 2."""

    def advantage(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        returns = (rollout.reward * rollout.valid).sum(1).unflatten(0, (-1, self.settings.group_size))
        advantage = grpo(returns).flatten()[:, None].expand_as(rollout.reward)
        return advantage * rollout.valid, rollout.reward
