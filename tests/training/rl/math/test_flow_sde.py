"""Flow-SDE against golden numbers, closed-form marginals and torch.distributions."""

import pytest
import torch
from torch import nn

from training.rl.math import denoising as chains
from training.rl.math.denoising import every_step, one_step
from training.rl.math.flow_sde import flow_sde, sigma
from worldsim.core.flow import sample_ode, time_grid
from worldsim.core.noise import Noise

GOLDEN_STD = {3: [0.5, 0.408, 0.204], 4: [0.5, 0.433, 0.25, 0.144], 5: [0.5, 0.447, 0.274, 0.183, 0.112]}


class Velocity(nn.Module):
    """A small velocity field that depends on the observation, the noisy chunk and the time."""

    def __init__(self, batch: int, horizon: int, dim: int):
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.randn(batch, 5)
        self.net = nn.Sequential(nn.Linear(5 + horizon * dim + 1, 32), nn.SiLU(), nn.Linear(32, horizon * dim))
        self.calls = 0

    def forward(self, x, t):
        self.calls += 1
        return self.net(torch.cat([self.features.to(x.dtype), x.flatten(1), t[:, None]], dim=1)).reshape(x.shape)


def gaussian_velocity(x, t):
    """The exact velocity E[noise - data | x_t] for data N(1.5, .4^2): affine in x."""
    t = t[:, None, None]
    return -1.5 + (t - (1 - t) * 0.16) / (t**2 + (1 - t) ** 2 * 0.16) * (x - (1 - t) * 1.5)


def sample_chain(velocity, noise, *, num_steps, noise_level, generator, stochastic=None):
    """The chain and the log-probability of each transition, summed over the chunk."""
    mask = every_step(len(noise), num_steps) if stochastic is None else stochastic
    transition = flow_sde(velocity, num_steps=num_steps, noise_level=noise_level)
    with torch.no_grad():
        eps = torch.randn(len(noise), num_steps, *noise.shape[1:], generator=generator, dtype=noise.dtype)
        chain, logprob = chains.sample_chain(transition, noise, stochastic=mask, eps=eps)
    return chain, logprob.sum(-1)


def chain_logprob(velocity, chain, *, noise_level, stochastic=None):
    num_steps = chain.shape[1] - 1
    mask = every_step(len(chain), num_steps) if stochastic is None else stochastic
    steps = chains.replay(flow_sde(velocity, num_steps=num_steps, noise_level=noise_level), chain, stochastic=mask)
    return chains.chain_logprob(steps, chain).sum(-1)


def draw(batch, horizon=3, dim=2, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, horizon, dim, generator=generator), generator


@pytest.mark.parametrize("num_steps", GOLDEN_STD)
def test_std_matches_golden_numbers(num_steps):
    x = torch.zeros(num_steps, 3, 2)
    std = flow_sde(lambda x, t: x, num_steps=num_steps, noise_level=0.5)(x, torch.arange(num_steps)).std
    assert std.shape == (num_steps, 1, 1)
    assert std.flatten().tolist() == pytest.approx(GOLDEN_STD[num_steps], abs=5.1e-4)  # the table has three decimals


def test_sigma_at_pure_noise_is_a_sqrt_k():
    values = sigma(torch.tensor([1.0, 0.75]), delta=0.25, noise_level=0.5)
    assert values.tolist() == pytest.approx([1.0, 0.5 * 3**0.5])  # .5*sqrt(4); .5*sqrt(.75/.25)


def test_transition_mean_by_hand():
    """t .75, delta .25, a .5: sigma^2 = .75, correction = .75*.25/1.5 = .125, x + .25*v = 2.5; 2 - .25*2 - .125*2.5 = 1.1875."""
    step = flow_sde(lambda x, t: x, num_steps=4, noise_level=0.5)(torch.full((1, 1, 1), 2.0), torch.tensor([1]))
    assert step.mean.item() == 1.1875
    assert step.plain.item() == 1.5


def test_zero_noise_transition_is_the_euler_step():
    x, v = draw(4)[0], draw(4, seed=2)[0]
    step = flow_sde(lambda x, t: v, num_steps=4, noise_level=0.0)(x, torch.full((4,), 2))
    torch.testing.assert_close(step.mean, x - 0.25 * v, rtol=0, atol=0)
    assert (step.std == 0).all()


