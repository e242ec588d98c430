"""Post-training from rollouts: dreams are played and assessed, then minibatches of their decisions update the policy.

What all learners without a gradient of the world share: where they play (`arena.py`), how they explore (`chains.py`), how decisions
are assessed (`estimators.py`) and which dreams are worth playing (`sampling.py`). `ppo.py`, `prdp.py` and `nft.py` each add one
loss.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from training.rl.arena import Arena
from training.rl.chains import Chain
from training.rl.estimators import Advantage, Assessment
from training.rl.foresight import FEWEST, Foretold, cut, derive, size, straight, tried
from training.rl.post_training import PostTraining
from training.rl.rollout import collect_rollout, paid
from training.rl.sampling import BetaStarts, DynamicSampling, EarlyStop, SuccessBuffer
from training.supervised.batches import Batch, generator_of, seed_of
from training.supervised.optim import decayed_adamw
from worldsim.core.interfaces import FlowPolicy, Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Features, Observation, Rollout, cat_rows
from worldsim.core.world import EpisodeReward


class Decisions(NamedTuple):
    """n decisions of a rollout: what was seen, the policy's features there, and what was done."""

    obs: Observation
    features: Features  # [n, ...], with gradient
    chain: Tensor  # [n, k1, ah, ad]
    stochastic: Tensor  # [n, k]
    logprob: Tensor  # [n, k, ah], of the policy that acted
    valid: Tensor  # [n, ah]
    advantage: Tensor  # [n, v]
    returns: Tensor  # [n], undiscounted reward of the whole trajectory
    trajectory: Tensor  # [n], row in the rollout
    group: Tensor  # [n]
    generator: torch.Generator  # of what a loss draws


