"""The latent flow world model: its codec, its gradients, chunks under way, and that it learns."""

import copy
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_spec import toy_spec

from models.world.latent_flow import LatentFlowWorldModel, PatchCodec
from worldsim.core.noise import Noise
from worldsim.core.views import resize
from worldsim.measure.metrics import psnr

SIZE = 8  # side of the toy's square
_SPEC = spec_from_file_location("chance", Path(__file__).parents[2] / "benchmarks" / "chance.py")
chance = module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(chance)  # type: ignore[union-attr]


def scenes(n: int, seed: int) -> torch.Tensor:
    """Table-top-like frames: a shaded table with three coloured discs, uint8 [n, 64, 64, 3]."""
    g = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    frames = (0.4 + 0.2 * y / 64).expand(n, 64, 64)[..., None].repeat(1, 1, 1, 3)
    for _ in range(3):
        centre, colour = 10 + 44 * torch.rand(n, 2, 1, 1, generator=g), torch.rand(n, 1, 1, 3, generator=g)
        distance = ((x - centre[:, 0]).square() + (y - centre[:, 1]).square()).sqrt()
        inside = (7 - distance).clamp(0, 1)[..., None]
        frames = inside * colour + (1 - inside) * frames
    return (frames * 255).round().to(torch.uint8)


def moving_squares(b: int, horizon: int, generator: torch.Generator) -> dict[str, Any]:
    """Windows in which a white square moves by 3 pixels times the action; the state is its position."""
    position = torch.randint(20, 36, (b, 1, 2), generator=generator).float()
    action = torch.randint(-1, 2, (b, horizon, 2), generator=generator).float()
    future = position + 3 * action.cumsum(1)
    state = torch.cat([position, position, future], dim=1)
    pixel = torch.arange(64.0)
    rows = (pixel >= state[..., :1]) & (pixel < state[..., :1] + SIZE)
    columns = (pixel >= state[..., 1:]) & (pixel < state[..., 1:] + SIZE)
    frames = (rows[..., None] & columns[..., None, :])[..., None].expand(-1, -1, -1, -1, 3).to(torch.uint8) * 200 + 20
    return {"images": {"front": frames}, "state": state, "action": action, "valid": torch.ones(b, horizon, dtype=torch.bool)}


@pytest.fixture(scope="module")
def model() -> LatentFlowWorldModel:
    """With random weights everywhere (a new one starts with zeros where the action enters) and two steps, so that noise matters."""
    torch.manual_seed(0)
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=2).eval()
    model.fit_statistics({"front": scenes(16, 0)}, toy_spec(torch.randn(50, 4)))
    torch.nn.init.normal_(model.net.last.weight, std=0.5)
    for block in (*model.net.before, *model.net.middle, *model.net.after):
        torch.nn.init.normal_(block.second.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def start(model):
    g = torch.Generator().manual_seed(1)
    frames = scenes(6, 2).unflatten(0, (3, 2))
    actions = 2 * torch.rand(3, 4, 2, generator=g) - 1
    return model.init({"front": frames}, torch.randn(3, 2, 4, generator=g)), actions, Noise.rows(1, 3)


def test_context_noise_is_what_a_model_of_standstill_gets_wrong():
    """A new model predicts its last context frame; where nothing moves its only error is the noise: E[spread^2] = 0.3^2 / 3."""
    frames = scenes(64, 3)[:, None].expand(-1, 10, -1, -1, -1)
    still = {"images": {"front": frames}, "state": torch.zeros(64, 10, 4), "action": torch.zeros(64, 8, 2)}
    still["valid"] = torch.ones(64, 8) > 0
    for largest in (0.0, 0.3):
        model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), context_noise=largest)
        torch.nn.init.zeros_(model.net.last.bias)
        model.fit_statistics({"front": frames[:, 0]}, toy_spec(torch.randn(50, 4)))
        _, scalars = model.loss(still, torch.Generator().manual_seed(0))
        assert scalars["image_loss"] == pytest.approx(largest**2 / 3, rel=0.2, abs=1e-6)


