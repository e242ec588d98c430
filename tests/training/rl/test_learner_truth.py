"""What reaches a learner's loss: advantages and returns as they were given, no loss where nothing was done, counted warm-ups."""

import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from learners import arena, fit, starts
from lightning import Callback, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from models.policies.flow_vla import FlowVLA
from training.rl.analytic import AnalyticPostTraining
from training.rl.chains import Deterministic, Diffusion, FlowNoise, FlowSDE, OneStepFlowSDE
from training.rl.critics import OwnEncoder
from training.rl.estimators import GAE, GRPO, RLOO
from training.rl.imagine import Continuation
from training.rl.math.advantages import grpo, rloo
from training.rl.nft import NFTPostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.prdp import PRDPPostTraining
from training.rl.rollout_learner import Decisions
from training.rl.sampling import SuccessBuffer
from training.supervised.batches import drawn_by_batch, generator_of
from training.supervised.bc import BehaviourCloning
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Features, Observation


@pytest.mark.parametrize("estimator", [RLOO, GRPO])
def test_a_group_advantage_reaches_the_loss_as_the_estimator_gave_it(models, tmp_path: Path, estimator: type[GRPO]) -> None:
    """In units of reward (RLOO) or of the group's spread (GRPO), however large or small that is in this rollout."""
    seen: list[Decisions] = []

    class Watching(PPOPostTraining):
        def policy_loss(self, decisions: Decisions):
            seen.append(decisions)
            return super().policy_loss(decisions)

    learner = Watching(models["policy"], arena(models), FlowSDE(), estimator(2), chunks=2, epochs=1, minibatch=1000)
    fit(learner, starts(6), tmp_path / "run", iterations=1)
    (decisions,) = seen
    first = [decisions.trajectory.tolist().index(row) for row in decisions.trajectory.unique().tolist()]
    pair = decisions.returns[first].unflatten(0, (-1, 2))
    expected = rloo(pair) if estimator is RLOO else grpo(pair, min_spread=0.25)
    torch.testing.assert_close(decisions.advantage[first, 0], expected.flatten())
    assert pair.diff(dim=1).abs().min() > 1e-3, "groups that end alike are left out"


def test_prdp_takes_returns_whatever_the_estimator_makes_of_them(models, tmp_path: Path) -> None:
    weights = []
    for estimator in (GRPO(2), RLOO(2)):
        torch.manual_seed(0)
        learner = PRDPPostTraining(models["policy"], arena(models), Diffusion(), estimator, chunks=2, minibatch=8)
        fit(learner, starts(4), tmp_path / "run", iterations=1)
        weights.append(checkpoint.load(tmp_path / "run", Policy).state_dict())
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_critic_of_actions_learns_nothing_about_actions_that_were_not_executed(models, tmp_path: Path) -> None:
    """All dreams end with their first action: the other three of a chunk have a target of 0 and no loss."""
    gradients: list[torch.Tensor] = []

    class Watching(GAE):
        def loss(self, value, target, old_value, *, mask):
            value.register_hook(gradients.append)
            assert (target[:, 1:] == 0).all() and (mask.sum(1) == 1).all()
            return super().loss(value, target, old_value, mask=mask)

    models["reflector"].threshold.fill_(-1.0)
    learner = PPOPostTraining(models["policy"], arena(models), FlowSDE(), Watching(OwnEncoder(per_action=True)), chunks=2)
    fit(learner, starts(6), tmp_path / "run", iterations=1)
    (first, *_) = gradients
    assert first.shape == (6, 4) and (first[:, 0] != 0).all() and (first[:, 1:] == 0).all()


@pytest.mark.parametrize(("target", "updates"), [(None, 4), (0.0, 2), (1e9, 4)])
def test_an_iteration_ends_once_the_policy_has_gone_far_enough(models, tmp_path: Path, target: float | None, updates: int) -> None:
    """Four updates, unless the second, the first after a step, is already further than nothing at all."""
    told = []

    class Telling(PPOPostTraining):
        def policy_loss(self, decisions):
            loss, metrics = super().policy_loss(decisions)
            told.append(float(metrics["approx_kl"]))
            return loss, metrics

    settings = {"chunks": 1, "minibatch": 3, "epochs": 2, "ema_decay": 0.0, "target_kl": target}
    learner = Telling(models["policy"], arena(models), FlowSDE(), GAE(warmup=0), **settings)
    fit(learner, starts(6), tmp_path / "run", iterations=1)
    assert len(told) == updates and told[0] == 0 and told[1] > 0


