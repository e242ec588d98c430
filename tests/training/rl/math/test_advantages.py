"""Advantages against numbers computed by hand."""

from functools import partial

import pytest
import torch

from training.rl.math.advantages import first_success_mask, gae, grpo, length_normalize, normalize, rloo
from training.rl.math.losses import ppo_clip


def bools(*rows):
    return torch.tensor(rows, dtype=torch.bool)


def test_gae_hand_computed_with_termination_truncation_and_early_ends():
    """gamma .5, lam .5, hence gamma*lam .25; reward 1, 2, 3 and value .5, 1, 2 in every row; final_value 4.

    Row 0, truncated by the time limit after decision 2 (bootstraps from final_value):
        delta = 1 + .5*1 - .5 = 1;  2 + .5*2 - 1 = 2;  3 + .5*4 - 2 = 3;  A = 3;  2 + .25*3 = 2.75;  1 + .25*2.75 = 1.6875
    Row 1, terminated in decision 2 (no bootstrap): delta_2 = 3 - 2 = 1;  A = 1;  2.25;  1.5625
    Row 2, terminated in decision 1, the rest invalid: delta_1 = 2 - 1 = 1;  A = 0, 1, 1.25
    Row 3, truncated after decision 1, the rest invalid: delta_1 = 2 + .5*4 - 1 = 3;  A = 0, 3, 1.75
    """
    reward = torch.tensor([1.0, 2.0, 3.0]).repeat(4, 1)
    value = torch.tensor([0.5, 1.0, 2.0]).repeat(4, 1)
    advantage, target = gae(
        reward,
        value,
        torch.full((4,), 4.0),
        terminated=bools([0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 0, 0]),
        valid=bools([1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 1, 0]),
        gamma=0.5,
        lam=0.5,
    )
    assert advantage.tolist() == [[1.6875, 2.75, 3.0], [1.5625, 2.25, 1.0], [1.25, 1.0, 0.0], [1.75, 3.0, 0.0]]
    assert target.tolist() == [[2.1875, 3.75, 5.0], [2.0625, 3.25, 3.0], [1.75, 2.0, 0.0], [2.25, 4.0, 0.0]]


def test_gae_with_lambda_1_returns_the_discounted_sum():
    """gamma .5: 1 + .5*2 + .25*3 + .125*8 = 3.75 from the first decision, whatever the values are."""
    value = torch.randn(1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    no, yes = bools([0, 0, 0]), bools([1, 1, 1])
    reward, final_value = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64), torch.tensor([8.0], dtype=torch.float64)
    _, target = gae(reward, value, final_value, terminated=no, valid=yes, gamma=0.5, lam=1.0)
    assert target.dtype == torch.float64
    assert target[0].tolist() == pytest.approx([3.75, 5.5, 7.0], abs=1e-12)


def test_gae_nothing_behind_the_end_matters_not_even_nan():
    no, valid = bools([0, 0]), bools([1, 0])
    nan = float("nan")
    advantage, target = gae(
        torch.tensor([[1.0, nan]]), torch.tensor([[0.5, nan]]), torch.tensor([2.0]), terminated=no, valid=valid, gamma=0.5, lam=0.9
    )
    assert advantage.tolist() == [[1.5, 0.0]]  # 1 + .5*2 - .5
    assert target.tolist() == [[2.0, 0.0]]
    terminal, _ = gae(
        torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([nan]), terminated=bools([1]), valid=bools([1]), gamma=0.5, lam=0.9
    )
    assert terminal.tolist() == [[1.0]]


@pytest.mark.parametrize(("terminated", "valid"), [([0, 0, 0], [1, 0, 1]), ([1, 0, 0], [1, 1, 1])])
def test_gae_refuses_a_second_episode_in_one_row(terminated, valid):
    x = torch.zeros(1, 3)
    with pytest.raises(ValueError, match="valid"):
        gae(x, x, torch.zeros(1), terminated=bools(terminated), valid=bools(valid), gamma=0.9, lam=0.9)


GRPO = partial(grpo, min_spread=0.25)


