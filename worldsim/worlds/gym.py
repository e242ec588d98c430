"""`GymWorld`: copies of a Gymnasium environment as a `World`, through an `Adapter` that says what its pictures and numbers are.

It exists so that anybody's task can be recorded, evaluated and learned in. An `Adapter` is one environment: it is reset by a seed,
takes an action, shows pictures and a state, and says whether the task is done. `gym_keys.py` has one for environments that a
configuration describes; those of `pusht.py` and `metaworld.py` are for one environment each. Read `docs/your_world.md` next.
"""

import atexit
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import ref

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces.text import alphanumeric
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.spec import Channel, Spec
from worldsim.core.types import Judgement, Observation, TensorBatch
from worldsim.core.world import Branchable, ChunkResult, Reward, Scripted, Sight, Step, World

SAME = 1e-5  # of a state and absolute: some simulators keep rounding errors of the episode before


DRAWING = {"OpenGL", "mujoco", "glfw", "pyglet", "pygame", "dm_control"}  # packages that open displays


@contextmanager
def display(what: str) -> Iterator[None]:
    """Around what opens a display for `what`: ValueError with a remedy if there is nothing to draw on."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except (ImportError, AttributeError, OSError, RuntimeError) as error:  # what PyOpenGL and its platforms raise
        places = [Path(frame.filename).parts for frame in traceback.extract_tb(error.__traceback__)]
        if not any(DRAWING.intersection(parts) for parts in places):  # a mistake of the environment's own
            raise
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{what} finds nothing to draw on ({reason}); set MUJOCO_GL=egl (Debian: apt-get install libegl1 libgl1) or "
            "MUJOCO_GL=osmesa (libosmesa6) before the process starts"
        ) from error


class Adapter(ABC):
    """One environment, as `GymWorld` needs it.

    Attributes:
        fps: control frequency in Hz.
        max_episode_steps: an episode is truncated after that many actions. The environment's own limit should be off.
        state_channels, action_channels: what the numbers are; actions are clipped to their channels' limits.
        robot_type: what moves.
        repeats: after a reset with one seed, the same actions lead to the same states and pictures. False where chance comes from
            elsewhere than the seed: nobody can branch such a world.
        seen: the latest observation.
        info: the latest info.
    """

    fps: int
    max_episode_steps: int
    state_channels: tuple[Channel, ...]
    action_channels: tuple[Channel, ...]
    robot_type: str = "unknown"
    repeats: bool = True

    def __init__(self, env: gym.Env):
        self.env, self.seen, self.info = env, None, {}

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self.seen, self.info = self.env.reset(seed=seed)

    def step(self, action: Float[np.ndarray, " ad"]) -> tuple[float, bool, bool]:
        """Execute one action; returns reward, terminated and truncated."""
        self.seen, reward, terminated, truncated, self.info = self.env.step(action)
        return float(reward), bool(terminated), bool(truncated)

    @abstractmethod
    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The current pictures by camera, upright; asked for only where somebody looks. The first camera is the one that looks at
        the task."""

    @abstractmethod
    def state(self) -> Float[np.ndarray, " s"]:
        """Proprioception now, in native units."""

    @abstractmethod
    def instruction(self) -> str:
        """What this episode is to do, one sentence."""

    def success(self) -> bool:
        """The task is done in the current frame, which ends the episode."""
        return bool(self.info.get("is_success", self.info.get("success", False)))

    def progress(self) -> float:
        """In [0, 1]; 1 where the task is done and 0 before, unless the environment knows better."""
        return float(self.success())

    def keep(self) -> Float[np.ndarray, " n"]:
        """What `resume` needs besides the seed and the actions; always as many numbers, none unless `resume` is quicker for it."""
        return np.empty(0)

    def resume(self, seed: int, actions: Float[np.ndarray, "t ad"], kept: Float[np.ndarray, " n"]) -> None:
        """Go to where these actions led in the episode of this seed: by playing them again, unless there is a quicker way."""
        self.reset(seed)
        for action in actions:
            self.step(action)


