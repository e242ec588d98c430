"""PushT is the environment itself: its pictures, its starts, its word for success; and it repeats itself to the bit."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

pytest.importorskip("gym_pusht", reason="needs the extra pusht")

from worldsim.core.checks import check_world
from worldsim.core.world import Branchable, Divisible, Scripted
from worldsim.data.dataset_spec import read_spec
from worldsim.worlds.pusht import PushTWorld


def chase(world: PushTWorld, generator: torch.Generator) -> torch.Tensor:
    """Targets around the T, so that most actions push it."""
    blocks = torch.tensor([[*adapter._pusht.block.position] for adapter in world._adapters])
    return blocks + 60 * torch.randn(world.num_envs, 2, generator=generator)


def test_it_keeps_the_contract():
    world = PushTWorld(2, size=32)
    assert check_world(world) == []
    assert world.able(Branchable) and not world.able(Scripted) and not world.able(Divisible)


def test_it_shows_what_the_environment_shows():
    world = PushTWorld(2)
    env = gym.make("gym_pusht/PushT-v0", obs_type="pixels_agent_pos")
    obs, _ = world.reset(seed=5)
    seen, _ = env.reset(seed=6)
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        for i, expected in ((0, None), (1, seen)):
            if expected is not None:
                assert np.array_equal(obs.images["image"][i].numpy(), expected["pixels"])
                assert np.array_equal(obs.state[i].numpy(), expected["agent_pos"].astype(np.float32))
        action = world.clipped(chase(world, generator))
        seen, paid, _, _, info = env.step(action[1].numpy())
        obs, reward, _, _, told = world.step(action)
        assert reward[1] == np.float32(paid) and told["final_judge"].progress[1] == np.float32(info["coverage"])
    assert world.physics_steps == 80


def test_restored_in_any_place_it_repeats_itself_to_the_bit():
    world, generator = PushTWorld(3), torch.Generator().manual_seed(1)
    world.reset(seed=20)
    for _ in range(25):
        world.step(chase(world, generator))
    assert sum(len(adapter._pusht.space._get_arbiters()) for adapter in world._adapters) > 0, "nothing touches: too easy"
    state, actions = world.snapshot(), torch.stack([chase(world, generator) for _ in range(15)], dim=1)
    first, seen = world.watch_chunk(actions)
    world.reset(seed=90)
    rows = [2, 0, 1]
    world.restore(state[rows])
    again, seen_again = world.watch_chunk(actions[rows])
    assert torch.equal(first.reward[rows], again.reward)
    for (obs, judged), (obs_again, judged_again) in zip(seen, seen_again, strict=True):
        assert torch.equal(obs.images["image"][rows], obs_again.images["image"])
        assert torch.equal(obs.state[rows], obs_again.state) and torch.equal(judged.progress[rows], judged_again.progress)


def test_it_speaks_as_the_human_recording_does():
    world, root = PushTWorld(1), Path(__file__).parents[4] / "shared" / "data" / "pusht_human"
    if not root.is_dir():
        pytest.skip(f"needs the recording in {root}")
    spec = read_spec(root)
    assert (world.state_names, world.action_names) == (spec.state_names, spec.action_names)
    assert world.spec.cameras == spec.cameras and world.fps == spec.fps
    assert world._observe().instruction[0] in pq.read_table(root / "meta" / "tasks.parquet").to_pydict()["task"]