def test_grpo_hand_computed():
    """Returns 0, 0, 1, 1: mean .5, sample variance 4*.25/3 = 1/3, so +-.5*sqrt(3) = +-.8660. Returns 1, 3: mean 2, std sqrt(2)."""
    assert GRPO(torch.tensor([[0.0, 0.0, 1.0, 1.0]]))[0].tolist() == pytest.approx([-0.8660, -0.8660, 0.8660, 0.8660], abs=5e-5)
    assert GRPO(torch.tensor([[1.0, 3.0]]))[0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5], abs=2e-6)


def test_little_differences_of_failures_stay_little():
    """Progress of four failures 0, 0, .1, .1: mean .05, spread .0577, divided by the least spread .25: +-.2, not +-.8660. One
    success in eight has a spread of .3536 and is untouched: (1 - 1/8) / .3536 = 2.475."""
    assert GRPO(torch.tensor([[0.0, 0.0, 0.1, 0.1]]))[0].tolist() == pytest.approx([-0.2, -0.2, 0.2, 0.2])
    assert GRPO(torch.eye(8)[:1])[0, 0].item() == pytest.approx(2.4749, abs=1e-4)


def test_rloo_hand_computed():
    """1 - (2+6)/2 = -3;  2 - (1+6)/2 = -1.5;  6 - (1+2)/2 = 4.5."""
    assert rloo(torch.tensor([[1.0, 2.0, 6.0]]))[0].tolist() == pytest.approx([-3.0, -1.5, 4.5])


@pytest.mark.parametrize("estimator", [GRPO, rloo])
def test_groups_are_independent_sum_to_0_and_ignore_a_shift(estimator):
    returns = torch.randn(5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    advantage = estimator(returns)
    assert advantage.sum(dim=1).abs().max() < 1e-12
    assert advantage.abs().sum(dim=1).min() > 1
    torch.testing.assert_close(estimator(returns + torch.arange(5.0)[:, None]), advantage, rtol=0, atol=1e-12)
    torch.testing.assert_close(estimator(returns[2:3]), advantage[2:3], rtol=0, atol=1e-12)


@pytest.mark.parametrize("estimator", [GRPO, rloo])
def test_equal_returns_give_exactly_0(estimator):
    returns = torch.tensor([0.0, 0.1, 0.7, 1.3])[:, None].expand(4, 7)
    assert torch.equal(estimator(returns), torch.zeros(4, 7))


@pytest.mark.parametrize("estimator", [GRPO, rloo])
def test_groups_of_one_are_refused(estimator):
    with pytest.raises(ValueError, match="at least 2"):
        estimator(torch.zeros(3, 1))


def test_normalize_hand_computed():
    """Counted 1, 3, 5: mean 3, population std sqrt(8/3) = 1.63299; -2/1.63299 = -1.22474. The hidden NaN takes no part."""
    advantage = torch.tensor([[1.0, float("nan")], [3.0, 5.0]])
    result = normalize(advantage, bools([1, 0], [1, 1]))
    assert result.flatten().tolist() == pytest.approx([-1.22474, 0.0, 0.0, 1.22474], abs=1e-5)


def test_normalize_of_a_single_element_is_0():
    assert normalize(torch.tensor([2.0, 7.0]), bools(1, 0)).tolist() == [0.0, 0.0]


def test_first_success_mask_by_hand():
    done = torch.tensor([[False, True, False, True], [False, False, False, False], [True, True, False, False]])
    expected = [[True, True, False, False], [True, True, True, True], [True, False, False, False]]
    assert first_success_mask(done).tolist() == expected


def test_length_normalize_gives_every_trajectory_the_same_weight():
    """mean(loss*mask / (valid_len/max_len)) with loss = -advantage: lengths 4 and 2 of 4, so the short one counts double."""
    advantage = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 3.0, 9.0, 9.0]])
    valid = torch.tensor([[True] * 4, [True, True, False, False]])
    normalized = length_normalize(advantage, valid)
    assert normalized.tolist() == [[1.0, 1.0, 1.0, 1.0], [6.0, 6.0, 0.0, 0.0]]
    ratio = torch.full((2, 4), 0.3)
    loss, _ = ppo_clip(ratio, ratio, normalized, mask=torch.ones(2, 4) > 0)
    assert loss.item() == pytest.approx(-(4 * 1 + 2 * 6) / 8)