def test_codec_reproduces_unseen_frames():
    """Discs with sharp edges are hard for patches: 30 dB is an error of 3 % of the range, 8 of 255."""
    codec = PatchCodec()
    codec.fit(scenes(100, 0))
    unseen = scenes(20, 1)
    assert psnr(codec.decode(codec.encode(unseen)), unseen).min() > 30
    latents = codec.encode(scenes(100, 0))
    assert latents.shape == (100, 12, 16, 16)
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(12), atol=1e-3, rtol=0)
    torch.testing.assert_close(latents.square().mean(), torch.tensor(1.0), atol=0.01, rtol=0)


def test_codec_is_exact_with_all_components():
    codec = PatchCodec(channels=48)
    frames = torch.rand(40, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    codec.fit(frames)
    torch.testing.assert_close(codec.decode(codec.encode(frames)), frames, atol=1e-4, rtol=0)


def test_shapes_and_context(model, start):
    state, actions, noise = start
    following, images, states = model.step(state, actions, noise)
    frames = images["front"]
    assert frames.shape == (3, 4, 64, 64, 3)
    assert states.shape == (3, 4, 4)
    assert following.latents.shape == state.latents.shape
    torch.testing.assert_close(following.state, states[:, -2:])
    torch.testing.assert_close(model.codec.decode(following.latents), frames[:, -2:])
    one, images, _ = model.step(state, actions[:, :1], noise)
    assert images["front"].shape == (3, 1, 64, 64, 3)
    torch.testing.assert_close(
        one.latents[:, 0], state.latents[:, -1], msg="after one step the older context frame is the last one"
    )


@pytest.mark.parametrize("count", [0, 5])
def test_wrong_number_of_actions(model, start, count):
    with pytest.raises(ValueError, match=f"a call takes 1 to 4 actions, got {count}"):
        model.step(start[0], torch.zeros(3, count, 2), start[2])


def test_a_dream_remembers_its_first_frame_to_the_end():
    """What differs in the reference alone differs in every chunk; without one nothing but the last frames counts."""
    torch.manual_seed(0)
    frames, states, actions = scenes(4, 2).unflatten(0, (2, 2)), torch.randn(2, 2, 4), torch.zeros(2, 4, 2)
    for references in (0, 1):
        model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), references=references).eval()
        model.fit_statistics({"front": scenes(16, 0)}, toy_spec(torch.randn(50, 4)))
        torch.nn.init.normal_(model.net.last.weight, std=0.5)
        torch.nn.init.normal_(model.net.first.weight, std=0.5)
        first = model.init({"front": frames}, states)
        assert torch.equal(first.reference, first.latents[:, :references])
        second, _, _ = model.step(first, actions, Noise.rows(0, 2))
        assert torch.equal(second.reference, first.reference)
        shown = model.step(second, actions, Noise.rows(0, 2))[1]["front"]
        other = model.step(replace(second, reference=-second.reference), actions, Noise.rows(0, 2))[1]["front"]
        assert torch.equal(shown, other) == (references == 0)
    with pytest.raises(ValueError, match="references must be 0 or 1, got 2"):
        LatentFlowWorldModel(references=2)


def test_a_reference_is_not_disturbed_while_training():
    """A network that shows nothing but it: the error where nothing moves is 0, whatever the noise on the context."""
    frames = scenes(8, 3)[:, None].expand(-1, 10, -1, -1, -1)
    still = {
        "images": {"front": frames},
        "state": torch.zeros(8, 10, 4),
        "action": torch.zeros(8, 8, 2),
        "valid": torch.ones(8, 8) > 0,
    }
    model = LatentFlowWorldModel(latent_channels=4, references=1)
    model.fit_statistics({"front": frames[:, 0]}, toy_spec(torch.randn(50, 4)))
    model._clean = lambda x_t, t, state, condition: state.reference.repeat(1, 4, 1, 1, 1).flatten(1, 2)  # type: ignore[method-assign]
    _, scalars = model.loss(still, torch.Generator().manual_seed(0))
    assert scalars["image_loss"] < 1e-10


def test_wrong_number_of_frames(model):
    with pytest.raises(ValueError, match="a dream starts from 2 frames, got 3"):
        model.init({"front": torch.zeros(1, 3, 64, 64, 3)}, torch.zeros(1, 3, 4))


