"""The contracts that every world, world model, reflector and policy keeps.

`worldsim` owns environments, evaluation and export without importing any model: it receives objects that implement these
abstract classes. ABCs rather than Protocols, because the Lightning CLI's parser rejects Protocols with jaxtyping shapes.
Read `worldsim/worlds/dream.py` next: it turns a `WorldModel` and a `Reflector` into a `World`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.flow import matching_loss
from worldsim.core.noise import Noise
from worldsim.core.types import Judgement, Observation, Reflection, Rollout, TensorBatch, where_rows

Step = tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]
"""Gymnasium's five: observation, reward, terminated, truncated and info, see `World`."""
Ability = TypeVar("Ability")


class Reward(ABC):
    """What an action earns, by what was judged before it and after it: one object for physics, dreams and imagination."""

    @abstractmethod
    def __call__(self, before: Judgement, now: Judgement) -> Float[Tensor, " b"]:
        """Reward of the action that led from `before` to `now`; differentiable in both where they are."""


class EpisodeReward(Reward):
    """A reward that needs whole episodes, or all of a batch: comparisons, ranks, what only an end can say."""

    @abstractmethod
    def episode(self, rollout: Rollout) -> Float[Tensor, "b t"]:
        """Reward of every decision, in place of what the actions earned, which `rollout.reward` has. Called once per rollout, as
        soon as it has been played; decisions that were not executed earn nothing, whatever this says."""


@dataclass(frozen=True)
class ChunkResult(TensorBatch):
    """Outcome of a chunk of ah actions in b environments.

    Attributes:
        obs: the observation to act on next (of the new episode where one ended).
        final_obs: the last observation of the old episode; equal to `obs` where none ended.
        reward: reward of each action, [b, ah]; 0 after the end.
        terminated: the task ended the episode at this action, by success or by a failure for good, [b, ah]; see `is_success`.
        truncated: time ran out at this action, [b, ah].
        valid: this action was executed, [b, ah]; False after the end, when the rest of the chunk is dropped.
        final_judge: what the world's judge says of the last frame of the old episode, or of the latest one where none ended.
    """

    obs: Observation
    final_obs: Observation
    reward: Float[Tensor, "b ah"]
    terminated: Bool[Tensor, "b ah"]
    truncated: Bool[Tensor, "b ah"]
    valid: Bool[Tensor, "b ah"]
    final_judge: Judgement

    @property
    def done(self) -> Bool[Tensor, " b"]:
        """An episode ended within this chunk, [b]."""
        return (self.terminated | self.truncated).any(dim=1)

    @property
    def is_success(self) -> Bool[Tensor, " b"]:
        """The task was done in the last frame of the old episode, or is in the latest one where none ended, [b]."""
        return self.final_judge.success

    def as_step(self) -> Step:
        """What `World.step` returns, if this was a chunk of one action."""
        info = step_info(self.final_obs, self.done, self.final_judge)
        return self.obs, self.reward[:, 0], self.terminated[:, 0], self.truncated[:, 0], info


def step_info(final_obs: Observation, ended: Bool[Tensor, " b"], judged: Judgement) -> dict[str, Any]:
    """What every `World.step` says in its info: of the last frame before autoreset, or of the latest one where no episode ended."""
    return {"final_obs": final_obs, "_final_obs": ended, "final_judge": judged, "is_success": judged.success}


Sight = tuple[Observation, Judgement]
"""What was seen after an action, and what the world's judge says of it; where an episode has ended, that of its end."""


