"""Actor and critic losses against numbers computed by hand and numeric gradients."""

import math

import pytest
import torch

from training.rl.math.losses import masked_mean, nft, ppo_clip, prdp, value_huber


def ppo_at(ratio, advantage, **kwargs):
    """Loss of one element at a given ratio, and its gradient with respect to the log-probability."""
    logprob = torch.tensor([math.log(ratio)], dtype=torch.float64, requires_grad=True)
    loss, metrics = ppo_clip(
        logprob,
        torch.zeros(1, dtype=torch.float64),
        torch.tensor([advantage], dtype=torch.float64),
        mask=torch.ones(1) > 0,
        **kwargs,
    )
    loss.backward()
    return loss.item(), logprob.grad.item(), metrics["clip_fraction"].item()


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "grad", "clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, 0),  # nothing binds: loss -rho*A, gradient -rho*A
        (1.1, 2.0, -2.2, -2.2, 0),
        (1.5, 2.0, -2.56, 0.0, 1),  # upper clip 1.28
        (0.5, 2.0, -1.0, -1.0, 0),  # a good action that became less likely is pulled back
        (0.5, -2.0, 1.6, 0.0, 1),  # lower clip .8
        (1.5, -2.0, 3.0, 3.0, 0),  # a bad action that became more likely is pushed down
        (5.0, -2.0, 6.0, 0.0, 1),  # dual clip 3
    ],
)
def test_ppo_clip_regions(ratio, advantage, loss, grad, clipped):
    assert ppo_at(ratio, advantage) == pytest.approx((loss, grad, clipped), abs=1e-12)


def test_ppo_clip_arguments_move_the_regions():
    assert ppo_at(1.5, 2.0, clip_high=0.6)[0] == pytest.approx(-3.0)
    assert ppo_at(0.5, -2.0, clip_low=0.6)[0] == pytest.approx(1.0)
    assert ppo_at(5.0, -2.0, dual_clip=float("inf"))[0] == pytest.approx(10.0)


def test_ppo_clip_masked_mean_and_metrics():
    """Ratios 1, 1.5, .5 count, NaN does not. Surrogates 1*1, 1.28*1, .8*-1: loss -(1 + 1.28 - .8)/3 = -.49333.
    KL: (rho - 1 - log rho) = 0, .5 - .405465 = .094535, -.5 + .693147 = .193147; mean .095894."""
    logprob = torch.tensor([[1.0, 1.5], [0.5, float("nan")]]).log().requires_grad_()
    advantage = torch.tensor([[1.0, 1.0], [-1.0, float("nan")]])
    mask = torch.tensor([[True, True], [True, False]])
    loss, metrics = ppo_clip(logprob, torch.zeros(2, 2), advantage, mask=mask)
    assert loss.item() == pytest.approx(-0.49333, abs=1e-5)
    assert {name: scalar.item() for name, scalar in metrics.items()} == pytest.approx(
        {"ratio_mean": 1.0, "ratio_max": 1.5, "clip_fraction": 2 / 3, "approx_kl": 0.095894}, abs=1e-5
    )
    assert not any(scalar.requires_grad for scalar in metrics.values())
    loss.backward()
    assert logprob.grad.flatten().tolist() == pytest.approx([-1 / 3, 0.0, 0.0, 0.0])  # only the first is unclipped and counted


def test_ppo_clip_numeric_gradient():
    generator = torch.Generator().manual_seed(0)
    logprob, old, advantage = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(4, 3, generator=generator) > 0.3
    assert torch.autograd.gradcheck(lambda x: ppo_clip(x, old, advantage, mask=mask)[0], logprob.requires_grad_())


def test_ppo_clip_survives_an_overflowing_ratio():
    logprob = torch.tensor([200.0, 200.0], requires_grad=True)
    loss, _ = ppo_clip(logprob, torch.zeros(2), torch.tensor([1.0, -1.0]), mask=torch.ones(2) > 0)
    loss.backward()
    assert loss.item() == pytest.approx((-1.28 + 3.0) / 2)
    assert logprob.grad.tolist() == [0.0, 0.0]


def test_ppo_clip_errors():
    x = torch.zeros(3)
    with pytest.raises(ValueError, match=r"advantage \[3, 1\]"):
        ppo_clip(x, x, x[:, None], mask=x > 0)
    with pytest.raises(ValueError, match="dual_clip"):
        ppo_clip(x, x, x, mask=x > 0, dual_clip=1.0)


@pytest.mark.parametrize(
    ("value", "target", "old", "loss", "grad"),
    [
        (1.1, 2.0, 1.0, 0.405, -0.9),  # within the clip: .9^2/2
        (1.5, 2.0, 1.0, 0.32, 0.0),  # clipped to 1.2: max(.5^2/2, .8^2/2), no gradient left towards the target
        (0.5, 0.0, 1.0, 0.32, 0.0),  # clipped from below, to .8: max(.5^2/2, .8^2/2)
        (3.0, 2.0, 2.5, 0.5, 1.0),  # clipped to 2.7: max(1/2, .7^2/2), moving back is free
        (0.0, 5.0, 0.0, 4.5, -1.0),  # linear beyond delta: 1 * (5 - .5)
    ],
)
def test_value_huber_by_hand(value, target, old, loss, grad):
    value, target, old = (torch.tensor([x], dtype=torch.float64) for x in (value, target, old))
    result = value_huber(value.requires_grad_(), target, old, mask=torch.ones(1) > 0, delta=1.0, clip=0.2)
    result.backward()
    assert result.item() == pytest.approx(loss, abs=1e-12)
    assert value.grad.item() == pytest.approx(grad, abs=1e-12)


