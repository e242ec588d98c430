"""`PointWorld`: a point mass drives to the disc that a sentence names. Nothing but torch; what it shows is drawn by hand."""

from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from jaxtyping import Float, Int
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.spec import Channel
from worldsim.core.types import Judgement, Observation, TensorBatch, where_rows
from worldsim.core.world import Branchable, ChunkResult, Scripted, Sight, Step, World
from worldsim.tasks.reward import ProgressReward

COLOURS = {"red": (220, 60, 60), "green": (60, 180, 90)}
RADIUS_M, POINT_M = 0.15, 0.08
GRIP, DRAG = 0.6, 0.6  # speed that an action of 1 adds within a step [m/s], and share of the old one that is left
SENTENCES = tuple(f"drive to the {colour} disc" for colour in COLOURS)


@dataclass(frozen=True)
class PointState(TensorBatch):
    """Everything that determines the future of b tables of 2 m x 2 m, whose middle is the origin."""

    position: Float[Tensor, "b 2"]  # m
    velocity: Float[Tensor, "b 2"]  # m/s
    discs: Float[Tensor, "b 2 2"]  # m, in the order of COLOURS
    wish: Int[Tensor, " b"]  # which of them
    begun: Float[Tensor, " b"]  # distance from the wish at the start, m
    elapsed: Int[Tensor, " b"]
    stream: Int[Tensor, "b 2"]  # seed and number of the next episode

    @property
    def distance(self) -> Float[Tensor, " b"]:
        """From the disc that is named, m."""
        return (self.position - self.goal).norm(dim=1)

    @property
    def goal(self) -> Float[Tensor, "b 2"]:
        """Centre of the disc that is named, m."""
        return self.discs[torch.arange(len(self.wish)), self.wish]