@pytest.mark.parametrize(
    ("num_steps", "noise_level", "std"),
    [(4, 0.0, 0.25976), (4, 0.5, 0.32567), (4, 0.8, 0.37390), (10, 0.0, 0.33912), (10, 0.5, 0.36683), (10, 0.8, 0.38593)]
    + [(50, 0.0, 0.38710), (50, 0.5, 0.39485), (50, 0.8, 0.39833)],
)
def test_marginal_of_exact_gaussian_velocity(num_steps, noise_level, std):
    """Steps are affine in x: std^2 <- c^2*std^2 + sigma^2*delta with c = 1 - A*delta - sigma^2*delta / (2*(t^2 + (1-t)^2*.16)) and
    A the slope of the velocity. The expected numbers are that recursion, started at 1, in double precision; few Euler steps shrink
    the spread and noise restores it. Tolerance: four standard errors, std/sqrt(n) for the mean and std/sqrt(2n) for the std."""
    n = 200_000
    noise, generator = draw(n, 1, 1)
    stochastic = torch.full((n, num_steps), noise_level > 0)
    chain, _ = sample_chain(
        gaussian_velocity, noise, num_steps=num_steps, noise_level=noise_level, generator=generator, stochastic=stochastic
    )
    data = chain[:, -1].flatten()
    assert data.mean().item() == pytest.approx(1.5, abs=4 * std / n**0.5)
    assert data.std().item() == pytest.approx(std, abs=4 * std / (2 * n) ** 0.5)


def test_marginals_along_the_path_approach_those_of_the_ode():
    """At every time x_t ~ N((1-t)*1.5, t^2 + (1-t)^2*.16), whatever the noise level. 200 steps leave a discretisation error of
    about 1/200; the sampling error of 40k samples is .004 (mean) and .003 (std) at most."""
    noise, generator = draw(40_000, 1, 1)
    chain, _ = sample_chain(gaussian_velocity, noise, num_steps=200, noise_level=0.8, generator=generator)
    for k in (50, 100, 150, 200):
        t = 1 - k / 200
        assert chain[:, k].mean().item() == pytest.approx((1 - t) * 1.5, abs=0.015)
        assert chain[:, k].std().item() == pytest.approx((t**2 + (1 - t) ** 2 * 0.16) ** 0.5, abs=0.015)


def test_logprob_equals_torch_distributions():
    velocity = Velocity(6, 3, 2)
    noise, generator = draw(6)
    chain, logprob = sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator)
    assert chain.shape == (6, 5, 3, 2)
    assert logprob.shape == (6, 4)
    torch.testing.assert_close(chain[:, 0], noise, rtol=0, atol=0)
    for k, t in enumerate(time_grid(4)[:-1]):
        v = velocity(chain[:, k], torch.full((6,), t))
        variance = 0.25 / 4 * t / (0.25 if t == 1 else 1 - t)  # a^2 * delta * t / (1-t)
        mean = chain[:, k] - v / 4 - variance / (2 * t) * (chain[:, k] + (1 - t) * v)
        expected = torch.distributions.Normal(mean, variance**0.5).log_prob(chain[:, k + 1]).sum(dim=(1, 2))
        torch.testing.assert_close(logprob[:, k], expected, rtol=0, atol=2e-5)  # float32 sums of six terms of size ~1..10


@pytest.mark.parametrize(("batch", "horizon", "dim"), [(1, 1, 1), (7, 3, 2), (33, 8, 7)])
@pytest.mark.parametrize("hybrid", [False, True])
def test_ratio_is_exactly_one_before_any_update(batch, horizon, dim, hybrid):
    velocity = Velocity(batch, horizon, dim)
    noise, generator = draw(batch, horizon, dim)
    stochastic = one_step(Noise.rows(1, batch), 5) if hybrid else None
    chain, old = sample_chain(velocity, noise, num_steps=5, noise_level=0.5, generator=generator, stochastic=stochastic)
    new = chain_logprob(velocity, chain, noise_level=0.5, stochastic=stochastic)
    assert not old.requires_grad
    assert new.requires_grad
    assert torch.equal((new - old).exp(), torch.ones(batch, 5))


def test_logprob_responds_to_an_update():
    velocity = Velocity(7, 3, 2)
    noise, generator = draw(7)
    chain, old = sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator)
    with torch.no_grad():
        velocity.net[-1].bias += 0.1
    assert (chain_logprob(velocity, chain, noise_level=0.5) - old).abs().min() > 1e-4


def test_all_ode_equals_sample_ode():
    velocity = Velocity(7, 3, 2)
    noise, generator = draw(7)
    chain, logprob = sample_chain(
        velocity, noise, num_steps=4, noise_level=0.5, generator=generator, stochastic=torch.zeros(7, 4, dtype=torch.bool)
    )
    torch.testing.assert_close(chain[:, -1], sample_ode(velocity, noise, num_steps=4), rtol=0, atol=0)  # 1/4 is exact in binary
    assert torch.equal(logprob, torch.zeros(7, 4))
    assert torch.equal(chain_logprob(velocity, chain, noise_level=0.5, stochastic=torch.zeros(7, 4, dtype=torch.bool)), logprob)