def test_differentiable_in_actions_and_in_the_state(model, start):
    state, actions, noise = start
    actions = actions[:, :2].clone().requires_grad_()
    latents = state.latents.clone().requires_grad_()
    _, images, _ = model.step(replace(state, latents=latents), actions, noise)
    images["front"].square().sum().backward()
    assert (actions.grad.abs() > 0).all(), "every action changes the frames"
    assert latents.grad.abs().sum() > 0


@pytest.mark.parametrize("given", [1, 2, 3])
def test_a_chunk_of_fewer_actions_shows_as_many_frames_and_goes_on_from_the_last(model, start, given):
    state, actions, noise = start
    following, images, states = model.step(state, actions[:, :given], noise)
    frames = images["front"]
    assert frames.shape[1] == states.shape[1] == given
    torch.testing.assert_close(model.codec.decode(following.latents[:, -1]), frames[:, -1])
    assert torch.equal(following.state[:, -1], states[:, -1])
    assert given > 1 or torch.equal(following.latents[:, 0], state.latents[:, -1])
    whole = model.step(state, actions, noise)[1]["front"]
    assert not torch.equal(frames, whole[:, :given]), "it does not know the actions that are to come"


def test_unknown_actions_do_not_influence_anything(model, start):
    """What training does with a fifth of its windows."""
    state, actions, _ = start
    known = torch.tensor([[True, True, False, False], [True, False, False, False], [True] * 4])
    first = model._condition(state, actions, known)
    assert torch.equal(first, model._condition(state, torch.where(known[..., None], actions, 0.9 - actions), known))
    assert not torch.equal(first, model._condition(state, torch.where(known[..., None], 0.9 - actions, actions), known))


def test_rows_are_independent(model, start):
    state, actions, noise = start
    together = model.step(state, actions, noise)[1]["front"]
    for i in range(3):
        alone = model.step(state[[i]], actions[[i]], noise[[i]])[1]["front"]
        torch.testing.assert_close(alone, together[[i]], atol=1e-5, rtol=1e-4)


def test_noise_matters_where_it_is_drawn_and_is_not_drawn_where_it_has_no_effect(model, start):
    state, actions, noise = start
    other = Noise.rows(2, 3)
    one, same, another = (model.step(state, actions, rows)[1]["front"] for rows in (noise, Noise.rows(1, 3), other))
    assert torch.equal(one, same) and not torch.equal(one, another)
    single = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=1).eval()
    single.load_state_dict(model.state_dict())
    single.step(state, actions, None)  # type: ignore[arg-type]


def test_invalid_frames_carry_no_loss(model):
    """A whole chunk beyond the end; within a chunk the network sees a noisy copy of the repeated last frame."""
    batch = moving_squares(4, 8, torch.Generator().manual_seed(0))
    batch["state"] = batch["state"].repeat(1, 1, 2)
    batch["valid"][:, 4:] = False
    spoilt = copy.deepcopy(batch)
    spoilt["images"]["front"][:, 2 + 4 :] = 255
    spoilt["state"][:, 2 + 4 :] = 99
    losses = [model.loss(b, torch.Generator().manual_seed(3))[0] for b in (batch, spoilt)]
    assert torch.equal(*losses)
    batch["valid"][:] = True
    assert not torch.equal(model.loss(batch, torch.Generator().manual_seed(3))[0], losses[0])


