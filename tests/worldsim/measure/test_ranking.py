"""Rankings worked out by hand."""

import math

import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from worldsim.measure.ranking import mmrv, ranking


def outcomes(rate: float, n: int = 100) -> torch.Tensor:
    return torch.arange(n) < round(rate * n)


def test_one_pair_the_wrong_way_round():
    """Physics .2, .5, .8, dream .3, .9, .6: ranks 1 2 3 and 1 3 2, so rho = 1 - 6 * 2 / (3 * 8) = .5. Two of three policies are in
    a pair of .3 that the dream turns round: .2."""
    real, dreamed = (
        {name: outcomes(rate) for name, rate in zip("abc", rates, strict=True)} for rates in ((0.2, 0.5, 0.8), (0.3, 0.9, 0.6))
    )
    found = ranking(real, dreamed)
    assert found["spearman"][0] == pytest.approx(0.5) and found["mmrv"][0] == pytest.approx(0.2)
    assert found["pearson"][0] == pytest.approx(0.5)  # deviations -.3 0 .3 and -.3 .3 0: .09 / .18
    assert found["policies"]["b"] == pytest.approx([0.5, 0.9]) and "narrow" not in found
    for name in ("pearson", "spearman", "mmrv"):
        value, low, high = found[name]
        assert low <= value <= high


def test_a_dream_that_is_right_and_one_that_is_upside_down():
    rates = {"a": 0.1, "b": 0.4, "c": 0.42, "d": 0.45, "e": 0.9}
    real = {name: outcomes(rate) for name, rate in rates.items()}
    right = ranking(real, real)
    assert [right[name][0] for name in ("pearson", "spearman", "mmrv")] == pytest.approx([1, 1, 0])
    assert right["narrow"]["policies"] == ["b", "c", "d"] and right["narrow"]["spearman"][0] == pytest.approx(1)
    wrong = ranking(real, {name: ~success for name, success in real.items()})
    assert wrong["spearman"][0] == pytest.approx(-1) and wrong["narrow"]["spearman"][0] == pytest.approx(-1)
    # Each policy's furthest: a-e .8, b-e .5, c-e .48, d-e .45, e-a .8.
    assert wrong["mmrv"][0] == pytest.approx((0.8 + 0.5 + 0.48 + 0.45 + 0.8) / 5)


def test_it_agrees_with_scipy_where_there_are_ties():
    g = torch.Generator().manual_seed(0)
    rates = torch.randint(0, 5, (2, 9), generator=g) / 10 + 0.1
    real, dreamed = ({str(i): outcomes(float(rate)) for i, rate in enumerate(row)} for row in rates)
    found = ranking(real, dreamed)
    assert found["pearson"][0] == pytest.approx(float(pearsonr(*rates.numpy())[0]), abs=1e-6)
    assert found["spearman"][0] == pytest.approx(float(spearmanr(*rates.numpy())[0]), abs=1e-6)


def test_intervals_come_from_starts():
    """Two policies of .5 that chance alone tells apart, on more and more starts: the interval of the correlation stays wide."""
    g = torch.Generator().manual_seed(1)
    real, dreamed = ({name: torch.rand(400, generator=g) < 0.5 for name in "abc"} for _ in range(2))
    _, low, high = ranking(real, dreamed)["spearman"]
    assert low <= -0.5 and high >= 0.5


def test_what_cannot_be_ranked():
    same = {name: outcomes(0.1) for name in "abc"}  # whose mean is not .1 to the last digit
    assert math.isnan(ranking(same, same)["pearson"][0]) and ranking(same, same)["mmrv"][0] == 0
    with pytest.raises(ValueError, match="3 policies or more"):
        ranking({"a": outcomes(0.5), "b": outcomes(0.5)}, {"a": outcomes(0.5), "b": outcomes(0.5)})
    with pytest.raises(ValueError, match="same starts"):
        ranking(same, {**same, "c": outcomes(0.5, n=50)})
    assert mmrv(torch.tensor([0.1, 0.2]), torch.tensor([0.3, 0.3])) == pytest.approx(0.05)  # an undecided dream errs on one side
