"""The flow kernel against closed forms: the straight path, its two ends, and Gaussian data, whose velocity is known exactly."""

import pytest
import torch

from worldsim.core import flow


def test_path_runs_from_data_at_0_to_noise_at_1():
    data, noise = torch.tensor([[2.0], [2.0], [2.0]]), torch.tensor([[6.0], [6.0], [6.0]])
    x = flow.interpolate(data, noise, torch.tensor([0.0, 0.25, 1.0]))
    assert x.flatten().tolist() == [2.0, 3.0, 6.0]  # .25*6 + .75*2 = 3


def test_velocity_target_is_the_time_derivative_of_the_path():
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t, h = torch.rand(5, generator=generator, dtype=torch.float64), 0.125
    slope = (flow.interpolate(data, noise, t + h) - flow.interpolate(data, noise, t - h)) / (2 * h)
    torch.testing.assert_close(flow.velocity_target(data, noise), slope, rtol=0, atol=1e-12)  # the path is linear: rounding only


def test_estimates_recover_both_ends_of_the_path():
    generator = torch.Generator().manual_seed(0)
    data, noise = (torch.randn(5, 3, 2, generator=generator, dtype=torch.float64) for _ in range(2))
    t = torch.rand(5, generator=generator, dtype=torch.float64)
    x, v = flow.interpolate(data, noise, t), flow.velocity_target(data, noise)
    torch.testing.assert_close(flow.data_estimate(x, v, t), data, rtol=0, atol=1e-12)
    torch.testing.assert_close(flow.noise_estimate(x, v, t), noise, rtol=0, atol=1e-12)


def test_expand_time_broadcasts_against_any_rank():
    t = torch.tensor([0.1, 0.2])
    assert flow.expand_time(t, torch.zeros(2, 3)).shape == (2, 1)
    assert flow.expand_time(t, torch.zeros(2, 3, 4, 5)).shape == (2, 1, 1, 1)


def test_time_grid():
    assert flow.time_grid(4) == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert flow.time_grid(1) == [1.0, 0.0]
    with pytest.raises(ValueError, match="num_steps"):
        flow.time_grid(0)


def test_sample_ode_visits_the_grid_and_subtracts_the_velocity():
    times = []

    def velocity(x, t):
        times.append(t.tolist())
        return torch.full_like(x, 2.0) * t[:, None]

    x = flow.sample_ode(velocity, torch.tensor([[10.0], [20.0]]), num_steps=4)
    assert times == [[1.0, 1.0], [0.75, 0.75], [0.5, 0.5], [0.25, 0.25]]
    assert x.flatten().tolist() == [8.75, 18.75]  # 2 * (1 + .75 + .5 + .25) / 4 = 1.25


def test_sample_ode_carries_gradient_to_noise_and_parameters():
    w = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(2, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda w, noise: flow.sample_ode(lambda x, t: torch.tanh(w * x) + t[:, None, None], noise, num_steps=3), (w, noise)
    )


@pytest.mark.parametrize(("num_steps", "std"), [(4, 0.25976), (10, 0.33912), (50, 0.38710), (400, 0.39836)])
def test_sample_ode_moments_of_gaussian_data(num_steps, std):
    """Data N(1.5, .4^2): each step is affine in x, so the image of 0 is the mean and the slope is the std. Expected is the product
    of the slopes 1 - A/K, A the slope of the velocity; few Euler steps shrink the spread."""

    def velocity(x, t):
        t = t[:, None]
        return -1.5 + (t - (1 - t) * 0.16) / (t**2 + (1 - t) ** 2 * 0.16) * (x - (1 - t) * 1.5)

    at_0, at_1 = (
        flow.sample_ode(velocity, torch.tensor([[0.0], [1.0]], dtype=torch.float64), num_steps=num_steps).flatten().tolist()
    )
    assert at_0 == pytest.approx(1.5, abs=1e-9)
    assert at_1 - at_0 == pytest.approx(std, abs=6e-6)


def standard_normal_velocity(x, t):
    """Of data N(0, 1): E[data | x] = (1-t) x / (t^2 + (1-t)^2), v = (x - E[data | x]) / t."""
    t = t[:, None, None]
    return (x - (1 - t) * x / (t**2 + (1 - t) ** 2)) / t


def test_guidance_by_hand():
    """K = 2. At t = 1 the data estimate is 0 whatever x is, so x <- x/2; at t = .5 it is x, v = 0 and c = (.25 + .25) / .25 = 2, so
    x <- x + 2 w (previous - x) / 2."""
    noise = torch.tensor([[[2.0], [2.0], [2.0]]])
    previous, weights = torch.full((1, 3, 1), 5.0), torch.tensor([[1.0, 0.25, 0.0]])
    drawn = flow.sample_guided(standard_normal_velocity, noise, previous=previous, weights=weights, num_steps=2)
    torch.testing.assert_close(drawn, torch.tensor([[[5.0], [2.0], [1.0]]]))
    bounded = flow.sample_guided(standard_normal_velocity, noise, previous=previous, weights=weights, num_steps=2, strongest=0.5)
    torch.testing.assert_close(bounded, torch.tensor([[[2.0], [1.25], [1.0]]]))


def test_guidance_is_bounded_near_noise_and_data_and_goes_through_the_network():
    """Coupled rows: agreeing in the first row moves the second, through the derivative of the network."""
    mix = torch.tensor([[1.0, 0.5], [0.0, 1.0]])

    def velocity(x, t):  # the data estimate is x - t v = mix x
        return (x - torch.einsum("ij,bjd->bid", mix, x)) / t[:, None, None]

    noise, previous, weights = torch.tensor([[[1.0], [1.0]]]), torch.tensor([[[2.5], [9.0]]]), torch.tensor([[1.0, 0.0]])
    # One step at t = 1: c = 5, x_0 = [1.5, 1], v = [-.5, 0], g = mix^T [1, 0] = [1, .5].
    drawn = flow.sample_guided(velocity, noise, previous=previous, weights=weights, num_steps=1)
    torch.testing.assert_close(drawn, torch.tensor([[[1.5 + 5], [1 + 2.5]]]))


def test_without_weights_guidance_is_the_plain_sampler():
    noise = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1))
    plain = flow.sample_ode(standard_normal_velocity, noise, num_steps=5)
    drawn = flow.sample_guided(
        standard_normal_velocity, noise, previous=torch.ones(3, 4, 2), weights=torch.zeros(3, 4), num_steps=5
    )
    assert torch.equal(plain, drawn)


def test_matching_loss_by_hand():
    data, noise = torch.zeros(1, 2, 1), torch.tensor([[[1.0], [3.0]]])
    loss = flow.matching_loss(lambda x, t: 2 * x, data, noise=noise, t=torch.tensor([0.75]))
    assert loss.item() == pytest.approx(1.25)  # x = [.75, 2.25]; 2x - v = [1.5 - 1, 4.5 - 3] = [.5, 1.5]; (.25 + 2.25) / 2


def test_matching_loss_ignores_masked_elements_and_averages_over_the_rest():
    data, noise = torch.zeros(1, 2, 2), torch.tensor([[[1.0, 3.0], [100.0, 100.0]]])
    mask = torch.tensor([[[1.0], [0.0]]])
    loss = flow.matching_loss(lambda x, t: 2 * x, data, noise=noise, t=torch.tensor([0.75]), mask=mask)
    assert loss.item() == pytest.approx(1.25)  # the numbers above in the counted step; divided by its 2 elements, not by 4
    assert flow.matching_loss(lambda x, t: x, data, noise=noise, t=torch.tensor([0.75]), mask=torch.zeros(1, 2, 1)).item() == 0
