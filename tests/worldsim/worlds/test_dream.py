"""`DreamWorld` keeps the contract of `World`, counts k of n, and `check_world` sees the bugs that a world can have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_spec import toy_spec

from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.core.checks import check_world
from worldsim.core.noise import Noise
from worldsim.core.views import resize
from worldsim.tasks.reward import SparseSuccess
from worldsim.worlds.dream import DreamWorld, Starts

STARTS = 4  # the first one is black, the second one white, the others noise


def world_model(*, moving: bool = True) -> LatentFlowWorldModel:
    """Tiny, with random weights; one that does not move predicts the last frame for ever, as every new one does.

    Two sampling steps, because one from pure noise does not depend on the noise.
    """
    torch.manual_seed(0)
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=2).eval()
    model.fit_statistics({"front": starts().images["front"].flatten(0, 1)}, toy_spec(torch.randn(50, 4)))
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
        dark, bright = judge.trunk({"front": frames}, ("push the red block onto the green disc",) * 2)
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
    return Starts({"front": frames}, torch.randn(STARTS, 2, 4, generator=generator), sentences)


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


class ForgetsHowLong(DreamWorld):
    def restore(self, state):
        return super().restore(replace(state, elapsed=torch.zeros_like(state.elapsed)))


class MixesEnvironments(DreamWorld):
    def _observe(self, state):
        obs = super()._observe(state)
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
    def _observe(self, state):
        return replace(super()._observe(state), images={name: frames[:, -1] for name, frames in state.clip.items()})


class OneChanceForAll(DreamWorld):
    """The noise of the first environment for everybody, whatever its seed."""

    def _advance(self, actions):
        own = self._state.stream
        self._state = replace(self._state, stream=own[:1].expand_as(own))
        return [replace(state, stream=own) for state in super()._advance(actions)]


class WatchesAnother(DreamWorld):
    def watch_chunk(self, actions):
        result, seen = super().watch_chunk(actions)
        return result, seen[1:] + seen[-1:]


class ShowsTheNextEpisode(DreamWorld):
    def watch_chunk(self, actions):
        result, seen = super().watch_chunk(actions)
        return result, [*seen[:-1], (result.obs, seen[-1][1])]


class ClaimsToBeCausal(DreamWorld):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.causal = True


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        (ResetsEverybody, "a mask kept from being reset"),
        (OneSeedForAll, "seed"),
        (ForgetsItsNoise, "stream differ by 1"),
        (ForgetsHowLong, "elapsed differ"),
        (MixesEnvironments, "reversed order|a mask kept from|beside a masked reset"),
        (NeverTruncates, "went on beyond max_episode_steps = 7"),
        (TruncatesEarly, "ended before max_episode_steps = 7|truncated before max_episode_steps = 7"),
        (KeepsNoFinalObs, "final_obs|autoreset"),
        (RewardsAfterTheEnd, "watched|after the end"),
        (DropsTheLastAction, "watched"),
        (ShowsTheNextEpisode, "what was seen last"),
        (ClaimsToBeCausal, "of a chunk and of single steps, after 1 of 4 actions"),
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


class OneFrameAtATime(LatentFlowWorldModel):
    """A causal model: a chunk is as many calls."""

    causal = True

    def step(self, state, actions, noise):
        frames, states = [], []
        for i, action in enumerate(actions.unbind(1)):
            state, images, felt = super().step(state, action[:, None], noise.at(noise.step + i))
            frames.append(images["front"])
            states.append(felt)
        return state, {"front": torch.cat(frames, dim=1)}, torch.cat(states, dim=1)


def test_a_causal_model_dreams_the_same_in_steps_and_chunks():
    model = OneFrameAtATime(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=2).eval()
    model.load_state_dict(world_model().state_dict())
    world = DreamWorld(model, silent(), starts(), num_envs=3, max_episode_steps=7)
    assert world.causal and not dream().causal
    check_world(world)
    with pytest.raises(AssertionError, match="observations of a chunk and of single steps, after 1 of 4"):
        check_world(WatchesAnother(model, silent(), starts(), num_envs=3, max_episode_steps=7))


def test_the_default_model_dreams_otherwise_in_steps_than_in_chunks():
    """It predicts a chunk as a whole and sees all of its actions at once, so steps are another dream; see `DreamWorld`."""
    actions = 2 * torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(5)) - 1
    world = dream(max_episode_steps=100)
    world.reset(seed=7)
    start = world.snapshot()
    chunk = world.step_chunk(actions).obs
    world.restore(start)
    for action in actions.unbind(1):
        obs = world.step(action)[0]
    assert not torch.equal(obs.images["front"], chunk.images["front"])


def test_a_dream_does_not_depend_on_its_neighbours_nor_on_what_they_began_when():
    """Row 1 after a masked reset of row 0 goes on as if nothing had happened, and row 0 as if alone."""
    actions = 2 * torch.rand(3, 6, 2, generator=torch.Generator().manual_seed(6)) - 1
    mask = torch.tensor([True, False, False])
    world = dream(max_episode_steps=100)
    world.reset(seed=7)
    world.step_chunk(actions[:, :3])
    world.step_chunk(actions[:, 3:])
    whole = world.snapshot()
    world.reset(seed=7)
    world.step_chunk(actions[:, :3])
    world.reset(seed=50, options={"mask": mask})
    assert world.snapshot().elapsed.tolist() == [0, 3, 3]
    world.step_chunk(actions[:, 3:])
    mixed = world.snapshot()
    torch.testing.assert_close(mixed.clip["front"][1:], whole.clip["front"][1:], atol=1e-5, rtol=0)
    torch.testing.assert_close(mixed.model.latents[1:], whole.model.latents[1:], atol=1e-4, rtol=1e-4)
    world.reset(seed=50)
    world.step_chunk(actions[:, 3:])
    torch.testing.assert_close(mixed.clip["front"][:1], world.snapshot().clip["front"][:1], atol=1e-5, rtol=0)


def test_another_stream_is_another_dream_of_the_same_start_if_the_model_is_stochastic():
    frames = []
    for stream, steps in ((0, 2), (1, 2), (0, 1), (1, 1)):
        model = world_model()
        model.sampling_steps = steps
        world = DreamWorld(model, silent(), starts(), num_envs=3, max_episode_steps=7)
        first, _ = world.reset(seed=4, options={"stream": stream})
        frames.append((first.images["front"], world.step_chunk(torch.zeros(3, 4, 2)).obs.images["front"]))
    (a, b), (c, d), (e, f), (g, h) = frames
    assert torch.equal(a, c) and not torch.equal(b, d)
    assert torch.equal(e, g) and torch.equal(f, h), "one step from pure noise does not depend on it"


def test_a_judgement_knows_the_largest_probability_of_the_dream_so_far():
    world = DreamWorld(world_model(moving=False), reflector(), starts(), num_envs=2, max_episode_steps=8)
    world.reflector.threshold.fill_(1.0)  # nothing ends
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    assert world.judge().p_success.tolist() == [0, 0], "the recorded start does not count"
    result, seen = world.watch_chunk(torch.zeros(2, 4, 2))
    expected = torch.tensor([-5.0, 5.0]).sigmoid()
    torch.testing.assert_close(result.final_judge.p_success, expected, atol=0.01, rtol=0)
    torch.testing.assert_close(seen[0][1].p_success, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize(("consecutive", "window", "steps"), [(1, 2, 1), (2, 2, 2), (2, 3, 2), (3, 4, 3)])
def test_a_bright_dream_stops_after_k_frames(consecutive, window, steps):
    """The start frame itself does not count; the black dream runs on. Progress is 0, so the reward is the 1 of success."""
    world = DreamWorld(world_model(moving=False), reflector(consecutive=consecutive, window=window), starts(), num_envs=2)
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    for k in range(1, steps + 1):
        _, reward, terminated, truncated, info = world.step(torch.zeros(2, 2))
        assert terminated.tolist() == [False, k == steps]
        assert reward.tolist() == [0, float(k == steps)]
        assert info["is_success"].tolist() == info["final_judge"].success.tolist() == [False, k == steps]
        assert not truncated.any()
    assert (info["final_obs"].images["front"][1] > 235).all(), "the final frame of the bright dream is bright"
    assert world.snapshot().elapsed.tolist() == [steps, 0]
    assert not world.judge().success.any()


def test_a_chunk_stops_at_the_same_frame():
    world = DreamWorld(world_model(moving=False), reflector(consecutive=2, window=3), starts(), num_envs=2)
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    result = world.step_chunk(torch.zeros(2, 4, 2))
    assert result.terminated.tolist() == [[False] * 4, [False, True, False, False]]
    assert result.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert result.reward.tolist() == [[0.0] * 4, [0.0, 1.0, 0.0, 0.0]]


def test_a_dream_pays_what_its_judge_says_and_by_any_reward():
    """Progress telescopes over a chunk and over chunks; success alone pays nothing before it, and one for the bright dream."""
    world = dream()
    world.reset(seed=3)
    before = world.snapshot().progress
    paid = sum(world.step_chunk(0.5 * torch.ones(3, 3, 2)).reward.sum(1) for _ in range(2))
    assert paid.abs().min() > 1e-4
    torch.testing.assert_close(paid, world.snapshot().progress - before, atol=1e-6, rtol=0)
    world = DreamWorld(world_model(moving=False), reflector(), starts(), num_envs=2, reward=SparseSuccess(5.0))
    world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    assert world.step_chunk(torch.zeros(2, 2, 2)).reward.tolist() == [[0.0, 0.0], [5.0, 0.0]]


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
    noise = Noise(chosen.stream[:, 0], chosen.stream[:, 1], chosen.elapsed)
    with torch.no_grad():
        _, images, states = world.world_model.step(chosen.model, actions, noise)
    torch.testing.assert_close(obs.state, states[:, -1])
    assert (obs.state.abs().amax(dim=1) > 0.1).all()
    assert not torch.equal(obs.state, first.state)
    assert np.abs(obs.images["front"].numpy() - 255 * images["front"][:, -1].clamp(0, 1).numpy()).max() <= 0.51


def test_the_reflector_sees_frames_in_range():
    """The codec's frames may overshoot [0, 1]; the policy sees them clamped, so the reflector must as well."""
    seen = []

    class Watching(InstantReflector):
        def judge(self, images, instruction):
            seen.append(images["front"])
            return super().judge(images, instruction)

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


def test_a_dream_of_two_cameras_shows_both_as_its_model_sees_them():
    """The starts are larger than that; a reflector that needs another camera is refused."""
    views = {"front": (16, 24), "wrist": (32, 16)}
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), views=views).eval()
    images = {name: starts().images["front"] for name in (*views, "top")}
    model.fit_statistics({name: frames.flatten(0, 1) for name, frames in images.items()}, toy_spec(torch.randn(50, 4)))
    moments, small = replace(starts(), images=images), {"features": 16, "channels": 8, "blocks": 1}
    other, judge = (InstantReflector(**small, views={name: (16, 16)}).eval() for name in ("top", "wrist"))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the reflector looks through camera 'top', the world model dreams front, wrist; rename"):
        DreamWorld(model, other, moments, num_envs=3)
    judge.threshold.fill_(1.0)
    world = DreamWorld(model, judge, moments, num_envs=3, max_episode_steps=9)
    check_world(world)
    assert {name: (camera.height, camera.width) for name, camera in world.spec.cameras.items()} == views
    obs, _ = world.reset(seed=0, options={"start": torch.tensor([1, 2, 3])})
    assert all(np.array_equal(obs.images[n].numpy(), resize(images[n][1:4, -1].numpy(), size)) for n, size in views.items())
