"""A differentiable dream: where the gradient goes, where it must not, and that it is right."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from toy_spec import toy_spec

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.rl.analytic import AnalyticPostTraining
from training.rl.chains import Deterministic
from training.rl.critics import Critic
from training.rl.imagine import Continuation, Dream, Moment, imagine
from worldsim.core.interfaces import FlowPolicy
from worldsim.core.noise import Noise
from worldsim.core.types import Features
from worldsim.core.units import Units
from worldsim.tasks.reward import ProgressReward

B, CHUNKS = 2, 2
SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc")


class OpenLoop(FlowPolicy):
    """Samples its parameter, whatever the noise: v = (x_t - action) / t in one step. Its gradient is d reward / d action."""

    def __init__(self):
        super().__init__()
        self.action_horizon, self.action_dim, self.num_steps, self.action_units = 4, 2, 1, Units(2)
        g = torch.Generator().manual_seed(4)
        self.action = torch.nn.Parameter(1.2 * torch.rand(B, CHUNKS, 4, 2, generator=g, dtype=torch.double) - 0.6)
        self.decision = 0

    def encode(self, obs):
        self.decision += 1
        return Features(obs.state)

    def velocity(self, features, x_t, t):
        return (x_t - self.action[:, self.decision - 1]) / t[:, None, None]


def scrambled(module: torch.nn.Module, std: float = 0.15) -> torch.nn.Module:
    """Random numbers where a new network has zeros, so that every input matters."""
    for parameter in module.parameters():
        if (parameter == 0).all():
            torch.nn.init.normal_(parameter, std=std)
    return module.eval().requires_grad_(False)


@pytest.fixture
def nets() -> tuple[LatentFlowWorldModel, InstantReflector]:
    torch.manual_seed(0)
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1))
    frames = torch.nn.functional.interpolate(torch.rand(16, 3, 8, 8), 64, mode="bilinear").permute(0, 2, 3, 1)
    shown = {"front": 0.3 + 0.4 * frames}  # within [0.3, 0.7], far from where frames are clamped
    model.fit_statistics(shown, toy_spec(torch.randn(20, 4)))
    reflector = InstantReflector(features=16, channels=8, blocks=1)
    scrambled(model), scrambled(reflector)
    # Larger weights on the path from actions to frames to judgement: the gradient of a new network is lost in float32.
    for layer in (model.condition[0], model.condition[2], *(m for name, m in model.net.named_modules() if name.endswith("film"))):
        layer.weight.mul_(3)
    for layer in (reflector.trunk.out[0], reflector.trunk.out[2], reflector.head[0], reflector.head[2]):
        layer.weight.mul_(4)
    return model, reflector


def dream(policy: FlowPolicy, nets: tuple[Any, Any], *, dtype: torch.dtype = torch.float, **kwargs: Any) -> Dream:
    world_model, reflector = nets
    g = torch.Generator().manual_seed(1)
    images = {name: (0.4 + 0.2 * torch.rand(B, 2, *size, 3, generator=g)).to(dtype) for name, size in world_model.views.items()}
    proprioception = torch.randn(B, 2, 4, generator=g).to(dtype)
    settings: dict[str, Any] = {
        "chunks": CHUNKS,
        "exploration": torch.zeros(B, 1, 1),
        "reward": ProgressReward(2.0),
        "judged": (1, 3),
    }
    settings["chain"] = Deterministic()
    start = Moment(world_model.init(images, proprioception, SENTENCES), images, proprioception, SENTENCES)
    return imagine(
        policy,
        world_model,
        reflector,
        start,
        noise=Noise.rows(2, B),
        **{**settings, **kwargs},
    )


def policy() -> FlowVLA:
    torch.manual_seed(3)
    return FlowVLA(width=16, channels=8, blocks=1).eval()


def test_shapes(nets):
    d = dream(policy(), nets)
    assert d.actions.shape == d.noise.shape == (B, CHUNKS, 4, 2)
    assert d.images["front"].shape == (B, CHUNKS + 1, 64, 64, 3)
    assert d.reward.shape == d.p_success.shape == (B, CHUNKS)
    assert len(d.obs) == CHUNKS
    assert all(o.instruction == SENTENCES for o in d.obs)
    assert ((d.images["front"] >= 0) & (d.images["front"] <= 1)).all()


def test_gradient_reaches_the_policy_and_nothing_else(nets):
    learner = policy()
    d = dream(learner, nets)
    d.reward.sum().backward()
    for name in ("expert.4.weight", "expert_in.weight", "trunk.stem.weight", "trunk.text.embedding.weight"):
        assert learner.get_parameter(name).grad.abs().sum() > 0, name
    for net in nets:
        assert all(p.grad is None for p in net.parameters())
    assert not any(o.images["front"].requires_grad or o.state.requires_grad for o in d.obs), (
        "it learns to act, not to shape what it sees"
    )


def test_two_cameras_are_dreamed_and_each_model_looks_through_its_own():
    """The policy sees both, the reflector the wrist alone: what that shows is what is paid for."""
    torch.manual_seed(0)
    views = {"front": (16, 24), "wrist": (32, 16)}
    model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), views=views)
    model.fit_statistics({name: torch.rand(16, *size, 3) for name, size in views.items()}, toy_spec(torch.randn(20, 4)))
    reflector = InstantReflector(features=16, channels=8, blocks=1, views={"wrist": views["wrist"]})
    nets = scrambled(model), scrambled(reflector)
    learner = FlowVLA(width=16, channels=8, blocks=1, views=views).eval()
    d = dream(learner, nets, reward=ProgressReward(2.0, 0.0))
    assert {name: frames.shape[1:] for name, frames in d.images.items()} == {
        "front": (CHUNKS + 1, 16, 24, 3),
        "wrist": (CHUNKS + 1, 32, 16, 3),
    }
    assert all(not torch.equal(frames[:, k], frames[:, k + 1]) for frames in d.images.values() for k in range(CHUNKS))
    first, last = (reflector.judge({"wrist": d.images["wrist"][:, k, None]}, SENTENCES).progress for k in (0, CHUNKS))
    torch.testing.assert_close(d.reward.sum(1), 2.0 * (last - first), atol=1e-5, rtol=0)
    d.reward.sum().backward()
    for name in ("expert.4.weight", "trunk.stem.weight", "trunk.text.embedding.weight"):
        assert learner.get_parameter(name).grad.abs().sum() > 0, name
    assert all(torch.equal(o.images[name], d.images[name][:, k]) for k, o in enumerate(d.obs) for name in views)


def test_gradient_crosses_from_chunk_to_chunk(nets):
    """The reward of the last chunk depends on the first chunk's actions, through the world model's state."""
    learner = OpenLoop()
    d = dream(learner, [net.double() for net in nets], dtype=torch.double)
    d.reward[:, -1].sum().backward()
    assert (learner.action.grad.abs() > 0).all()


def test_reward_is_progress_gained_and_the_best_success_probability(nets):
    """Computed again from the frames: all four of each chunk are judged, and the progress telescopes."""
    learner, weight = policy(), 3.0
    d = dream(learner, nets, judged=(3,), reward=ProgressReward(weight, 0.5))
    judged = [nets[1].judge({"front": d.images["front"][:, k, None]}, SENTENCES) for k in range(CHUNKS + 1)]
    for k in range(CHUNKS):
        expected = weight * (judged[k + 1].progress - judged[k].progress) + 0.5 * judged[k + 1].p_success
        torch.testing.assert_close(d.reward[:, k], expected, atol=1e-4, rtol=1e-4)
    more = dream(learner, nets, judged=(0, 1, 2, 3), reward=ProgressReward(weight))
    assert (more.p_success >= d.p_success - 1e-6).all()
    torch.testing.assert_close(more.images, d.images)


def test_same_noise_same_dream_and_exploration_changes_it(nets):
    learner = policy()
    a, b, c = dream(learner, nets), dream(learner, nets), dream(learner, nets, exploration=torch.full((B, 1, 1), 0.3))
    assert torch.equal(a.images["front"], b.images["front"])
    assert not torch.equal(a.images["front"], c.images["front"])
    torch.testing.assert_close(a.actions[:, 0], c.actions[:, 0], msg="actions are recorded as sampled, without the exploration")


def test_gradient_equals_finite_differences(nets):
    """d reward / d action in float64, central differences with step 1e-3; the reflector's logits end in float32."""
    doubled = [net.double() for net in nets]
    learner = OpenLoop()

    def reward() -> torch.Tensor:
        learner.decision = 0
        return dream(learner, doubled, dtype=torch.double).reward.double().sum()

    reward().backward()
    gradient, step = learner.action.grad.clone(), 1e-3
    generator = torch.Generator().manual_seed(5)
    assert gradient.abs().amax() > 0.05, "the test needs a gradient well above the rounding of float32"
    with torch.no_grad():
        for _ in range(6):
            direction = torch.randn(gradient.shape, generator=generator, dtype=torch.double)
            direction = 0.5 * direction / direction.norm() + 0.5 * gradient / gradient.norm()
            learner.action += step * direction
            above = reward()
            learner.action -= 2 * step * direction
            below = reward()
            learner.action += step * direction
            torch.testing.assert_close((above - below) / (2 * step), (gradient * direction).sum(), atol=5e-4, rtol=0.02)


