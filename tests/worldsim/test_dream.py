"""`DreamWorld` keeps the contract of `World`, counts k of n, and `check_world` sees the bugs that a world can have."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.checks import check_world
from worldsim.dream import DreamWorld, Starts

STARTS = 4  # the first one is black, the second one white, the others noise


def world_model(*, moving: bool = True) -> LatentFlowWorldModel:
    """Tiny, with random weights; one that does not move predicts the last frame for ever, as every new one does.

    Two sampling steps, because one from pure noise does not depend on the noise.
    """
    torch.manual_seed(0)
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=2).eval()
    model.fit_statistics(starts().frames.flatten(0, 1), torch.randn(50, 4))
    if moving:
        torch.nn.init.normal_(model.net.last.weight, std=0.5)
        for block in (*model.net.before, *model.net.middle, *model.net.after):
            torch.nn.init.normal_(block.second.weight, std=0.1)
    return model


def reflector(*, consecutive: int = 1, window: int = 2) -> InstantReflector:
    """Fires on bright frames: a linear probe along the line between the features of a black and a white frame; progress is 0."""
    torch.manual_seed(1)
    judge = InstantReflector(features=16, channels=8, blocks=1, consecutive=consecutive, window=window).eval()
    with torch.no_grad():
        frames = torch.stack([torch.zeros(64, 64, 3), torch.ones(64, 64, 3)])
        dark, bright = judge.trunk(frames, ("push the red block onto the green disc",) * 2)
        direction = (bright - dark) / (bright - dark).square().sum()
        first, last = judge.head[0], judge.head[2]
        for layer in (first, last):
            layer.weight.zero_()
            layer.bias.zero_()
        first.weight[0], first.bias[0] = 20 * direction, -20 * direction @ dark - 10  # -10 for black, 10 for white
        last.weight[0, 0], last.bias[0] = 1, -5  # logit -5 for black, 5 for white
    return judge


def starts() -> Starts:
    generator = torch.Generator().manual_seed(2)
    frames = torch.randint(60, 140, (STARTS, 2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    frames[0], frames[1] = 0, 255
    sentences = ("push the red block onto the green disc",) * STARTS
    return Starts(frames, torch.randn(STARTS, 2, 4, generator=generator), sentences)


def silent() -> InstantReflector:
    """Never fires; its progress depends on the frame."""
    torch.manual_seed(3)
    judge = InstantReflector(features=16, channels=8, blocks=1).eval()
    judge.threshold.fill_(1.0)
    return judge


def dream(cls: type[DreamWorld] = DreamWorld, judge: InstantReflector | None = None, **kwargs) -> DreamWorld:
    return cls(world_model(), judge or silent(), starts(), **{"num_envs": 3, "max_episode_steps": 7, **kwargs})


def test_keeps_the_contract():
    check_world(dream())


def test_counts_no_physics():
    world = dream()
    world.step_chunk(torch.zeros(3, 4, 2))
    assert world.physics_steps == 0


class ResetsEverybody(DreamWorld):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=seed)


class OneSeedForAll(DreamWorld):
    def reset(self, *, seed=None, options=None):
        return super().reset(seed=[seed] * self.num_envs if isinstance(seed, int) else seed, options=options)


class ForgetsItsNoise(DreamWorld):
    def restore(self, state):
        return super().restore(replace(state, stream=state.stream + 1))


class ForgetsItsChunk(DreamWorld):
    def snapshot(self):
        return replace(super().snapshot(), pending=torch.zeros_like(self._state.pending))


class MixesEnvironments(DreamWorld):
    def _observe(self):
        obs = super()._observe()
        return replace(obs, state=obs.state - obs.state.mean(0))


class NeverTruncates(DreamWorld):
    def _advance(self, actions):
        return [replace(s, elapsed=torch.zeros_like(s.elapsed)) for s in super()._advance(actions)]


class TruncatesEarly(DreamWorld):
    def _advance(self, actions):
        return [
            replace(s, elapsed=torch.where(s.elapsed == self.max_episode_steps - 1, 99, s.elapsed))
            for s in super()._advance(actions)
        ]


class KeepsNoFinalObs(DreamWorld):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        return replace(result, final_obs=result.obs)


class RewardsAfterTheEnd(DreamWorld):
    def step_chunk(self, actions):
        result = super().step_chunk(actions)
        return replace(result, reward=result.reward + 0.5)


class DropsTheLastAction(DreamWorld):
    def step_chunk(self, actions):
        actions = self.check_actions(actions, ndim=3)
        return super().step_chunk(actions if actions.shape[1] == 1 else torch.cat([actions[:, :-1], actions[:, :1]], dim=1))


class AcceptsNaN(DreamWorld):
    def step(self, actions):
        return super().step(torch.nan_to_num(actions))


class CountsPhysics(DreamWorld):
    def step_chunk(self, actions):
        self.physics_steps += 1
        return super().step_chunk(actions)


class FloatFrames(DreamWorld):
    def _observe(self):
        obs = super()._observe()
        return replace(obs, images={self.camera: self._state.frames})


class OneChanceForAll(DreamWorld):
    """The noise of the first environment for everybody, whatever its seed."""

    def _noise(self, state):
        return super()._noise(replace(state, stream=state.stream[:1].expand_as(state.stream)))


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (ResetsEverybody, "a mask kept from being reset"),
        (OneSeedForAll, "seed"),
        (ForgetsItsNoise, "stream differ by 1"),
        (ForgetsItsChunk, "the future of environments beside a masked reset"),
        (MixesEnvironments, "reversed order|beside a masked reset"),
        (NeverTruncates, "went on beyond max_episode_steps = 7"),
        (TruncatesEarly, "ended before max_episode_steps = 7|truncated before max_episode_steps = 7"),
        (KeepsNoFinalObs, "final_obs|autoreset"),
        (RewardsAfterTheEnd, "summed reward|after the end"),
        (DropsTheLastAction, "one chunk"),
        (AcceptsNaN, "step with NaN must raise ValueError"),
        (CountsPhysics, "physics_steps grew by"),
        (FloatFrames, "images of environment 0 lies outside"),
        (OneChanceForAll, "reversed order"),
    ],
)
def test_check_world_sees(bug, message):
    with pytest.raises(AssertionError, match=message):
        check_world(dream(bug))


def test_check_world_wants_two_environments():
    with pytest.raises(AssertionError, match="num_envs >= 2"):
        check_world(dream(num_envs=1))


def test_steps_and_chunks_meet_at_the_chunk_boundary():
    """Single steps know the actions one by one, a chunk knows all at once: their last frames and states agree to rounding."""
    actions = 2 * torch.rand(3, 12, 2, generator=torch.Generator().manual_seed(5)) - 1
    world = dream(max_episode_steps=100)
    world.reset(seed=7)
    start = world.snapshot()
    ends = []
    for pieces in ([4, 4, 4], [1] * 12, [12], [3, 5, 4], [2, 2, 8]):
        world.restore(start)
        reward = torch.zeros(3)
        for piece in actions.split(pieces, dim=1):
            reward += world.step_chunk(piece).reward.sum(1)
        state = world.snapshot()
        assert state.position.tolist() == [0, 0, 0]
        assert state.elapsed.tolist() == [12, 12, 12]
        assert (state.stream == start.stream + torch.tensor([0, 3])).all()
        ends.append((state.frames, state.state, state.model.latents, reward))
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_reset_within_a_chunk_leaves_the_others_in_theirs():
    actions = 2 * torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(6)) - 1
    mask = torch.tensor([True, False, False])
    world = dream(max_episode_steps=100)
    world.reset(seed=7)
    world.step_chunk(actions)
    whole = world.snapshot()
    world.reset(seed=7)
    world.step_chunk(actions[:, :2])
    world.reset(seed=50, options={"mask": mask})
    assert world.snapshot().position.tolist() == [0, 2, 2]
    world.step_chunk(actions[:, 2:])
    mixed = world.snapshot()
    assert mixed.position.tolist() == [0, 2, 2]
    torch.testing.assert_close(mixed.frames[1:], whole.frames[1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.model.latents[1:], whole.model.latents[1:], atol=1e-4, rtol=1e-4)
    world.reset(seed=50)
    world.step_chunk(actions[:, 2:])
    torch.testing.assert_close(mixed.frames[:1], world.snapshot().frames[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("consecutive", "window", "steps"), [(1, 2, 1), (2, 2, 2), (2, 3, 2), (3, 4, 3)])
def test_a_bright_dream_stops_after_k_frames(consecutive, window, steps):
    """The start frame itself does not count; the black dream runs on. Progress is 0, so the reward is the 1 of success."""
    world = DreamWorld(world_model(moving=False), reflector(consecutive=consecutive, window=window), starts(), num_envs=2)
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    for k in range(1, steps + 1):
        _, reward, terminated, truncated, info = world.step(torch.zeros(2, 2))
        assert terminated.tolist() == [False, k == steps]
        assert reward.tolist() == [0, float(k == steps)]
        assert info["final_judge"].success.tolist() == [False, k == steps]
        assert not truncated.any()
    assert (info["final_obs"].images["front"][1] > 240).all(), "the final frame of the bright dream is bright"
    assert world.snapshot().elapsed.tolist() == [steps, 0]
    assert not world.judge().success.any()


def test_a_chunk_stops_at_the_same_frame():
    world = DreamWorld(world_model(moving=False), reflector(consecutive=2, window=3), starts(), num_envs=2)
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    result = world.step_chunk(torch.zeros(2, 4, 2))
    assert result.terminated.tolist() == [[False] * 4, [False, True, False, False]]
    assert result.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert result.reward.tolist() == [[0.0] * 4, [0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("hits", "fires"), [([True, False, False], False), ([False, True, False], True), ([False, False, True], True)]
)
def test_k_of_n_forgets_what_left_the_window(hits, fires):
    world = DreamWorld(world_model(moving=False), reflector(consecutive=2, window=3), starts(), num_envs=1)
    world.reset(seed=0, options={"start": torch.tensor([1])})
    world.restore(replace(world.snapshot(), hits=torch.tensor([hits])))
    assert world.step(torch.zeros(1, 2))[2].item() is fires


def test_proprioception_is_predicted_and_never_zeros():
    world = dream()
    first, _ = world.reset(seed=3)
    chosen = world.snapshot()
    actions = 2 * torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(9)) - 1
    obs = world.step_chunk(actions).obs
    noise = world._noise(chosen)
    with torch.no_grad():
        _, frames, states = world.world_model.step(chosen.model, actions, noise)
    torch.testing.assert_close(obs.state, states[:, -1])
    assert (obs.state.abs().amax(dim=1) > 0.1).all()
    assert not torch.equal(obs.state, first.state)
    assert np.abs(obs.images["front"].numpy() - 255 * frames[:, -1].clamp(0, 1).numpy()).max() <= 0.51


def test_the_reflector_sees_frames_in_range():
    """The codec's frames may overshoot [0, 1]; the policy sees them clamped, so the reflector must as well."""
    seen = []

    class Watching(InstantReflector):
        def judge(self, frames, instruction):
            seen.append(frames)
            return super().judge(frames, instruction)

    world = dream(judge=Watching(features=16, channels=8, blocks=1).eval())
    seen.clear()
    world.reset(seed=0, options={"start": torch.tensor([0, 1, 0])})
    world.step_chunk(torch.ones(3, 4, 2))
    frames = [f for f in seen if f.is_floating_point()]
    assert frames
    assert all(((f >= 0) & (f <= 1)).all() for f in frames)


def test_errors():
    with pytest.raises(ValueError, match="num_envs >= 1"):
        dream(num_envs=0)
    with pytest.raises(ValueError, match="restore needs a DreamState"):
        dream().restore(starts())
