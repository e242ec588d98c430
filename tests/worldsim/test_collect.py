"""`collect` on a world that counts: every action, reward and frame of an episode is known in advance."""

from dataclasses import dataclass
from itertools import islice

import gymnasium as gym
import numpy as np
import pytest
import torch
from jaxtyping import Int
from torch import Tensor

from worldsim.collect import Actor, PlayActor, collect
from worldsim.evaluate import evaluate
from worldsim.interfaces import ChunkResult, World
from worldsim.types import Judgement, Observation, TensorBatch

LENGTHS = (2, 3, 5)  # steps of an episode of each environment; the last one is truncated, the others succeed


@dataclass(frozen=True)
class Count(TensorBatch):
    episode: Int[Tensor, " b"]
    step: Int[Tensor, " b"]


class CountingWorld(World):
    """Pixel and state 100*environment + 10*episode + step (a pixel modulo 256); the reward of step k is k; progress is k/10."""

    def __init__(self):
        self.num_envs, self.fps, self.max_episode_steps = len(LENGTHS), 10, LENGTHS[-1]
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.count = Count(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
        self.seeds: list[int] = []

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.count = Count(torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.long))
        return self._observe(), {}

    def step(self, actions):
        result = self.step_chunk(self.check_actions(actions, ndim=2)[:, None])
        info = {"final_obs": result.final_obs, "_final_obs": result.done, "final_judge": self.final}
        return result.obs, result.reward[:, 0], result.terminated[:, 0], result.truncated[:, 0], info

    def step_chunk(self, actions):
        assert actions.shape[1] == 1
        step = self.count.step + 1
        over = step == torch.tensor(LENGTHS)
        success = over & torch.tensor([True, True, False])
        self.count = Count(self.count.episode, step)
        self.final, final_obs = self.judge(), self._observe()
        self.count = Count(self.count.episode + over, torch.where(over, 0, step))
        ones = torch.ones(3, 1, dtype=torch.bool)
        return ChunkResult(self._observe(), final_obs, step[:, None].float(), success[:, None], (over & ~success)[:, None], ones)

    def snapshot(self):
        return self.count

    def restore(self, state):
        self.count = state
        return self._observe()

    def judge(self):
        success = (self.count.step == torch.tensor(LENGTHS)) & torch.tensor([True, True, False])
        return Judgement(success=success, progress=self.count.step / 10)

    def _observe(self):
        value = 100 * torch.arange(3) + 10 * self.count.episode + self.count.step
        image = value.to(torch.uint8)[:, None, None, None].expand(3, 2, 2, 3).clone()
        sentences = tuple(f"environment {i} episode {e}" for i, e in enumerate(self.count.episode.tolist()))
        return Observation({"front": image}, value[:, None].float(), sentences)


class SteppedWorld(CountingWorld):
    """Also plays chunks; an environment whose episode has ended waits for the chunk's end."""

    def step_chunk(self, actions):
        done, results = torch.zeros(3, dtype=torch.bool), []
        for action in actions.split(1, dim=1):
            results.append((super().step_chunk(action), done))
            done = done | results[-1][0].done
        joined = {
            name: torch.cat([getattr(result, name) & ~over[:, None] for result, over in results], dim=1)
            for name in ("terminated", "truncated", "valid")
        }
        reward = torch.cat([result.reward for result, _ in results], dim=1)
        return ChunkResult(results[-1][0].obs, results[-1][0].final_obs, reward, **joined)


class CountingActor(Actor):
    """Chunks of `ah` actions: the value seen when it decided (scaled to [0, 1]), plus 0.0001 per action within the chunk."""

    source = "policy"

    def __init__(self, ah: int):
        self.ah, self.begun = ah, torch.zeros(3, dtype=torch.long)

    def act(self, world, obs):
        return (obs.state / 1000)[:, None] + 0.0001 * torch.arange(self.ah)[None, :, None]

    def begin(self, world, started):
        self.begun += started


