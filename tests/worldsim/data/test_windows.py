"""The mirror and the shift; indexing of batches."""

import pytest
import torch

from worldsim.core.types import Observation
from worldsim.data.windows import Colour, Mirror, shift

WIDTHS = {"front": 6, "wrist": 7}


def test_mirror_twice_is_the_identity_and_once_is_not():
    g = torch.Generator().manual_seed(0)
    batch = {
        "state": torch.randn(4, 3, 4, generator=g),
        "action": torch.randn(4, 2, 2, generator=g),
        "instruction": ("a",) * 4,
    }
    images = {name: torch.randint(0, 256, (4, 3, 5, width, 3), generator=g, dtype=torch.uint8) for name, width in WIDTHS.items()}
    mirror, which = Mirror(state=(-1, 1, -1, 1), action=(-1, 1)), torch.tensor([True, False, True, False])
    once = mirror({**batch, "images": images}, which)
    twice = mirror(once, which)
    for name in ("state", "action"):
        assert torch.equal(twice[name], batch[name])
        assert torch.equal(once[name][~which], batch[name][~which])
        assert twice[name].dtype == batch[name].dtype
    for name, frames in images.items():
        assert torch.equal(twice["images"][name], frames) and torch.equal(once["images"][name][~which], frames[~which])
        assert torch.equal(once["images"][name][0, :, :, 0], frames[0, :, :, -1]), "left becomes right, up stays up"
    assert torch.equal(once["state"][0], batch["state"][0] * torch.tensor([-1, 1, -1, 1]))
    assert torch.equal(once["action"][2], batch["action"][2] * torch.tensor([-1, 1]))
    assert once["instruction"] == batch["instruction"]
    assert set(mirror({"images": images}, which)) == {"images"}


def test_shift_moves_down_and_right_and_repeats_the_border():
    frame = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1).expand(1, 3, 4, 3)
    # 0 1 2 3 / 4 5 6 7 / 8 9 10 11
    assert shift(frame, (1, 0))[0, :, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shift(frame, (0, 2))[0, :, :, 0].tolist() == [[0, 0, 0, 1], [4, 4, 4, 5], [8, 8, 8, 9]]
    assert shift(frame, (-1, -1))[0, :, :, 0].tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]]
    assert torch.equal(shift(frame, (0, 0)), frame)


@pytest.mark.parametrize(
    "index", [[2, 0], [True, False, True], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3), []]
)
def test_batches_index_tensors_and_sentences_alike(index):
    obs = Observation({"front": torch.arange(3)[:, None, None, None]}, torch.arange(3.0)[:, None], ("0", "1", "2"))
    rows = obs[index]
    chosen = [str(int(value)) for value in rows.state[:, 0]]
    assert list(rows.instruction) == chosen
    assert rows.images["front"].flatten().tolist() == [int(value) for value in chosen]
    wanted = {"[2, 0]": ["2", "0"], "[True, False, True]": ["0", "2"]}.get(str(index))
    assert wanted is None or chosen == wanted


def test_colours_change_alike_within_a_row_and_not_where_nothing_is_wanted():
    """Only brightness: every pixel of a row times one factor of [.5, 1.5], in every frame and camera; rows have their own."""
    images = {"a": torch.full((64, 2, 4, 4, 3), 100, dtype=torch.uint8), "b": torch.full((64, 2, 2, 2, 3), 40, dtype=torch.uint8)}
    changed = Colour(0.5, 0, 0)(images, torch.Generator().manual_seed(0))
    factors = changed["a"].flatten(1).float() / 100
    assert torch.equal(factors, factors[:, :1].expand_as(factors)) and 0.5 <= factors.min() < 0.6 and 1.4 < factors.max() <= 1.5
    assert (changed["b"].flatten(1) - 40 * factors[:, :1]).abs().max() <= 0.9, "rounded once each"
    same = Colour(0, 0, 0)({"a": torch.arange(192, dtype=torch.uint8).reshape(1, 1, 8, 8, 3)}, torch.Generator())
    assert same["a"].flatten().tolist() == list(range(192))
    grey = Colour(0, 0, 1)({"a": torch.tensor([[[[[30, 60, 90]]]]] * 200, dtype=torch.uint8)}, torch.Generator().manual_seed(1))
    assert (grey["a"].float().mean(-1) - 60).abs().max() <= 0.5, "saturation keeps the mean of the channels"
    with pytest.raises(ValueError, match=r"colour.contrast must be in \[0, 1\], got 2"):
        Colour(contrast=2)
