"""`PushTWorld`: gym-pusht's PushT, whose physics is that of Diffusion Policy's human demonstrations.

It is the judge for policies that learn from such a recording: cameras, channels and rate have the same names and units. Read
`worldsim/worlds/gym.py` for the world around it.
"""

from functools import partial
from typing import Any

import gym_pusht  # noqa: F401  registers the environment
import gymnasium as gym
import numpy as np
from jaxtyping import Float, UInt8

from worldsim.core.spec import Channel
from worldsim.core.world import Reward
from worldsim.worlds.gym import Adapter, GymWorld

SIDE = 512  # of the table [px]


class PushT(Adapter):
    """One table with a T, its goal and a round pusher.

    The action is where the pusher shall be, in pixels of the table; a PD controller takes it there in ten substeps of 10 ms. The
    pictures are those of the environment's own observations, the state is the pusher's place.

    Args:
        size: height and width of the pictures.
    """

    fps, max_episode_steps, robot_type = 10, 300, "pusht"
    state_channels = tuple(Channel(name, "px", "absolute", 0, SIDE) for name in ("motor_0", "motor_1"))
    action_channels = state_channels

    def __init__(self, size: int = 96):
        sizes = {"observation_width": size, "observation_height": size}
        super().__init__(gym.make("gym_pusht/PushT-v0", max_episode_steps=-1, disable_env_checker=True, **sizes))
        self._pusht: Any = self.env.unwrapped

    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        return {"image": self._pusht._render()}  # that of obs_type="pixels_agent_pos", which draws it in every step

    def state(self) -> Float[np.ndarray, "2"]:
        return np.array(self._pusht.agent.position)

    def instruction(self) -> str:
        return "Push the T-shaped block onto the T-shaped target."

    def progress(self) -> float:
        """Share of the goal that the T covers; success is more than .95 of it."""
        coverage = self.info["coverage"] if "coverage" in self.info else self._pusht._get_coverage()  # a reset's info lacks it
        return float(np.clip(coverage, 0, 1))


class PushTWorld(GymWorld):
    """`num_envs` tables; the rewards are the environment's, coverage / .95 up to 1, unless `reward` says otherwise.

    It is branched by playing the actions again: places and velocities are not all, as the solver begins with the contact impulses
    of the step before, which the environment does not give away.

    Args:
        num_envs: batch size.
        size: height and width of the pictures.
        seed: environment i begins with seed + i.
        reward: of judgements; null leaves it to the environment.
    """

    def __init__(self, num_envs: int = 16, size: int = 96, seed: int = 0, reward: Reward | None = None):
        super().__init__(partial(PushT, size), num_envs, seed, reward)