class PointWorld(World, Branchable, Scripted):
    """`num_envs` tables. Reward = progress difference + 1 on success, which is to touch the disc.

    The state is position and velocity (m, m/s), an action the force in [-1, 1]^2; the y axis points up in the picture. The scene
    has left-right symmetry.

    Args:
        num_envs: batch size.
        max_episode_steps: truncation.

    Raises:
        ValueError: if `num_envs` is not positive.
    """

    reward: ProgressReward
    camera, fps, robot_type, physics = "front", 10, "point_mass", True
    state_channels = (Channel("x", "m"), Channel("y", "m"), Channel("vx", "m/s"), Channel("vy", "m/s"))
    action_channels = (Channel("fx", low=-1, high=1), Channel("fy", low=-1, high=1))

    def __init__(self, num_envs: int = 16, max_episode_steps: int = 40):
        if num_envs < 1:
            raise ValueError(f"num_envs must be at least 1, got {num_envs}")
        self.num_envs, self.max_episode_steps, self.reward = num_envs, max_episode_steps, ProgressReward()
        self.single_observation_space = gym.spaces.Dict(
            images=gym.spaces.Dict({self.camera: gym.spaces.Box(0, 255, (64, 64, 3), np.uint8)}),
            state=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            instruction=gym.spaces.Text(40, charset="abcdefghijklmnopqrstuvwxyz "),
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        row = torch.arange(num_envs)
        self._state = self._begin(torch.stack([row, 0 * row], dim=1))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict[str, Any]]:
        mask = torch.as_tensor((options or {}).get("mask", torch.ones(self.num_envs)), dtype=torch.bool)
        stream = self._state.stream
        if seed is not None:
            seeds = seed + torch.arange(self.num_envs) if isinstance(seed, int) else torch.tensor(list(seed))
            stream = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)
        if mask.shape != (self.num_envs,) or stream.shape != (self.num_envs, 2):
            raise ValueError(f"there are {self.num_envs} environments, got {len(mask)} rows of mask and {len(stream)} of seeds")
        self._state = where_rows(mask, self._begin(stream), self._state)
        return self._observe(), {}

    def step(self, actions: Float[Tensor, "b 2"]) -> Step:
        return self.step_chunk(self.check_actions(actions, ndim=2)[:, None]).as_step()

    def watch_chunk(self, actions: Float[Tensor, "b ah 2"]) -> tuple[ChunkResult, list[Sight]]:
        done, log, seen = torch.zeros(self.num_envs, dtype=torch.bool), [], []
        for action in self.check_actions(actions, ndim=3).unbind(dim=1):
            before, now = self._state, self._move(self._state, action)
            judged = self._judge(now)
            success = judged.success
            truncated = (now.elapsed >= self.max_episode_steps) & ~success & ~done
            log.append((torch.where(done, 0.0, self.reward(self._judge(before), judged)), success & ~done, truncated, ~done))
            self._state = where_rows(done, before, now)
            self.count_physics(int((~done).sum()))
            done = done | success | truncated
            seen.append((self._observe(), self.judge()))
        final_obs, final_judge = seen[-1]
        self._state = where_rows(done, self._begin(self._state.stream), self._state)
        columns = (torch.stack(values, dim=1) for values in zip(*log, strict=True))
        return ChunkResult(self._observe(), final_obs, *columns, final_judge=final_judge), seen

    def snapshot(self) -> PointState:
        return self._state

    def restore(self, state: TensorBatch) -> Observation:
        if not isinstance(state, PointState) or len(state.wish) != self.num_envs:
            raise ValueError(f"restore needs a PointState of {self.num_envs} environments; index the snapshot")
        self._state = state
        return self._observe()

    def judge(self) -> Judgement:
        return self._judge(self._state)

    def expert(self) -> Float[Tensor, "b 2"]:
        """Straight to the disc, slower as it comes near."""
        return (3 * (self._state.goal - self._state.position) - 0.5 * self._state.velocity).clamp(-1, 1)

    def render(self) -> tuple[np.ndarray, ...]:
        """What the camera shows, uint8 [64, 64, 3] per environment."""
        return tuple(self._observe().images[self.camera].numpy())

    # Internals ----------------------------------------------------------------------------------------------------------

    def _begin(self, stream: Int[Tensor, "b 2"]) -> PointState:
        """A new episode everywhere: the point below, the discs above, one on each side."""
        noise = Noise(stream[:, 0], stream[:, 1], torch.zeros_like(stream[:, 0]))
        draw, side = noise.uniform("point.places", 6), 2.0 * noise.integers("point.side", 2) - 1
        position = torch.stack([1.6 * draw[:, 0] - 0.8, 0.5 * draw[:, 1] - 0.8], dim=1)
        across, up = 0.2 + 0.6 * draw[:, 2:4], 0.2 + 0.6 * draw[:, 4:6]
        discs = torch.stack([torch.stack([side, -side], dim=1) * across, up], dim=2)
        wish = noise.integers("point.wish", 2)
        zeros = torch.zeros(len(wish))
        state = PointState(position, 0 * position, discs, wish, zeros, zeros.long(), stream + torch.tensor([0, 1]))
        return replace(state, begun=state.distance)

    def _move(self, state: PointState, action: Float[Tensor, "b 2"]) -> PointState:
        velocity = DRAG * state.velocity + GRIP * action
        position = (state.position + velocity / self.fps).clamp(-1 + POINT_M, 1 - POINT_M)
        velocity = (position - state.position) * self.fps  # a wall stops it
        return replace(state, position=position, velocity=velocity, elapsed=state.elapsed + 1)

    def _judge(self, state: PointState) -> Judgement:
        progress = 1 - (state.distance - RADIUS_M).clamp(min=0) / (state.begun - RADIUS_M)
        return Judgement(success=state.distance < RADIUS_M, progress=progress.clamp(0, 1))

    def _observe(self) -> Observation:
        state = self._state
        image = torch.full((self.num_envs, 64, 64, 3), 40.0)
        things = [(state.discs[:, i], RADIUS_M, colour) for i, colour in enumerate(COLOURS.values())]
        for centre, radius_m, colour in [*things, (state.position, POINT_M, (240, 240, 240))]:
            share = _disc(centre, radius_m)[..., None]
            image = image + share * (torch.tensor(colour) - image)
        sentences = tuple(SENTENCES[i] for i in state.wish.tolist())
        return Observation(
            {self.camera: image.round().to(torch.uint8)}, torch.cat([state.position, state.velocity], dim=1), sentences
        )


def _disc(centre: Float[Tensor, "b 2"], radius_m: float) -> Float[Tensor, "b 64 64"]:
    """Share of each pixel that a disc covers, with a soft edge one pixel wide; row 0 is above."""
    pixel_m = 2 / 64
    ticks = (torch.arange(64) + 0.5) * pixel_m - 1
    right, up = ticks - centre[:, :1], -ticks - centre[:, 1:]
    distance = (right[:, None, :].square() + up[:, :, None].square()).sqrt()
    return ((radius_m - distance) / pixel_m + 0.5).clamp(0, 1)