def test_value_huber_counts_only_the_mask():
    value, mask = torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([True, False, True])
    loss = value_huber(value, torch.zeros(3), value, mask=mask)
    assert loss.item() == pytest.approx((0.5 + 4.5) / 2)


def test_value_huber_numeric_gradient_and_errors():
    generator = torch.Generator().manual_seed(1)
    value, target, old = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(4, 3, generator=generator) > 0.3
    assert torch.autograd.gradcheck(lambda x: value_huber(x, target, old, mask=mask, delta=0.7, clip=0.5), value.requires_grad_())
    with pytest.raises(ValueError, match=r"target \[4\]"):
        value_huber(value, target[:, 0], old, mask=mask)


def test_masked_mean():
    values = torch.tensor([1.0, 3.0, float("nan")], requires_grad=True)
    mean = masked_mean(values, torch.tensor([True, True, False]))
    mean.backward()
    assert mean.item() == 2.0
    assert values.grad.tolist() == [0.5, 0.5, 0.0]
    assert masked_mean(values, torch.zeros(3) > 0).item() == 0.0


def test_prdp_by_hand():
    """Two groups; pairs (0, 1) and (2, 3): errors .5*(.2+.1) - 1 = -.85 and .5*(0-.4) - (-2) = 1.8."""
    log_ratio, reward = torch.tensor([0.2, -0.1, 0.0, 0.4]), torch.tensor([1.0, 0.0, 0.0, 2.0])
    loss = prdp(log_ratio, reward, group=torch.tensor([0, 0, 1, 1]), beta=0.5)
    assert loss.item() == pytest.approx((0.85**2 + 1.8**2) / 2)


def test_prdp_is_zero_at_the_solution_and_its_gradient_is_right():
    """beta * log ratio = reward - const of the group."""
    reward, group = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0]).double(), torch.tensor([0, 0, 0, 1, 1])
    log_ratio = (reward / 4 - torch.tensor([0.1, 0.1, 0.1, 0.4, 0.4])).requires_grad_()
    loss = prdp(log_ratio, reward, group=group, beta=4.0)
    assert loss.item() == pytest.approx(0, abs=1e-12)
    point = torch.tensor([0.1, -0.2, 0.3, 0.05, -0.4], dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: prdp(x, reward, group=group, beta=2.0), point)


def test_prdp_does_not_push_a_ratio_beyond_its_trust():
    """The better of a pair is beyond the clip already and more would still lower the plain error: no gradient."""
    log_ratio = torch.tensor([0.9, -0.9], requires_grad=True)
    prdp(log_ratio, torch.tensor([3.0, 0.0]), group=torch.tensor([0, 0]), beta=1.0, clip=0.5).backward()
    assert log_ratio.grad is not None
    assert log_ratio.grad.tolist() == [0.0, 0.0]


def test_prdp_errors():
    one = torch.zeros(2)
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        prdp(one, one, group=torch.tensor([0, 0]), beta=0.0)
    with pytest.raises(ValueError, match="at least two trajectories of one group"):
        prdp(one, one, group=torch.tensor([0, 1]), beta=1.0)


def test_nft_by_hand():
    """v 2, old 1, target 4, beta .5: v+ = 1.5, v- = .5; errors 6.25 and 12.25."""
    v, old, target = (torch.full((1, 1, 1), x) for x in (2.0, 1.0, 4.0))
    mask = torch.ones(1, 1, 1) > 0
    assert nft(v, old, target, torch.tensor([1.0]), mask=mask, beta=0.5).item() == pytest.approx(6.25)
    assert nft(v, old, target, torch.tensor([0.0]), mask=mask, beta=0.5).item() == pytest.approx(12.25)
    assert nft(v, old, target, torch.tensor([0.25]), mask=mask, beta=0.5).item() == pytest.approx(0.25 * 6.25 + 0.75 * 12.25)


def test_nft_pulls_good_chunks_and_pushes_bad_ones_away():
    for optimality, sign in ((1.0, 1.0), (0.0, -1.0)):
        v = torch.zeros(1, 1, 1, requires_grad=True)  # where the old policy is, as in the first update
        nft(
            v, torch.zeros(1, 1, 1), torch.ones(1, 1, 1), torch.tensor([optimality]), mask=torch.ones(1, 1, 1) > 0, beta=1.0
        ).backward()
        assert v.grad is not None
        assert -v.grad.item() == pytest.approx(2 * sign)


def test_nft_numeric_gradient_mask_and_errors():
    generator = torch.Generator().manual_seed(0)
    v, old, target = (torch.randn(3, 2, 2, generator=generator, dtype=torch.double) for _ in range(3))
    r, mask = torch.tensor([0.2, 0.9, 0.5]).double(), torch.rand(3, 2, 2, generator=generator) < 0.6
    assert torch.autograd.gradcheck(lambda x: nft(x, old, target, r, mask=mask, beta=0.7), v.requires_grad_())
    with pytest.raises(ValueError, match="beta must be positive"):
        nft(v, old, target, r, mask=mask, beta=0.0)
    with pytest.raises(ValueError, match=r"optimality must be in \[0, 1\], got .* to 1.5"):
        nft(v, old, target, torch.tensor([0.0, 1.5, 0.2]), mask=mask, beta=1.0)
