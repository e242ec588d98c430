"""`FlowVLA`: shapes, errors, and that it can learn a batch by heart."""

import pytest
import torch
from toy_spec import toy_spec

from models.policies.diffusion_vla import DiffusionVLA
from models.policies.flow_vla import FlowVLA
from worldsim.core.flow import matching_loss, sample_ode
from worldsim.core.noise import Noise
from worldsim.core.types import Features, Observation
from worldsim.core.views import resize


def observation(b: int, seed: int = 0, camera: str = "front") -> Observation:
    g = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (b, 64, 64, 3), generator=g, dtype=torch.uint8)
    sentences = tuple(f"push the red block onto the {('green', 'blue')[i % 2]} disc" for i in range(b))
    return Observation({camera: frames}, torch.randn(b, 4, generator=g), sentences)


@pytest.fixture
def policy() -> FlowVLA:
    torch.manual_seed(0)
    return FlowVLA(action_dim=3, action_horizon=5, width=32, channels=8, blocks=1)


def test_shapes(policy):
    features = policy.encode(observation(4))
    assert features.vector.shape == (4, policy.feature_dim) == (4, 32 + 4)
    v = policy.velocity(features, torch.randn(4, 5, 3), torch.rand(4))
    assert v.shape == (4, 5, 3)
    assert v.dtype == torch.float32
    chunk = sample_ode(lambda x, t: policy.velocity(features, x, t), torch.randn(4, 5, 3), num_steps=policy.num_steps)
    assert chunk.shape == (4, 5, 3)


def test_rows_are_independent(policy):
    policy.eval()
    obs, x, t = observation(4), torch.randn(4, 5, 3), torch.rand(4)
    together = policy.velocity(policy.encode(obs), x, t)
    for i in range(4):
        alone = policy.velocity(policy.encode(obs[[i]]), x[[i]], t[[i]])
        torch.testing.assert_close(alone, together[[i]], atol=1e-5, rtol=1e-4)


def test_float_and_uint8_frames_are_the_same(policy):
    policy.eval()
    obs = observation(2)
    floating = Observation({"front": obs.images["front"].float() / 255}, obs.state, obs.instruction)
    torch.testing.assert_close(policy.encode(obs).vector, policy.encode(floating).vector)


def test_everything_it_sees_matters(policy):
    policy.eval()
    torch.nn.init.normal_(policy.trunk.blocks[0].second.weight, std=0.1)  # zero in a new trunk
    obs, x, t = observation(2), torch.randn(2, 5, 3), torch.rand(2)
    base = policy.velocity(policy.encode(obs), x, t)
    other = observation(2, seed=1)
    for changed in (
        Observation(other.images, obs.state, obs.instruction),
        Observation(obs.images, other.state, obs.instruction),
        Observation(obs.images, obs.state, obs.instruction[::-1]),
    ):
        assert not torch.allclose(policy.velocity(policy.encode(changed), x, t), base, atol=1e-6)
    assert not torch.allclose(policy.velocity(policy.encode(obs), x, 0.5 * t), base, atol=1e-6)


def test_statistics_normalise_the_state(policy):
    policy.eval()
    obs = observation(2)
    middle, spread = torch.arange(4.0), torch.tensor([1.0, 2.0, 4.0, 0.0])
    policy.fit_statistics(toy_spec(torch.stack([middle - spread, middle + spread]), actions=3))
    expected = (obs.state - middle) / torch.tensor([1.0, 2.0, 4.0, 1.0])  # a motionless channel is centred, and not divided
    torch.testing.assert_close(policy.encode(obs).vector[:, -4:], expected)
    with pytest.raises(ValueError, match="built for 4 numbers of state, the data have 3: s0, s1, s2; set its state_dim to 3"):
        policy.fit_statistics(toy_spec(torch.zeros(3, 3), actions=3))


def test_wrong_camera(policy):
    with pytest.raises(ValueError, match="the policy looks through camera 'front', there is wrist; rename one"):
        policy.encode(observation(2, camera="wrist"))


def test_larger_pictures_are_seen_as_the_views_of_them():
    """By a policy of two cameras, in whichever order they come."""
    views = {"wrist": (32, 16), "front": (16, 24)}
    torch.manual_seed(0)
    policy = FlowVLA(width=32, channels=8, blocks=1, views=views).eval()
    large = {name: torch.randint(0, 256, (3, 2 * h, 2 * w, 3), dtype=torch.uint8) for name, (h, w) in views.items()}
    small = {name: torch.from_numpy(resize(large[name].numpy(), views[name])) for name in ("front", "wrist")}
    state, sentences, noise = torch.randn(3, 4), ("push the red block onto the green disc",) * 3, Noise.rows(0, 3)
    seen, expected = (policy.act(Observation(images, state, sentences), noise) for images in (large, small))
    assert torch.equal(seen, expected)
    dark = {**small, "front": torch.zeros_like(small["front"])}
    assert not torch.equal(policy.act(Observation(dark, state, sentences), noise), expected), "it looks through both"


def test_learns_one_batch_by_heart():
    """Eight pictures, eight different chunks: what it then samples is within 0.15 of each (the chunks differ by 0.8)."""
    torch.manual_seed(0)
    g = torch.Generator().manual_seed(0)
    policy = FlowVLA(width=64, channels=8, blocks=1).train()
    obs, target = observation(8), 1.4 * torch.rand(8, 4, 2, generator=g) - 0.7
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(200):
        # The picture is encoded once for four samples of noise and time, which is what makes this quick.
        features = policy.encode(obs).repeat(4)
        noise, t = torch.randn(32, 4, 2, generator=g), torch.rand(32, generator=g).clamp(min=0.02)
        loss = matching_loss(lambda x, t, f=features: policy.velocity(f, x, t), target.repeat(4, 1, 1), noise=noise, t=t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    with torch.no_grad():
        features = policy.encode(obs)
        chunk = sample_ode(lambda x, t: policy.velocity(features, x, t), torch.randn(8, 4, 2, generator=g), num_steps=8)
    assert (chunk - target).abs().mean() < 0.15, (chunk - target).abs().mean()


@pytest.mark.parametrize("kind", [FlowVLA, DiffusionVLA])
def test_what_stands_beyond_the_end_is_not_learned_from(kind: type[FlowVLA]):
    """Whatever the padding is, in units whose 0 is far away: the network sees the middle of each channel there."""
    torch.manual_seed(0)
    policy = kind(action_dim=2, width=16, channels=8, blocks=1)
    policy.action_units.shift.fill_(90)
    features = Features(torch.randn(3, policy.feature_dim))
    actions, mask = 90 + torch.randn(3, 4, 2), torch.tensor([4, 2, 1])[:, None, None] > torch.arange(4)[None, :, None]
    losses = [
        policy.cloning_loss(features, torch.where(mask, actions, padding), mask, torch.Generator().manual_seed(1)).item()
        for padding in (0.0, 1000.0)
    ]
    assert losses[0] == losses[1]