class ScriptedAdapter(Adapter):
    """An environment that comes with an expert."""

    @abstractmethod
    def expert(self) -> Float[np.ndarray, " ad"]:
        """What the expert would do now."""


@dataclass(frozen=True)
class GymState(TensorBatch):
    """Where b environments are: how they came there, and what lies ready to be there sooner."""

    stream: Int[Tensor, "b 2"]  # seed and number of the episode
    actions: Float[Tensor, "b t ad"]  # of the episode so far, zeros after them; t is the longest episode
    elapsed: Int[Tensor, " b"]
    kept: Float[Tensor, "b n"]  # `Adapter.keep`
    state: Float[Tensor, "b s"]  # proprioception, which must be found again
    success: Bool[Tensor, " b"]
    progress: Float[Tensor, " b"]


class GymWorld(World, Branchable, Scripted):
    """`num_envs` environments, stepped one after the other in this process.

    The first episode of a seed is the environment's own `reset(seed=...)`; those that follow an end are seeded from the seed and
    their number. An episode terminates with success, or when the environment says so. Pictures are drawn where somebody looks:
    at the end of a chunk, and at each of its actions only if it is watched.

    It is `Branchable` if the adapter `repeats`: a snapshot holds seed and actions, and restoring plays them again, or quicker where
    the adapter can keep a simulator's state. What is played again is not counted as physics. It is `Scripted` if the adapter has an
    expert.

    Args:
        adapter: makes one environment.
        num_envs: batch size.
        seed: environment i begins with seed + i.
        reward: of judgements; null leaves it to the environment.

    Raises:
        ValueError: if num_envs < 1, or an environment shows something else than its adapter says.
    """

    physics = True

    def __init__(self, adapter: Callable[[], Adapter], num_envs: int = 16, seed: int = 0, reward: Reward | None = None):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}; it is how many environments are played together")
        self._adapters = [adapter() for _ in range(num_envs)]
        one = self._adapters[0]
        self.num_envs, self.fps, self.max_episode_steps, self.reward = num_envs, one.fps, one.max_episode_steps, reward
        self.state_channels, self.action_channels, self.robot_type = one.state_channels, one.action_channels, one.robot_type
        low, high = (np.array([getattr(c, side) for c in one.action_channels], np.float32) for side in ("low", "high"))
        self.single_action_space = gym.spaces.Box(low, high)
        self._stream = torch.stack([seed + torch.arange(num_envs), torch.zeros(num_envs, dtype=torch.long)], dim=1)
        self._elapsed = torch.zeros(num_envs, dtype=torch.long)
        self._actions = torch.zeros(num_envs, self.max_episode_steps, len(low))
        self._success, self._progress = torch.zeros(num_envs, dtype=torch.bool), torch.full((num_envs,), torch.nan)
        self._sights: list[tuple[dict[str, np.ndarray], np.ndarray] | None] = [None] * num_envs
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._begin(torch.arange(num_envs))
        self._shapes = {name: picture.shape for name, picture in self._look(0)[0].items()}
        self.camera = next(iter(self._shapes))
        self.single_observation_space = gym.spaces.Dict(
            images=gym.spaces.Dict({name: gym.spaces.Box(0, 255, shape, np.uint8) for name, shape in self._shapes.items()}),
            state=gym.spaces.Box(-np.inf, np.inf, (len(self.state_channels),), np.float32),
            instruction=gym.spaces.Text(200, charset=alphanumeric | set(" .,:;!?'-")),
        )
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        atexit.register(_close, ref(self))  # while there is still what MuJoCo's viewers draw with, which they complain about else

    @property
    def spec(self) -> Spec:
        """As of any world, but actions in pixels or metres are normalised by quantiles: only -1 to 1 is as a network likes it."""
        spec = super().spec
        action = (c if (c.low, c.high) == (-1, 1) else replace(c, normalisation="quantile") for c in spec.action)
        return replace(spec, action=tuple(action))

    def able(self, ability: type) -> bool:
        has = {Branchable: self._adapters[0].repeats, Scripted: isinstance(self._adapters[0], ScriptedAdapter)}
        return has.get(ability, isinstance(self, ability))

    # Gymnasium ----------------------------------------------------------------------------------------------------------

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        mask, seeds = self.begun(seed, options)
        if seeds is not None:
            self._stream[mask] = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)[mask]
        else:
            self._stream[mask, 1] += 1
        self._begin(mask.nonzero().flatten())
        return self._observe(), {}

    def step(self, actions: Float[Tensor, "b ad"]) -> Step:
        return self.step_chunk(self.check_actions(actions, ndim=2)[:, None]).as_step()

    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        return self._play(actions, watched=None)

    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        watched: list[Sight] = []
        return self._play(actions, watched), watched

    def snapshot(self) -> GymState:
        self.require(Branchable, "snapshot", "play its episodes anew by their seeds")
        return GymState(
            stream=self._stream.clone(),
            actions=self._actions.clone(),
            elapsed=self._elapsed.clone(),
            kept=torch.stack([torch.from_numpy(adapter.keep()) for adapter in self._adapters]),
            state=self._states(),
            success=self._success.clone(),
            progress=self._progress.clone(),
        )

    def restore(self, state: TensorBatch) -> Observation:
        self.require(Branchable, "restore", "play its episodes anew by their seeds")
        if not isinstance(state, GymState) or state.elapsed.shape != (self.num_envs,):
            raise ValueError(
                f"restore needs a GymState of {self.num_envs} environments; index the snapshot: world.restore(snapshot[rows])"
            )
        self._stream, self._actions, self._elapsed = state.stream.clone(), state.actions.clone(), state.elapsed.clone()
        self._success, self._progress = state.success.clone(), state.progress.clone()
        for i, adapter in enumerate(self._adapters):
            adapter.resume(self._seed(i), self._actions[i, : self._elapsed[i]].numpy().copy(), state.kept[i].numpy().copy())
        self._sights = [None] * self.num_envs
        found = self._states()
        if (away := (found - state.state).abs() > SAME + SAME * state.state.abs()).any():
            row, j = away.nonzero()[0].tolist()
            raise ValueError(
                f"environment {row} is not where {int(state.elapsed[row])} actions after reset(seed={self._seed(row)}) had led: "
                f"{self.state_names[j]} is {found[row, j]:g}, not {state.state[row, j]:g}; say repeats=False"
            )
        return self._observe()

    def expert(self) -> Float[Tensor, "b ad"]:
        self.require(Scripted, "expert", "act by a policy")
        wishes = [adapter.expert() for adapter in self._adapters if isinstance(adapter, ScriptedAdapter)]
        return self.clipped(torch.from_numpy(np.stack(wishes)).float())

    def judge(self) -> Judgement:
        return Judgement(success=self._success.clone(), progress=self._progress.clone())

    def render(self) -> tuple[np.ndarray, ...]:
        """The current frames of `camera`, one uint8 [h, w, 3] per environment."""
        return tuple(self._look(i)[0][self.camera] for i in range(self.num_envs))

    def close_extras(self, **kwargs: Any) -> None:
        for adapter in self._adapters:
            adapter.env.close()

    # Internals ----------------------------------------------------------------------------------------------------------

    def _seed(self, i: int) -> int:
        """Of the episode that environment i is in."""
        seed, episode = self._stream[i].tolist()
        if episode == 0:
            return seed
        zero = torch.zeros(1, dtype=torch.long)
        return int(Noise(self._stream[i, :1], self._stream[i, 1:], zero).bits("gym.start", 1))

    def _begin(self, index: Int[Tensor, " n"]) -> None:
        self._elapsed[index], self._actions[index] = 0, 0.0
        for i in index.tolist():
            self._adapters[i].reset(self._seed(i))
            self._judge(i)

    def _play(self, actions: Float[Tensor, "b ah ad"], watched: list[Sight] | None) -> ChunkResult:
        """The result of a chunk; pictures between its actions are drawn only for `watched`."""
        actions = self.check_actions(actions, ndim=3)
        done = torch.zeros(self.num_envs, dtype=torch.bool)
        log = []
        for action in actions.unbind(1):
            before, valid = self.judge(), ~done
            reward, terminated, truncated = torch.zeros(self.num_envs), torch.zeros_like(done), torch.zeros_like(done)
            for i in valid.nonzero().flatten().tolist():
                reward[i], terminated[i], truncated[i] = self._advance(i, action[i])
            if self.reward is not None:
                reward = torch.where(valid, self.reward(before, self.judge()), 0.0)
            log.append((reward, terminated, truncated, valid))
            done = done | terminated | truncated
            if watched is not None:
                watched.append((self._observe(), self.judge()))
        self.count_physics(int(sum(valid.sum() for *_, valid in log)))
        obs = final_obs = self._observe()
        final_judge = self.judge()
        if done.any():
            obs, _ = self.reset(options={"mask": done})
        columns = (torch.stack(values, dim=1) for values in zip(*log, strict=True))
        return ChunkResult(obs, final_obs, *columns, final_judge=final_judge)

    def _advance(self, i: int, action: Float[Tensor, " ad"]) -> tuple[float, bool, bool]:
        """Reward and end of one action in one environment."""
        self._actions[i, self._elapsed[i]] = action
        self._elapsed[i] += 1
        reward, terminated, truncated = self._adapters[i].step(action.numpy().copy())
        if not np.isfinite(reward):
            raise ValueError(f"{self._name(i)} pays {reward} for an action, expected a number; choose a reward, or mend it")
        self._judge(i)
        terminated = terminated or bool(self._success[i])
        truncated = truncated or int(self._elapsed[i]) >= self.max_episode_steps
        return reward, terminated, truncated and not terminated

    def _judge(self, i: int) -> None:
        """Environment i has moved: its judgement is a new one, its sight is old."""
        adapter = self._adapters[i]
        self._success[i], self._progress[i], self._sights[i] = adapter.success(), adapter.progress(), None

    def _states(self) -> Float[Tensor, "b s"]:
        return torch.stack([torch.from_numpy(self._felt(i)) for i in range(self.num_envs)])

    def _felt(self, i: int) -> Float[np.ndarray, " s"]:
        state = np.asarray(self._adapters[i].state(), np.float32)
        if state.shape != (len(self.state_channels),) or not np.isfinite(state).all():
            expected = f"{len(self.state_channels)} finite numbers ({', '.join(self.state_names)})"
            raise ValueError(f"the state of {self._name(i)} is {state.tolist()}, expected {expected}; mend its adapter's state()")
        return state

    def _look(self, i: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Pictures and state of environment i now, drawn once."""
        sight = self._sights[i]
        if sight is None:
            images = self._adapters[i].images()
            for name, picture in images.items():
                shape = self._shapes.get(name)
                if picture.dtype != np.uint8 or picture.shape[2:] != (3,) or shape not in (None, picture.shape):
                    got, expected = f"{picture.dtype} {list(picture.shape)}", f"uint8 {list(shape or ('h', 'w', 3))}"
                    raise ValueError(
                        f"camera {name} of {self._name(i)} shows {got}, expected {expected}; mend its adapter's images()"
                    )
            sight = self._sights[i] = images, self._felt(i)
        return sight

    def _observe(self) -> Observation:
        images, states = zip(*(self._look(i) for i in range(self.num_envs)), strict=True)
        pictures = {name: torch.from_numpy(np.stack([shown[name] for shown in images])) for name in self._shapes}
        sentences = tuple(adapter.instruction() for adapter in self._adapters)
        return Observation(pictures, torch.from_numpy(np.stack(states)), sentences)

    def _name(self, i: int) -> str:
        spec = self._adapters[i].env.spec
        return type(self._adapters[i].env.unwrapped).__name__ if spec is None else spec.id


def _close(world: "ref[GymWorld]") -> None:
    if (there := world()) is not None:
        there.close()
