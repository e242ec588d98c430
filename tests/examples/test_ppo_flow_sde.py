"""The one-page learner: its first update is on-policy, and it learns what an action is worth."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from known_world import KnownWorld

from models.policies.flow_vla import FlowVLA
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.world import ChunkResult
from worldsim.measure.collect import PolicyActor

FILE = Path(__file__).resolve().parents[2] / "examples" / "ppo_flow_sde.py"


@pytest.fixture
def learner():
    spec = importlib.util.spec_from_file_location("ppo_flow_sde", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Bandit(KnownWorld):
    """One decision, worth 1 minus the squared distance of its four actions from 0.6."""

    def step_chunk(self, actions):
        reward = (1 - (actions[..., 0] - 0.6).square()) / 4
        last = (torch.arange(4) == 3).expand_as(reward)
        obs = self._observe()
        return ChunkResult(obs, obs, reward, last, torch.zeros_like(last), torch.ones_like(last), final_judge=self.judge())


def worth(policy: Policy) -> float:
    """Mean return of the policy's own sampler."""
    world = Bandit(256)
    obs, _ = world.reset(seed=list(range(256)))
    return world.step_chunk(PolicyActor(policy).act(world, obs, Noise.rows(7, 256))).reward.sum(1).mean().item()


def test_it_learns_what_an_action_is_worth(learner, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    sizes = {"state_dim": 2, "action_dim": 1, "width": 32, "channels": 8, "blocks": 1, "num_steps": 2, "views": {"front": (8, 8)}}
    policy = FlowVLA(state_used=(1,), **sizes).eval()
    ratios, clip = [], learner.ppo_clip

    def spy(*args, **kwargs):
        loss, metrics = clip(*args, **kwargs)
        ratios.append(metrics["ratio_max"].item())
        return loss, metrics

    monkeypatch.setattr(learner, "ppo_clip", spy)
    sizes = {"iterations": 40, "decisions": 2, "epochs": 2, "minibatch": 64, "warmup": 2, "noise_level": 0.5, "seed": 0}
    world = Bandit(64)
    monkeypatch.setattr(world, "reset", lambda seed: KnownWorld.reset(world, seed=list(range(seed, seed + 64))))
    before = worth(policy)
    learner.train(policy, world, SimpleNamespace(**sizes, gamma=0.95, lam=0.95, lr=3e-3, critic_lr=1e-2))
    assert ratios[:3] == [1.0] * 3, "before its first update the policy is the one that acted"
    assert max(ratios) > 1.05
    assert worth(policy) > before + 0.4, "0.15 at first, 1 at best"