def test_one_step_mask_draws_one_index_per_sample():
    mask = one_step(Noise.rows(0, 4000), 4)
    assert mask.shape == (4000, 4)
    assert (mask.sum(dim=1) == 1).all()
    # Binomial(4000, 1/4): mean 1000, standard deviation 27; four of them. One shared index would give 4000, 0, 0, 0.
    assert (mask.sum(dim=0) - 1000).abs().max() < 110


def test_hybrid_chain_is_noisy_only_in_each_samples_own_step():
    velocity = Velocity(4, 3, 2)
    noise, generator = draw(4)
    stochastic = torch.eye(4, dtype=torch.bool)  # sample i is stochastic in step i
    chain, logprob = sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator, stochastic=stochastic)
    for k, t in enumerate(time_grid(4)[:-1]):
        euler = chain[:, k] - velocity(chain[:, k], torch.full((4,), t)) / 4
        moved = (chain[:, k + 1] - euler).abs().amax(dim=(1, 2)) > 1e-3
        assert moved.tolist() == stochastic[:, k].tolist()
    assert ((logprob != 0) == stochastic).all()


def test_hybrid_logprob_costs_one_call_and_equals_the_full_one():
    velocity = Velocity(6, 3, 2)
    noise, generator = draw(6)
    stochastic = one_step(Noise.rows(1, 6), 4)
    chain, _ = sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator, stochastic=stochastic)
    velocity.calls = 0
    hybrid = chain_logprob(velocity, chain, noise_level=0.5, stochastic=stochastic)
    assert velocity.calls == 1
    full = chain_logprob(velocity, chain, noise_level=0.5)
    torch.testing.assert_close(hybrid, torch.where(stochastic, full, 0), rtol=0, atol=0)


def test_rows_may_differ_in_their_number_of_stochastic_steps():
    velocity = Velocity(3, 3, 2)
    noise, generator = draw(3)
    stochastic = torch.tensor([[False, True, False, True], [False, False, False, False], [True, True, True, False]])
    chain, old = sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator, stochastic=stochastic)
    new = chain_logprob(velocity, chain, noise_level=0.5, stochastic=stochastic)
    assert torch.equal(new, old)
    assert ((new != 0) == stochastic).all()


def test_same_seed_same_bits_and_masks_share_their_noise():
    velocity = Velocity(5, 3, 2)
    noise, _ = draw(5)

    def sample(seed, stochastic=None):
        generator = torch.Generator().manual_seed(seed)
        return sample_chain(velocity, noise, num_steps=4, noise_level=0.5, generator=generator, stochastic=stochastic)[0]

    assert torch.equal(sample(3), sample(3))
    assert not torch.equal(sample(3), sample(4))
    first_row_ode = torch.ones(5, 4, dtype=torch.bool).index_fill(0, torch.tensor([0]), False)
    assert torch.equal(sample(3)[1:], sample(3, first_row_ode)[1:])  # one row's mask never changes another row's chain


def test_logprob_gradient_reaches_the_velocity():
    noise, generator = draw(4)
    noise = noise.double()
    stochastic = torch.tensor([[True, False, True], [False, True, False], [True, True, True], [False, False, False]])
    w, b = torch.tensor(0.7, dtype=torch.float64, requires_grad=True), torch.tensor(-0.2, dtype=torch.float64, requires_grad=True)

    def field(w, b):
        return lambda x, t: torch.tanh(w * x + b) * t[:, None, None]

    chain, _ = sample_chain(field(w, b), noise, num_steps=3, noise_level=0.5, generator=generator, stochastic=stochastic)
    assert chain.dtype == torch.float64
    assert torch.autograd.gradcheck(lambda w, b: chain_logprob(field(w, b), chain, noise_level=0.5, stochastic=stochastic), (w, b))


def test_half_precision_velocity_does_not_round_the_chain():
    """One step from the same bfloat16 velocity as float32 gives the same float32 mean."""
    x, v = draw(4)[0], draw(4, seed=2)[0].bfloat16()
    half, full = (flow_sde(lambda x, t, v=v: v, num_steps=10, noise_level=0.5)(x, torch.full((4,), 3)).mean for v in (v, v.float()))
    assert half.dtype == torch.float32
    assert torch.equal(half, full)


def test_errors():
    noise, generator = draw(2)
    with pytest.raises(ValueError, match="positive standard deviation"):
        sample_chain(gaussian_velocity, noise, num_steps=4, noise_level=0.0, generator=generator)
    with pytest.raises(ValueError, match="positive standard deviation"):
        chain_logprob(gaussian_velocity, torch.zeros(2, 5, 3, 2), noise_level=0.0)
    with pytest.raises(ValueError, match=r"\[2, K >= 1\], got \[1, 4\]"):
        chain_logprob(gaussian_velocity, torch.zeros(2, 5, 3, 2), noise_level=0.5, stochastic=torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_steps"):
        sample_chain(gaussian_velocity, noise, num_steps=0, noise_level=0.5, generator=generator)
