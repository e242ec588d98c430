"""A world of which every value is known in advance: success and length of a start depend on its seed alone."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.spec import Channel
from worldsim.core.types import Judgement, Observation, TensorBatch
from worldsim.core.world import Branchable, ChunkResult, World
from worldsim.measure.collect import Actor

LIMIT = 40


def truth(seeds: Iterable[int], p: float) -> tuple[Tensor, Tensor]:
    """Success and length of starts: a success, of probability p, takes 10 to 29 steps, a failure `LIMIT`."""
    return _truth(tuple(seeds), p)


@lru_cache(8)
def _truth(seeds: tuple[int, ...], p: float) -> tuple[Tensor, Tensor]:
    noise = Noise(*(torch.tensor(seeds) * i for i in (1, 0, 0)))
    success = noise.uniform("known.success") < p
    return success, torch.where(success, 10 + noise.integers("known.length", 20), LIMIT)


@dataclass(frozen=True)
class Where(TensorBatch):
    seed: Int[Tensor, " b"]
    step: Int[Tensor, " b"]


class KnownWorld(World, Branchable):
    """State (seed, step), pixels step modulo 256; the reward of step k is k, progress k / `LIMIT`.

    An autoreset leads to a start of its own, 10^9 further on, which nobody asked for. `step` is not there to be used.
    """

    camera = "front"
    state_channels, action_channels = (Channel("seed"), Channel("step")), (Channel("a", low=-1, high=1),)
    physics = True

    def __init__(self, num_envs: int = 3, p: float = 0.6):
        self.num_envs, self.fps, self.max_episode_steps, self.p = num_envs, 10, LIMIT, p
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        images = gym.spaces.Dict({"front": gym.spaces.Box(0, 255, (8, 8, 3), np.uint8)})
        self.single_observation_space = gym.spaces.Dict({"images": images})
        self.where = Where(*torch.zeros(2, num_envs, dtype=torch.long))
        self.resets: list[list[int]] = []

    def reset(self, *, seed: Any = None, options: Any = None):
        mask = (options or {}).get("mask", torch.ones(self.num_envs, dtype=torch.bool))
        self.resets.append([s for s, m in zip(seed, mask.tolist(), strict=True) if m])
        self.where = Where(torch.where(mask, torch.tensor(seed), self.where.seed), torch.where(mask, 0, self.where.step))
        return self._observe(), {}

    def step(self, actions):
        raise AssertionError("whoever plays a policy hands over its chunks")

    def step_chunk(self, actions):
        return self.watch_chunk(actions)[0]

    def watch_chunk(self, actions):
        actions = self.check_actions(actions, ndim=3)
        done, log, seen = torch.zeros(self.num_envs, dtype=torch.bool), [], []
        success, length = truth(self.where.seed.tolist(), self.p)
        for _ in range(actions.shape[1]):
            self.where = Where(self.where.seed, self.where.step + (~done).long())
            over = (self.where.step == length) & ~done
            log.append((torch.where(done, 0.0, self.where.step.float()), over & success, over & ~success, ~done))
            done = done | over
            self.count_physics(int(log[-1][3].sum()))
            seen.append((self._observe(), self.judge()))
        columns = [torch.stack(values, dim=1) for values in zip(*log, strict=True)]
        self.where = Where(self.where.seed + done * 10**9, torch.where(done, 0, self.where.step))
        return ChunkResult(self._observe(), seen[-1][0], *columns, final_judge=seen[-1][1]), seen

    def snapshot(self):
        return self.where

    def restore(self, state):
        self.where = state
        return self._observe()

    def judge(self):
        success, length = truth(self.where.seed.tolist(), self.p)
        return Judgement(success=success & (self.where.step == length), progress=self.where.step / LIMIT)

    def _observe(self) -> Observation:
        image = self.where.step.to(torch.uint8)[:, None, None, None].expand(-1, 8, 8, 3).clone()
        sentences = tuple(f"start {seed}" for seed in self.where.seed.tolist())
        return Observation({"front": image}, torch.stack([self.where.seed, self.where.step], dim=1).float(), sentences)


class KnownActor(Actor):
    """Chunks of `ah` actions: the step at which they were decided, a hundredth of the place in the chunk, and a little noise.

    Args:
        ah: length of a chunk.
    """

    source = "policy"

    def __init__(self, ah: int):
        self.ah = ah

    def act(self, world, obs, noise):
        assert torch.equal(noise.step, obs.state[:, 1].long()), "noise belongs to the step at which it is used"
        return expected_chunk(noise, self.ah)


def expected_chunk(noise: Noise, ah: int) -> Tensor:
    """What `KnownActor` does, [b, ah, 1]."""
    return (noise.step / 100)[:, None, None] + torch.arange(ah)[None, :, None] / 1000 + 1e-4 * noise.normal("known", ah, 1)
