"""Post-training by analytic gradients: differentiate the return of a short dream with respect to the policy.

SHAC (Xu et al. 2022, arXiv:2204.07137) with a learned video world model and a reflector in place of a differentiable simulator.
No physics runs: dreams start from recorded frames. Read `imagine.py` for the dream and `ppo.py` for the learner that needs no
gradient of the world."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.rl.chains import Chain, Deterministic
from training.rl.critics import Critic
from training.rl.foresight import FEWEST, Foretold, cut, derive, straight, tried
from training.rl.imagine import Continuation, Dream, Moment, imagine
from training.rl.math.returns import action_penalty, discounted_return, td_lambda_targets
from training.rl.post_training import PostTraining, frozen
from training.supervised.batches import Batch, drawn_by_batch, seed_of
from training.supervised.optim import decayed_adamw
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.world import Reward
from worldsim.measure.doubt import check_rivals
from worldsim.tasks.reward import ProgressReward


class AnalyticPostTraining(PostTraining):
    """Maximise J = sum_i gamma^i prod_j (1 - p_j) r_i + bootstrap over h-chunk dreams, with a BC anchor; ships the EMA.

    Args:
        policy: where it starts from, and the anchor; a copy learns.
        world_model, reflector: what dreams and what rewards; both are frozen.
        chunks: h, length of a dream in chunks.
        gamma: discount per chunk.
        lam: TD(lambda) of the critic's targets.
        lr: peak learning rate of the policy, decaying linearly to a tenth.
        critic_lr: learning rate of the critic.
        critic_warmup: iterations at the beginning of the run in which only the critic learns.
        critic_updates: critic updates per iteration.
        critic_rate: step of the target critic's moving average.
        anchor: weight of |a - a_BC|^2, both sampled from the same noise.
        penalty: weight of actions beyond their limits.
        exploration: standard deviation of the noise on the actions of half of the dreams.
        judged: frames of a chunk that the reflector looks at, the last among them; null: it, and each second one before it.
        clip: largest gradient norm.
        ema_decay: of the shipped policy.
        critics: number of critics, the least of whose estimates counts (clipped double Q, arXiv:1802.09477).
        rivals: world models from other seeds, frozen too; the least promising one counts, see `imagine`.
        chain: the sampler that acts in dreams; null is the ODE. A noisy chain explores with its reparameterised noise.
        continuation: goes on with some dreams where they ended; null starts all of them from data.
        reward: of each chunk, see `imagine`; null is twice the progress gained plus the probability of success.
    """

    def __init__(
        self,
        policy: Policy,
        world_model: WorldModel,
        reflector: Reflector,
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
        exploration: float = 0.5,
        judged: tuple[int, ...] | None = None,
        clip: float = 0.5,
        ema_decay: float = 0.95,
        critics: int = 1,
        rivals: tuple[WorldModel, ...] = (),
        chain: Chain | None = None,
        continuation: Continuation | None = None,
        reward: Reward | None = None,
    ):
        super().__init__(policy, ema_decay)
        for what, model in (("reflector", reflector), *(("world model", model) for model in (world_model, *rivals))):
            if not model.differentiable:
                raise ValueError(
                    f"{type(self).__name__} differentiates through the {what}, {type(model).__name__} is not differentiable; "
                    f"learner=ppo learns from rollouts (or say `differentiable = True` in its class, if gradients do pass)"
                )
        check_rivals(world_model, rivals)
        if continuation is not None and continuation.doubt is not None and not rivals:
            raise ValueError(
                f"continuation.doubt={continuation.doubt:g} ends dreams about which world models disagree, and there is one; name "
                "others with model.rivals"
            )
        last = policy.action_horizon - 1
        self.judged = tuple(range(last % 2, last + 1, 2)) if judged is None else tuple(judged)
        if not self.judged or self.judged[-1] != last or sorted({*self.judged}.intersection(range(last + 1))) != [*self.judged]:
            raise ValueError(
                f"judged is {[*self.judged]}, expected rising frames of a chunk up to its last, {last}; null chooses some"
            )
        self.save_hyperparameters(ignore=["policy", "world_model", "reflector", "rivals", "continuation", "chain", "reward"])
        self.continuation, self.chain = continuation, Deterministic() if chain is None else chain
        self.reward = ProgressReward(progress=2.0) if reward is None else reward
        self.chain.build(self.policy)
        self.policy.train()
        self.settings: Any = self.hparams
        self.world_model, self.reflector = frozen(world_model), frozen(reflector)
        self.rivals = nn.ModuleList(frozen(rival) for rival in rivals)
        self.views, self.context = world_model.views, max(model.context for model in (world_model, reflector, *rivals))
        self.critics = nn.ModuleList(Critic.like(self.reflector) for _ in range(critics))
        self.target_critics = copy.deepcopy(self.critics).requires_grad_(False)

    @property
    def warmup(self) -> int:
        return self.settings.critic_warmup

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> None:
        h = self.settings
        policy_optimizer, critic_optimizer = self.optimizers()  # type: ignore[misc]
        noise = Noise.rows(seed_of(batch), len(batch["instruction"]), self.device)
        dream = self._dream(batch, noise)
        if self.continuation is not None:
            self.continuation.end(dream, noise)
        loss, objective, gap, value = self._loss(dream)
        if self.iteration > self.warmup:
            policy_optimizer.zero_grad()
            self.manual_backward(loss)
            norm = nn.utils.clip_grad_norm_(self.policy.parameters(), h.clip)
            policy_optimizer.step()
            self.ema.step(self.policy.parameters())
            self.tell({"gradient_norm": norm})
        self.lr_schedulers().step()  # type: ignore[union-attr]
        critic_loss = self._fit_critic(dream, value, dream.end.instruction, critic_optimizer)
        scalars = {"objective": objective.mean(), "reward": dream.reward.sum(1).mean(), "p_success": dream.p_success.amax(1).mean()}
        self.tell(scalars, prog_bar=True)
        self.tell({"anchor_gap": gap, "critic_loss": critic_loss, "value": value.mean()})
        if len(self.rivals):
            self.tell({"doubt": dream.doubt.sum(1).mean()})
        self.log_spread(dream.obs[0], noise)

    def _loss(self, dream: Dream) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Loss, objective [b], squared distance to the starting policy, and what the target critic says of each chunk, [b, h]."""
        h = self.settings
        value = self._target_values(dream, dream.end.instruction)
        objective = discounted_return(dream.reward, dream.p_success, value[:, -1], gamma=h.gamma)
        gap = (dream.actions - self._reference_actions(dream)).square().mean()
        excess = action_penalty(dream.actions, self.policy.action_units.within(dream.actions))
        return -objective.mean() + h.anchor * gap + h.penalty * excess, objective, gap, value

    def foresee(self, batch: Batch) -> Foretold | None:
        """A few dreams and their gradient."""
        if len(batch["instruction"]) < FEWEST:
            return None

        def learn(starts: int) -> None:
            few = cut(batch, starts)
            dream = self._from(Moment.of(self.world_model, few), Noise.rows(0, starts, self.device))
            derive(self._loss(dream)[0], self.policy.parameters())

        moments = 2 * sum(p.nbytes for p in (*self.policy.parameters(), *self.critics.parameters()))
        dreams = straight(learn, tried(len(batch["instruction"])))
        return lambda starts: moments + dreams(starts)

    def _dream(self, batch: Batch, noise: Noise) -> Dream:
        start = Moment.of(self.world_model, batch)
        return self._from(start if self.continuation is None else self.continuation.begin(start), noise)

    def _from(self, start: Moment, noise: Noise) -> Dream:
        b = len(start.instruction)
        noisy = (torch.arange(b, device=self.device) % 2 * self.settings.exploration)[:, None, None]
        return imagine(
            self.policy,
            self.world_model,
            self.reflector,
            start,
            chain=self.chain,
            chunks=self.settings.chunks,
            exploration=noisy,
            reward=self.reward,
            judged=self.judged,
            rivals=self.rivals,  # type: ignore[arg-type]
            noise=noise,
        )

    def _target_values(self, dream: Dream, instruction: tuple[str, ...]) -> Tensor:
        """Target critic after each chunk, [b, h]; only the last keeps its gradient, which the return needs."""
        last = self._least_value({name: frames[:, -1] for name, frames in dream.images.items()}, instruction)
        b, inner = len(instruction), dream.reward.shape[1] - 1
        if not inner:
            return last[:, None]
        with torch.no_grad():
            images = {name: frames[:, 1:-1].flatten(0, 1) for name, frames in dream.images.items()}
            values = self._least_value(images, tuple(s for s in instruction for _ in range(inner))).unflatten(0, (b, inner))
        return torch.cat([values, last[:, None]], dim=1)

    def _least_value(self, images: Mapping[str, Tensor], instruction: tuple[str, ...]) -> Tensor:
        return torch.stack([critic(images, instruction) for critic in self.target_critics]).amin(dim=0)

    @torch.no_grad()
    def _reference_actions(self, dream: Dream) -> Tensor:
        actions = []
        for i, obs in enumerate(dream.obs):
            actions.append(self.reference.sample(self.reference.encode(obs), dream.noise[:, i]))
        return torch.stack(actions, dim=1)

    def _fit_critic(self, dream: Dream, value: Tensor, instruction: tuple[str, ...], optimizer: Any) -> Tensor:
        h = self.settings
        target = td_lambda_targets(dream.reward.detach(), dream.p_success.detach(), value.detach(), gamma=h.gamma, lam=h.lam)
        images = {name: frames[:, :-1].detach().flatten(0, 1) for name, frames in dream.images.items()}
        repeated = tuple(s for s in instruction for _ in range(dream.reward.shape[1]))
        loss = target.new_zeros(())
        for _ in range(h.critic_updates):
            losses = [F.huber_loss(critic(images, repeated), target.flatten()) for critic in self.critics]
            loss = torch.stack(losses).sum()
            optimizer.zero_grad()
            self.manual_backward(loss)
            nn.utils.clip_grad_norm_(self.critics.parameters(), 1.0)
            optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(self.target_critics.parameters(), self.critics.parameters(), strict=True):
                slow.lerp_(fast, h.critic_rate)
        return loss.detach()

    def configure_optimizers(self) -> Any:
        h = self.settings
        iterations = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = decayed_adamw(
            [*self.policy.parameters(), *self.chain.parameters()], lr=h.lr, total_steps=iterations, floor=0.1
        )
        return [optimizer, torch.optim.AdamW(self.critics.parameters(), lr=h.critic_lr, fused=True)], [schedule]
