"""Any Gymnasium environment behind the contract: its own starts, rewards and successes, branched by playing it again."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from toy_slide import GOAL

from worldsim.core.checks import check_world
from worldsim.core.world import Branchable, Divisible, Scripted
from worldsim.tasks.reward import SparseSuccess
from worldsim.worlds.gym import GymWorld, ScriptedAdapter
from worldsim.worlds.gym_keys import KeyedAdapter, KeyedWorld, make

KEYS = {"env": "toy_slide:toy/Slide-v0", "cameras": {"front": "pixels.top"}, "state": "agent_pos", "instruction": "Slide right."}


def slide(**more) -> KeyedWorld:
    return KeyedWorld(**{**KEYS, "num_envs": 3, **more})


class Pusher(KeyedAdapter, ScriptedAdapter):
    """The same with an expert."""

    def expert(self):
        return np.ones(1)


def scripted(num_envs: int) -> GymWorld:
    arguments = (
        KEYS["env"],
        "Slide right.",
        KEYS["cameras"],
        "agent_pos",
        "is_success",
        {},
        None,
        None,
        (None, None),
        "bead",
        True,
    )
    return GymWorld(partial(Pusher, *arguments), num_envs)


@pytest.mark.parametrize("cameras", [{"front": "pixels.top"}, {"front": "render", "again": "pixels.top"}])
def test_it_keeps_the_contract(cameras: dict[str, str]):
    world = slide(cameras=cameras)
    assert check_world(world) == []
    assert world.able(Branchable) and not world.able(Scripted) and not world.able(Divisible)
    assert (world.fps, world.max_episode_steps, world.camera) == (20, 12, "front"), "what the environment says, the first camera"
    assert (world.state_names, world.action_names) == (("state_0",), ("action_0",))


def test_what_is_no_dictionary_is_the_state():
    """Pendulum's picture is what it renders; its actions reach from -2 to 2, so they are not yet as a network likes them."""
    pytest.importorskip("pygame", reason="Gymnasium draws this with pygame, which the extra pusht brings")
    names = {"state_names": ["cos", "sin", "turn"], "action_names": ["torque"]}
    settings = {"success": None, "num_envs": 2, "max_episode_steps": 8, **names}
    world = KeyedWorld("Pendulum-v1", "Swing the pendulum up.", {"front": "render"}, **settings)
    assert check_world(world) == []
    (torque,) = world.spec.action
    assert (torque.name, torque.low, torque.high, torque.normalisation) == ("torque", -2, 2, "quantile")


def test_starts_rewards_and_ends_are_the_environments():
    world, env = slide(), gym.make("toy/Slide-v0")
    obs, _ = world.reset(seed=6)
    first = obs.state[:, 0].tolist()
    assert first == [np.float32(env.reset(seed=seed)[0]["agent_pos"][0]) for seed in (6, 7, 8)]
    env.reset(seed=7)
    actions = torch.stack([torch.full((12,), push) for push in (-1.0, 1.0, 0.0)])[..., None]
    result, seen = world.watch_chunk(actions)
    for k in range(int(result.valid[1].sum())):
        state, reward, terminated, _, info = env.step(np.ones(1, np.float32))
        assert result.reward[1, k] == np.float32(reward) and result.terminated[1, k] == terminated == info["is_success"]
        assert seen[k][0].state[1] == np.float32(state["agent_pos"][0])
    assert terminated and seen[-1][0].state[1] > GOAL
    assert result.is_success.tolist() == [False, True, False], "lost, done and out of time"
    assert result.terminated.any(1).tolist() == [True, True, False] and result.truncated.any(1).tolist() == [False, False, True]
    assert world.physics_steps == result.valid.sum() < 36, "nothing is stepped beyond its end"
    following = result.obs.state[:, 0]
    assert (following != torch.tensor(first)).all(), "another episode"
    world.reset(seed=6)
    assert torch.equal(world.step_chunk(actions).obs.state[:, 0], following), "which the first one's seed settles"


def test_success_in_the_last_moment_is_no_lack_of_time():
    world = slide()
    world.reset(seed=6)
    (steps, *_) = world.step_chunk(torch.ones(3, 12, 1)).valid.sum(1).tolist()
    hurried = slide(max_episode_steps=steps)
    hurried.reset(seed=6)
    result = hurried.step_chunk(torch.ones(3, steps, 1))
    assert result.terminated[0, -1] and not result.truncated[0].any()


def test_a_reward_of_ones_own_is_paid_instead():
    world = slide(reward=SparseSuccess(success=5.0))
    world.reset(seed=6)
    result = world.step_chunk(torch.ones(3, 12, 1))
    assert result.is_success.all() and torch.equal(result.reward, 5.0 * result.terminated)


