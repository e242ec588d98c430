"""Letterboxes worked out by hand, and that their bytes depend on nothing but the picture."""

import numpy as np
import pytest
import torch

from worldsim.core import sight
from worldsim.core.views import mosaic, resize, usual_view, views_of

PICTURE = np.random.default_rng(0).integers(0, 256, (5, 48, 80, 3), dtype=np.uint8)


def test_a_picture_of_that_size_is_itself():
    assert resize(PICTURE, (48, 80)) is PICTURE


def test_the_whole_picture_stands_in_the_middle_of_black():
    """48x80 to 96x96: 1.2 times as large is 58x96, and 38 rows are left, 19 above and 19 below. 32x80 keeps 32x53."""
    white = np.full((1, 48, 80, 3), 255, np.uint8)
    tall, wide = resize(white, (96, 96))[0, :, 0, 0], resize(white, (32, 80))[0, 0, :, 0]
    assert tall.tolist() == [0] * 19 + [255] * 58 + [0] * 19
    assert wide.tolist() == [0] * 13 + [255] * 53 + [0] * 14


def test_halving_and_doubling_by_hand():
    """Halved, the pixel that covers old ones 2 and 3 sees 1..4 by a triangle of 1/8, 3/8, 3/8, 1/8; at the border 3/7, 3/7 and 1/7
    are left of it, 110, 109 and 37 of 256. Doubled, a pixel is 3/4 of the nearest and 1/4 of the next one."""
    line = np.zeros((1, 6, 3), np.uint8)
    line[0, :, 0] = [0, 0, 80, 0, 160, 0]
    picture = np.repeat(line, 6, axis=0)
    # 80 * 37/256 = 11.56;  80 * 3/8 + 160 / 8 = 50
    halved = resize(picture, (3, 3))[..., 0]
    assert halved[1, 0] == 12 and halved[1, 1] == 50
    assert (halved == halved[:1]).all(), "rows are alike"
    doubled = resize(picture, (12, 12))[6, :, 0]
    assert doubled.tolist() == [0, 0, 0, 20, 60, 60, 20, 40, 120, 120, 40, 0]


def test_a_picture_is_resized_the_same_in_any_batch_and_order():
    """Every sum is of whole numbers below 2^24, so it is exact in whatever order a processor adds: float64 finds the same."""
    batch = resize(PICTURE, (31, 33))
    assert np.array_equal(batch, np.stack([resize(picture, (31, 33)) for picture in PICTURE]))
    assert np.array_equal(batch, resize(PICTURE[::-1], (31, 33))[::-1])
    assert np.array_equal(batch[:, :, ::-1][:, 6:-6, :], batch[:, 6:-6, ::-1])
    assert resize(np.full((1080, 1920, 3), 255, np.uint8), (64, 64))[14:50].min() == 255, "the largest number does not overflow"


VIEWS = {"front": (48, 80), "wrist": (96, 96), "top": (8, 16)}


@pytest.mark.parametrize("size", [(48, 80), (480, 640), (37, 91), (8, 8)])
def test_tensors_are_seen_as_arrays_are(size: tuple[int, int]):
    """To the bit as bytes; as floats within half a byte, with a gradient to every camera."""
    rng = np.random.default_rng(1)
    images = {name: rng.integers(0, 256, (2, *size, 3), dtype=np.uint8) for name in VIEWS}
    expected = mosaic(images, VIEWS)
    assert expected.shape == (2, 96, 80 + 96 + 16, 3)
    tensors = {name: torch.from_numpy(frames) for name, frames in images.items()}
    picture = sight.mosaic(tensors, VIEWS, "the policy")
    assert picture.dtype == torch.uint8 and np.array_equal(picture.numpy(), expected)
    for name, frames in sight.apart(picture, VIEWS).items():
        assert np.array_equal(frames.numpy(), resize(images[name], VIEWS[name]))
    floats = {name: (frames / 255).requires_grad_() for name, frames in tensors.items()}
    smooth = sight.mosaic(floats, VIEWS, "the policy")
    assert (255 * smooth - picture).abs().max() <= 0.51
    smooth.square().sum().backward()
    assert all(frames.grad is not None and frames.grad.any() for frames in floats.values())


def test_one_camera_of_its_own_size_is_the_picture_itself():
    frames = torch.from_numpy(PICTURE)
    assert sight.mosaic({"front": frames, "wrist": frames[:, :8]}, {"front": (48, 80)}, "the policy") is frames
    assert np.array_equal(mosaic({"front": PICTURE}, {"front": (48, 80)}), PICTURE)


def test_what_cannot_be_seen_is_one_line():
    for see, picture in ((sight.mosaic, torch.zeros(1, 8, 8, 3)), (mosaic, np.zeros((1, 8, 8, 3), np.uint8))):
        with pytest.raises(ValueError, match="the policy looks through camera 'wrist', there is front; rename one"):
            see({"front": picture}, VIEWS, "the policy")
    with pytest.raises(ValueError, match=r"camera top must be \[height, width\] in multiples of 8 pixels, got \[60, 64\]"):
        views_of({"top": (60, 64)}, 8)
    for views, words in (({}, "views is empty"), ({"top": (0, 8)}, r"got \[0, 8\]"), ({"top": (8,)}, r"got \[8\]")):
        with pytest.raises(ValueError, match=words):
            views_of(views, 8)


def test_the_usual_view_is_the_picture_if_it_is_small():
    sizes = {(64, 64): (64, 64), (48, 80): (48, 80), (96, 96): (96, 96), (480, 640): (96, 128), (7, 2000): (8, 128)}
    assert {size: usual_view(*size) for size in sizes} == sizes
