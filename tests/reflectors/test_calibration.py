"""Platt scaling recovers a known scale and bias, and lowers the calibration error; episodes are halved fairly."""

import pytest
import torch

from reflectors.calibration import calibration_half, fit_platt
from worldsim.measure.metrics import expected_calibration_error


def synthetic(scale: float, bias: float, n: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ~ N(0, 2^2) and outcomes drawn with probability sigmoid(scale * logit + bias)."""
    g = torch.Generator().manual_seed(0)
    logit = 2 * torch.randn(n, generator=g)
    return logit, torch.rand(n, generator=g) < torch.sigmoid(scale * logit + bias)


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (0.3, -1.0), (2.5, 1.5)])
def test_recovers_scale_and_bias(scale, bias):
    """The standard error of either is about 0.03 at n = 20,000; the tolerance is five of them at most."""
    found = fit_platt(*synthetic(scale, bias))
    assert found == pytest.approx((scale, bias), abs=0.15)


def test_lowers_the_calibration_error():
    logit, success = synthetic(0.3, -1.0)  # the raw logits are overconfident and optimistic
    scale, bias = fit_platt(logit, success)
    before = expected_calibration_error(torch.sigmoid(logit), success)
    after = expected_calibration_error(torch.sigmoid(scale * logit + bias), success)
    assert before > 0.15
    assert after < 0.02


def test_separable_data_stay_finite():
    scale, bias = fit_platt(torch.tensor([-3.0, -2.0, 2.0, 3.0]), torch.tensor([False, False, True, True]))
    assert 1 < scale < 50
    assert abs(bias) < 1


def test_works_without_gradients_and_leaves_no_trace():
    logit, success = synthetic(2.0, 0.5, n=2000)
    logit.requires_grad_()
    with torch.no_grad():
        scale, _ = fit_platt(logit, success)
    assert scale == pytest.approx(2.0, abs=0.4)
    assert logit.grad is None


@pytest.mark.parametrize("label", [True, False])
def test_one_class_is_refused(label):
    with pytest.raises(ValueError, match="calibration needs successes and failures, got one class only"):
        fit_platt(torch.randn(10), torch.full((10,), label))


NAN = float("nan")


@pytest.mark.parametrize(
    ("success", "half"),
    [
        ([0, 0, 0, 0, 0], {0, 2, 4}),
        ([0, 1, 1, 0, 0], {1, 0, 4}),  # dealt out as 1, 2, 0, 3, 4
        ([0, 0, 0, 0, 1], {4, 1, 3}),  # a single success calibrates, or nothing could
        ([1, 1, 1, NAN, 0], {0, 2, 4}),  # 0, 1, 2, 3, 4
        ([NAN, 0, NAN, 1], {3, 1}),  # 3, 0, 1, 2
    ],
)
def test_every_second_episode_calibrates_and_both_halves_have_successes(success: list[float], half: set[int]) -> None:
    """Episode k has k + 1 frames, the last of which succeeds or not; the frames come in any order."""
    episode = torch.cat([torch.full((k + 1,), k) for k in range(len(success))])
    label = torch.cat([torch.tensor([0.0] * k + [s]) for k, s in enumerate(success)])
    order = torch.randperm(len(episode), generator=torch.Generator().manual_seed(0))
    chosen = calibration_half(episode[order], label[order])
    assert set(episode[order][chosen].tolist()) == half
    assert chosen.sum() == sum(k + 1 for k in half), "frames of one episode stay together"
