"""A real pre-trained network: further is more, in every size, and pictures that look the same are near."""

import cv2
import pytest
import torch
from matplotlib.cbook import get_sample_data
from matplotlib.image import imread
from torch.nn.functional import avg_pool2d

from worldsim.nn.perception import FeatureDistance, feature_distance


def table(left: int, top: int = 24) -> torch.Tensor:
    """A red block on a shaded table."""
    frame = (0.5 + torch.linspace(0, 0.2, 64)).view(64, 1, 1).repeat(1, 64, 3)
    frame[top : top + 10, left : left + 10] = torch.tensor([0.8, 0.1, 0.1])
    return frame


def test_it_has_seen_photographs():
    """A portrait of a rear admiral: class 652 of ImageNet is "military uniform"."""
    portrait = torch.from_numpy(
        cv2.resize(imread(get_sample_data("grace_hopper.jpg"))[:512], (224, 224), interpolation=cv2.INTER_AREA)
    )
    network = feature_distance().network
    p = network((portrait.float().movedim(-1, 0)[None] - 127) / 128).softmax(-1)
    assert p.argmax() == 652 and p.max() > 0.3
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not feature_distance().train().network.training


def test_a_block_that_moves_further_is_further():
    start, moved = table(10).expand(5, -1, -1, -1), torch.stack([table(10 + pixels) for pixels in (1, 2, 4, 8, 16)])
    distance = feature_distance()(start, moved)
    assert (distance.diff() > 0).all() and feature_distance()(start, start).abs().max() < 1e-9
    pixels = (start - moved).square().mean((1, 2, 3))
    # Pixels stop telling once the blocks no longer overlap: 0, beyond 10 pixels. This does not before 16.
    assert distance[4] / distance[3] > 1.1 * pixels[4] / pixels[3]
    as_bytes = [(255 * frames).round().byte() for frames in (start, moved)]
    as_floats = [frames / 255 for frames in as_bytes]
    assert torch.equal(feature_distance()(*as_bytes), feature_distance()(*as_floats))


def test_a_blur_is_further_than_as_much_error_of_brightness():
    frame = table(10)
    blurred = avg_pool2d(frame.movedim(-1, 0)[None], 5, 1, 2, count_include_pad=False)[0].movedim(0, -1)
    brighter = frame + (blurred - frame).square().mean().sqrt()
    assert feature_distance()(frame, blurred) > 3 * feature_distance()(frame, brighter)


def test_it_is_differentiable_in_any_size():
    frames = torch.rand(2, 3, 96, 40, 3, requires_grad=True)
    distance = feature_distance()(frames, torch.rand(2, 3, 96, 40, 3))
    assert distance.shape == (2, 3)
    distance.sum().backward()
    assert frames.grad is not None and frames.grad.abs().sum() > 0


def test_small_and_unlike_pictures_are_one_line():
    with pytest.raises(ValueError, match="32 pixels or more"):
        FeatureDistance()(torch.rand(1, 16, 64, 3), torch.rand(1, 16, 64, 3))
    with pytest.raises(ValueError, match="share a shape"):
        feature_distance()(torch.rand(1, 64, 64, 3), torch.rand(2, 64, 64, 3))
