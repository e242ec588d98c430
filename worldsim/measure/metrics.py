"""What is measured: success rates and paired gains with intervals, imagination against physics, and a reflector's quality.

Every number that the project reports goes through here, so that each has one definition, one source and one interval.
They are pure functions of tensors; rates are fractions in [0, 1], gains are percentage points, intervals are (low, high).
Read `evaluate.py` next: it produces the outcomes that are compared here.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist, stdev
from typing import Any, NamedTuple, TypedDict

import torch
from jaxtyping import Bool, Float, Shaped
from scipy import stats
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    binary_f1_score,
    binary_precision_recall_curve,
)

from worldsim.core.types import float_image


class SuccessRate(TypedDict):
    """A success rate with its Wilson interval, as `summary.json` keeps it."""

    rate: float
    ci95: list[float]
    episodes: int


class PairedGain(TypedDict):
    """A paired difference of success rates in percentage points, with its interval."""

    points: float
    ci95: list[float]


class Agreement(TypedDict):
    """How often two outcomes of the same starts agree, and Cohen's kappa, with intervals."""

    agreement: float
    ci95: list[float]
    kappa: float
    kappa_ci95: list[float]


class Calibration(TypedDict):
    """How far probabilities of success can be believed: the Brier score, and observed frequencies by bin of predicted ones."""

    brier: float
    curve: list["Bin"]


class Bin(TypedDict):
    """Episodes with predicted probabilities of one bin: their mean, and how many succeeded."""

    predicted: float
    observed: float
    ci95: list[float]
    episodes: int


class Ratio(NamedTuple):
    """A ratio of sums over episodes with its 95 % interval, each [*k]."""

    value: Tensor
    low: Tensor
    high: Tensor


class ConfusionCounts(TypedDict):
    """Episodes by (imagined, physical) outcome."""

    both_succeed: int
    false_success: int
    missed_success: int
    both_fail: int


class Confusion(TypedDict):
    """Imagination against physics, as fractions of all episodes: agreement + false_success + missed_success = 1."""

    agreement: float
    false_success: float
    missed_success: float
    counts: ConfusionCounts


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Score interval of a success rate (Wilson 1927, doi:10.1080/01621459.1927.10502953); honest at 0 % and 100 % too.

    Args:
        successes: 0..n.
        n: independent episodes, at least 1.
        confidence: in (0, 1).

    Raises:
        ValueError: if n < 1 or successes lies outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got successes={successes}, n={n}; run at least one episode")
    z, p = _z(confidence), successes / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def success_rate(success: Bool[Tensor, " n"]) -> SuccessRate:
    """Success rate of n independent episodes with its 95 % Wilson interval.

    Raises:
        ValueError: if `success` is empty or not a boolean vector.
    """
    _check_outcomes(success=success)
    successes, n = int(success.sum()), len(success)
    return {"rate": successes / n, "ci95": list(wilson_interval(successes, n)), "episodes": n}


def percent(measured: Mapping[str, Any]) -> str:
    """A rate and its interval as people read them: "81.8 % [78.2, 84.9]"."""
    low, high = measured["ci95"]
    return f"{100 * measured['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def paired_difference(before: Bool[Tensor, " n"], after: Bool[Tensor, " n"], confidence: float = 0.95) -> PairedGain:
    """Gain in success, after - before, in percentage points; episode i of both started from the same state.

    With b episodes lost and c won, points = 100 (c-b)/n. The interval is Wald's on the table with 1/2 added to each of its
    four cells, d ± z sqrt(b + c - (c-b)²/n)/n with b+1/2, c+1/2, n+2 (Agresti & Min 2005, doi:10.1002/sim.1781): unlike the
    plain one it keeps its coverage in small samples and does not collapse to a point when no outcome changes.

    Args:
        before: outcome of each start state under the first policy.
        after: outcome of the same start states under the second policy.
        confidence: of the interval under `ci95`; 0.95 as its name says, other values are for simulations.

    Raises:
        ValueError: if the outcomes are empty, of different length or not boolean vectors.
    """
    _check_outcomes(before=before, after=after)
    n, lost, won = len(before), int((before & ~after).sum()), int((~before & after).sum())
    gain = (won - lost) / (n + 2)
    half = _z(confidence) * math.sqrt(max(0.0, lost + won + 1 - (won - lost) ** 2 / (n + 2))) / (n + 2)
    return {"points": 100 * (won - lost) / n, "ci95": [100 * max(-1.0, gain - half), 100 * min(1.0, gain + half)]}


def mean_score(score: Float[Tensor, " n"]) -> dict[str, Any]:
    """Mean of n episodes' scores, or of their paired differences, with Student's interval."""
    values = score.double().tolist()
    return {"mean": sum(values) / len(values), "ci95": list(seeds_interval(values))}


