"""Hand-computed metrics, and intervals that cover what they promise."""

import math

import pytest
import torch

from worldsim.measure import metrics


def test_wilson_hand_computed():
    # z = 1.96, p = .8, n = 10: centre (.8 + .19207)/(1.38415) = .71674, half 1.96/1.38415 sqrt(.016 + .0096036) = .22658
    low, high = metrics.wilson_interval(8, 10)
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)


@pytest.mark.parametrize("n", [1, 10, 512])
def test_wilson_stays_honest_at_the_extremes(n):
    # successes = 0: the upper end is z²/(n + z²)
    low, high = metrics.wilson_interval(0, n)
    assert low == pytest.approx(0, abs=1e-12)
    assert high == pytest.approx(3.841459 / (n + 3.841459), rel=1e-5)
    assert metrics.wilson_interval(n, n) == pytest.approx((1 - high, 1), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        metrics.wilson_interval(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, 95])
def test_confidence_is_a_fraction(confidence):
    with pytest.raises(ValueError, match="confidence"):
        metrics.wilson_interval(1, 2, confidence)


def test_success_rate():
    assert metrics.success_rate(torch.tensor([True] * 8 + [False] * 2)) == {
        "rate": 0.8,
        "ci95": pytest.approx([0.4902, 0.9433], abs=1e-4),
        "episodes": 10,
    }


def test_paired_difference_hand_computed():
    # n = 10, lost 1, won 4: points 30. Adjusted: b = 1.5, c = 4.5, n = 12, d = .25, se = sqrt(6 - 9/12)/12 = .190941
    before = torch.tensor([True, True, False, False, False, False, False, False, True, False])
    after = torch.tensor([False, True, True, True, True, True, False, False, True, False])
    gain = metrics.paired_difference(before, after)
    assert gain["points"] == pytest.approx(30)
    assert gain["ci95"] == pytest.approx([25 - 37.4237, 25 + 37.4237], abs=1e-3)


def test_paired_difference_is_antisymmetric_and_bounded():
    before, after = torch.tensor([[False] * 3, [True] * 3])
    gain, loss = metrics.paired_difference(before, after), metrics.paired_difference(after, before)
    assert gain["points"] == 100
    assert gain["ci95"] == pytest.approx([-bound for bound in reversed(loss["ci95"])])
    assert -100 <= gain["ci95"][0] < gain["ci95"][1] <= 100


def test_paired_interval_keeps_width_when_nothing_changes():
    same = torch.tensor([True, False, True, False])
    low, high = metrics.paired_difference(same, same)["ci95"]
    assert low < 0 < high


@pytest.mark.parametrize(("n", "lose", "win"), [(20, 0.1, 0.3), (60, 0.05, 0.35), (200, 0.02, 0.02)])
def test_paired_interval_covers_the_true_difference(n, lose, win):
    generator = torch.Generator().manual_seed(0)
    u = torch.rand(1500, n, generator=generator)
    before, after = u < lose + 0.3, (u >= lose) & (u < lose + 0.3 + win)  # lose | both succeed .3 | win | both fail
    hits = [
        low <= 100 * (win - lose) <= high
        for low, high in (metrics.paired_difference(b, a)["ci95"] for b, a in zip(before, after, strict=True))
    ]
    assert 0.93 < sum(hits) / len(hits) < 0.99  # 95 % within four standard errors (.0056) below; the method errs upwards


def test_confusion_by_hand():
    imagined = torch.tensor([True, True, True, False, False, False, True, True])
    physical = torch.tensor([True, False, False, True, False, False, True, True])
    assert metrics.confusion(imagined, physical) == {
        "agreement": 5 / 8,
        "false_success": 2 / 8,
        "missed_success": 1 / 8,
        "counts": {"both_succeed": 3, "false_success": 2, "missed_success": 1, "both_fail": 2},
    }


@pytest.mark.parametrize("function", [metrics.paired_difference, metrics.confusion])
@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.bool)),
        (torch.zeros(2, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)),
        (torch.zeros(2), torch.zeros(2)),
        (torch.zeros(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)),
    ],
    ids=["empty", "lengths", "floats", "matrix"],
)
def test_outcomes_are_checked(function, a, b):
    with pytest.raises(ValueError, match="outcomes"):
        function(a, b)


P = torch.tensor([0.9, 0.8, 0.6, 0.4, 0.2])
LABEL = torch.tensor([True, False, True, False, False])


def test_auc_counts_ordered_pairs():
    assert metrics.auc(P, LABEL) == pytest.approx(5 / 6)  # of 2 x 3 pairs only (.6, .8) is out of order


def test_auc_of_one_class_is_undefined():
    assert math.isnan(metrics.auc(P, torch.ones(5, dtype=torch.bool)))


