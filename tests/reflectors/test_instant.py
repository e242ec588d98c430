"""`InstantReflector`: shapes, calibration buffers, gradients in the pixels, and that it learns."""

import pytest
import torch
import torch.nn.functional as F

from reflectors.instant import InstantReflector

SENTENCES = ("push the red block onto the green disc",) * 4


@pytest.fixture
def reflector() -> InstantReflector:
    torch.manual_seed(0)
    return InstantReflector(features=16, channels=8, blocks=1).eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.randint(0, 256, (4, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_shapes_and_ranges(reflector, frames):
    reflection = reflector.judge({"front": frames[:, None]}, SENTENCES)
    for value in (reflection.p_success, reflection.progress, reflection.uncertainty):
        assert value.shape == (4,)
        assert value.dtype == torch.float32
    assert ((reflection.p_success > 0) & (reflection.p_success < 1)).all()
    assert (reflection.uncertainty == 0).all(), "it has no estimate"


def test_calibration_is_applied_to_the_logit(reflector, frames):
    logit, progress = reflector.raw({"front": frames[:, None]}, SENTENCES)
    reflector.scale.fill_(2.0)
    reflector.bias.fill_(-1.0)
    reflection = reflector.judge({"front": frames[:, None]}, SENTENCES)
    torch.testing.assert_close(reflection.p_success, 1 / (1 + torch.exp(-(2 * logit - 1))))
    torch.testing.assert_close(reflection.progress, progress)
    assert {"scale", "bias", "threshold"} <= set(reflector.state_dict()), "calibration is stored with the weights"


def test_float_and_uint8_frames_are_the_same(reflector, frames):
    a, b = (reflector.judge({"front": pixels[:, None]}, SENTENCES) for pixels in (frames, frames.float() / 255))
    torch.testing.assert_close(a.p_success, b.p_success)
    torch.testing.assert_close(a.progress, b.progress)


def test_differentiable_in_the_pixels(reflector, frames):
    pixels = (frames.float() / 255).requires_grad_()
    reflector.judge({"front": pixels[:, None]}, SENTENCES).p_success.sum().backward()
    assert (pixels.grad.abs().sum((1, 2, 3)) > 0).all()


def test_the_instruction_matters(reflector, frames):
    other = ("push the red block onto the blue disc",) * 4
    one, another = (reflector.judge({"front": frames[:, None]}, sentences).progress for sentences in (SENTENCES, other))
    assert not torch.allclose(one, another, atol=1e-6)


@pytest.mark.parametrize(("consecutive", "window"), [(0, 2), (3, 2)])
def test_impossible_k_of_n(consecutive, window):
    with pytest.raises(ValueError, match=f"k-of-n needs 1 <= consecutive <= window, got {consecutive} of {window}"):
        InstantReflector(features=8, channels=8, blocks=1, consecutive=consecutive, window=window)


def test_learns_the_disc_that_the_instruction_names():
    """A red spot on the left or the right and a sentence that says which side is wanted: success is their agreement (XOR)."""
    torch.manual_seed(0)
    reflector = InstantReflector(features=32, channels=8, blocks=1)
    side = torch.tensor([0, 1, 0, 1] * 4)
    wanted = torch.tensor([0, 0, 1, 1] * 4)
    frames = torch.full((16, 64, 64, 3), 100, dtype=torch.uint8)
    for i, s in enumerate(side.tolist()):
        frames[i, 24:40, 8 + 32 * s : 24 + 32 * s, 0] = 220
    sentences = tuple(("green", "blue")[w] for w in wanted.tolist())
    label = (side == wanted).float()
    optimizer = torch.optim.Adam(reflector.parameters(), lr=3e-3)
    for _ in range(100):
        logit, progress = reflector.raw({"front": frames[:, None]}, sentences)
        loss = F.binary_cross_entropy_with_logits(logit, label) + (progress - label).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    reflector.eval()
    reflection = reflector.judge({"front": frames[:, None]}, sentences)
    assert ((reflection.p_success > 0.5) == label.bool()).all()
    assert (reflection.progress - label).abs().max() < 0.4
