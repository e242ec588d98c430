"""The two contracts of policies: anything that acts, and flows, which reinforcement learning and robots ask for."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from known_world import KnownWorld, truth
from learners import arena, fit, starts
from torch import Tensor
from toy_policy import make_observation, write_policy

from models.policies.flow_vla import FlowVLA
from training.rl.analytic import AnalyticPostTraining
from training.rl.chains import Deterministic, FlowSDE
from training.rl.estimators import GAE, GRPO
from training.rl.nft import NFTPostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.rollout import collect_rollout
from training.rl.rollout_learner import join
from training.supervised.bc import BehaviourCloning
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Features, Observation
from worldsim.core.units import Units
from worldsim.core.views import FRONT
from worldsim.deploy.export import export_policy
from worldsim.deploy.serving import TorchPolicy
from worldsim.measure.collect import PolicyActor
from worldsim.measure.evaluate import evaluate


class Servo(Policy):
    """No network and no flow: two actions [2] that follow from the state and a little chance, and go on from what is committed."""

    def __init__(self) -> None:
        super().__init__()
        self.views, self.action_horizon, self.action_dim = {"front": (8, 8)}, 2, 1
        self.state_units, self.action_units = Units(2), Units(1)

    def act(self, obs: Observation, noise: Noise, committed: Tensor | None = None) -> Tensor:
        chunk = (obs.state[:, 1:] / 100)[..., None] + 0.01 * noise.normal("servo", 2, 1)
        if committed is not None:
            chunk[:, : committed.shape[1]] = committed
        return self.action_units.native(chunk)


def test_anything_that_acts_is_evaluated_and_served() -> None:
    """With the noise of its start, of which it draws what it needs, and none of its own making."""
    policy, world = Servo(), KnownWorld(num_envs=4)
    seeds = range(100, 116)
    assert torch.equal(evaluate(world, policy, episodes=16, seed=100).success, truth(seeds, world.p)[0])
    obs, noise = world.reset(seed=[5, 6, 7, 8])[0], Noise.rows(3, 4).at(7)
    assert torch.equal(PolicyActor(policy).act(world, obs, noise), policy.act(obs, noise))
    noisy = PolicyActor(policy, noise=0.5).act(world, obs, noise)
    expected = (policy.act(obs, noise) + 0.5 * noise.normal("action", 2, 1)).clamp(-1, 1)
    torch.testing.assert_close(noisy, expected)

    served, again = (TorchPolicy(policy, state_dim=2, seed=9) for _ in range(2))
    assert "noise_shape" not in served.metadata and served.metadata["action_horizon"] == 2
    rows = [
        {
            "observation/image": np.zeros((8, 8, 3), np.uint8),
            "observation/state": np.array([0.0, 10.0 * i], np.float32),
            "prompt": "",
        }
        for i in range(4)
    ]
    with pytest.raises(ValueError, match="noise is nothing that this policy takes"):
        served.infer([{**rows[0], "noise": np.zeros((2, 1), np.float32)}])
    together = np.stack(served.infer(rows))
    assert np.abs(together[:, :, 0] - 0.1 * np.arange(4)[:, None]).max() < 0.05
    alone = np.stack([again.infer([row])[0] for row in rows])
    np.testing.assert_array_equal(together, alone, "chance depends on the number of a request, not on its batch")
    assert np.ptp(together - 0.1 * np.arange(4)[:, None, None]) > 0


def test_who_needs_a_flow_or_a_loss_says_so_by_name(models: dict[str, Any], tmp_path: Path) -> None:
    for build in (
        lambda: PPOPostTraining(Servo(), arena(models), FlowSDE(), GRPO(2)),
        lambda: AnalyticPostTraining(Servo(), models["world_model"], models["reflector"]),
    ):
        with pytest.raises(
            ValueError, match="PostTraining changes how a flow is sampled, Servo is no FlowPolicy; record what it does"
        ):
            build()
    with pytest.raises(ValueError, match="Servo cannot be exported: it needs to be a FlowPolicy with `encode_tokens`"):
        export_policy(Servo(), tmp_path / "bundle", observation=make_observation())
    prefixed = Attentive(width=16, channels=8, blocks=1, views={"wrist": (64, 64)})
    with pytest.raises(ValueError, match=r"Attentive keeps more .* than a vector \(Prefix\), which a bundle cannot hold"):
        export_policy(prefixed, tmp_path / "bundle", observation=make_observation())
    assert not (tmp_path / "bundle").exists()
    with pytest.raises(ValueError, match="Servo does not learn from demonstrations"):
        BehaviourCloning(Servo()).training_step({"seed": 0}, 0)


@pytest.mark.parametrize("n", [1, 3, 4])
def test_a_chunk_goes_on_from_what_is_committed(tmp_path: Path, n: int) -> None:
    """The guidance pulls the committed actions to the running chunk, more than half of the way with four steps, and them first."""
    policy, obs, noise = write_policy(tmp_path), make_observation(), Noise.rows(0, 3)
    policy.num_steps = 4
    free = policy.act(obs, noise)
    running = (0.5 * free.roll(1, dims=0)).clamp(-0.8, 0.8)
    drawn = policy.act(obs, noise, running[:, :n])
    weights = torch.zeros(3, 4)
    weights[:, :n] = 1
    start = noise.normal("policy", 4, 2)
    padded = torch.cat([running[:, :n], torch.full((3, 4 - n, 2), 9.0)], dim=1)
    assert torch.allclose(drawn, policy.guided(policy.encode(obs), start, padded, weights), atol=1e-6), "the rest is of no account"
    before, after = ((chunk - running)[:, :n].abs().mean() for chunk in (free, drawn))
    assert after < 0.5 * before


def test_no_more_is_committed_than_a_chunk_holds(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5 actions are committed, a chunk has 4"):
        write_policy(tmp_path).act(make_observation(), Noise.rows(0, 3), torch.zeros(3, 5, 2))


@dataclass(frozen=True)
class Prefix(Features):
    """Features and, as those of a transformer are, a matrix of each observation, by which alone the chunk is made."""

    keys: Tensor  # [*b, 2, f]


class Attentive(FlowVLA):
    """A `FlowVLA` that reads its features from such a matrix."""

    def encode(self, obs: Observation) -> Prefix:
        vector = super().encode(obs).vector
        return Prefix(vector, torch.stack([vector, -vector], dim=-2))

    def encode_tokens(self, picture: Tensor, state: Tensor, tokens: Tensor) -> Prefix:
        vector = super().encode_tokens(picture, state, tokens).vector
        return Prefix(vector, torch.stack([vector, -vector], dim=-2))

    def velocity(self, features: Features, x_t: Tensor, t: Tensor) -> Tensor:
        assert isinstance(features, Prefix)
        return super().velocity(Features(features.keys[:, 0]), x_t, t)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("module", [PPOPostTraining, NFTPostTraining])
def test_features_may_be_more_than_a_vector(models: dict[str, Any], tmp_path: Path, module: type, frozen: bool) -> None:
    """Two iterations of a learner move such a policy as they move one with a vector."""
    arguments = {**models["policy"].arguments, "views": FRONT}
    weights = []
    for kind in (FlowVLA, Attentive):
        policy = kind(**arguments).eval()
        policy.load_state_dict(models["policy"].state_dict())
        chain = Deterministic() if module is NFTPostTraining else FlowSDE()
        torch.manual_seed(3)  # of the critic
        learner = module(policy, arena(models), chain, GAE(warmup=0), chunks=2, minibatch=4, expert_only=frozen)
        fit(learner, starts(4), tmp_path / f"{kind.__name__}", 2)
        weights.append(learner.policy.state_dict())
    assert any(not torch.equal(weights[0][name], before) for name, before in models["policy"].state_dict().items())
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name], rtol=0, atol=1e-6, msg=name)


def test_rollouts_of_such_features_are_joined_and_thinned(models: dict[str, Any]) -> None:
    """Parts of other lengths are padded, and a dream that has ended leaves zeros where it is no longer played."""
    policy = Attentive(**models["policy"].arguments).eval()
    models["reflector"].threshold.fill_(-1)  # every dream ends at once
    rollouts = []
    for chunks in (1, 3):
        world, obs, group = arena(models).begin(starts(4), 1, torch.Generator().manual_seed(0), 40)
        world.reflector.consecutive = 1 + world.reflector.window * (chunks == 3)  # or never
        rollouts.append(
            collect_rollout(policy, FlowSDE(), GRPO(2), world, obs, chunks=chunks, group=group, seed=0, whole_features=True)
        )
    whole = join(rollouts)
    assert whole.features.keys.shape == (8, 3, 2, policy.feature_dim)
    assert torch.equal(whole.features.keys[:, :, 0], whole.features.vector)
    assert (whole.features.keys[:4, 1:] == 0).all() and (whole.features.keys[4:].abs().amax(dim=(2, 3)) > 0).all()
    at = whole.features[torch.tensor([5, 1]), torch.tensor([2, 0])]
    assert isinstance(at, Prefix) and torch.equal(at.keys, whole.features.keys[[5, 1], [2, 0]])
