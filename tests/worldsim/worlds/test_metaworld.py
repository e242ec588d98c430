"""Meta-World is itself behind the contract: its steps, its experts, any of its tasks; and it repeats itself to the bit."""

from itertools import pairwise

import numpy as np
import pytest
import torch

pytest.importorskip("metaworld", reason="needs the extra metaworld")

from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE
from metaworld.policies import ENV_POLICY_MAP

from worldsim.core.checks import check_world
from worldsim.core.world import Branchable, Scripted
from worldsim.measure.collect import ExpertActor, collect
from worldsim.worlds.metaworld import KEPT, MetaworldWorld
from worldsim.worlds.metaworld_tasks import SENTENCES

TWO = ["push-v3", "drawer-open-v3"]


def begun(task: str, seed: int):
    """Meta-World alone, and its first observation."""
    env = ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE[f"{task}-goal-observable"](seed=0)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True
    env.seed(seed)
    return env, env.reset()[0]


def steps_of_the_expert(task: str, seed: int) -> int:
    """Until Meta-World alone says that the task is done."""
    (env, seen), policy = begun(task, seed), ENV_POLICY_MAP[task]()
    for step in range(1, 200):
        seen, *_, info = env.step(np.clip(policy.get_action(seen), -1, 1))
        if info["success"]:
            return step
    raise AssertionError(f"Meta-World's own expert fails in {task} from {seed}")


def test_it_keeps_the_contract_with_two_tasks():
    world = MetaworldWorld(TWO, num_envs=2, size=32, max_episode_steps=8)
    assert check_world(world) == []
    assert world.able(Branchable) and world.able(Scripted) and world.fps == 40
    assert [channel.unit for channel in world.action_channels] == ["0.02 m"] * 3 + ["effort"], "two steps of 1 cm for each action"


def test_an_action_is_so_many_of_its_steps():
    world = MetaworldWorld("push-v3", num_envs=1, size=32, skip=4)
    obs, _ = world.reset(seed=7)
    env, seen = begun("push-v3", seed=7)
    assert np.array_equal(obs.state[0].numpy(), seen[:4].astype(np.float32))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        action = 2 * torch.rand(1, 4, generator=generator) - 1
        obs, reward, *_ = world.step(action)
        paid = 0.0
        for _ in range(4):
            seen, earned, *_ = env.step(action[0].numpy())
            paid += earned
        assert np.array_equal(obs.state[0].numpy(), seen[:4].astype(np.float32)) and reward[0] == np.float32(paid)
    assert world.physics_steps == 10


def test_restored_in_any_place_it_repeats_itself_to_the_bit():
    world, generator = MetaworldWorld(TWO, num_envs=3, size=48), torch.Generator().manual_seed(1)
    world.reset(seed=20)
    for _ in range(18):  # to the puck and the handle
        world.step(world.expert())
    state, actions = world.snapshot(), torch.stack([2 * torch.rand(3, 4, generator=generator) - 1 for _ in range(12)], dim=1)
    assert any(adapter.env.unwrapped.data.ncon for adapter in world._adapters), "nothing touches: too easy"
    first, seen = world.watch_chunk(actions)
    after, wishes = world.snapshot(), world.expert()
    world.reset(seed=91)
    rows = [2, 0, 1]
    world.restore(state[rows])
    again, seen_again = world.watch_chunk(actions[rows])
    assert torch.equal(first.reward[rows], again.reward) and torch.equal(world.expert(), wishes[rows])
    assert torch.equal(after.kept[rows], world.snapshot().kept)
    for (obs, _), (obs_again, _) in zip(seen, seen_again, strict=True):
        assert torch.equal(obs.images["corner2"][rows], obs_again.images["corner2"])
        assert torch.equal(obs.state[rows], obs_again.state)


def test_experts_succeed():
    """After as many steps as they need without this world, and in about half as many actions that are carried out twice."""
    tasks, seeds = ["push-v3", "button-press-topdown-v3"], range(2)
    needed = [steps_of_the_expert(tasks[seed % 2], seed) for seed in seeds]
    for skip in (1, 2):
        world = MetaworldWorld(tasks, num_envs=2, size=32, skip=skip)
        episodes = list(collect(world, ExpertActor(noise=0), episodes=len(seeds), seed=seeds[0]))
        assert all(episode.success[-1] == 1 and not episode.success[:-1].any() for episode in episodes)
        assert [episode.instruction for episode in episodes] == ["Push the puck to the goal.", "Press the button from above."]
        assert all(torch.equal(episode.progress, episode.success) for episode in episodes), "nobody knows better"
        lengths = [len(episode) for episode in episodes]
        assert lengths == needed if skip == 1 else all(0.4 < a / b < 0.6 for a, b in zip(lengths, needed, strict=True))


def test_a_start_is_the_same_beside_any_other():
    alone, among = MetaworldWorld(TWO, num_envs=1, size=32), MetaworldWorld(TWO, num_envs=3, size=32)
    obs, _ = alone.reset(seed=5)
    others, _ = among.reset(seed=4)
    assert obs.instruction[0] == others.instruction[1] == SENTENCES["drawer-open-v3"], "5 is odd"
    assert torch.equal(obs.images["corner2"][0], others.images["corner2"][1]) and torch.equal(obs.state[0], others.state[1])


def test_the_picture_is_upright():
    """The table is below, the grey wall above; the first picture shows the goal where the later ones do."""
    world = MetaworldWorld("push-v3", num_envs=1, size=96)
    obs, _ = world.reset(seed=0)
    image = obs.images["corner2"][0].float()
    assert image[:20].std(dim=(0, 1)).max() < 5 and image[70:].std(dim=(0, 1)).max() > 30
    later = world.step(torch.zeros(1, 4))[0].images["corner2"][0].float()
    green = [frame[..., 1] - frame[..., [0, 2]].amax(-1) > 60 for frame in (image, later)]
    assert green[0].any() and torch.equal(*green)


def test_each_task_has_a_sentence():
    assert set(SENTENCES) == set(ENV_POLICY_MAP) and all(a < b for a, b in pairwise(SENTENCES))
    assert len(set(SENTENCES.values())) == 50
    assert MetaworldWorld("peg-insert-side-v3", num_envs=1, size=32).snapshot().kept.shape == (1, KEPT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"task": "puhs-v3"}, "Meta-World has no task puhs-v3; did you mean push-v3 or "),
        ({"task": []}, r"got the tasks \[\] and skip=2, expected a task or more"),
        ({"skip": 3}, r"skip=3, expected a task or more and a divisor of 80; take 2 or 4"),
        ({"camera": "above"}, "Meta-World has no camera above; one of topview, corner, corner2"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
    ],
)
def test_what_it_refuses(arguments, words: str):
    with pytest.raises(ValueError, match=words):
        MetaworldWorld(**{"num_envs": 1, **arguments})
