"""The contracts that every world, world model, reflector and policy keeps.

`worldsim` owns environments, evaluation and export without importing any model: it receives objects that implement these
abstract classes. ABCs rather than Protocols, because the Lightning CLI's parser rejects Protocols with jaxtyping shapes.
Read `worldsim/worlds/dream.py` next: it turns a `WorldModel` and a `Reflector` into a `World`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.flow import matching_loss
from worldsim.core.noise import Noise
from worldsim.core.types import Judgement, Observation, Reflection, TensorBatch


@dataclass(frozen=True)
class ChunkResult(TensorBatch):
    """Outcome of a chunk of ah actions in b environments.

    Attributes:
        obs: the observation to act on next (of the new episode where one ended).
        final_obs: the last observation of the old episode; equal to `obs` where none ended.
        reward: reward of each action, [b, ah]; 0 after the end.
        terminated: success ended the episode at this action, [b, ah].
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


Sight = tuple[Observation, Judgement]
"""What was seen after an action, and what the world's judge says of it; where an episode has ended, that of its end."""


class World(VectorEnv, ABC):
    """A batch of environments with `SAME_STEP` autoreset, torch tensors in and out, and restorable state.

    Beyond `gymnasium.vector.VectorEnv`: observations are `Observation` batches; `reset(options={"mask": [b] bool})` resets
    only the masked environments and never changes the others; `step_chunk` executes a chunk of actions; `snapshot` and
    `restore` branch. A step that ends an episode returns the next episode's first observation, and the old one's last in
    `info["final_obs"]` with the mask `info["_final_obs"]`. `check_world` in `worldsim/core/checks.py` tests all of it.

    Whoever plays a policy hands over the policy's own chunks, as `worldsim.measure.collect.play` does: in a world that is not
    `causal` single steps are another dream.

    Attributes:
        fps: control frequency in Hz.
        max_episode_steps: an episode is truncated after that many actions.
        camera: name of the camera that looks at the task.
        state_names, action_names: of the proprioceptive state and the action, one per dimension.
        robot_type: what moves, written into datasets.
        causal: what follows an action does not depend on how the later ones of its chunk are handed over: `step_chunk` is as many
            calls of `step`. True of physics, not of a world model that predicts a chunk as a whole.
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
    causal: bool = True
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

    @abstractmethod
    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        """Execute ah actions in every environment; where the world is `causal`, equal to ah calls of `step` up to an episode's end.

        After an end the rest of the chunk is dropped (`valid` is False) and the environment is reset at the end of the chunk.

        Raises:
            ValueError: if the shape does not fit the action space or a value is not finite.
        """

    @abstractmethod
    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        """`step_chunk`, and what was seen and judged after each of its actions: for recordings, since showing costs time."""

    @abstractmethod
    def snapshot(self) -> TensorBatch:
        """The complete state of all environments, random generators included: a dataclass of tensors indexed by environment."""

    @abstractmethod
    def restore(self, state: TensorBatch) -> Observation:
        """Continue from `snapshot()[index]`: environment i becomes row i. Returns the observation."""

    @abstractmethod
    def judge(self) -> Judgement:
        """Success and progress of the current frames, by the task's truth or by a reflector.

        `step` also gives the judgement of the last frame of every environment, before autoreset, as ``info["final_judge"]``.
        """

    def expert(self) -> Float[Tensor, "b ad"]:
        """What a scripted expert, who sees the task's truth, would do now.

        Raises:
            ValueError: if nobody wrote one for this world.
        """
        raise ValueError(f"{type(self).__name__} has no scripted expert; record with actor=policy actor.folder=FOLDER")

    def count_physics(self, steps: int) -> None:
        """Physics worlds report every executed control step here."""
        self.physics_steps += steps
        World.physics_steps_of_process += steps

    def check_actions(self, actions: Tensor, ndim: int) -> Tensor:
        """`actions` as float32, clipped to the action space, or ValueError for a wrong shape or a non-finite value."""
        actions = torch.as_tensor(actions, dtype=torch.float32)
        expected = (self.num_envs, *(["ah"] * (ndim - 2)), *self.single_action_space.shape)
        if actions.ndim != ndim or actions.shape[0] != self.num_envs or actions.shape[-1:] != self.single_action_space.shape:
            raise ValueError(f"actions must have shape {expected}, got {tuple(actions.shape)}; one action per environment")
        if not torch.isfinite(actions).all():
            raise ValueError("actions must be finite, got NaN or infinity; check the policy's output and its statistics")
        low, high = (torch.as_tensor(bound) for bound in (self.single_action_space.low, self.single_action_space.high))
        return actions.clamp(low, high)


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
