"""Doubt: where an ensemble disagrees, and how much disagreement is too much."""

import math

import pytest
import torch
from toy_dots import STEPS, Dots, wandering

from worldsim.data.store import FrameStore
from worldsim.measure import recorded
from worldsim.measure.doubt import Doubted, check_rivals, disagreement, doubted, trusted


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return wandering(tmp_path_factory.mktemp("dots") / "data")


STILL = Dots(gain=1e-9)  # neither its picture nor its proprioception moves


def found(table: FrameStore, model: Dots, *rivals: Dots, batch: int = 32) -> Doubted:
    return doubted(model, rivals, table, recorded.starts(table, STEPS, 100), steps=STEPS, batch=batch)


def test_disagreement_is_the_variance_of_the_camera_that_is_least_sure() -> None:
    one = {"front": torch.zeros(2, 3, 4, 5, 3), "wrist": torch.zeros(2, 3, 2, 2, 3)}
    other = {"front": torch.zeros(2, 3, 4, 5, 3), "wrist": torch.full((2, 3, 2, 2, 3), 0.2)}
    other["front"][1, :, 0] = 2.0  # seen as white, on a quarter of the pixels: 0.5 / 4; the wrist's variance is 0.02
    assert disagreement([one, other]).flatten().tolist() == pytest.approx([0.02] * 3 + [0.125] * 3)


def test_doubt_grows_where_rivals_differ_and_error_is_in_units_of_what_moves(table: FrameStore) -> None:
    """The truth, and one that stays where it is, whose error at first is what they disagree about."""
    alike, still = found(table, Dots(), Dots()), found(table, STILL, Dots(), batch=7)
    assert alike.valid.equal(still.valid) and not alike.doubt.any() and alike.error.max() < 1e-3
    assert (still.doubt.diff(dim=1) >= 0).all() and (still.doubt[:, -1] > 0).all()
    means = torch.where(still.valid, still.error, 0).sum(0) / still.valid.sum(0)
    assert means.max().item() == pytest.approx(1, abs=1e-3), "what stays errs as much as the recordings move"
    moved = still.error[:, 0] > still.error[:, 0].median()
    ratio = (still.doubt / still.error)[moved, 0]
    torch.testing.assert_close(ratio, ratio.median().expand_as(ratio), rtol=0.02, atol=0)


def test_rivals_are_asked_from_the_frames_that_were_dreamed(table: FrameStore) -> None:
    """One that stays where it is does so from there, so in the second chunk it differs as much as in the first: from where the
    dream began, or from a dream of its own, it would lie twice as far behind."""
    moving = found(table, Dots(), STILL)
    long = moving.valid[:, :8].all(dim=1)
    first, second = moving.doubt[long, 3], moving.doubt[long, 7] - moving.doubt[long, 3]
    assert 0.6 < (second.mean() / first.mean()).item() < 1.5


def made(error: torch.Tensor, doubt: torch.Tensor) -> Doubted:
    return Doubted(torch.arange(len(doubt)), torch.ones_like(doubt, dtype=torch.bool), error, doubt)


def test_threshold_and_shares_by_hand() -> None:
    """Of four episodes two are doubted little and right; the others are right for one step, which has doubt 10."""
    step, bad = torch.arange(1.0, 5), torch.arange(32) % 4 > 1
    doubt = torch.where(bad[:, None], 10 * step, step)
    result = trusted(made(torch.where(doubt > 10, 1.0, 0.2), doubt))
    assert result["threshold"] == 10 and result["fixed_steps"] == 1 and result["episodes"] == 32
    assert result["believed"][0] == 5 / 8 and result["believed_fixed"][0] == 2 / 8
    assert result["right"] == [1, 1, 1] == result["right_fixed"] and result["right_doubted"] == [0, 0, 0]
    assert result["believed_steps"] == 1, "of 16 dreams 8 are believed for 4 steps and 8 for 1; the lower of the middle ones"
    assert math.isnan(result["rank_by_step"][0]) and result["rank_by_step"][1] == pytest.approx(1)


def test_what_was_calibrated_is_tried_on_other_episodes() -> None:
    """Even episodes are right to the end, odd ones never."""
    doubt = torch.arange(1.0, 5).expand(32, 4)
    result = trusted(made((torch.arange(32) % 2).float()[:, None].expand(32, 4), doubt))
    assert result["threshold"] == 4 and result["believed"][0] == 1 and result["right"][0] == 0


def test_equal_doubt_is_believed_or_not_together() -> None:
    """Half of all steps are right, and doubt does not tell them apart: whichever comes first in order, none can be believed."""
    error = torch.where(torch.arange(32) % 4 < 2, 0.0, 1.0)[:, None].expand(32, 4)
    result = trusted(made(error, torch.ones(32, 4)))
    assert result["threshold"] is None and result["believed"] == [0, 0, 0] and math.isnan(result["right"][0])
    assert result["fixed_steps"] == 0 and result["right_doubted"][0] == 0.5


def test_too_few_episodes_for_a_horizon() -> None:
    with pytest.raises(ValueError, match="8 are the fewest, got 7; hold out more"):
        trusted(made(torch.zeros(7, 4), torch.ones(7, 4)))


def test_rivals_of_another_kind_are_refused() -> None:
    other = Dots()
    other.action_horizon = 5
    with pytest.raises(ValueError, match=r"rival 2 takes chunks of \(5, 2\), the world model \(4, 2\)"):
        check_rivals(Dots(), [Dots(), other])
    other = Dots()
    other.views = {"front": (8, 8)}
    with pytest.raises(ValueError, match=r"rival 1 sees \{'front': \(8, 8\)\}, the world model"):
        check_rivals(Dots(), [other])