def test_f1_at_a_threshold():
    assert metrics.f1_score(P, LABEL, 0.7) == pytest.approx(2 * 1 / (2 * 1 + 1 + 1))  # true 1, false 1, missed 1


def test_best_f1_threshold_lies_between_scores_and_reaches_its_f1():
    threshold, f1 = metrics.best_f1_threshold(P, LABEL)
    assert threshold == pytest.approx(0.5)  # p > .5: true 2, false 1, missed 0
    assert f1 == pytest.approx(0.8)
    assert metrics.f1_score(P, LABEL, threshold) == pytest.approx(f1)


def test_best_f1_threshold_prefers_the_strictest_of_equals():
    # p >= .8 gives 2/(2+1) (missed 1), p >= .2 gives 4/(4+2) (false 2): both 2/3, and between them 1/2
    threshold, f1 = metrics.best_f1_threshold(torch.tensor([0.8, 0.6, 0.4, 0.2]), torch.tensor([True, False, False, True]))
    assert (threshold, f1) == pytest.approx((0.7, 2 / 3))


def test_best_f1_threshold_needs_a_success():
    with pytest.raises(ValueError, match="positive"):
        metrics.best_f1_threshold(P, torch.zeros(5, dtype=torch.bool))


def test_expected_calibration_error_by_hand():
    # bins of .5: {.1, .3} mean .2, frequency .5; {.9, .9} mean .9, frequency 1: (2 x .3 + 2 x .1)/4 = .2
    p, label = torch.tensor([0.1, 0.3, 0.9, 0.9]), torch.tensor([False, True, True, True])
    assert metrics.expected_calibration_error(p, label, bins=2) == pytest.approx(0.2, abs=1e-6)


@pytest.mark.parametrize(
    "call",
    [metrics.auc, metrics.best_f1_threshold, metrics.expected_calibration_error, lambda p, label: metrics.f1_score(p, label, 0.5)],
)
@pytest.mark.parametrize(
    "p", [torch.tensor([0.1, 2.0]), torch.tensor([0.1, math.nan]), torch.tensor([0.1])], ids=["logit", "nan", "length"]
)
def test_scores_are_checked(call, p):
    with pytest.raises(ValueError, match="p "):
        call(p, torch.tensor([True, False]))


def test_psnr_per_image():
    target = torch.zeros(3, 4, 4, 3)
    prediction = target + torch.tensor([0.1, 0.01, 0.0]).view(3, 1, 1, 1)
    assert metrics.psnr(prediction, target).tolist() == pytest.approx([20, 40, 100], abs=1e-3)
    grey = torch.full((4, 4, 3), 51, dtype=torch.uint8)  # 51/255 = .2: -10 log10(.04) = 13.979
    assert float(metrics.psnr(grey, target[0])) == pytest.approx(13.979, abs=1e-3)


def test_psnr_needs_one_shape():
    with pytest.raises(ValueError, match="shape"):
        metrics.psnr(torch.zeros(4, 4, 3), torch.zeros(2, 4, 4, 3))


def test_agreement_and_kappa_by_hand():
    """Both succeed 4, only the first 1, only the second 2, both fail 3 of 10: p_o = .7, p_e = .5*.6 + .5*.4 = .5, kappa = .4."""
    first, second = outcomes(4 * "11" + "10" + 2 * "01" + 3 * "00")
    result = metrics.agreement(first, second)
    assert result["agreement"] == pytest.approx(0.7) and result["kappa"] == pytest.approx(0.4)
    assert result["ci95"] == list(metrics.wilson_interval(7, 10))
    low, high = result["kappa_ci95"]
    assert -0.4 < low < 0.4 < high <= 1
    assert metrics.agreement(first, first)["kappa"] == 1 and metrics.agreement(first, ~first)["kappa"] == pytest.approx(-1)
    assert math.isnan(metrics.agreement(first | True, second | True)["kappa"]), "two that never vary agree by chance alone"


def outcomes(pairs: str) -> tuple[torch.Tensor, torch.Tensor]:
    letters = torch.tensor([letter == "1" for letter in pairs]).unflatten(0, (-1, 2))
    return letters[:, 0], letters[:, 1]


def test_kappas_interval_covers():
    """200 draws of 300 starts whose two outcomes agree by a common cause half of the time: kappa = .5."""
    generator, covered = torch.Generator().manual_seed(0), 0
    for _ in range(200):
        common, one, other = torch.rand(3, 300, generator=generator) < 0.6
        shared = torch.rand(300, generator=generator) < 0.5
        low, high = metrics.agreement(torch.where(shared, common, one), torch.where(shared, common, other), draws=300)["kappa_ci95"]
        covered += low <= 0.5 <= high
    assert covered >= 180


