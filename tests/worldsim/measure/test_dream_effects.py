"""What a world model knows of actions: right, blind and weak models of a table whose answers are known."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.core.channels import Channel
from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import Judgement, Observation, TensorBatch, where_rows
from worldsim.core.units import Units
from worldsim.core.world import Branchable, World, step_info
from worldsim.measure.collect import Actor
from worldsim.measure.dream_effects import Held, Sensitivity, agreement_of, record_effects, sensitivity
from worldsim.measure.dream_quality import Recording, colour_mass

SIZE, RED = 32, torch.tensor([1.0, 0.0, 0.0])


@dataclass(frozen=True)
class Where(TensorBatch):
    place: Float[Tensor, "b 2"]  # of a block that does what actions say, in [-1, 1]
    elapsed: Tensor


@dataclass(frozen=True, kw_only=True)
class Truth(Judgement):
    block: Tensor


def shown(place: Float[Tensor, "*b 2"]) -> Float[Tensor, "*b 32 32 3"]:
    """A red blob at (right, down)."""
    ticks = torch.linspace(-1.6, 1.6, SIZE)
    across, down = (ticks - place[..., i, None] for i in (0, 1))
    blob = (-(across[..., None, :].square() + down[..., :, None].square()) / 0.03).exp()
    return blob[..., None] * RED


class Table(World, Branchable):
    """Blocks that go where they are told; an action of 0 in both numbers leaves them alone."""

    camera, fps, max_episode_steps = "front", 10, 6
    state_channels, action_channels = (Channel("x"), Channel("y")), (Channel("dx", low=-1, high=1), Channel("dy", low=-1, high=1))

    def __init__(self, num_envs: int = 3):
        self.num_envs = num_envs
        self.single_action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.named_colors = RED.expand(num_envs, 3)
        self.where, self.ends = Where(torch.zeros(num_envs, 2), torch.zeros(num_envs).long()), True

    @contextmanager
    def endless(self) -> Iterator[None]:
        self.ends = False
        yield
        self.ends = True

    def reset(self, *, seed: Any = None, options: Any = None):
        begun, seeds = self.begun(seed, options)
        fresh = Where(torch.zeros(self.num_envs, 2), torch.zeros(self.num_envs).long())
        if seeds is not None:
            fresh = replace(fresh, place=0.3 * Noise(seeds, 0 * seeds, 0 * seeds).normal("place", 2).clamp(-1, 1))
        self.where = where_rows(begun, fresh, self.where)
        return self.observed(), {}

    def step(self, actions: Tensor):
        self.where = Where(self.where.place + 0.1 * self.check_actions(actions, ndim=2), self.where.elapsed + 1)
        obs, judged, done = self.observed(), self.judge(), self.where.elapsed >= self.max_episode_steps
        if done.any():
            self.reset(options={"mask": done})
        return self.observed(), torch.zeros(self.num_envs), torch.zeros_like(done), done, step_info(obs, done, judged)

    def observed(self) -> Observation:
        images = {"front": (255 * shown(self.where.place)).round().byte()}
        return Observation(images, self.where.place, ("push",) * self.num_envs)

    def judge(self) -> Truth:
        return Truth(
            success=torch.zeros(self.num_envs, dtype=torch.bool), progress=torch.zeros(self.num_envs), block=self.where.place
        )

    def snapshot(self) -> Where:
        return self.where

    def restore(self, state: TensorBatch) -> Observation:
        assert isinstance(state, Where)
        self.where = state
        return self.observed()


class Shoving(Actor):
    """Each environment another way, in every step."""

    source = "policy"

    def act(self, world: Any, obs: Observation, noise: Noise) -> Tensor:
        return torch.tensor([[[0.5, 0.0]], [[0.0, -0.5]], [[0.0, 0.0]]])


class Believing(WorldModel):
    """That a block goes `gain` times as far as it does."""

    def __init__(self, gain: float):
        super().__init__()
        self.views, self.context, self.action_horizon, self.action_dim = {"front": (SIZE, SIZE)}, 2, 2, 2
        self.gain, self.action_units = gain, Units(2)

    def init(self, images: Mapping[str, Tensor], state: Tensor, instruction: Sequence[str]) -> Where:
        assert images["front"].shape[1] == state.shape[1] == 2
        return Where(state[:, -1], torch.zeros(len(state)))

    def step(self, state: TensorBatch, actions: Tensor, noise: Noise):
        assert isinstance(state, Where)
        places = state.place[:, None] + self.gain * 0.1 * actions.cumsum(dim=1)
        return Where(places[:, -1], state.elapsed), {"front": shown(places)}, places

    def loss(self, batch: Any, generator: Any):
        raise NotImplementedError


def test_slope_and_cosine_by_hand() -> None:
    true = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert agreement_of(true, true) == Sensitivity(1.0, 1.0, 2)
    assert agreement_of(0 * true, true) == Sensitivity(0.0, 0.0, 2), "blind"
    assert agreement_of(0.5 * true, true) == Sensitivity(0.5, 1.0, 2), "too weak, and in the right direction"
    across = agreement_of(torch.tensor([[1.0, 0.0], [2.0, 0.0]]), true)  # 1 of 5 along, and cosine 1 / (sqrt 5)^2
    assert across == pytest.approx((0.2, 0.2, 2))


def test_both_ways_of_a_moment_are_played_and_the_episode_goes_on_as_the_actor_wants() -> None:
    world = Table()
    effects = record_effects(world, Held(Shoving(), 3), context=2, seed=1)
    assert world.ends and effects.action.shape == (6, 2, 3, 2), "two chunks of three in each of three environments"
    start = effects.state[:3, -1]
    assert torch.equal(effects.state[:3, 0], start), "before the first frame it is repeated"
    for name, number in (("played", 0), ("the neighbour's", 1)):
        moved = 0.1 * effects.action[:, number].sum(dim=1)
        torch.testing.assert_close(effects.block[:, number], effects.state[:, -1] + moved, msg=name)
    assert torch.equal(effects.action[:3, 1], effects.action[:3, 0].roll(1, dims=0))
    torch.testing.assert_close(effects.state[3:, -1], effects.block[:3, 0])  # the second moment begins where the actor's chunk led
    torch.testing.assert_close(effects.state[3:, 0], effects.block[:3, 0] - 0.1 * effects.action[:3, 0, -1])
    with pytest.raises(ValueError, match="effects need two environments or more"):
        record_effects(Table(1), Held(Shoving(), 3), context=2, seed=1)


@pytest.mark.parametrize("gain", [1.0, 0.5, 0.0, -1.0])
def test_a_model_that_moves_blocks_less_or_otherwise_is_told(gain: float) -> None:
    """By frames alone: chunks of three, predicted in two calls. The tracker knows places to a few hundredths."""
    found = sensitivity(Believing(gain), record_effects(Table(), Held(Shoving(), 3), context=2, seed=1), "front")
    assert found.slope == pytest.approx(gain, abs=0.1) and found.moments == 6
    assert found.correlation == pytest.approx(np.sign(gain), abs=0.1) or gain == 0
    with pytest.raises(ValueError, match="no changed actions moved a block by 9 m; record more episodes"):
        sensitivity(Believing(gain), record_effects(Table(), Held(Shoving(), 3), context=2, seed=1), "front", least_m=9)


def test_colour_mass_is_what_is_left_of_a_block() -> None:
    real = shown(torch.zeros(2, 7, 2))
    fading = torch.linspace(1, 0.5, 6)[None, :, None, None, None] * real[:, 1:]
    nothing = torch.zeros(2, 7)
    felt = {"state": torch.zeros(2, 7, 2), "action": torch.zeros(2, 6, 2), "block": torch.zeros(2, 7, 2)}
    told = {"success": nothing > 0, "color": RED.expand(2, 3), "instruction": ("",) * 2}
    recording = Recording({"front": real}, "front", **felt, **told)  # type: ignore[arg-type]
    kept = colour_mass(fading, real, recording)
    assert list(kept) == ["colour_mass_at_3", "colour_mass_at_4", "colour_mass_at_6"]
    assert list(kept.values()) == pytest.approx([0.8, 0.7, 0.5], abs=0.05)