def test_a_rival_bounds_the_reward_from_below(nets: tuple[Any, Any]):
    """Itself as rival changes nothing but rounding, since the codec is linear; another can only take away."""
    world_model, _ = nets
    other = copy.deepcopy(world_model)
    for parameter in other.net.last.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(8))
    alone, same, bounded = (dream(policy(), nets, rivals=rivals) for rivals in ([], [world_model], [other]))
    torch.testing.assert_close(same.reward, alone.reward, atol=5e-3, rtol=0)
    torch.testing.assert_close(bounded.images, alone.images, atol=1e-5, rtol=0)
    assert (bounded.reward <= alone.reward + 1e-6).all()
    assert (bounded.reward < alone.reward - 1e-3).any()
    assert (bounded.p_success <= alone.p_success + 1e-6).all()
    assert not alone.doubt.any() and same.doubt.max() < 1e-6 < bounded.doubt.min()
    assert bounded.doubt.shape == (B, CHUNKS) and not bounded.doubt.requires_grad


def test_a_dream_that_is_doubted_does_not_go_on(nets: tuple[Any, Any]):
    """Nobody believes that the two have succeeded; with each end the first gathers a doubt of .5, the second of .6."""
    noise, ended = Noise.rows(0, B), dream(policy(), nets)
    doubt = torch.tensor([[0.2, 0.3], [0.2, 0.4]])
    whole = replace(ended, p_success=torch.zeros(B, CHUNKS), doubt=doubt)
    for limit, first, second in ((None, [2, 2], [4, 4]), (1.0, [2, 2], [4, 0]), (0.5, [2, 0], [0, 0])):
        continuation = Continuation(1.0, 10, limit)
        for expected in (first, second):
            continuation.end(whole, noise)
            assert continuation.chunks.tolist() == expected, limit
    continuation.end(whole, noise)
    again = Continuation(1.0, 10, 0.5)
    again.set_extra_state(continuation.get_extra_state())
    assert again.doubts.tolist() == continuation.doubts.tolist() == pytest.approx([0.5, 0])