def test_calibration_by_hand():
    """p = .1, .1, .85, .95 with successes 0, 1, 1, 1: Brier (.01 + .81 + .0225 + .0025) / 4 = .21125; three bins are occupied."""
    result = metrics.calibration(torch.tensor([0.1, 0.1, 0.85, 0.95]), torch.tensor([False, True, True, True]))
    assert result["brier"] == pytest.approx(0.21125)
    assert [(round(b["predicted"], 3), b["observed"], b["episodes"]) for b in result["curve"]] == [
        (0.1, 0.5, 2),
        (0.85, 1.0, 1),
        (0.95, 1.0, 1),
    ]
    assert result["curve"][0]["ci95"] == list(metrics.wilson_interval(1, 2))
    assert metrics.calibration(torch.tensor([1.0]), torch.tensor([True]))["curve"][0]["predicted"] == 1


def test_seeds_are_what_was_drawn_and_not_their_starts():
    """Means 1, 2, 3 have a standard deviation of 1 and two degrees of freedom: 2 ± 4.3027 / sqrt(3). Of 400 draws of three seeds,
    whose rates differ by more than their starts explain, 95 % of the intervals hold the rate of all seeds."""
    assert metrics.seeds_interval([1.0, 2.0, 3.0]) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-3)
    assert metrics.seeds_interval([1.0]) == (-math.inf, math.inf)
    with pytest.raises(ValueError, match="the mean of at least one seed"):
        metrics.seeds_interval([])
    generator = torch.Generator().manual_seed(1)
    rates = 0.5 + 0.05 * torch.randn(400, 3, generator=generator)
    means = (torch.rand(400, 3, 200, generator=generator) < rates[..., None]).float().mean(-1)
    covered = sum(low <= 0.5 <= high for low, high in (metrics.seeds_interval(row) for row in means.tolist()))
    assert 370 <= covered <= 390


def test_a_rate_as_people_read_it():
    assert metrics.percent({"rate": 0.8181, "ci95": [0.782, 0.8494], "episodes": 512}) == "81.8 % [78.2, 84.9]"


def test_ratio_of_sums_counts_episodes_and_not_frames() -> None:
    """Episodes (1, 2) and (3, 2): 4 / 4; a bootstrap of two draws 1/2, 1 or 3/2, with probabilities 1/4, 1/2, 1/4."""
    ratio = metrics.ratio_of_sums(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 2.0]))
    assert [float(x) for x in ratio] == [1.0, 0.5, 1.5]
    columns = metrics.ratio_of_sums(torch.tensor([[1.0, 0], [3.0, 0]]), torch.tensor([[2.0, 0], [2.0, 1]]))
    assert columns.value.tolist() == [1.0, 0.0] and columns.high.tolist() == [1.5, 0.0]  # draws of 0 / 0 say nothing
    with pytest.raises(ValueError, match="two episodes"):
        metrics.ratio_of_sums(torch.ones(1), torch.ones(1))


def test_ratio_of_sums_covers() -> None:
    """Intervals hold the true ratio in 95 % of samples: 3 sd of 300 are 4 %, and a bootstrap of 40 errs by 1 or 2."""
    g = torch.Generator().manual_seed(0)
    held = 0
    for _ in range(300):
        below = torch.rand(40, generator=g) + 0.5
        above = below * (0.3 + 0.2 * torch.randn(40, generator=g))
        ratio = metrics.ratio_of_sums(above, below, draws=400)
        held += bool(ratio.low < 0.3 < ratio.high)
    assert 0.88 < held / 300 < 0.985


def test_intervals_of_few_episodes_are_wider() -> None:
    """Ratios .5 and 1.5 in turn: of 4 episodes the interval is from the worst draw to the best; of 400, Student's and the normal
    quantile are one, and the plain percentile is 1 ± 1.96 * .5 / sqrt(400) = 1 ± .049."""
    few, many = (metrics.ratio_of_sums(torch.tensor([0.5, 1.5]).repeat(n), torch.ones(2 * n)) for n in (2, 200))
    assert [float(x) for x in few] == [1.0, 0.5, 1.5]
    assert float(many.low) == pytest.approx(1 - 0.049, abs=0.005) and float(many.high) == pytest.approx(1 + 0.049, abs=0.005)


def test_the_mean_score_has_students_interval() -> None:
    """1, 2, 3 have a standard deviation of 1: 2 ± 4.3027 / sqrt(3)."""
    found = metrics.mean_score(torch.tensor([1.0, 2.0, 3.0]))
    assert found["mean"] == 2 and found["ci95"] == pytest.approx([2 - 2.4841, 2 + 2.4841], abs=1e-3)