@pytest.mark.parametrize("rows", [[0, 1, 2], [2, 0, 0]])
def test_restored_in_any_place_it_repeats_itself_to_the_bit(rows: list[int]):
    """Chance is part of it: the environment draws in every step."""
    world = slide()
    world.reset(seed=30)
    world.step_chunk(torch.tensor([[1.0], [0.5], [-1.0]])[:, None].expand(3, 5, 1))
    state, actions = world.snapshot(), torch.linspace(-0.3, 0.3, 5)[None, :, None].expand(3, 5, 1)
    first, seen = world.watch_chunk(actions)
    world.reset(seed=50)
    count = world.physics_steps
    world.restore(state[rows])
    assert world.physics_steps == count, "what is played again was paid for"
    again, seen_again = world.watch_chunk(actions)
    assert torch.equal(first.reward[rows], again.reward)
    for (obs, _), (obs_again, _) in zip(seen, seen_again, strict=True):
        assert torch.equal(obs.state[rows], obs_again.state)
        assert torch.equal(obs.images["front"][rows], obs_again.images["front"])


def test_pictures_are_drawn_only_where_somebody_looks(monkeypatch: pytest.MonkeyPatch):
    world, drawn = slide(cameras={"front": "render"}), []
    monkeypatch.setattr("toy_slide.Slide.render", lambda self: drawn.append(1) or self._drawn())
    world.reset(seed=0)
    drawn.clear()
    world.step_chunk(torch.zeros(3, 6, 1))
    assert len(drawn) == 3, "at the end of the chunk"
    world.judge(), world.render()
    assert len(drawn) == 3, "and not again"
    world.watch_chunk(torch.zeros(3, 4, 1))
    assert len(drawn) == 3 + 12, "at each of its actions"


def test_an_expert_makes_a_world_scripted():
    world = scripted(2)
    assert world.able(Scripted)
    world.reset(seed=0)
    assert torch.equal(world.expert(), torch.ones(2, 1))
    with pytest.raises(ValueError, match="expert needs a Scripted world, KeyedWorld is none; act by a policy"):
        slide().expert()


def test_what_does_not_repeat_itself_is_not_branchable():
    """An environment that draws from elsewhere than its seed either says so, or is found out."""
    chance = {"settings": {"fault": "chance"}}
    world = slide(repeats=False, **chance)
    assert not world.able(Branchable)
    with pytest.raises(ValueError, match="snapshot needs a Branchable world, KeyedWorld is none"):
        world.snapshot()
    liar = slide(**chance)
    liar.step_chunk(torch.zeros(3, 3, 1))
    with pytest.raises(
        ValueError, match=r"environment 0 is not where 3 actions after reset\(seed=0\) had led: in .*; repeats=False"
    ):
        liar.restore(liar.snapshot())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("nan", r"the state of toy/Slide-v0 is \[nan\], expected 1 finite numbers \(state_0\); mend its adapter's state"),
        (
            "shape",
            r"camera front of toy/Slide-v0 shows uint8 \[13, 13, 3\], expected uint8 \[12, 12, 3\]; mend its adapter's images",
        ),
        ("reward", "toy/Slide-v0 pays nan for an action, expected a number; choose a reward"),
    ],
)
def test_faults_of_an_environment_are_named(fault: str, words: str):
    world = slide(settings={"fault": fault})
    with pytest.raises(ValueError, match=words):
        world.step(torch.zeros(3, 1))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"env": "Pendulun-v1"}, "Gymnasium knows no environment Pendulun-v1; did you mean Pendulum-v1 or "),
        ({"env": "Qqqqqq"}, "Gymnasium knows no environment Qqqqqq; name the package that has it: env=PACKAGE:ID"),
        (
            {"env": "gym_nowhere/Slide-v0"},
            "gym_nowhere/Slide-v0 needs gym_nowhere, which is not installed; install gym_nowhere, or",
        ),
        (
            {"env": "CartPole-v1", "state": None},
            r"CartPole-v1 takes actions of Discrete\(2\), expected a Box of one row; write an Ad",
        ),
        ({"settings": {"speed": 1}}, "cannot be made with {'speed': 1}: .*unexpected keyword argument 'speed'"),
        (
            {"state": "place"},
            "an observation has no place: where place should be are the keys pixels, agent_pos; name what is there",
        ),
        ({"cameras": {"front": "pixels.top.left"}}, "has no pixels.top.left: where left should be are no keys, ndarray; name what"),
        ({"state": None}, "an observation has the keys pixels, agent_pos; name the one that is the state"),
        ({"success": "done"}, "what toy/Slide-v0 says of a step has no done: where done should be are the keys is_success, told"),
        ({"cameras": {}}, "has no camera; name where its pictures lie, such as cameras={front: render}"),
        ({"cameras": {"front": "agent_pos"}}, r"camera front of toy/Slide-v0 shows float64 \[1\], expected uint8 \['h', 'w', 3\]"),
        ({"state_names": ["x", "y"]}, "state_names has 2 names, the environment 1 numbers; name each of them"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
    ],
)
def test_what_a_description_gets_wrong(arguments, words: str):
    with pytest.raises(ValueError, match=words):
        slide(**arguments).step(torch.zeros(3, 1))


def test_success_may_lie_deeper():
    world = slide(success="told.done")
    world.reset(seed=6)
    assert world.step_chunk(torch.ones(3, 12, 1)).is_success.all()


def test_the_time_limit_is_the_worlds():
    env = make(KEYS["env"])
    env.reset(seed=0)
    for _ in range(30):
        assert not env.step(np.zeros(1, np.float32))[3]
    assert slide(max_episode_steps=30).max_episode_steps == 30
