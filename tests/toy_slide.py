"""A tiny Gymnasium environment, registered as toy/Slide-v0: a bead on a rail, observed as LeRobot's environments are."""

from typing import Any

import gymnasium as gym
import numpy as np

SIDE, GOAL = 12, 0.8


class Slide(gym.Env):
    """A push moves the bead by a tenth of it, and chance by a little more; beyond `GOAL` the task is done, beyond -1 it is lost.

    Args:
        fault: what it does wrong: "nan", "shape", "reward", or "chance" that no seed settles.
    """

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 20}
    action_space = gym.spaces.Box(-1, 1, (1,), np.float32)
    observation_space = gym.spaces.Dict(
        pixels=gym.spaces.Dict(top=gym.spaces.Box(0, 255, (SIDE, SIDE, 3), np.uint8)), agent_pos=gym.spaces.Box(-2, 2, (1,))
    )

    def __init__(self, fault: str = "", render_mode: str | None = None):
        self.fault, self.render_mode, self.place, self.steps = fault, render_mode, 0.0, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-0.5, 0.5)), 0
        return self._seen(), {}

    def step(self, action):
        chance = np.random.uniform(-0.02, 0.02) if self.fault == "chance" else self.np_random.uniform(-0.02, 0.02)
        self.place += 0.1 * float(action[0]) + float(chance)
        self.steps += 1
        done, lost = self.place > GOAL, self.place < -1
        reward = np.nan if self.fault == "reward" else self.place
        return self._seen(), reward, done or lost, False, {"is_success": done, "told": {"done": done}}

    def _seen(self):
        place = np.nan if self.fault == "nan" and self.steps else self.place
        side = SIDE + 1 if self.fault == "shape" and self.steps else SIDE
        return {"pixels": {"top": self._drawn(side)}, "agent_pos": np.array([place])}

    def _drawn(self, side: int = SIDE) -> np.ndarray:
        picture = np.zeros((side, side, 3), np.uint8)
        picture[:, int((self.place + 2) / 4 * SIDE) % SIDE] = 255 * abs(self.place) / 2
        return picture

    def render(self):
        return self._drawn()


gym.register("toy/Slide-v0", Slide, max_episode_steps=12)