class World(VectorEnv, ABC):
    """Environments with `SAME_STEP` autoreset and torch tensors in and out: what any Gymnasium vector environment can be.

    Beyond `gymnasium.vector.VectorEnv`: observations are `Observation` batches; `reset(options={"mask": [b] bool})` resets
    only the masked environments and never changes the others; `step_chunk` executes a chunk of actions, by single steps unless
    a world knows better. A step that ends an episode returns the next one's first observation, and its info (`step_info`) says of
    the old one's last frame: ``final_obs`` with the mask ``_final_obs``, ``final_judge``, and ``is_success``. Success is the task's
    or the environment's word, nobody else's. `check_world` in `worldsim/core/checks.py` tests all of it.

    What only some worlds can do are abilities beside this class, `Branchable`, `Divisible` and `Scripted`; whoever needs one asks
    by `require`.

    Whoever plays a policy hands over the policy's own chunks, as `worldsim.measure.collect.play` does: in a world that is not
    `causal` single steps are another dream.

    Attributes:
        fps: control frequency in Hz.
        max_episode_steps: an episode is truncated after that many actions.
        camera: name of the camera that looks at the task.
        state_names, action_names: of the proprioceptive state and the action, one per dimension.
        robot_type: what moves, written into datasets.
        device: where its tensors lie; actions may come from anywhere.
        reward: what it pays by; None if the environment pays as it likes.
        causal: what follows an action does not depend on how the later ones of its chunk are handed over: `step_chunk` is as many
            calls of `step`. True of physics, not of a world model that predicts a chunk as a whole.
        physics: it is physics, whose steps are paid for and counted (`count_physics`), and not a dream.
        physics_steps: control steps of *physics* executed so far, summed over environments; a dream's is always 0.
        physics_steps_of_process: the same, over all worlds of this process.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": ["rgb_array"]}
    fps: int
    max_episode_steps: int
    camera: str
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    robot_type: str = "unknown"
    device: torch.device = torch.device("cpu")
    reward: Reward | None = None
    causal: bool = True
    physics: bool = False
    physics_steps: int = 0
    physics_steps_of_process: ClassVar[int] = 0
    single_observation_space: gym.spaces.Dict
    single_action_space: gym.spaces.Box

    @abstractmethod
    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start new episodes.

        Args:
            seed: one seed (environment i gets seed + i) or one per environment; None draws on from the current generators.
            options: ``{"mask": bool [b]}`` resets only those environments; ``{"stream": int}`` is that of the world's own noise
                from now on, if it has any that is new in every step: another one plays the same starts otherwise (`Noise`).
        """

    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        """Execute ah actions in every environment; where the world is `causal`, equal to ah calls of `step` up to an episode's end.

        After an end the rest of the chunk is dropped (`valid` is False) and the environment is reset at the end of the chunk.

        Raises:
            ValueError: if the shape does not fit the action space or a value is not finite.
        """
        return self.watch_chunk(actions)[0]

    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        """`step_chunk`, and what was seen and judged after each of its actions: for recordings, since showing costs time.

        By single steps: environments whose episode has ended step along unseen, and are reset once more at the end of the chunk.
        """
        done = overrun = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        seen: list[Sight] = []
        log = []
        for action in self.check_actions(actions, ndim=3).unbind(1):
            overrun = done
            obs, reward, terminated, truncated, info = self.step(action)
            sight = (info["final_obs"], info["final_judge"])
            seen.append((where_rows(done, seen[-1][0], sight[0]), where_rows(done, seen[-1][1], sight[1])) if seen else sight)
            log.append((torch.where(done, 0.0, reward), terminated & ~done, truncated & ~done, ~done))
            done = done | terminated | truncated
        if overrun.any():
            obs, _ = self.reset(options={"mask": overrun})
        columns = (torch.stack(values, dim=1) for values in zip(*log, strict=True))
        return ChunkResult(obs, seen[-1][0], *columns, final_judge=seen[-1][1]), seen

    @abstractmethod
    def judge(self) -> Judgement:
        """Success and progress of the current frames, by the task's truth, the environment's word or a reflector."""

    def able(self, ability: type) -> bool:
        """It has an ability, such as `Branchable`; a wrapper has one only if the world inside has it, too."""
        return isinstance(self, ability)

    def require(self, ability: type[Ability], purpose: str, remedy: str) -> Ability:
        """This world as one that has an ability.

        Raises:
            ValueError: if it lacks it: what for it is needed, and what to do instead.
        """
        if not self.able(ability):
            raise ValueError(f"{purpose} needs a {ability.__name__} world, {type(self.unwrapped).__name__} is none; {remedy}")
        return self  # type: ignore[return-value]

    def begun(
        self, seed: int | Sequence[int] | None, options: dict[str, Any] | None
    ) -> tuple[Bool[Tensor, " b"], Int[Tensor, " b"] | None]:
        """What a call of `reset` begins: the mask of environments, and a seed for each or None.

        Raises:
            ValueError: if the mask or the seeds are not one per environment.
        """
        everybody = torch.ones(self.num_envs, dtype=torch.bool, device=self.device)
        mask = torch.as_tensor((options or {}).get("mask", everybody), dtype=torch.bool, device=self.device)
        if mask.shape != (self.num_envs,):
            raise ValueError(f"options['mask'] must have shape ({self.num_envs},), got {tuple(mask.shape)}")
        if seed is None:
            return mask, None
        seeds = range(seed, seed + self.num_envs) if isinstance(seed, int) else seed
        if len(seeds) != self.num_envs:
            raise ValueError(f"seed must be an integer or {self.num_envs} integers, got {len(seeds)}")
        return mask, torch.tensor(list(seeds), device=self.device)

    def count_physics(self, steps: int) -> None:
        """Physics worlds report every executed control step here."""
        self.physics_steps += steps
        World.physics_steps_of_process += steps

    def check_actions(self, actions: Tensor, ndim: int) -> Tensor:
        """`actions` as float32, clipped to the action space, or ValueError for a wrong shape or a non-finite value."""
        actions = torch.as_tensor(actions, dtype=torch.float32, device=self.device)
        expected = (self.num_envs, *(["ah"] * (ndim - 2)), *self.single_action_space.shape)
        if actions.ndim != ndim or actions.shape[0] != self.num_envs or actions.shape[-1:] != self.single_action_space.shape:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}; one action per environment")
        if not torch.isfinite(actions).all():
            raise ValueError("actions must be finite, got NaN or infinity; check the policy's output and its statistics")
        low, high = (
            torch.as_tensor(bound, device=self.device) for bound in (self.single_action_space.low, self.single_action_space.high)
        )
        return actions.clamp(low, high)


