"""Post-training by analytic gradients: differentiate the return of a short dream with respect to the policy.

SHAC (Xu et al. 2022, arXiv:2204.07137) with a learned video world model and a reflector in place of a differentiable simulator.
No physics runs: dreams start from recorded frames. Read `imagine.py` for the dream and `ppo.py` for the learner that needs no
gradient of the world."""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from lightning import LightningModule
from torch import Tensor, nn

from training.algorithms.analytic import action_penalty, discounted_return, td_lambda_targets
from training.data import Batch
from training.imagine import Critic, Dream, imagine
from training.optim import decayed_adamw
from worldsim import checkpoint
from worldsim.flow import sample_ode
from worldsim.interfaces import Policy, Reflector, WorldModel


class AnalyticPostTraining(LightningModule):
    """Maximise J = sum_i gamma^i prod_j (1 - p_j) r_i + bootstrap over h-chunk dreams, with a BC anchor; ships the EMA.

    Args:
        policy: folder of the policy to improve (also the anchor).
        world_model, reflector: folders; both stay frozen.
        chunks: h, length of a dream in chunks.
        gamma: discount per chunk.
        lam: TD(lambda) of the critic's targets.
        lr: peak learning rate of the policy, decaying linearly to a tenth.
        critic_lr: learning rate of the critic.
        critic_warmup: iterations in which only the critic learns.
        critic_updates: critic updates per iteration.
        critic_rate: step of the target critic's moving average.
        anchor: weight of |a - a_BC|^2, both sampled from the same noise.
        penalty: weight of actions outside [-1, 1].
        exploration: standard deviation of the noise on the actions of half of the dreams.
        progress_weight: scale of the progress reward.
        judged: frames of a chunk that the reflector looks at.
        clip: largest gradient norm.
        ema_decay: of the shipped policy.
    """

    def __init__(
        self,
        policy: str,
        world_model: str,
        reflector: str,
        chunks: int = 2,
        gamma: float = 0.95,
        lam: float = 0.95,
        lr: float = 3e-4,
        critic_lr: float = 5e-4,
        critic_warmup: int = 15,
        critic_updates: int = 2,
        critic_rate: float = 0.05,
        anchor: float = 0.02,
        penalty: float = 0.1,
        exploration: float = 0.2,
        progress_weight: float = 2.0,
        judged: tuple[int, ...] = (1, 3),
        clip: float = 0.5,
        ema_decay: float = 0.95,
    ):
        super().__init__()
        self.automatic_optimization = False
        self.save_hyperparameters()
        self.settings: Any = self.hparams
        self.policy: Policy = checkpoint.load(policy, Policy).train()
        self.reference: Policy = checkpoint.load(policy, Policy).requires_grad_(False)
        self.world_model: WorldModel = checkpoint.load(world_model, WorldModel).requires_grad_(False)
        self.reflector: Reflector = checkpoint.load(reflector, Reflector).requires_grad_(False)
        sizes = {key: self.reflector.arguments[key] for key in ("features", "channels", "blocks")}
        self.critic = Critic(**sizes)
        self.critic.trunk.load_state_dict(self.reflector.get_submodule("trunk").state_dict())
        self.target_critic = copy.deepcopy(self.critic).requires_grad_(False)
        self.ema = EMAModel(self.policy.parameters(), decay=ema_decay)

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        h = self.settings
        policy_optimizer, critic_optimizer = self.optimizers()  # type: ignore[misc]
        generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, ())))
        self.world_model.eval(), self.reflector.eval(), self.reference.eval()
        dream = self._dream(batch, generator)
        value = self._target_values(dream, batch["instruction"])
        objective = discounted_return(dream.reward, dream.p_success, value[:, -1], gamma=h.gamma)
        gap = (dream.actions - self._reference_actions(dream)).square().mean()
        loss = -objective.mean() + h.anchor * gap + h.penalty * action_penalty(dream.actions)
        if batch_idx >= h.critic_warmup:
            policy_optimizer.zero_grad()
            self.manual_backward(loss)
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), h.clip)
            policy_optimizer.step()
            self.ema.step(self.policy.parameters())
            self.log("train/gradient_norm", norm)
        self.lr_schedulers().step()  # type: ignore[union-attr]
        critic_loss = self._fit_critic(dream, value, batch["instruction"], critic_optimizer)
        scalars = {"objective": objective.mean(), "reward": dream.reward.sum(1).mean(), "p_success": dream.p_success.amax(1).mean()}
        self.log_dict({f"train/{k}": v.detach() for k, v in scalars.items()}, prog_bar=True)
        self.log_dict({"train/anchor_gap": gap.detach(), "train/critic_loss": critic_loss, "train/value": value.mean()})

    def _dream(self, batch: Batch, generator: torch.Generator) -> Dream:
        frames, b = batch["frames"].float() / 255, len(batch["instruction"])
        noisy = (torch.arange(b, device=self.device) % 2 * self.settings.exploration)[:, None, None]
        return imagine(
            self.policy,
            self.world_model,
            self.reflector,
            self.world_model.init(frames, batch["state"]),
            frames[:, -1],
            batch["state"][:, -1],
            tuple(batch["instruction"]),  # the loader turns tuples into lists
            chunks=self.settings.chunks,
            exploration=noisy,
            progress_weight=self.settings.progress_weight,
            judged=self.settings.judged,
            generator=generator,
        )

    def _target_values(self, dream: Dream, instruction: tuple[str, ...]) -> Tensor:
        """Target critic after each chunk, [b, h]; only the last keeps its gradient, which the return needs."""
        last = self.target_critic(dream.frames[:, -1], instruction)
        if dream.frames.shape[1] == 2:
            return last[:, None]
        with torch.no_grad():
            inner = dream.frames[:, 1:-1]
            repeated = tuple(s for s in instruction for _ in range(inner.shape[1]))
            values = self.target_critic(inner.flatten(0, 1), repeated).unflatten(0, inner.shape[:2])
        return torch.cat([values, last[:, None]], dim=1)

    @torch.no_grad()
    def _reference_actions(self, dream: Dream) -> Tensor:
        actions = []
        for i, obs in enumerate(dream.obs):
            features = self.reference.encode(obs)
            velocity = self.reference.velocity
            actions.append(
                sample_ode(lambda x, t, f=features, v=velocity: v(f, x, t), dream.noise[:, i], num_steps=self.reference.num_steps)
            )
        return torch.stack(actions, dim=1)

    def _fit_critic(self, dream: Dream, value: Tensor, instruction: tuple[str, ...], optimizer: Any) -> Tensor:
        h = self.settings
        target = td_lambda_targets(dream.reward.detach(), dream.p_success.detach(), value.detach(), gamma=h.gamma, lam=h.lam)
        frames = dream.frames[:, :-1].detach()
        repeated = tuple(s for s in instruction for _ in range(frames.shape[1]))
        loss = target.new_zeros(())
        for _ in range(h.critic_updates):
            loss = F.huber_loss(self.critic(frames.flatten(0, 1), repeated), target.flatten())
            optimizer.zero_grad()
            self.manual_backward(loss)
            nn.utils.clip_grad_norm_(self.critic.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target_critic.parameters(), self.critic.parameters(), strict=True):
                slow.lerp_(fast, h.critic_rate)
        return loss.detach()

    def on_train_end(self) -> None:
        """Ship the averaged policy."""
        self.ema.copy_to(self.policy.parameters())
        checkpoint.save(self.policy, self.trainer.default_root_dir)

    def configure_optimizers(self) -> Any:
        h = self.settings
        iterations = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = decayed_adamw(self.policy.parameters(), lr=h.lr, total_steps=iterations, floor=0.1)
        return [optimizer, torch.optim.AdamW(self.critic.parameters(), lr=h.critic_lr)], [schedule]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.ema.load_state_dict(checkpoint["ema"])
