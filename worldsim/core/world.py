"""The contract of every world, and what some can do beyond it: `World`, its abilities, what a chunk leads to and what it pays.

Physics, dreams and anybody's Gymnasium environment keep it, so that whoever plays a policy cannot tell them apart. Read
`interfaces.py` next, the contracts of models, and `worldsim/worlds/dream.py`, which makes a world of them.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import gymnasium as gym
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldsim.core.spec import Camera, Channel, Spec
from worldsim.core.types import Judgement, Observation, Rollout, TensorBatch, where_rows

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
        soon as it has been played, with states and chunks in the policy's order; decisions that were not executed earn nothing,
        whatever this says."""


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
        state_channels, action_channels: of the proprioceptive state and the action: name, unit, kind and limits of each number.
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
    state_channels: tuple[Channel, ...]
    action_channels: tuple[Channel, ...]
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

    @property
    def spec(self) -> Spec:
        """What its numbers mean, without statistics. States are normalised by mean and standard deviation, actions of no limits by
        quantiles, others are as they are."""
        spaces: Any = self.single_observation_space["images"]
        cameras = {name: Camera(space.shape[0], space.shape[1], self.fps) for name, space in spaces.items()}
        state = tuple(replace(channel, normalisation="mean_std") for channel in self.state_channels)
        action = tuple(
            replace(channel, normalisation="identity" if math.isfinite(channel.high - channel.low) else "quantile")
            for channel in self.action_channels
        )
        return Spec(cameras, self.fps, self.robot_type, state, action)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Of the state channels."""
        return tuple(channel.name for channel in self.state_channels)

    @property
    def action_names(self) -> tuple[str, ...]:
        """Of the action channels."""
        return tuple(channel.name for channel in self.action_channels)

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
        if (~torch.isfinite(actions)).any():
            raise ValueError("actions must be finite, got NaN or infinity; check the policy's output and its statistics")
        return self.clipped(actions)

    def clipped(self, actions: Float[Tensor, "*b ad"]) -> Float[Tensor, "*b ad"]:
        """The actions that this world executes when it is asked for these."""
        space = self.single_action_space
        low, high = (torch.as_tensor(bound, dtype=actions.dtype, device=actions.device) for bound in (space.low, space.high))
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
