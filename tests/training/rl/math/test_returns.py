"""Analytic-gradient returns and targets against numbers computed by hand."""

import pytest
import torch

from training.rl.math.returns import action_penalty, discounted_return, td_lambda_targets

REWARD = torch.tensor([[1.0, 2.0], [1.0, 2.0]])
P_SUCCESS = torch.tensor([[0.0, 0.5], [1.0, 0.0]])


def test_discounted_return_by_hand():
    """gamma .5. Row 0: 1 + .5*(2 + .5*.5*8) = 1 + .5*4 = 3. Row 1: success in chunk 0 ends it, 1 + .5*0*(...) = 1."""
    assert discounted_return(REWARD, P_SUCCESS, torch.tensor([8.0, 8.0]), gamma=0.5).tolist() == [3.0, 1.0]


def test_discounted_return_gradients():
    """Row 0: dJ/dr = 1, gamma = .5; dJ/dV = .5 * .25 = .125; dJ/dp_0 = -.5*4 = -2, dJ/dp_1 = -.5*.5*8 = -2."""
    tensors = [x[:1].clone().requires_grad_() for x in (REWARD, P_SUCCESS, torch.tensor([8.0]))]
    discounted_return(*tensors, gamma=0.5).sum().backward()
    assert [x.grad.flatten().tolist() for x in tensors] == [[1.0, 0.5], [-2.0, -2.0], [0.125]]


def test_discounted_return_numeric_gradient():
    generator = torch.Generator().manual_seed(0)
    reward, p = (torch.rand(3, 4, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(2))
    final_value = torch.rand(3, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *tensors: discounted_return(*tensors, gamma=0.9), (reward, p, final_value))


def test_td_lambda_by_hand():
    """gamma .5, lam .25, V = 4, 8. Row 0: G_1 = 2 + .5*.5*8 = 4;  G_0 = 1 + .5*(.75*4 + .25*4) = 3.
    Row 1: G_1 = 2 + .5*8 = 6;  G_0 = 1, since success ended the episode."""
    value_next = torch.tensor([[4.0, 8.0], [4.0, 8.0]])
    assert td_lambda_targets(REWARD, P_SUCCESS, value_next, gamma=0.5, lam=0.25).tolist() == [[3.0, 4.0], [1.0, 6.0]]


def test_td_lambda_mixes_value_and_return():
    """No success, gamma .5, V = 4, 8: G_1 = 2 + 4 = 6; G_0 = 1 + .5*4 = 3 for lam 0, 1 + .5*(3 + 1.5) = 3.25 for .25, 4 for 1."""
    none, value_next = torch.zeros(1, 2), torch.tensor([[4.0, 8.0]])
    for lam, expected in ((0.0, 3.0), (0.25, 3.25), (1.0, 4.0)):
        assert td_lambda_targets(REWARD[:1], none, value_next, gamma=0.5, lam=lam).tolist() == [[expected, 6.0]]


def test_td_lambda_1_is_the_discounted_return():
    generator = torch.Generator().manual_seed(0)
    reward, p, value_next = (torch.rand(3, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    targets = td_lambda_targets(reward, p, value_next, gamma=0.9, lam=1.0)
    assert targets.dtype == torch.float64
    for i in range(4):
        expected = discounted_return(reward[:, i:], p[:, i:], value_next[:, -1], gamma=0.9)
        torch.testing.assert_close(targets[:, i], expected, rtol=0, atol=1e-12)


def test_action_penalty_by_hand():
    """|a - clip(a)|^2 = 0, .25, 1, 0 for limits of 1: mean .3125. Gradient 2*(a - clip(a))/4."""
    actions = torch.tensor([[[0.5, 1.5], [-2.0, -1.0]]], requires_grad=True)
    penalty = action_penalty(actions, actions.clamp(-1, 1))
    penalty.backward()
    assert penalty.item() == pytest.approx(0.3125)
    assert actions.grad.flatten().tolist() == [0.0, 0.25, -0.5, 0.0]
