"""What holds for every denoising chain: exact ratios, log-probabilities, entropy and divergence against torch.distributions."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import nn
from torch.distributions import Normal, kl_divergence

from training.rl.math.denoising import Transitions, chain_logprob, entropy, every_step, kl, one_step, replay, sample_chain
from training.rl.math.diffusion import diffusion
from training.rl.math.flow_noise import NoiseNet, bounded, flow_noise, joint_logprob
from training.rl.math.flow_sde import flow_sde
from worldsim.core.flow import alpha_grid, from_alpha, sample_ode, time_grid
from worldsim.core.noise import Noise

B, K, AH, AD = 6, 4, 3, 2


class Net(nn.Module):
    """A velocity and a standard deviation that depend on features, the noisy chunk and the time."""

    def __init__(self, batch: int = B):
        super().__init__()
        torch.manual_seed(0)
        self.features = torch.randn(batch, 5)
        self.velocity_net = nn.Sequential(nn.Linear(5 + AH * AD + 1, 32), nn.SiLU(), nn.Linear(32, AH * AD))
        self.noise = NoiseNet(5, AH, AD, low=0.08, high=0.16)
        nn.init.normal_(self.noise.net[-1].weight)  # untrained it would be the same everywhere

    def velocity(self, x, t):
        return self.velocity_net(torch.cat([self.features.to(x), x.flatten(1), t[:, None]], dim=1)).reshape(x.shape)

    def std(self, t):
        return self.noise(self.features.to(t), t)


CHAINS = {
    "flow_sde": lambda net: flow_sde(net.velocity, num_steps=K, noise_level=0.5),
    "flow_noise": lambda net: flow_noise(net.velocity, net.std, num_steps=K),
    "ddpm": lambda net: diffusion(net.velocity, alpha_grid(K), eta=1.0, min_std=0.1),
    "ddim": lambda net: diffusion(net.velocity, alpha_grid(K), eta=0.3, min_std=0.05),
}
every_chain = pytest.mark.parametrize("name", CHAINS)


def draw(seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(B, AH, AD, generator=generator), generator


def sampled(transition, noise, *, stochastic, generator):
    eps = torch.randn(len(noise), K, *noise.shape[1:], generator=generator, dtype=noise.dtype)
    return sample_chain(transition, noise, stochastic=stochastic, eps=eps)


def masks():
    return {"full": every_step(B, K), "hybrid": one_step(Noise.rows(1, B), K)}


@every_chain
@pytest.mark.parametrize("mask", ["full", "hybrid"])
def test_ratio_is_exactly_one_before_any_update(name, mask):
    net, (noise, generator) = Net(), draw()
    stochastic = masks()[mask]
    with torch.no_grad():
        chain, old = sampled(CHAINS[name](net), noise, stochastic=stochastic, generator=generator)
    new = chain_logprob(replay(CHAINS[name](net), chain, stochastic=stochastic), chain)
    assert new.requires_grad
    assert torch.equal((new - old).exp(), torch.ones(B, K, AH))
    assert ((old != 0) == stochastic[..., None]).all()
    with torch.no_grad():
        net.velocity_net[-1].bias += 0.1
    moved = chain_logprob(replay(CHAINS[name](net), chain, stochastic=stochastic), chain)
    assert ((moved - old).abs() > 1e-5)[stochastic].all()


@every_chain
def test_logprob_entropy_and_kl_equal_torch_distributions(name):
    net, other, (noise, generator) = Net(), Net(), draw()
    with torch.no_grad():
        other.velocity_net[-1].bias += 0.3
        other.noise.net[-1].bias += 0.5
        chain, old = sampled(CHAINS[name](net), noise, stochastic=every_step(B, K), generator=generator)
        steps, reference = (replay(CHAINS[name](n), chain, stochastic=every_step(B, K)) for n in (net, other))
        for k in range(K):
            step = CHAINS[name](net)(chain[:, k], torch.full((B,), k))
            torch.testing.assert_close(
                Normal(step.mean, step.std).log_prob(chain[:, k + 1]).sum(-1), old[:, k], rtol=1e-5, atol=1e-5
            )
    here, there = Normal(steps.mean, steps.std), Normal(reference.mean, reference.std)
    torch.testing.assert_close(entropy(steps), here.entropy().sum(-1))
    torch.testing.assert_close(kl(steps, reference), kl_divergence(here, there).sum(-1), rtol=1e-4, atol=1e-5)
    assert (kl(steps, reference) > 1e-3).all()
    assert torch.equal(kl(steps, steps), torch.zeros(B, K, AH))


@every_chain
def test_plain_steps_are_the_ode_sampler(name):
    """Also for the diffusion chain: on `alpha_grid` DDIM makes the Euler steps of the flow."""
    net, (noise, generator) = Net(), draw()
    with torch.no_grad():
        chain, logprob = sampled(CHAINS[name](net), noise, stochastic=~every_step(B, K), generator=generator)
    torch.testing.assert_close(chain[:, -1], sample_ode(net.velocity, noise, num_steps=K), rtol=1e-5, atol=1e-5)
    assert torch.equal(logprob, torch.zeros(B, K, AH))


@every_chain
def test_gradient_of_the_logprob(name):
    net, (noise, generator) = Net().double(), draw()
    stochastic = one_step(Noise.rows(1, B), K) | one_step(Noise.rows(2, B), K)
    with torch.no_grad():
        chain, _ = sampled(CHAINS[name](net), noise.double(), stochastic=stochastic, generator=generator)
    weight, bias = net.velocity_net[-1].weight, net.velocity_net[-1].bias

    def value(bias):
        def velocity(x, t):
            hidden = net.velocity_net[:-1](torch.cat([net.features.to(x), x.flatten(1), t[:, None]], dim=1))
            return nn.functional.linear(hidden, weight, bias).reshape(x.shape)

        moved = Net().double()
        moved.velocity = velocity
        return chain_logprob(replay(CHAINS[name](moved), chain, stochastic=stochastic), chain)

    assert torch.autograd.gradcheck(value, bias.detach().clone().requires_grad_())


@every_chain
def test_the_action_is_differentiable_by_reparameterisation(name):
    net, (noise, _) = Net(), draw()

    def action():
        return sampled(CHAINS[name](net), noise, stochastic=every_step(B, K), generator=torch.Generator().manual_seed(3))[0][:, -1]

    action().sum().backward()
    bias = net.velocity_net[-1].bias
    with torch.no_grad():
        plus, minus = [], []
        for sign, sums in ((1e-2, plus), (-1e-2, minus)):
            bias[0] += sign
            sums.append(action().sum())
            bias[0] -= sign
    assert bias.grad[0].item() == pytest.approx(((plus[0] - minus[0]) / 2e-2).item(), rel=2e-2)


def test_one_step_replay_calls_the_network_once():
    net, (noise, generator) = Net(), draw()
    stochastic = one_step(Noise.rows(1, B), K)
    with torch.no_grad():
        chain, _ = sampled(CHAINS["flow_sde"](net), noise, stochastic=stochastic, generator=generator)
    calls = []
    field = net.velocity
    net.velocity = lambda x, t: calls.append(1) or field(x, t)
    replay(CHAINS["flow_sde"](net), chain, stochastic=stochastic)
    assert len(calls) == 1
    replay(CHAINS["flow_sde"](net), chain, stochastic=every_step(B, K))
    assert len(calls) == 1 + K


def test_entropy_and_kl_ignore_deterministic_steps():
    ones = torch.ones(1, 2, 1, 1)
    mask = torch.tensor([[True, False]])
    steps = Transitions(ones * torch.tensor([0.5, 0.0])[:, None, None], ones * torch.tensor([0.3, 1.0])[:, None, None], mask)
    reference = Transitions(torch.zeros_like(ones), ones * torch.tensor([0.6, 1.0])[:, None, None], mask)
    assert entropy(steps)[0, 1].item() == 0
    assert kl(steps, reference)[0, 1].item() == 0
    # log 2 + (.09 + .25)/(2*.36) - 1/2
    assert kl(steps, reference)[0, 0].item() == pytest.approx(0.6931472 + 0.34 / 0.72 - 0.5, abs=1e-6)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_diffusion_transition_equals_diffusers(eta):
    """Mean and spread of `DDIMScheduler.step`, in its own schedule and time steps, from the same noise prediction."""
    scheduler = DDIMScheduler(100, beta_schedule="squaredcos_cap_v2", clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    alphas = torch.cat([scheduler.alphas_cumprod[scheduler.timesteps], torch.ones(1)])
    x, g = torch.randn(4, AH, AD, generator=torch.Generator().manual_seed(0)), torch.Generator().manual_seed(5)

    def velocity(x, t):
        return torch.sin(3 * x) + t[:, None, None]

    transition = diffusion(velocity, alphas, eta=eta, min_std=0.0)
    for k, level in enumerate(scheduler.timesteps):
        t, scale = from_alpha(alphas[k : k + 1])
        eps = scale * x + (1 - t) * velocity(scale * x, t.expand(4))
        variance_noise = torch.randn(x.shape, generator=g)
        expected = scheduler.step(eps, int(level), x, eta=eta, variance_noise=variance_noise).prev_sample
        step = transition(x, torch.full((4,), k))
        torch.testing.assert_close(step.mean + step.std * variance_noise, expected, rtol=1e-4, atol=1e-4)
        x = expected


def test_diffusion_floor_keeps_exploring_at_the_end():
    step = diffusion(lambda x, t: x, alpha_grid(K), eta=1.0, min_std=0.1)(torch.ones(1, 1, 1), torch.tensor([K - 1]))
    assert step.std.item() == pytest.approx(0.1)


def test_alpha_grid_and_from_alpha_are_inverse():
    t, scale = from_alpha(alpha_grid(K))
    torch.testing.assert_close(t, torch.tensor(time_grid(K)))
    torch.testing.assert_close(scale, ((1 - t) ** 2 + t**2).sqrt())


def test_flow_noise_by_hand():
    step = flow_noise(lambda x, t: torch.full_like(x, 2.0), lambda t: torch.full((1, 1, 1), 0.1), num_steps=4)(
        torch.ones(1, 1, 1), torch.tensor([2])
    )
    assert step.mean.item() == 0.5
    assert step.plain.item() == 0.5
    assert step.std.item() == pytest.approx(0.1)
    assert bounded(torch.tensor(0.0), low=0.08, high=0.16).item() == pytest.approx(0.12)
    assert bounded(torch.tensor([-99.0, 99.0]), low=0.08, high=0.16).tolist() == pytest.approx([0.08, 0.16])


def test_joint_logprob_sums_as_the_paper_and_averages_on_request():
    noise, logprob = torch.tensor([[[0.5, -1.0]]]), torch.tensor([[[1.0], [2.0], [-0.5]]])
    start = Normal(0.0, 1.0).log_prob(noise).sum().item()
    assert joint_logprob(logprob, noise, reduction="sum").item() == pytest.approx(start + 2.5)
    assert joint_logprob(logprob, noise, reduction="mean").item() == pytest.approx((start + 2.5) / 4)
    with pytest.raises(ValueError, match="reduction must be 'sum' or 'mean', got 'none'"):
        joint_logprob(logprob, noise, reduction="none")  # pyright: ignore[reportArgumentType]


def test_noise_net_refuses_impossible_bounds():
    with pytest.raises(ValueError, match="0 < low < high"):
        NoiseNet(3, 1, 1, low=0.2, high=0.1)