@pytest.mark.parametrize("kind", ["analytic", "ppo"])
def test_a_run_that_ends_before_the_policy_learns_says_so(models, tmp_path: Path, kind: str) -> None:
    """Two iterations, and a warm-up of two; one fewer says nothing."""
    for warmup in (2, 1):
        advantage = GAE(warmup=warmup)
        ppo = PPOPostTraining(models["policy"], arena(models), FlowSDE(), advantage, chunks=1) if kind == "ppo" else None
        learner = ppo or AnalyticPostTraining(**models, critic_warmup=warmup)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            fit(learner, starts(2), tmp_path, 2)
        waited = [str(one.message) for one in said if "only the critic will learn" in str(one.message)]
        assert len(waited) == (warmup == 2)
        assert all("the policy waits for 2 iterations, and 2 are planned" in line for line in waited)


@pytest.mark.parametrize("kind", ["analytic", "ppo"])
def test_a_warm_up_counts_iterations_of_the_run(models, tmp_path: Path, kind: str) -> None:
    """Three epochs of two iterations, three of them warm-up; resumed after the fourth. The policy learns from the fourth on."""
    moved: list[bool] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = [p.detach().clone() for p in pl_module.policy.parameters()]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pairs = zip(self.before, pl_module.policy.parameters(), strict=True)
            moved.append(any(not torch.equal(a, b) for a, b in pairs))

    def learner():
        if kind == "analytic":
            return AnalyticPostTraining(**models, critic_warmup=3)
        return PPOPostTraining(models["policy"], arena(models), FlowSDE(), GAE(warmup=3), chunks=1)

    def run(epochs: int, ckpt: Path | None) -> Trainer:
        trainer = Trainer(
            max_epochs=epochs,
            default_root_dir=tmp_path,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            accelerator="cpu",
            callbacks=[Watch()],
        )
        batches = [{**starts(2), "seed": i} for i in range(2)]
        trainer.fit(learner(), DataLoader(batches, batch_size=None), ckpt_path=ckpt, weights_only=True)
        return trainer

    run(2, None).save_checkpoint(tmp_path / "two.ckpt")
    run(3, tmp_path / "two.ckpt")
    assert moved == [False, False, False, True, True, True]


