"""`DiffusionVLA`: trained with diffusers' scheduler, acting through its flow velocity."""

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler

from models.policies.diffusion_vla import DiffusionVLA
from models.policies.flow_vla import FlowVLA
from training.rl.chains import Diffusion
from training.rl.math.denoising import every_step, sample_chain
from worldsim.core import checkpoint
from worldsim.core.flow import sample_ode
from worldsim.core.types import Features, Observation
from worldsim.deploy.export import export_policy


def observation(b: int) -> Observation:
    g = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (b, 64, 64, 3), generator=g, dtype=torch.uint8)
    sentences = tuple(f"push the red block onto the {('green', 'blue')[i % 2]} disc" for i in range(b))
    return Observation({"front": frames}, torch.randn(b, 4, generator=g), sentences)


@pytest.fixture
def policy() -> DiffusionVLA:
    torch.manual_seed(0)
    return DiffusionVLA(width=32, channels=8, blocks=1).eval()


def test_velocity_is_that_of_the_networks_estimates(policy):
    """At a trained noise level: x_vp = a*x0 + b*eps with v_vp = a*eps - b*x0 gives back exactly x0 and eps, hence eps - x0."""
    features, data, noise = policy.encode(observation(4)), torch.randn(4, 4, 2), torch.randn(4, 4, 2)
    level = torch.tensor([3, 40, 77, 99])
    t = policy.flow_times[level]
    policy.predict = lambda features, x, t: policy.scheduler.get_velocity(data, noise, level)
    x_t = (1 - t)[:, None, None] * data + t[:, None, None] * noise
    torch.testing.assert_close(policy.velocity(features, x_t, t), noise - data, atol=1e-4, rtol=1e-4)


def test_the_network_sees_unit_variance_inputs_and_the_nearest_level(policy):
    features, data, noise = policy.encode(observation(4)), torch.randn(4, 4, 2), torch.randn(4, 4, 2)
    level = torch.tensor([3, 40, 77, 99])
    seen = {}
    policy.predict = lambda features, x, t: seen.update(x=x, t=t) or torch.zeros_like(x)
    t = policy.flow_times[level]
    policy.velocity(features, (1 - t)[:, None, None] * data + t[:, None, None] * noise, t)
    torch.testing.assert_close(seen["x"], policy.scheduler.add_noise(data, noise, level), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen["t"], (level + 1) / 100)


def test_acts_like_diffusers_ddim(policy):
    """Five deterministic steps on the scheduler's own noise levels, from the same noise."""
    scheduler = DDIMScheduler(
        100, beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", clip_sample=False, timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    features, x = policy.encode(observation(3)), torch.randn(3, 4, 2)
    ours = x
    levels = [*scheduler.timesteps.tolist(), None]
    with torch.no_grad():
        for level in scheduler.timesteps:
            predicted = policy.predict(features, x, ((level + 1) / 100).expand(3))
            x = scheduler.step(predicted, int(level), x, eta=0.0).prev_sample
        alphas = scheduler.alphas_cumprod
        for now, following in zip(levels[:-1], levels[1:], strict=True):
            a, b = alphas[now], alphas[following] if following is not None else torch.ones(())
            t, s = policy.flow_times[now], 1 / (a.sqrt() + (1 - a).sqrt())
            velocity = policy.velocity(features, s * ours, t.expand(3))
            data, noise = s * ours - t * velocity, s * ours + (1 - t) * velocity
            ours = b.sqrt() * data + (1 - b).sqrt() * noise
    torch.testing.assert_close(ours, x, atol=1e-4, rtol=1e-4)


def test_learns_a_batch_by_heart(policy):
    policy.train()
    obs, generator = observation(4), torch.Generator().manual_seed(0)
    action = 0.7 * (2 * torch.rand(4, 4, 2, generator=generator) - 1)
    mask = torch.ones(4, 4, 1, dtype=torch.bool)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(400):
        features = policy.encode(obs).repeat(8)
        loss = policy.cloning_loss(features, action.repeat(8, 1, 1), mask.repeat(8, 1, 1), generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    features = policy.encode(obs)
    chunk = sample_ode(lambda x, t: policy.velocity(features, x, t), torch.randn(4, 4, 2), num_steps=10)
    assert (chunk - action).abs().mean() < 0.12


def test_masked_actions_do_not_count(policy):
    """The loss of two counted actions does not depend on a network error in the others."""
    mask = torch.tensor([[True, True, False, False]])[..., None]
    losses = []
    for error in (0.0, 9.0):
        policy.predict = lambda features, x, t, error=error: torch.where(mask, 0.3, error).expand_as(x)
        losses.append(
            policy.cloning_loss(Features(torch.zeros(1, 36)), torch.zeros(1, 4, 2), mask, torch.Generator().manual_seed(1))
        )
    assert losses[0] == losses[1] > 0


def test_the_ddpm_chain_without_noise_acts_like_the_sampler(policy):
    features, noise = policy.encode(observation(3)), torch.randn(3, 4, 2)
    with torch.no_grad():
        transition = Diffusion().transition(policy, features)
        chain, _ = sample_chain(transition, noise, stochastic=~every_step(3, 4), eps=torch.zeros(3, 4, 4, 2))
        ode = sample_ode(lambda x, t: policy.velocity(features, x, t), noise, num_steps=4)
    torch.testing.assert_close(chain[:, -1], ode, atol=1e-4, rtol=1e-4)


def test_saved_and_loaded_it_is_the_same(policy, tmp_path):
    loaded = checkpoint.load(checkpoint.save(policy, tmp_path), DiffusionVLA)
    features = policy.encode(observation(2))
    x, t = torch.randn(2, 4, 2), torch.rand(2)
    torch.testing.assert_close(loaded.velocity(features, x, t), policy.velocity(features, x, t), rtol=0, atol=0)


def test_it_becomes_a_robot_bundle(policy, tmp_path):
    description = export_policy(policy, tmp_path / "bundle", observation=observation(3))
    assert description["parity"]["max_abs_difference"] <= 1e-4


def test_a_description_has_every_size():
    """Those of the flow policy too, or a folder would change with that one's defaults."""
    assert DiffusionVLA().arguments == {**FlowVLA().arguments, "train_timesteps": 100}