class RolloutLearner(PostTraining, ABC):
    """Rollouts, then epochs of minibatch updates on them. Subclasses choose the loss.

    One batch of `StartData` gives the candidate starts of one iteration; each is played `advantage.group_size` times.

    Args:
        policy: where it starts from, and the anchor; a copy learns.
        arena: where it plays.
        chain: how it explores.
        advantage: how decisions are assessed.
        chunks: decisions per episode.
        epochs: passes over a rollout.
        minibatch: decisions per update.
        lr: peak learning rate of the policy (and of the chain's own parameters).
        anchor: weight of the squared distance to the starting policy's velocity at pure noise.
        clip: largest gradient norm.
        ema_decay: of the policy that is shipped; 0 ships the last iterate.
        expert_only: the policy's encoder is frozen and each observation is encoded once, when it is seen (pi_RL trains pi0 like
            this); updates then cost as much as the action expert alone.
        sampling, early_stop, starts, buffer: rollout economy, each null if not wanted.

    Attributes:
        needs_logprob: the loss needs the log-probability of what was done, and so a chain that explores.
    """

    needs_logprob = True

    def __init__(
        self,
        policy: Policy,
        arena: Arena,
        chain: Chain,
        advantage: Advantage,
        chunks: int = 8,
        epochs: int = 2,
        minibatch: int = 256,
        lr: float = 5e-5,
        anchor: float = 0.02,
        clip: float = 0.5,
        ema_decay: float = 0.9,
        expert_only: bool = False,
        sampling: DynamicSampling | None = None,
        early_stop: EarlyStop | None = None,
        starts: BetaStarts | None = None,
        buffer: SuccessBuffer | None = None,
    ):
        super().__init__(policy, ema_decay)
        if self.needs_logprob and not chain.explores:
            raise ValueError(f"{type(self).__name__} needs a chain that explores, got {type(chain).__name__}; chain=flow_sde does")
        self.arena, self.chain, self.advantage = arena, chain, advantage
        self.views, self.context = arena.views, arena.context
        self.chain.build(self.policy)
        self.advantage.build(self.policy, arena.reflector)
        self.chunks, self.epochs, self.minibatch, self.lr = chunks, epochs, minibatch, lr
        self.anchor, self.clip, self.expert_only = anchor, clip, expert_only
        self.sampling, self.early_stop, self.starts, self.buffer = sampling, early_stop, starts, buffer

    @property
    def warmup(self) -> int:
        return self.advantage.warmup

    @property
    def actor(self) -> FlowPolicy:
        """The policy that plays."""
        return self.policy

    @abstractmethod
    def policy_loss(self, decisions: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a minibatch and scalars to log."""

    def far_enough(self, logs: dict[str, Tensor]) -> bool:
        """Whether this was the last update of an iteration, by what it told."""
        return False

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        # Dropout-free evaluation mode throughout: the log-probability of an unchanged policy must not change.
        self.eval()
        generator, seed = generator_of(batch, self.device), seed_of(batch)
        rollout, usable = self.imagine({key: value for key, value in batch.items() if key != "seed"}, generator)
        assessment = self.advantage.assess(rollout)
        if self.buffer is not None:
            self.buffer.add(rollout, self.policy)
        totals: dict[str, list[Tensor]] = {}
        for rows in self.minibatches(rollout, generator):
            logs = self._update(rollout, rows, assessment, generator)
            for name, value in logs.items():
                totals.setdefault(name, []).append(value.detach())
            if self.far_enough(logs):
                break
        self.lr_schedulers().step()  # type: ignore[union-attr]
        self.tell({name: torch.stack(values).mean() for name, values in totals.items()})
        self.log_spread(rollout.observations((slice(None), 0)), Noise.rows(seed, len(rollout.group), self.device))
        scalars = {
            "return": rollout.returns.mean(),
            "imagined_success": rollout.success.float().mean(),
            "usable_fraction": usable,
        }
        self.tell(scalars, prog_bar=True)

    def imagine(self, batch: Batch, generator: torch.Generator) -> tuple[Rollout, Tensor]:
        """The rollout of one iteration, and the share of its decisions that carry a gradient.

        With `DynamicSampling` the batch is played part by part until one part's worth of trajectories is usable.
        """
        attempts = 1 if self.sampling is None else self.sampling.attempts
        n = len(batch["instruction"])
        if n % attempts:
            raise ValueError(f"data.batch_size={n} must be a multiple of sampling.attempts={attempts}")
        part, kept, played = n // attempts, [], 0
        for first in range(0, n, part):
            rows = torch.arange(first, first + part, device=self.device)
            rollout = self._play({key: _take(value, rows) for key, value in batch.items()}, generator)
            usable = DynamicSampling.usable(rollout) if self.advantage.group_size > 1 else torch.ones_like(rollout.group) > 0
            played += len(usable)
            kept.append(rollout if self.sampling is None else rollout[usable])
            found = sum(len(some.group) for some in kept)
            if found >= part * self.advantage.group_size:
                break
        if found == 0:  # the last rollout, whose advantages vanish: the run goes on, and an alarm may count this
            return rollout, torch.zeros((), device=self.device)
        share = usable.float().mean() if self.sampling is None else torch.tensor(found / played, device=self.device)
        return kept[0] if len(kept) == 1 else join(kept), share

    def _play(self, batch: Batch, generator: torch.Generator) -> Rollout:
        if self.starts is not None:
            if "start" not in batch:
                pool = len(self.starts.successes)
                raise ValueError(f"model.starts.pool={pool} needs a pool of starts in the data; set data.pool={pool}")
            chosen = self.starts.choose(batch["start"], generator)
            batch = {key: _take(value, chosen) for key, value in batch.items()}
        rollout = self._rollout(batch, generator, self.chunks)
        if self.starts is not None:
            self.starts.update(batch["start"][rollout.group], rollout.success)
        return rollout

    def _rollout(self, batch: Batch, generator: torch.Generator, chunks: int) -> Rollout:
        steps = chunks * self.actor.action_horizon
        world, obs, group = self.arena.begin(batch, self.advantage.group_size, generator, steps)
        rollout = collect_rollout(
            self.actor,
            self.chain,
            self.advantage,
            world,
            obs,
            chunks=chunks,
            group=group,
            seed=int(torch.randint(2**62, (), generator=generator, device=self.device)),
            early_stop=self.early_stop,
            whole_features=self.expert_only,
        )
        return paid(rollout, world.reward.episode(rollout)) if isinstance(world.reward, EpisodeReward) else rollout

    def minibatches(self, rollout: Rollout, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Trajectory and time of the decisions of each update: shuffled decisions, of groups whose dreams did not all end alike.

        Those carry no gradient, and in a mean they would only shrink that of the others.
        """
        rows, columns = self.counted(rollout).nonzero(as_tuple=True)
        for _ in range(self.epochs):
            order = torch.randperm(len(rows), generator=generator, device=self.device)
            for first in range(0, len(order), self.minibatch):
                part = order[first : first + self.minibatch]
                yield rows[part], columns[part]

    def counted(self, rollout: Rollout) -> Bool[Tensor, "b t"]:
        """Decisions that updates look at."""
        if self.advantage.group_size == 1:
            return rollout.decided
        return rollout.decided & DynamicSampling.usable(rollout)[:, None]

    def _update(
        self, rollout: Rollout, rows: tuple[Tensor, Tensor], assessment: Assessment, generator: torch.Generator
    ) -> dict[str, Tensor]:
        optimizer, *critic_optimizer = self.optimizers() if self.advantage.lr else [self.optimizers()]  # type: ignore[misc]
        obs = rollout.observations(rows)
        features = self._features(rollout, rows, obs)
        logs = {}
        estimate = self.advantage.value(obs.images, obs.instruction, features.detach())
        executed = rollout.valid[rows] if estimate.shape[-1] > 1 else rollout.decided[rows][..., None]
        critic_loss = self.advantage.loss(estimate, assessment.target[rows], rollout.value[rows], mask=executed)
        if critic_loss is not None:
            self._step(critic_loss, critic_optimizer[0], list(self.advantage.parameters()), 1.0)
            logs["critic_loss"] = critic_loss
        if self.iteration <= self.warmup:
            return logs
        total, loss, gap, metrics = self._loss(rollout, rows, obs, features, assessment, generator)
        imitation = None if self.buffer is None else self.buffer.loss(self.policy, generator)
        if imitation is not None:
            total, logs["imitation_loss"] = total + imitation, imitation
        self._step(total, optimizer, self.learned_parameters(), self.clip)
        self.ema.step(self.policy.parameters())
        return {**logs, "policy_loss": loss, "anchor_gap": gap, **metrics}

    def _features(self, rollout: Rollout, rows: tuple[Tensor, Tensor], obs: Observation) -> Features:
        return rollout.features[rows] if self.expert_only else self.policy.encode(obs)

    def _loss(
        self,
        rollout: Rollout,
        rows: tuple[Tensor, Tensor],
        obs: Observation,
        features: Features,
        assessment: Assessment,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Of the policy on some decisions: the loss with the anchor, without it, the anchor's gap, and what to log."""
        decisions = Decisions(
            obs,
            features,
            rollout.chain[rows],
            rollout.stochastic[rows],
            rollout.logprob[rows],
            rollout.valid[rows],
            assessment.advantage[rows],
            rollout.returns[rows[0]],
            rows[0],
            rollout.group[rows[0]],
            generator,
        )
        loss, metrics = self.policy_loss(decisions)
        gap = self._anchor_gap(decisions)
        return loss + self.anchor * gap, loss, gap, metrics

    def foresee(self, batch: Batch) -> Foretold | None:
        """One decision of a few dreams is played, assessed, kept and learned from; a rollout keeps all, and for a moment twice."""
        if not self.arena.any_number or len(batch["instruction"]) < FEWEST:
            return None
        few = tried(len(batch["instruction"]))
        generator, group = torch.Generator(self.device).manual_seed(0), self.advantage.group_size
        playing = straight(lambda starts: self._rollout(cut(batch, starts), generator, 1), few)
        rollout = self._rollout(cut(batch, few[1]), generator, 1)
        assessment = self.advantage.assess(rollout)

        def learn(starts: int) -> None:
            row = torch.arange(starts * group, device=self.device)
            rows = (row, torch.zeros_like(row))
            obs = rollout.observations(rows)
            features = self._features(rollout, rows, obs)
            if self.advantage.lr:
                derive(self.advantage.value(obs.images, obs.instruction, features.detach()), self.advantage.parameters())
            derive(self._loss(rollout, rows, obs, features, assessment, generator)[0], self.learned_parameters())

        learning, kept = straight(learn, few), self.chunks * size(rollout) / few[1]
        share = 1.0 if self.starts is None else self.starts.keep
        share /= 1 if self.sampling is None else self.sampling.attempts  # what is played at once, and kept at least
        moments = 2 * sum(p.nbytes for p in (*self.learned_parameters(), *self.advantage.parameters()))

        def foretold(starts: int) -> float:
            played = share * starts
            at_once = min(self.minibatch, played * group * self.chunks) / group
            return max(2 * kept * played, kept * played + max(playing(played), moments + learning(at_once)))

        return foretold

    def learned_parameters(self) -> list[nn.Parameter]:
        """What the policy's optimiser moves."""
        policy = self.policy.expert_parameters() if self.expert_only else list(self.policy.parameters())
        return [*policy, *self.chain.parameters()]

    def reference_features(self, decisions: Decisions) -> Features:
        """Features of the starting policy; its encoder is the policy's own as long as that is frozen."""
        with torch.no_grad():
            return decisions.features if self.expert_only else self.reference.encode(decisions.obs)

    def _anchor_gap(self, decisions: Decisions) -> Tensor:
        reference = self.reference_features(decisions)
        noise = decisions.chain[:, 0]
        t = noise.new_ones(len(noise))
        return (self.policy.velocity(decisions.features, noise, t) - self.reference.velocity(reference, noise, t)).square().mean()

    def _step(self, loss: Tensor, optimizer: Any, parameters: list[nn.Parameter], clip: float) -> None:
        optimizer.zero_grad()
        self.manual_backward(loss)
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()

    def configure_optimizers(self) -> Any:
        iterations = int(self.trainer.estimated_stepping_batches)
        optimizer, schedule = decayed_adamw(self.learned_parameters(), lr=self.lr, total_steps=iterations, floor=0.1)
        if not self.advantage.lr:
            return [optimizer], [schedule]
        return [optimizer, torch.optim.AdamW(self.advantage.parameters(), lr=self.advantage.lr, fused=True)], [schedule]


def join(parts: list[Rollout]) -> Rollout:
    """Rollouts one after the other, padded with invalid decisions to one length; groups stay apart."""
    length, whole = max(part.reward.shape[1] for part in parts), parts[0]
    for i, part in enumerate(parts):
        missing = length - part.reward.shape[1]
        padded: dict[str, Any] = {
            name: _longer(value, missing)
            for name, value in vars(part).items()
            if isinstance(value, dict | Features) or (isinstance(value, Tensor) and value.ndim > 1)
        }
        offset = int(whole.group.max()) + 1 if i and len(whole.group) else 0
        part = replace(part, **padded, group=part.group + offset)
        whole = cat_rows(whole, part) if i else part
    return whole


def _longer(values: Any, missing: int) -> Any:
    """With so many decisions more, of zeros."""
    if isinstance(values, dict):
        return {name: _longer(value, missing) for name, value in values.items()}
    if isinstance(values, Features):
        return values.each(partial(_longer, missing=missing))
    return torch.cat([values, values.new_zeros(len(values), missing, *values.shape[2:])], dim=1)


def _take(values: Any, rows: Tensor) -> Any:
    """Rows of a batch's entry: a tensor, some of each camera, or a list."""
    if isinstance(values, dict):
        return {name: _take(value, rows) for name, value in values.items()}
    return values[rows] if isinstance(values, Tensor) else [values[i] for i in rows.tolist()]
