"""Post-training on tiny models: the ratio is 1 before the first update, and each learner changes the policy and nothing else."""

from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch.utils.data import DataLoader

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.algorithms.flow_sde import chain_logprob
from training.analytic import AnalyticPostTraining
from training.imagine import Critic
from training.ppo import GRPOPostTraining, PPOPostTraining
from training.rollout import collect_rollout
from worldsim import checkpoint
from worldsim.dream import DreamWorld, Starts
from worldsim.types import Observation

SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc")


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    torch.manual_seed(0)
    world_model = LatentFlowWorldModel(channels=(8, 16), layers=(1, 1))
    world_model.fit_statistics(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8), torch.randn(50, 4))
    for parameter in world_model.net.parameters():
        if not parameter.any():  # what starts at zero would make the dream deaf to actions
            torch.nn.init.normal_(parameter, std=0.1)
    models = {
        "policy": FlowVLA(width=32, channels=8, blocks=1, num_steps=3),
        "world_model": world_model,
        "reflector": InstantReflector(features=32, channels=8, blocks=1),
    }
    return {name: str(checkpoint.save(model, tmp_path / name)) for name, model in models.items()}


def starts(batch: int) -> dict:
    generator = torch.Generator().manual_seed(1)
    return {
        "frames": torch.randint(0, 256, (batch, 2, 64, 64, 3), generator=generator, dtype=torch.uint8),
        "state": 0.1 * torch.randn(batch, 2, 4, generator=generator),
        "instruction": tuple(SENTENCES[i % 2] for i in range(batch)),
    }


def fit(module, batch: dict, folder: Path, iterations: int) -> Trainer:
    trainer = Trainer(
        max_epochs=1,
        limit_train_batches=iterations,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader([batch] * iterations, batch_size=None))
    return trainer


def test_ratio_is_one_before_the_first_update(folders: dict[str, str]) -> None:
    """The real policy and world: log-probabilities recomputed in minibatches equal those of the rollout (float32 rounding)."""
    batch = starts(6)
    policy = checkpoint.load(folders["policy"])
    dream = Starts(batch["frames"], batch["state"], batch["instruction"])
    world = DreamWorld(checkpoint.load(folders["world_model"]), checkpoint.load(folders["reflector"]), dream, num_envs=6)
    obs, _ = world.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    rollout = collect_rollout(
        policy, Critic(32, 8, 1), world, obs, chunks=3, noise_level=0.5, group=torch.arange(6), generator=generator
    )
    rows = (torch.tensor([4, 0, 2]), torch.tensor([1, 0, 2]))
    sentences = tuple(rollout.instruction[i] for i in rows[0].tolist())
    features = policy.encode(Observation({"front": rollout.images[rows]}, rollout.state[rows], sentences))
    logprob = chain_logprob(lambda x, t: policy.velocity(features, x, t), rollout.chain[rows], noise_level=0.5)
    ratio = (logprob - rollout.logprob[rows]).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=2e-4)


@pytest.mark.parametrize(
    ("module", "arguments"),
    [
        (AnalyticPostTraining, {"critic_warmup": 1}),
        (PPOPostTraining, {"warmup": 1, "chunks": 2, "minibatch": 4}),
        (GRPOPostTraining, {"warmup": 0, "chunks": 2, "minibatch": 4, "group_size": 2}),
    ],
)
def test_learner_moves_the_policy_and_nothing_else(folders: dict[str, str], tmp_path: Path, module, arguments: dict) -> None:
    learner = module(**folders, **arguments)
    frozen = {name: value.clone() for name, value in learner.world_model.state_dict().items()}
    judge = {name: value.clone() for name, value in learner.reflector.state_dict().items()}
    fit(learner, starts(4), tmp_path / "run", iterations=3)
    before, after = checkpoint.load(folders["policy"]).state_dict(), checkpoint.load(tmp_path / "run").state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(torch.equal(frozen[name], value) for name, value in learner.world_model.state_dict().items())
    assert all(torch.equal(judge[name], value) for name, value in learner.reflector.state_dict().items())


def test_analytic_gradients_raise_the_imagined_return(folders: dict[str, str], tmp_path: Path) -> None:
    """On a fixed batch with a reflector that likes a brighter picture, the objective must rise."""
    learner = AnalyticPostTraining(**folders, critic_warmup=0, lr=3e-3, anchor=0.0, gamma=0.0, exploration=0.0, chunks=1)
    batch = starts(8)
    generator = torch.Generator().manual_seed(3)
    before = learner._dream(batch, generator).reward.mean()
    fit(learner, batch, tmp_path / "run", iterations=40)
    learner.policy.load_state_dict(checkpoint.load(tmp_path / "run").state_dict())
    after = learner._dream(batch, torch.Generator().manual_seed(3)).reward.mean()
    assert after > before


def test_missing_model_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no exported model in .*nowhere"):
        PPOPostTraining(policy=str(tmp_path / "nowhere"), world_model="x", reflector="y")