def test_critic_judges_frames():
    torch.manual_seed(0)
    critic = Critic(features=8, channels=8, blocks=1)
    frames = torch.randint(0, 256, (B, 64, 64, 3), dtype=torch.uint8)
    assert critic({"front": frames}, SENTENCES).shape == (B,)


def test_a_critic_takes_the_pictures_of_a_reflector_whose_network_it_does_not_know():
    reflector = InstantReflector(features=8, channels=8, blocks=1, views={"wrist": (32, 48)})
    del reflector.trunk
    critic = Critic.like(reflector, values=2)
    assert critic.values({"wrist": torch.randint(0, 256, (B, 32, 48, 3), dtype=torch.uint8)}, SENTENCES).shape == (B, 2)


@pytest.mark.parametrize(("horizon", "expected"), [(1, (0,)), (4, (1, 3)), (5, (0, 2, 4)), (8, (1, 3, 5, 7))])
def test_the_last_frame_of_a_chunk_is_judged_whatever_its_length(nets: tuple[Any, Any], horizon: int, expected: tuple[int, ...]):
    """Progress is that of the last frame that is judged: of a chunk of eight, frame 3 would be half way."""
    acting = FlowVLA(width=16, channels=8, blocks=1, action_horizon=horizon)
    assert AnalyticPostTraining(acting, *nets).judged == expected
    for wrong in ([0, horizon], [-1], [], [horizon - 2] if horizon > 1 else [1]):
        with pytest.raises(ValueError, match=f"expected rising frames of a chunk up to its last, {horizon - 1}; null chooses"):
            AnalyticPostTraining(acting, *nets, judged=tuple(wrong))