class Branchable(ABC):
    """Ability of a world: to be kept, and continued from what was kept, in any place of the batch and more than once."""

    @abstractmethod
    def snapshot(self) -> TensorBatch:
        """The complete state of all environments, random generators included: a dataclass of tensors indexed by environment."""

    @abstractmethod
    def restore(self, state: TensorBatch) -> Observation:
        """Continue from `snapshot()[index]`: environment i becomes row i. Returns the observation."""


class Divisible(ABC):
    """Ability of a world: to go on with fewer environments. Physics whose scene was built for a number of them cannot."""

    @abstractmethod
    def take(self, rows: Tensor) -> World:
        """A smaller world that goes on with these environments alone (an index or a mask); this one stays as it is."""


class Scripted(ABC):
    """Ability of a world: somebody wrote an expert for its task."""

    @abstractmethod
    def expert(self) -> Float[Tensor, "b ad"]:
        """What the expert, who sees the task's truth, would do now."""


class WorldModel(Configured, ABC):
    """A learned simulator: (state, action chunk, noise) -> (state, frames). State is explicit, a `TensorBatch`.

    A chunk of fewer actions than `action_horizon` leads to a state of its own, from which the next one goes on.

    Attributes:
        camera: name of the camera whose frames it predicts.
        context: number of real frames that start a dream.
        action_horizon: longest chunk that one call predicts.
        action_dim: ad.
        causal: a frame depends on the actions before it alone, so that chunks may be cut anywhere with the same result.
    """

    camera: str
    causal: bool = False
    context: int
    action_horizon: int
    action_dim: int

    @property
    def horizon(self) -> int:
        """Actions of a window that `loss` takes: one chunk, unless a model learns from several in a row."""
        return self.action_horizon

    @abstractmethod
    def fit_statistics(self, frames: Shaped[Tensor, "n h w 3"], state: Float[Tensor, "n s"]) -> None:
        """Fit what is not trained by gradient (codec, normalisation) to frames and states of the data; once, before training."""

    @abstractmethod
    def init(self, frames: Float[Tensor, "b context h w 3"], state: Float[Tensor, "b context s"]) -> TensorBatch:
        """A dream's state from `context` real frames (uint8 or float 0..1) and their proprioception, oldest first."""

    @abstractmethod
    def step(
        self, state: TensorBatch, actions: Float[Tensor, "b ah ad"], noise: Noise
    ) -> tuple[TensorBatch, Float[Tensor, "b ah h w 3"], Float[Tensor, "b ah s"]]:
        """Predict the ah frames (float 0..1) and proprioceptive states that follow. Differentiable in `actions` and `state`.

        Args:
            state: from `init` or the previous `step`.
            actions: 1 to `action_horizon` actions in [-1, 1].
            noise: where each dream is; the only randomness. A model draws from it what it needs, and nothing if it needs none.
        """

    @abstractmethod
    def loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss and named scalars to log, for a batch of `WindowDataset`."""


class Reflector(Configured, ABC):
    """Judges pixels under an instruction. Differentiable in the frames.

    Attributes:
        threshold: calibrated success probability above which a frame counts as success.
        consecutive: k, so many frames of the last `window` must count before an episode stops.
        window: n of the k-of-n rule.
        scale, bias: of Platt's calibration, p = sigmoid(scale * logit + bias); only what `ReflectorTraining` trains needs them.
    """

    threshold: Tensor
    scale: Tensor
    bias: Tensor
    consecutive: int
    window: int

    @abstractmethod
    def judge(self, frames: Shaped[Tensor, "b h w 3"], instruction: Sequence[str]) -> Reflection:
        """Judge single frames [b, h, w, 3] (uint8 or float 0..1) under one instruction each."""

    def raw(self, frames: Shaped[Tensor, "b h w 3"], instruction: Sequence[str]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Uncalibrated success logit and progress, which learn from recorded frames.

        Raises:
            ValueError: if the reflector does not learn that way, unless it overrides this.
        """
        raise ValueError(
            f"{type(self).__name__} has no logit that frames could train; train another reflector, or this one elsewhere"
        )