def test_learners_leave_the_global_generator_alone(models, tmp_path: Path) -> None:
    """What chance a learner and its layers need comes from the batch's seed."""
    makers = [
        lambda: PPOPostTraining(models["policy"], arena(models), FlowNoise(), GAE(warmup=0), chunks=1, minibatch=4),
        lambda: PRDPPostTraining(models["policy"], arena(models), Diffusion(), RLOO(2), chunks=1, minibatch=4),
        lambda: NFTPostTraining(
            models["policy"], arena(models), Deterministic(), GRPO(2), chunks=1, minibatch=4, buffer=SuccessBuffer(8, batch=4)
        ),
        lambda: AnalyticPostTraining(**models, critic_warmup=0, continuation=Continuation(0.5, 4)),
    ]

    class Watch(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = torch.get_rng_state()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert torch.equal(self.before, torch.get_rng_state()), type(pl_module).__name__

    for make in makers:
        fit(make(), starts(4), tmp_path / "run", 2, Watch())


def test_nft_takes_the_mean_over_the_actions_that_were_executed(models, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other ones have an advantage of no meaning."""
    learner = NFTPostTraining(models["policy"], arena(models), Deterministic(), GRPO(2), spread=2.0, repeats=1)
    batch, seen = starts(2), []
    monkeypatch.setattr("training.rl.nft.nft", lambda v, old, target, r, **_: seen.append(r) or v.sum())
    obs = Observation({"front": batch["images"]["front"][:, 1]}, batch["state"][:, 1], batch["instruction"])
    valid = torch.tensor([[True, True, True, True], [True, False, False, False]])
    empty = torch.zeros(2)
    decisions = Decisions(
        obs=obs,
        features=learner.policy.encode(obs).detach(),
        chain=torch.zeros(2, 2, 4, 2),
        stochastic=empty,
        logprob=empty,
        valid=valid,
        advantage=torch.tensor([[1.0, 0.0, 0.0, 1.0], [-1.0, 9.0, 9.0, 9.0]]),
        returns=empty,
        trajectory=torch.arange(2),
        group=torch.arange(2),
        generator=torch.Generator().manual_seed(0),
    )
    learner.policy_loss(decisions)
    torch.testing.assert_close(seen[0], torch.tensor([0.625, 0.25]))


@pytest.mark.parametrize(("chain", "steps"), [(Deterministic(), 0), (OneStepFlowSDE(), 1), (FlowSDE(), 3)])
def test_noise_that_would_be_multiplied_by_zero_is_not_drawn(models, monkeypatch: pytest.MonkeyPatch, chain, steps: int) -> None:
    """Of a chain of three steps: none, the one that explores, all; each stochastic step has noise of its own."""
    policy, drawn = models["policy"], {}
    normal = Noise.normal

    def noted(self: Noise, draw: str, *shape: int) -> Tensor:
        drawn[draw] = normal(self, draw, *shape)
        return drawn[draw]

    monkeypatch.setattr(Noise, "normal", noted)
    features = Features(torch.zeros(3, policy.feature_dim))
    path, _, stochastic = chain.sample(policy, features, Noise.rows(1, 3))
    assert {name: values.shape[1] for name, values in drawn.items() if name != "policy"} == ({"chain": steps} if steps else {})
    assert (stochastic.sum(dim=1) == steps).all() and path.shape[1] == 4


@pytest.mark.parametrize("learner", [PPOPostTraining, PRDPPostTraining])
def test_a_likelihood_needs_a_chain_that_has_one(models, learner: type[PPOPostTraining]) -> None:
    with pytest.raises(ValueError, match=f"{learner.__name__} needs a chain that explores, got Deterministic; chain=flow_sde"):
        learner(models["policy"], arena(models), Deterministic(), GRPO(2))
    with pytest.raises(ValueError, match=r"noise_level must be positive, got 0\.0; chain=deterministic"):
        FlowSDE(noise_level=0.0)


class Noisy(FlowVLA):
    """Drops half of its features while it trains."""

    def encode(self, obs: Observation) -> Features:
        return Features(F.dropout(super().encode(obs).vector, 0.5, self.training))


def test_noisy_layers_draw_by_the_batch(models) -> None:
    """Words that the encoder replaces and features that dropout drops depend on the batch, not on what was drawn before it."""
    module, batch = BehaviourCloning(Noisy(**models["policy"].arguments)), starts(6)
    obs = Observation({"front": batch["images"]["front"][:, 1]}, batch["state"][:, 1], batch["instruction"])
    action = torch.zeros(6, module.policy.action_horizon, module.policy.action_dim)
    cloned = {"obs": obs, "action": action, "valid": torch.ones(action.shape[:2], dtype=torch.bool)}
    losses, dropped = [], []
    for chance, seed in ((0, 1), (5, 1), (0, 2)):
        torch.manual_seed(chance)
        before = torch.get_rng_state()
        losses.append(module.training_step({**cloned, "seed": seed}, 0).item())
        dropped.append(drawn_by_batch(lambda _, batch: torch.rand(3))(module, {"seed": seed}))
        assert torch.equal(before, torch.get_rng_state())
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(dropped[0], dropped[1]) and not torch.equal(dropped[0], dropped[2])
    assert not torch.equal(dropped[0], torch.rand(3, generator=generator_of({"seed": 1})))


def test_actions_and_their_densities_are_in_single_precision(models) -> None:
    """Whatever computes the features: under half precision the same velocity, deviation, latents and pictures, to the bit."""
    policy, chain, codec = models["policy"], FlowNoise(), models["world_model"].codec
    chain.build(policy)
    torch.nn.init.normal_(chain.net.net[-1].weight)
    generator = torch.Generator().manual_seed(0)
    features = Features(torch.randn(5, policy.feature_dim, generator=generator))
    x, t = torch.randn(5, policy.action_horizon, policy.action_dim, generator=generator), torch.rand(5, generator=generator)
    frames = torch.rand(5, 64, 64, 3, generator=generator)

    def computed() -> list[torch.Tensor]:
        latents = codec.encode(frames)
        return [policy.velocity(features, x, t), chain.net(features.vector, t), latents, codec.decode(latents)]

    single = computed()
    with torch.autocast("cpu", torch.bfloat16):
        half = computed()
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(single, half, strict=True))
