"""A vector environment of Gymnasium's is a `World`: what it lacks is said, and success is its own word."""

import gymnasium as gym
import pytest
import torch
from gym_world import PoleWorld

from worldsim.core.checks import check_world
from worldsim.core.world import Branchable, Divisible, Scripted
from worldsim.measure.collect import Actor, ExpertActor, collect
from worldsim.measure.evaluate import evaluate
from worldsim.worlds.randomized import RandomizedWorld

LIMIT, SEED = 12, 40


class ByParity(Actor):
    """Pushes to and fro on even starts, which keeps the pole up; always to the right on odd ones, until it falls."""

    source = "policy"

    def act(self, world, obs, noise):
        steps = noise.step[:, None] + torch.arange(4)
        even = (noise.seed % 2 == 0)[:, None]
        return torch.where(even & (steps % 2 == 1), -1.0, 1.0)[..., None]


def falls_after(seed: int) -> int:
    """Pushes to the right until the pole of this start falls, by Gymnasium alone."""
    env = gym.make("CartPole-v1")
    env.reset(seed=seed)
    return next(step for step in range(1, LIMIT) if env.step(1)[2])


@pytest.mark.parametrize("wrap", [lambda world: world, lambda world: RandomizedWorld(world, {})])
def test_a_world_that_nobody_can_branch_keeps_the_contract(wrap):
    world = wrap(PoleWorld(limit=LIMIT))
    left_out = check_world(world)
    assert len(left_out) == 1 and left_out[0].startswith("not Branchable")
    assert not any(world.able(ability) for ability in (Branchable, Divisible, Scripted))


def test_what_a_world_lacks_is_said_in_one_line():
    world = RandomizedWorld(PoleWorld(), {})
    obs, _ = world.reset(seed=0)
    with pytest.raises(ValueError, match="actor=expert needs a Scripted world, PoleWorld is none; record with actor=policy"):
        ExpertActor().act(world, obs, None)
    with pytest.raises(ValueError, match="snapshot needs a Branchable world, PoleWorld is none"):
        world.snapshot()


@pytest.mark.parametrize("num_envs", [1, 3])
def test_a_failure_that_ends_an_episode_is_no_success(num_envs: int):
    """Chunks of four by single steps, of which the last ones show nothing of the episode that follows."""
    seeds = range(SEED, SEED + 5)
    length = [LIMIT if seed % 2 == 0 else falls_after(seed) for seed in seeds]
    assert length[1::2] == [9, 8], "the test needs an end within a chunk and one with it"
    outcome = evaluate(PoleWorld(num_envs), ByParity(), episodes=5, seed=SEED)
    assert outcome.success.tolist() == [True, False] * 2 + [True] and outcome.length.tolist() == length
    for episode, steps, seed in zip(collect(PoleWorld(num_envs), ByParity(), episodes=5, seed=SEED), length, seeds, strict=True):
        assert len(episode) == steps and episode.reward.tolist() == [1.0] * steps, "Gymnasium pays one for every step"
        assert episode.success.tolist() == [0.0] * steps + [float(seed % 2 == 0)]
        assert episode.progress.isnan().all(), "nobody knows it"


def test_steps_beyond_an_end_are_physics_too():
    """One environment falls after nine steps: all twelve of its three chunks were executed."""
    world = PoleWorld(1)
    evaluate(world, ByParity(), episodes=1, seed=SEED + 1)
    assert falls_after(SEED + 1) == 9 and world.physics_steps == 12