def seeds_interval(means: Sequence[float], confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval (1908) of what another training seed would give, from one mean per seed: mean ± t_{k-1} sd / sqrt(k).

    The unit is the seed: its mean varies by what differs between seeds and by its starts, and both widen the interval. Counting the
    starts of several seeds as independent would promise far too much, and a bootstrap of two or three seeds still too much. Show
    each seed's own interval over starts beside it.

    Args:
        means: of k seeds; with k = 1 nothing is known of other seeds and the interval is infinite.
        confidence: in (0, 1).

    Raises:
        ValueError: if there is no seed.
    """
    if not means:
        raise ValueError("need the mean of at least one seed")
    k, mean = len(means), sum(means) / len(means)
    if k == 1:
        return -math.inf, math.inf
    half = float(stats.t.ppf((1 + confidence) / 2, k - 1)) * stdev(means) / math.sqrt(k)
    return mean - half, mean + half


def ratio_of_sums(above: Float[Tensor, "e *k"], below: Float[Tensor, "e *k"], *, draws: int = 2000) -> Ratio:
    """sum(above) / sum(below) over e independent episodes, with a bootstrap over episodes (Efron 1979, doi:10.1214/aos/1176344552):
    the frames of one episode are no samples of their own. NaN where the sum below is 0.

    The interval is Hesterberg's expanded percentile (2015, doi:10.1080/00031305.2015.1089789): plain percentiles are too narrow
    where episodes are few, by what a normal distribution is narrower than Student's and sqrt((e - 1) / e); of four episodes the
    interval runs from the worst draw to the best, of a hundred it is the plain one.

    Raises:
        ValueError: if the shapes differ or there are fewer than two episodes.
    """
    if above.shape != below.shape or len(above) < 2:
        raise ValueError(f"need one shape and two episodes or more, got {tuple(above.shape)} and {tuple(below.shape)}")
    e, generator = len(above), torch.Generator().manual_seed(0)
    drawn = torch.zeros(draws, e, dtype=torch.float64)
    drawn.scatter_add_(1, torch.randint(e, (draws, e), generator=generator), torch.ones_like(drawn))
    over, under = (x.double().reshape(e, -1) for x in (above, below))
    low = NormalDist().cdf(-math.sqrt(e / (e - 1)) * float(stats.t.ppf(0.975, e - 1)))
    spread = ((drawn @ over) / (drawn @ under)).nanquantile(torch.tensor([low, 1 - low], dtype=torch.float64), dim=0)
    return Ratio(*(x.reshape(above.shape[1:]) for x in (over.sum(0) / under.sum(0), *spread)))


def agreement(first: Bool[Tensor, " n"], second: Bool[Tensor, " n"], *, draws: int = 2000) -> Agreement:
    """How often two outcomes of the same n starts agree, and Cohen's kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960,
    doi:10.1177/001316446002000104) with p_e the agreement that chance alone would give. Kappa is NaN where p_e = 1.

    Of physics with itself under other noise it is a reference for dreams, not a bound: whoever always guesses the likelier outcome
    may agree more often. The interval of the agreement is Wilson's, that of kappa a bootstrap over starts.

    Raises:
        ValueError: if the outcomes are empty, of different length or not boolean vectors.
    """
    _check_outcomes(first=first, second=second)
    n, generator = len(first), torch.Generator().manual_seed(0)
    rows = torch.randint(n, (draws, n), generator=generator)
    agreed = int((first == second).sum())
    spread = _kappa(first[rows], second[rows])
    known = spread[~spread.isnan()]
    return {
        "agreement": agreed / n,
        "ci95": list(wilson_interval(agreed, n)),
        "kappa": float(_kappa(first, second)),
        "kappa_ci95": known.quantile(tails(0.95)).tolist() if len(known) else [math.nan, math.nan],
    }


def calibration(p: Float[Tensor, " n"], label: Bool[Tensor, " n"], *, bins: int = 10) -> Calibration:
    """Brier score mean((p - label)^2) (Brier 1950) and the calibration curve over `bins` bins of equal width, without empty ones.

    Raises:
        ValueError: if the input is empty or mismatched, or p is not a probability.
    """
    _check_scores(p, label)
    number = (p * bins).long().clamp(max=bins - 1)
    curve: list[Bin] = []
    for k in number.unique().tolist():
        inside = number == k
        rate = success_rate(label[inside])
        predicted = float(p[inside].mean())
        curve.append({"predicted": predicted, "observed": rate["rate"], "ci95": rate["ci95"], "episodes": rate["episodes"]})
    return {"brier": float((p - label.float()).square().mean()), "curve": curve}


def confusion(imagined: Bool[Tensor, " n"], physical: Bool[Tensor, " n"]) -> Confusion:
    """How far imagination and physics agree on n episodes that share their start state and their actions or policy.

    Every fraction is of *all* n episodes. `false_success` succeeded in imagination and failed in physics: the dangerous kind,
    which post-training inside the dream would exploit. `missed_success` failed in imagination and succeeded in physics.

    Raises:
        ValueError: if the outcomes are empty, of different length or not boolean vectors.
    """
    _check_outcomes(imagined=imagined, physical=physical)
    n = len(imagined)
    counts: ConfusionCounts = {
        "both_succeed": int((imagined & physical).sum()),
        "false_success": int((imagined & ~physical).sum()),
        "missed_success": int((~imagined & physical).sum()),
        "both_fail": int((~imagined & ~physical).sum()),
    }
    return {
        "agreement": (counts["both_succeed"] + counts["both_fail"]) / n,
        "false_success": counts["false_success"] / n,
        "missed_success": counts["missed_success"] / n,
        "counts": counts,
    }


def auc(p: Float[Tensor, " n"], label: Bool[Tensor, " n"]) -> float:
    """Area under the ROC curve: the chance that a success scores above a failure. NaN where only one class is present.

    Raises:
        ValueError: if the input is empty or mismatched, or p is not a probability.
    """
    _check_scores(p, label)
    return float(binary_auroc(p, label.long())) if label.any() and not label.all() else math.nan


def f1_score(p: Float[Tensor, " n"], label: Bool[Tensor, " n"], threshold: float) -> float:
    """F1 of the decision p > threshold; 0 where there is neither a success nor an alarm.

    Raises:
        ValueError: if the input is empty or mismatched, or p is not a probability.
    """
    _check_scores(p, label)
    return float(binary_f1_score(p, label.long(), threshold=threshold))


def best_f1_threshold(p: Float[Tensor, " n"], label: Bool[Tensor, " n"]) -> tuple[float, float]:
    """The threshold of p > threshold with the best F1, and that F1.

    It lies halfway between two neighbouring scores, so that neither sits on the edge. Of equally good thresholds the highest
    is taken: a reflector that stops an episode too early costs more than one that stops it late.

    Raises:
        ValueError: if the input is empty or mismatched, p is not a probability, or no label is positive (F1 is undefined).
    """
    _check_scores(p, label)
    if not label.any():
        raise ValueError(f"none of the {len(label)} labels is positive; calibrate on data with at least one success")
    precision, recall, scores = binary_precision_recall_curve(p, label.long())
    f1 = 2 * precision[:-1] * recall[:-1] / (precision[:-1] + recall[:-1]).clamp_min(1e-12)  # the last point has no threshold
    best = int((f1 >= f1.max() - 1e-6).nonzero().max())
    lower = p[p < scores[best]]
    return (float(scores[best]) + (float(lower.max()) if len(lower) else 0.0)) / 2, float(f1[best])


def expected_calibration_error(p: Float[Tensor, " n"], label: Bool[Tensor, " n"], bins: int = 10) -> float:
    """Mean gap between p and the frequency of success, over equal bins weighted by size (Naeini et al. 2015, AAAI).

    Raises:
        ValueError: if the input is empty or mismatched, or p is not a probability.
    """
    _check_scores(p, label)
    return float(binary_calibration_error(p, label.long(), n_bins=bins, norm="l1"))


def psnr(prediction: Shaped[Tensor, "*b h w 3"], target: Shaped[Tensor, "*b h w 3"]) -> Float[Tensor, "*b"]:
    """Peak signal-to-noise ratio of each image in dB, -10 log10(mean squared error); 100 dB where they are identical.

    Args:
        prediction: uint8 0..255 or float 0..1.
        target: of the same shape; either type.

    Raises:
        ValueError: if the shapes differ or are empty.
    """
    if prediction.shape != target.shape or prediction.numel() == 0:
        raise ValueError(f"images must share a non-empty shape, got {tuple(prediction.shape)} and {tuple(target.shape)}")
    error = (float_image(prediction) - float_image(target)).square().mean(dim=(-3, -2, -1))
    return -10 * error.clamp_min(1e-10).log10()


def _kappa(first: Bool[Tensor, "*b n"], second: Bool[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    observed, p, q = (x.double().mean(dim=-1) for x in (first == second, first, second))
    expected = p * q + (1 - p) * (1 - q)
    return (observed - expected) / (1 - expected)  # 0/0 where both never vary


def tails(confidence: float) -> Float[Tensor, " 2"]:
    """Quantiles that bound so much in the middle."""
    return torch.tensor([(1 - confidence) / 2, (1 + confidence) / 2], dtype=torch.float64)


def _z(confidence: float) -> float:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}; 0.95 is usual")
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def _check_outcomes(**outcomes: Tensor) -> None:
    shapes = {name: tuple(value.shape) for name, value in outcomes.items()}
    if any(value.ndim != 1 or len(value) == 0 or value.dtype != torch.bool for value in outcomes.values()):
        raise ValueError(f"outcomes must be non-empty boolean vectors, got shapes {shapes}, {[v.dtype for v in outcomes.values()]}")
    if len(set(shapes.values())) != 1:
        raise ValueError(f"paired outcomes must have one length, got {shapes}; evaluate both from the same start states")


def _check_scores(p: Tensor, label: Tensor) -> None:
    _check_outcomes(label=label)
    if p.shape != label.shape:
        raise ValueError(f"p and label must have one shape, got {tuple(p.shape)} and {tuple(label.shape)}")
    if not ((p >= 0) & (p <= 1)).all():  # torchmetrics would silently read such numbers as logits
        raise ValueError(
            f"p must be probabilities in [0, 1], got {float(p.min()):.3g}..{float(p.max()):.3g}; apply a sigmoid first"
        )