def test_learns_a_square_that_moves_by_the_action():
    """Thirty steps: the loss halves on fresh windows, and the model beats "nothing moves" because it uses the action."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(1)
    model = LatentFlowWorldModel(state_dim=2, latent_channels=6, channels=(24, 24), layers=(1, 1), unroll=1)
    batch = moving_squares(24, 4, g)
    model.fit_statistics({"front": batch["images"]["front"].flatten(0, 1)}, toy_spec(batch["state"].flatten(0, 1)))
    test = moving_squares(32, 4, torch.Generator().manual_seed(9))

    def error() -> float:
        with torch.no_grad():
            return model.loss(test, torch.Generator().manual_seed(2))[0].item()

    before = error()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(30):
        loss, logs = model.loss(moving_squares(24, 4, g), g)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert set(logs) == {"image_loss", "state_loss"}
    assert error() < 0.7 * before, f"{before:.3f} -> {error():.3f}"


def test_actions_beyond_the_end_do_not_matter():
    torch.manual_seed(0)
    model = LatentFlowWorldModel(state_dim=2, latent_channels=6, channels=(8, 8), layers=(1, 1), unroll=1)
    batch = moving_squares(4, 4, torch.Generator().manual_seed(1))
    model.fit_statistics({"front": batch["images"]["front"].flatten(0, 1)}, toy_spec(batch["state"].flatten(0, 1)))
    torch.nn.init.normal_(model.net.last.weight)
    batch["valid"][:, 2:] = False
    first = model.loss(batch, torch.Generator().manual_seed(2))[0]
    batch["action"][:, 2:] = 1000
    assert torch.equal(model.loss(batch, torch.Generator().manual_seed(2))[0], first)


def test_cameras_of_different_sizes_are_predicted_together():
    """What one camera shows now changes what the other one is going to show, and each keeps its size."""
    views = {"front": (16, 24), "wrist": (32, 16)}
    torch.manual_seed(0)
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), views=views).eval()
    images = {name: torch.randint(0, 256, (3, 2, *size, 3), dtype=torch.uint8) for name, size in views.items()}
    model.fit_statistics({name: frames.flatten(0, 1) for name, frames in images.items()}, toy_spec(torch.randn(50, 4)))
    torch.nn.init.zeros_(model.net.last.bias)
    actions, noise, felt = torch.zeros(3, 4, 2), Noise.rows(1, 3), torch.zeros(3, 2, 4)
    for name, frames in model.step(model.init(images, felt), actions, noise)[1].items():
        still = model.codec.decode(model.codec.encode(images[name][:, -1:]))
        torch.testing.assert_close(frames, still.expand(-1, 4, -1, -1, -1), msg="a new model shows what each showed last")
    torch.nn.init.normal_(model.net.last.weight, std=0.5)
    shown = model.step(model.init(images, felt), actions, noise)[1]
    assert {name: frames.shape for name, frames in shown.items()} == {name: (3, 4, *size, 3) for name, size in views.items()}
    dark = model.step(model.init({**images, "wrist": 0 * images["wrist"]}, felt), actions, noise)[1]
    assert not torch.equal(dark["front"], shown["front"])
    twice = {name: frames.repeat_interleave(2, -3).repeat_interleave(2, -2) for name, frames in images.items()}
    small = {name: torch.from_numpy(resize(frames.numpy(), views[name])) for name, frames in twice.items()}
    assert torch.equal(model.init(twice, felt).latents, model.init(small, felt).latents), "larger pictures are resized"
    window = {name: frames[:, :1].repeat(1, 10, 1, 1, 1) for name, frames in images.items()}
    batch = {"images": window, "state": torch.zeros(3, 10, 4), "action": torch.zeros(3, 8, 2), "valid": torch.ones(3, 8) > 0}
    assert model.loss(batch, torch.Generator().manual_seed(0))[0].isfinite()
    with pytest.raises(ValueError, match="the world model looks through camera 'wrist', there is front; rename one"):
        model.init({"front": images["front"]}, felt)


def test_one_camera_of_its_views_size_is_the_picture_that_the_codec_sees(model):
    frames = scenes(6, 2).unflatten(0, (3, 2))
    assert torch.equal(model.init({"front": frames}, torch.zeros(3, 2, 4)).latents, model.codec.encode(frames))


def test_dreams_throw_dice_where_the_world_does_and_only_there():
    """One sampling step is the mean of what may come; many are one of it, about as often as it comes. What is sure stays sure."""
    model = chance.trained(600)
    mean, thrown = chance.dreamt(model, 1), chance.dreamt(model, 32)
    assert mean["right"] == [0, 1] and mean["bright"] == pytest.approx(0.75, abs=0.05)
    assert mean["dark"] == pytest.approx(0.25, abs=0.05), "both sides are lit by how often the square comes there"
    assert thrown["right"] == pytest.approx([0.25, 0.75], abs=0.15)
    assert thrown["bright"] > 0.9 and thrown["dark"] < 0.05
    assert mean["error"] < 1e-3 and thrown["error"] < 1e-3
