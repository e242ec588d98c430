"""A policy and a world that list their channels in other orders understand each other, wherever a policy acts or learns."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from counting import VIEWS, Remembering
from drifting import START, Drift, moments, spec
from learners import fit
from torch import Tensor

from training.guards.held_out import PhysicsCheck
from training.rl.arena import DreamArena
from training.rl.chains import Deterministic, FlowSDE
from training.rl.estimators import GRPO
from training.rl.imagine import Moment, imagine
from training.rl.ppo import PPOPostTraining
from training.rl.rollout import collect_rollout
from training.rl.sampling import SuccessBuffer
from worldsim.core.channels import Channel
from worldsim.core.interfaces import FlowPolicy
from worldsim.core.noise import Noise
from worldsim.core.sizes import check_names
from worldsim.core.types import Features, Observation
from worldsim.core.units import Units
from worldsim.data.windows import Mirror
from worldsim.measure.collect import PolicyActor, collect
from worldsim.tasks.reward import ProgressReward
from worldsim.worlds.dream import DreamWorld


class Homing(FlowPolicy):
    """Halves the way north and takes the way east whole, whatever the noise; its channels stand (north, east) and (dn, de)."""

    def __init__(self, *, turned: bool = True) -> None:
        super().__init__()
        self.views, self.action_horizon, self.action_dim, self.num_steps, self.feature_dim = VIEWS, 1, 2, 1, 2
        self.state_units, self.action_units, self.spec = Units(2), Units(2), spec(turned=turned)
        self.gain = torch.nn.Parameter(torch.tensor([0.5, 1.0] if turned else [1.0, 0.5]))

    def encode(self, obs: Observation) -> Features:
        return Features(obs.state)

    def velocity(self, features: Features, x_t: Tensor, t: Tensor) -> Tensor:
        return (x_t + (self.gain * features.vector)[:, None]) / t[:, None, None]


def world(**settings: Any) -> DreamWorld:
    dream = DreamWorld(Drift(), Remembering(context=1), moments(), num_envs=2, **settings)
    dream.reset(options={"start": torch.tensor([0, 1])})
    return dream


HOME = [START, START * torch.tensor([0.0, 0.5]), START * torch.tensor([0.0, 0.25])]  # before each of three decisions


def test_whoever_acts_is_joined_by_name() -> None:
    dream = world(max_episode_steps=3)
    obs, noise = dream.restore(dream.snapshot()), Noise.rows(0, 2)
    actions = PolicyActor(Homing()).act(dream, obs, noise)
    torch.testing.assert_close(actions, PolicyActor(Homing(turned=False)).act(dream, obs, noise))
    torch.testing.assert_close(actions[:, 0], START * torch.tensor([-1.0, -0.5]))
    ends = torch.stack([episode.state[2] for episode in collect(dream, PolicyActor(Homing()), episodes=4, seed=0)])
    torch.testing.assert_close(ends[:, 0], torch.zeros(4), msg="each episode is home in the east after its first step")
    nobody = Homing()
    nobody.spec = None
    assert not torch.equal(PolicyActor(nobody).act(dream, obs, noise), actions), "without names, places count"


def test_a_policy_of_another_rate_is_refused_wherever_it_acts_or_learns() -> None:
    """Its chunk would last three times as long as it meant."""
    fast, dream = Homing(), world()
    assert fast.spec is not None
    fast.spec = replace(fast.spec, fps=3 * fast.spec.fps)
    obs, words = (
        dream.restore(dream.snapshot()),
        r"the Homing learned at 30 steps a second, the world has 10; use a model, data and",
    )
    with pytest.raises(ValueError, match=words):
        PolicyActor(fast).act(dream, obs, Noise.rows(0, 2))
    with pytest.raises(ValueError, match=words):
        check_names(fast, dream.spec)


def test_rollouts_keep_what_the_policy_saw_and_the_world_does_what_it_meant() -> None:
    learned = collect_rollout(
        Homing(), Deterministic(), GRPO(2), world(), world().restore(world().snapshot()), chunks=3, group=torch.arange(2), seed=0
    )
    for t, expected in enumerate(HOME):
        torch.testing.assert_close(learned.state[:, t], expected.flip(1))
        torch.testing.assert_close(learned.features.vector[:, t], expected.flip(1))
    buffer = SuccessBuffer(capacity=8)
    buffer.add(replace(learned, success=torch.ones(2, dtype=torch.bool)), Homing())
    torch.testing.assert_close(buffer.kept["action"][:, 0], buffer.kept["state"] * torch.tensor([-0.5, -1.0]))


def test_an_analytic_dream_is_the_same_and_its_gradient_finds_the_channel() -> None:
    batch: Any = {"images": moments().images, "state": moments().state, "instruction": moments().instruction}
    settings: Any = {"chain": Deterministic(), "chunks": 2, "exploration": torch.zeros(2, 1, 1), "reward": ProgressReward()}
    found = []
    for turned in (True, False):
        policy = Homing(turned=turned)
        dream = imagine(
            policy,
            Drift(),
            Remembering(1, differentiable=True),
            Moment.of(Drift(), batch),
            judged=(0,),
            noise=Noise.rows(0, 2),
            **settings,
        )
        torch.testing.assert_close(dream.end.states[:, -1], HOME[2])
        dream.actions[..., 0 if turned else 1].sum().backward()
        assert policy.gain.grad is not None
        found.append(policy.gain.grad.flip(0) if turned else policy.gain.grad)
    torch.testing.assert_close(*found)


def test_a_mirror_says_its_factors_in_the_order_of_the_data() -> None:
    """And a table of a learned order is mirrored in that: the way east changes sign."""
    mirror = Mirror(state=(-1, 1), action=(-1, 1)).ordered(spec(turned=False), spec(turned=True))
    assert (mirror.state, mirror.action) == ((1, -1), (1, -1))
    with pytest.raises(ValueError, match="mirror.action has 3 factors, the data have 2 numbers; give one each, or mirror=null"):
        Mirror((-1, 1), (-1, 1, 1)).ordered(spec(turned=False), spec(turned=False))


def test_a_guard_refuses_physics_of_another_order_than_the_dream() -> None:
    physics = world()
    physics.state_channels, physics.action_channels = spec(turned=True).state, spec(turned=True).action
    with pytest.raises(ValueError, match="Drift has state channels in the order east, north, the world in the order north, east"):
        PhysicsCheck(physics, Drift(), Remembering(1))


def test_a_learner_plays_on_and_other_names_are_one_line(tmp_path: Path) -> None:
    learner = PPOPostTraining(Homing(), DreamArena(Drift(), Remembering(1)), FlowSDE(), GRPO(2), chunks=2, minibatch=4)
    starts = moments()
    fit(learner, {"images": starts.images, "state": starts.state, "instruction": starts.instruction}, tmp_path, 1)
    policy = Homing()
    assert policy.spec is not None
    policy.spec = replace(policy.spec, action=(Channel("dn", "m"), Channel("up", "m")))
    with pytest.raises(ValueError, match="the world's action de is missing in the Homing, which has dn, up") as error:
        PolicyActor(policy).act(world(), world().restore(world().snapshot()), Noise.rows(0, 2))
    assert "\n" not in str(error.value)
