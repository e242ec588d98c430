"""A bandit with a continuous action: every chain, advantage and loss must find its optimum, built from the pure functions alone."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn

from training.rl.math import denoising as chains
from training.rl.math.advantages import gae, grpo, normalize, rloo
from training.rl.math.diffusion import diffusion
from training.rl.math.flow_noise import NoiseNet, flow_noise, joint_logprob
from training.rl.math.flow_sde import flow_sde
from training.rl.math.losses import nft, ppo_clip, prdp, value_huber
from training.rl.math.returns import discounted_return
from worldsim.core.flow import alpha_grid, interpolate, sample_ode, velocity_target
from worldsim.core.noise import Noise

K, GROUPS, N = 3, 8, 16
OPTIMUM = torch.tensor([[0.6, -0.4]])


def reward(action):
    """-|a - a*|^2 of a chunk of one action with two dimensions."""
    return -(action - OPTIMUM).square().sum((1, 2))


class Agent(nn.Module):
    """v = x - center at t = 1: with zero weights the policy starts at the origin."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.center = nn.Parameter(torch.zeros(1, 2))
        self.slope = nn.Parameter(torch.ones(1, 2))
        self.noise = NoiseNet(1, 1, 2, low=0.08, high=0.16, width=8)
        self.value = nn.Parameter(torch.zeros(()))

    def velocity(self, x, t):
        return (x - self.center) / t[:, None, None].clamp(min=1 / K) * self.slope

    def std(self, t):
        return self.noise(t[:, None], t)

    def error(self):
        noise = torch.randn(256, 1, 2, generator=torch.Generator().manual_seed(9))
        with torch.no_grad():
            return (sample_ode(self.velocity, noise, num_steps=K).mean(0) - OPTIMUM).abs().max().item()


CHAINS = {
    "flow_sde": lambda agent: flow_sde(agent.velocity, num_steps=K, noise_level=0.5),
    "hybrid": lambda agent: flow_sde(agent.velocity, num_steps=K, noise_level=0.5),
    "flow_noise": lambda agent: flow_noise(agent.velocity, agent.std, num_steps=K),
    "diffusion": lambda agent: diffusion(agent.velocity, alpha_grid(K), eta=1.0, min_std=0.1),
}


def advantages(kind: str, returns, agent):
    """[n] advantages and the critic's loss."""
    if kind == "gae":
        value = agent.value.expand(len(returns))[:, None]
        ends = torch.ones(len(returns), 1, dtype=torch.bool)
        last = torch.zeros(len(returns))
        advantage, target = gae(returns[:, None], value.detach(), last, terminated=ends, valid=ends, gamma=0.95, lam=0.95)
        return advantage[:, 0], value_huber(value, target, value.detach(), mask=ends)
    compare = {"grpo": partial(grpo, min_spread=0.01), "rloo": rloo}[kind]
    return compare(returns.unflatten(0, (GROUPS, N))).flatten(), torch.zeros(())


@pytest.mark.parametrize(
    ("chain", "advantage", "loss"), [*product(CHAINS, ["gae", "grpo", "rloo"], ["ppo"]), *product(CHAINS, ["rloo"], ["prdp"])]
)
def test_chain_learners_find_the_optimum(chain, advantage, loss):
    agent, generator = Agent(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.02)
    assert agent.error() > 0.5
    for step in range(120):
        noise = torch.randn(GROUPS * N, 1, 2, generator=generator)
        mask = chains.one_step(Noise.rows(step, GROUPS * N), K) if chain == "hybrid" else chains.every_step(GROUPS * N, K)
        eps = torch.randn(GROUPS * N, K, 1, 2, generator=generator)
        with torch.no_grad():
            path, old = chains.sample_chain(CHAINS[chain](agent), noise, stochastic=mask, eps=eps)
        returns = reward(path[:, -1])
        for _ in range(2):
            new = chains.chain_logprob(chains.replay(CHAINS[chain](agent), path, stochastic=mask), path)
            value, critic_loss = advantages(advantage, returns, agent)
            if loss == "ppo":
                joint = chain == "flow_noise"
                terms, before = ((joint_logprob(x, noise, reduction="sum") if joint else x.sum(-1)) for x in (new, old))
                counted = torch.ones_like(terms, dtype=torch.bool) if joint else mask
                scaled = normalize(value, torch.ones_like(value) > 0)[:, None].expand_as(terms)
                policy_loss, _ = ppo_clip(terms, before, scaled, mask=counted)
            else:
                group = torch.arange(GROUPS).repeat_interleave(N)
                policy_loss = prdp((new - old).sum((1, 2)), value, group=group, beta=0.5)
            optimizer.zero_grad()
            (policy_loss + critic_loss).backward()
            optimizer.step()
    assert agent.error() < 0.12


def test_negative_aware_regression_finds_the_optimum():
    agent, generator = Agent(), torch.Generator().manual_seed(1)
    agent.slope.requires_grad_(False)  # good actions also lie closer together, which this one-parameter spread cannot express
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.02)
    for _ in range(200):
        noise = torch.randn(GROUPS * N, 1, 2, generator=generator)
        with torch.no_grad():
            jitter = 0.3 * torch.randn(noise.shape, generator=generator)
            action = sample_ode(agent.velocity, noise, num_steps=K) + jitter
            old = Agent()
            old.load_state_dict(agent.state_dict())
        value = normalize(reward(action), torch.ones(len(action)) > 0)
        optimality = (0.5 + value / 4).clamp(0, 1)
        for _ in range(2):
            t = torch.rand(len(action), generator=generator).clamp(min=0.05)
            fresh = torch.randn(action.shape, generator=generator)
            x = interpolate(action, fresh, t)
            with torch.no_grad():
                before = old.velocity(x, t)
            target = velocity_target(action, fresh)
            loss = nft(agent.velocity(x, t), before, target, optimality, mask=torch.ones_like(x) > 0, beta=1.0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert agent.error() < 0.12


@pytest.mark.parametrize("stochastic", [False, True])
def test_analytic_gradients_find_the_optimum(stochastic):
    """Through the ODE, and through Flow-SDE's reparameterised noise."""
    agent, generator = Agent(), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(agent.parameters(), lr=0.02)
    for _ in range(120):
        noise = torch.randn(64, 1, 2, generator=generator)
        mask = chains.every_step(64, K) if stochastic else ~chains.every_step(64, K)
        eps = torch.randn(64, K, 1, 2, generator=generator)
        path, _ = chains.sample_chain(CHAINS["flow_sde"](agent), noise, stochastic=mask, eps=eps)
        zeros = torch.zeros(64)
        objective = discounted_return(reward(path[:, -1])[:, None], zeros[:, None], zeros, gamma=0.95)
        optimizer.zero_grad()
        (-objective.mean()).backward()
        optimizer.step()
    assert agent.error() < 0.1