class Policy(Configured, ABC):
    """A flow policy: a velocity field over action chunks, conditioned on an observation. Sampling is a function.

    Attributes:
        camera: which camera it looks through.
        action_horizon: ah, actions per decision.
        action_dim: ad.
        num_steps: K, denoising steps of the ODE sampler.
        feature_dim: f, size of the features.
    """

    camera: str
    feature_dim: int
    action_horizon: int
    action_dim: int
    num_steps: int

    @abstractmethod
    def fit_statistics(self, mean: Float[Tensor, " s"], std: Float[Tensor, " s"]) -> None:
        """Normalise proprioception with the mean and standard deviation of a dataset; once, before training."""

    @abstractmethod
    def encode(self, obs: Observation) -> Tensor:
        """Features [b, f] of an observation, computed once per decision."""

    @abstractmethod
    def velocity(self, features: Tensor, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        """The velocity of `worldsim.core.flow` at x_t and time t."""

    def expert_parameters(self) -> list[nn.Parameter]:
        """The parameters that `velocity` uses and `encode` does not; what learns when the encoder is frozen.

        Raises:
            ValueError: if the policy does not tell them apart, unless it overrides this.
        """
        raise ValueError(f"{type(self).__name__} does not tell its action expert apart; set model.expert_only=false")

    def cloning_loss(
        self, features: Tensor, actions: Float[Tensor, "b ah ad"], mask: Bool[Tensor, "b ah 1"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """What behaviour cloning minimises: flow matching of recorded chunks, counted where `mask` is True; `generator`, on the
        device of the actions, draws times and noise."""
        t = torch.rand(len(actions), generator=generator, device=actions.device).clamp(min=1e-3)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        return matching_loss(lambda x, t: self.velocity(features, x, t), actions, noise=noise, t=t, mask=mask)
