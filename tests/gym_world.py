"""A world of Gymnasium's own: CartPole behind the contract, which nobody can branch, with an end that is no success."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces.text import alphanumeric
from gymnasium.vector import AutoresetMode
from torch import Tensor

from worldsim.core.spec import Channel
from worldsim.core.types import Judgement, Observation
from worldsim.core.world import World, step_info

SIZE = 16


class PoleWorld(World):
    """`CartPole-v1` for `limit` steps: a pole that falls ends the episode for good; success is to stand when time is up.

    The action's sign pushes; in the picture the cart is a red column and the pole's angle a green one. Rewards are Gymnasium's.
    """

    camera, robot_type = "front", "cart"
    state_channels = (Channel("x", "m"), Channel("v", "m/s"), Channel("angle", "rad"), Channel("turn", "rad/s"))
    action_channels = (Channel("push", low=-1, high=1),)
    physics = True

    def __init__(self, num_envs: int = 3, limit: int = 12):
        self.num_envs, self.fps, self.max_episode_steps = num_envs, 50, limit
        modes: Any = {"autoreset_mode": AutoresetMode.SAME_STEP}
        self.envs = gym.make_vec("CartPole-v1", num_envs, "sync", vector_kwargs=modes, max_episode_steps=limit)
        self.single_observation_space = gym.spaces.Dict(
            images=gym.spaces.Dict({"front": gym.spaces.Box(0, 255, (SIZE, SIZE, 3), np.uint8)}),
            state=gym.spaces.Box(-np.inf, np.inf, (4,), np.float32),
            instruction=gym.spaces.Text(50, charset=alphanumeric | set(" ")),
        )
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        mask, seeds = self.begun(seed, options)
        if mask.any():
            self.state, _ = self.envs.reset(seed=None if seeds is None else seeds.tolist(), options={"reset_mask": mask.numpy()})
        return self._observe(self.state), {}

    def step(self, actions):
        pushes = (self.check_actions(actions, ndim=2)[:, 0] > 0).long().numpy()
        self.state, reward, *over, info = self.envs.step(pushes)
        terminated, truncated = (torch.from_numpy(values) for values in over)
        ended = terminated | truncated
        last = self.state.copy()
        for i in ended.nonzero().flatten().tolist():
            last[i] = info["final_obs"][i]
        stands = truncated & ~terminated
        self.count_physics(self.num_envs)
        told = step_info(self._observe(last), ended, self._judged(stands))
        return self._observe(self.state), torch.from_numpy(reward).float(), terminated, stands, told

    def judge(self):
        return self._judged(torch.zeros(self.num_envs, dtype=torch.bool))

    def render(self):
        return tuple(self._observe(self.state).images["front"].numpy())

    def _judged(self, success: Tensor) -> Judgement:
        return Judgement(success=success, progress=torch.full((self.num_envs,), torch.nan))

    def _observe(self, state: np.ndarray) -> Observation:
        places = torch.from_numpy(state[:, [0, 2]].copy()) * torch.tensor([SIZE / 2, SIZE])
        columns = (places.round().long() + SIZE // 2).clamp(0, SIZE - 1)
        picture = torch.zeros(self.num_envs, SIZE, SIZE, 3, dtype=torch.uint8)
        for channel, column in enumerate(columns.unbind(1)):
            picture[torch.arange(self.num_envs), :, column, channel] = 255
        return Observation({"front": picture}, torch.from_numpy(state.copy()), ("keep the pole up",) * self.num_envs)