@pytest.mark.parametrize(("ah", "executed"), [(1, None), (2, None), (4, None), (4, 2), (3, 1), (2, 9)])
def test_every_value_of_eight_episodes(ah, executed):
    world, actor = CountingWorld(), CountingActor(ah)
    episodes = list(islice(collect(world, actor, seed=11, n_action_steps=executed), 8))
    ah = min(ah, executed or ah)
    assert world.seeds == [11], "the world's autoreset starts the next episodes"
    # Ends by step: 2:e0 3:e1 4:e0 5:e2 6:e0,e1 8:e0 9:e1
    order = [(0, 0), (1, 0), (0, 1), (2, 0), (0, 2), (1, 1), (0, 3), (1, 2)]
    for episode, (env, number) in zip(episodes, order, strict=True):
        length = LENGTHS[env]
        assert len(episode) == length
        first = 100 * env + 10 * number
        values = torch.arange(first, first + length + 1)
        assert episode.instruction == f"environment {env} episode {number}"
        assert episode.source == "policy"
        assert episode.state[:, 0].tolist() == values.tolist()
        assert (episode.images["front"][:, 0, 0, 0] == values.to(torch.uint8)).all(), "the last frame is the episode's own"
        assert episode.images["front"].shape == (length + 1, 2, 2, 3)
        assert episode.reward.tolist() == list(range(1, length + 1))
        assert episode.success.tolist() == [False] * length + [env != 2]
        torch.testing.assert_close(episode.progress, torch.arange(length + 1) / 10)
        # A chunk is decided at steps 0, ah, 2 ah, ... of each episode, whatever the other environments do.
        decided = [first + k // ah * ah for k in range(length)]
        expected = torch.tensor([value / 1000 + 0.0001 * (k % ah) for k, value in enumerate(decided)])
        torch.testing.assert_close(episode.action[:, 0], expected)


@pytest.mark.parametrize(("executed", "decisions"), [(None, 2), (2, 3), (1, 5)])
def test_an_evaluation_executes_as_many_actions_of_a_chunk_as_it_is_told(executed: int | None, decisions: int):
    """The third environment's episode has five steps, with chunks of four; each decision is made at the step that it names."""
    world, seen = SteppedWorld(), []

    class Witness(CountingActor):
        def act(self, world, obs):
            seen.append(int(obs.state[2]) % 10)
            return super().act(world, obs)

    outcome = evaluate(world, lambda seed: Witness(4), episodes=3, seed=0, n_action_steps=executed)
    assert seen == [k * (executed or 4) for k in range(decisions)]
    assert outcome.success.tolist() == [True, True, False] and outcome.length.tolist() == list(LENGTHS)


@pytest.mark.parametrize("steps", [0, -1, 1.5, "two"])
def test_impossible_parts_of_chunks_are_refused(steps):
    with pytest.raises(ValueError, match="n_action_steps must be an integer from 1 on"):
        evaluate(SteppedWorld(), lambda seed: CountingActor(4), episodes=3, seed=0, n_action_steps=steps)
    with pytest.raises(ValueError, match="n_action_steps must be an integer from 1 on"):
        next(collect(CountingWorld(), CountingActor(4), seed=0, n_action_steps=steps))


def test_actor_is_told_of_every_start():
    world, actor = CountingWorld(), CountingActor(1)
    list(islice(collect(world, actor, seed=0), 7))
    # The seventh episode ends at step 8 and is yielded before the next begins: starts at 0, 2, 4, 6 / 0, 3, 6 / 0, 5.
    assert actor.begun.tolist() == [4, 3, 2]


def test_play_actor_moves_to_a_world_of_another_size():
    actor = PlayActor()
    for size in (3, 5):
        world = CountingWorld()
        world.num_envs = size
        actor.begin(world, torch.ones(size, dtype=torch.bool))
        assert actor.level.shape == (size,)
        assert (actor.level > 0).all()
