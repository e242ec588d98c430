"""Post-training on tiny models: the ratio is 1 before the first update, and each learner changes the policy and nothing else."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import arena, fit, starts

from training.rl.analytic import AnalyticPostTraining
from training.rl.arena import DreamArena
from training.rl.chains import Chain, Deterministic, Diffusion, FlowNoise, FlowSDE, OneStepFlowSDE
from training.rl.critics import OwnEncoder, SharedFeatures, ValueHead
from training.rl.estimators import GAE, GRPO, RLOO, Advantage, Assessment
from training.rl.imagine import Continuation
from training.rl.math.denoising import chain_logprob, replay
from training.rl.nft import NFTPostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.prdp import PRDPPostTraining
from training.rl.rollout import collect_rollout, paid
from training.rl.sampling import BetaStarts, DynamicSampling, EarlyStop, SuccessBuffer
from worldsim.core import checkpoint
from worldsim.core.flow import interpolate, velocity_target
from worldsim.core.interfaces import FlowPolicy, Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Rollout
from worldsim.core.world import EpisodeReward
from worldsim.worlds.dream import DreamWorld

CHAINS = {
    "flow_sde": FlowSDE,
    "hybrid": OneStepFlowSDE,
    "flow_noise": FlowNoise,
    "diffusion": Diffusion,
}


def play(models: dict[str, Any], chain: Chain, advantage: Advantage, **more) -> tuple[Policy, Rollout]:
    policy = models["policy"]
    chain.build(policy)
    place = arena(models)
    advantage.build(policy, place.reflector)
    world, obs, group = place.begin(starts(6), advantage.group_size, torch.Generator().manual_seed(0), 40)
    return policy, collect_rollout(policy, chain, advantage, world, obs, chunks=3, group=group, seed=0, **more)


@pytest.mark.parametrize("name", CHAINS)
def test_ratio_is_one_before_the_first_update(models: dict[str, Any], name: str) -> None:
    """The real policy and world: log-probabilities recomputed in minibatches equal those of the rollout (float32 rounding)."""
    chain = CHAINS[name]()
    policy, rollout = play(models, chain, GAE())
    rows = (torch.tensor([4, 0, 2]), torch.tensor([1, 0, 2]))
    features = policy.encode(rollout.observations(rows))
    stochastic = rollout.stochastic[rows]
    logprob = chain_logprob(
        replay(chain.transition(policy, features), rollout.chain[rows], stochastic=stochastic), rollout.chain[rows]
    )
    ratio = (logprob - rollout.logprob[rows]).sum(-1).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=5e-4)
    assert (stochastic.sum(1) == (1 if name == "hybrid" else 3)).all()


@pytest.mark.parametrize("per_action", [False, True])
@pytest.mark.parametrize("head", [OwnEncoder, SharedFeatures])
def test_critics_value_decisions_or_actions(models: dict[str, Any], head: type[ValueHead], per_action: bool) -> None:
    advantage = GAE(critic=head(per_action=per_action))
    _, rollout = play(models, FlowSDE(), advantage)
    assert rollout.value.shape == (6, 3, 4 if per_action else 1)
    assert rollout.value[rollout.decided].std() > 0
    assessed = advantage.assess(rollout)
    assert assessed.advantage.shape == rollout.value.shape
    # With lambda 1 and gamma 1 the targets are the rewards to come and the final value, whatever the values in between.
    advantage.gamma = advantage.lam = 1.0
    target = advantage.assess(rollout).target
    expected = rollout.reward.sum((1, 2)) + torch.where(rollout.terminated.any(2).any(1), 0, rollout.final_value)
    torch.testing.assert_close(target[:, 0, 0], expected, rtol=0, atol=1e-5)


def test_finished_dreams_are_dropped_without_changing_the_others(models: dict[str, Any]) -> None:
    """Some dreams end at once; the others play on in a smaller world and see the same frames."""
    reflector = models["reflector"]
    _, whole = play(models, FlowSDE(), GAE())
    clip = {name: frames[:, 1:2] for name, frames in whole.images.items()}
    judged = reflector.judge(clip, whole.instruction).p_success
    reflector.threshold.fill_(float(judged.median()))  # half of them end
    torch.manual_seed(1)
    _, plain = play(models, OneStepFlowSDE(), GAE())
    torch.manual_seed(1)
    _, dropped = play(models, OneStepFlowSDE(), GAE(), early_stop=EarlyStop(drop_share=0.1))
    assert 0 < plain.decided[:, 1].float().mean() < 1
    assert torch.equal(plain.valid[:, : dropped.valid.shape[1]], dropped.valid)
    still = dropped.decided[:, 1]
    assert torch.equal(plain.images["front"][:, 1][still], dropped.images["front"][:, 1][still])
    assert (dropped.images["front"][:, 1][~still] == 0).all()
    # What was dropped after the first decision changes neither the noise nor the way of those that went on.
    last = dropped.decided[:, 2]
    assert last.any() and torch.equal(plain.stochastic[last], dropped.stochastic[last])
    torch.testing.assert_close(plain.chain[last], dropped.chain[last], rtol=0, atol=1e-4)


def test_a_truncated_dream_is_worth_what_its_last_frame_is(models: dict[str, Any]) -> None:
    """Time is up after the first decision; the next episode begins with another frame, whose value is of no account."""
    policy, chain, advantage, place = models["policy"], FlowSDE(), GAE(), arena(models)
    advantage.build(policy, place.reflector)
    advantage.eval()
    world, obs, group = place.begin(starts(6), 1, torch.Generator().manual_seed(0), 40)
    world.max_episode_steps = 4
    state = world.snapshot()
    rollout = collect_rollout(policy, chain, advantage, world, obs, chunks=2, group=group, seed=0)
    assert rollout.valid.shape == (6, 1, 4) and rollout.valid.all() and not rollout.terminated.any()
    world.restore(state)
    seen = world.step_chunk(rollout.chain[:, 0, -1].clamp(-1, 1)).final_obs
    expected = advantage.value(seen.images, seen.instruction, policy.encode(seen))[:, 0]
    torch.testing.assert_close(rollout.final_value, expected, rtol=1e-4, atol=1e-5)


def test_hopeless_dreams_are_truncated_with_their_value(models: dict[str, Any]) -> None:
    _, rollout = play(models, FlowSDE(), GAE(), early_stop=EarlyStop(value_below=1e9, patience=2))
    assert rollout.decided[:, :2].all()
    assert rollout.reward.shape[1] == 2  # nothing is played after everyone was given up
    assert not rollout.terminated.any()
    assert (rollout.final_value != 0).all()


LEARNERS = [
    *[(PPOPostTraining, chain, "gae") for chain in CHAINS],
    (PPOPostTraining, "flow_sde", "grpo"),
    (PPOPostTraining, "flow_noise", "rloo"),
    (PPOPostTraining, "hybrid", "gae_per_action"),
    (PPOPostTraining, "flow_sde", "gae_shared"),
    (PRDPPostTraining, "diffusion", "rloo"),
    (NFTPostTraining, "deterministic", "gae"),
]
ADVANTAGES = {
    "gae": lambda: GAE(warmup=1),
    "gae_per_action": lambda: GAE(OwnEncoder(per_action=True), warmup=0),
    "gae_shared": lambda: GAE(SharedFeatures(), warmup=0),
    "grpo": lambda: GRPO(2),
    "rloo": lambda: RLOO(2),
}


@pytest.mark.parametrize(("module", "chain", "advantage"), LEARNERS)
def test_learner_moves_the_policy_and_nothing_else(models, tmp_path: Path, module, chain: str, advantage: str) -> None:
    chosen = {**CHAINS, "deterministic": Deterministic}[chain]()
    learner = module(models["policy"], arena(models), chosen, ADVANTAGES[advantage](), chunks=2, minibatch=4)
    check_learner(learner, learner.arena.world_model, learner.arena.reflector, models, tmp_path)


@pytest.mark.parametrize("module", [PPOPostTraining, NFTPostTraining])
def test_expert_only_leaves_the_encoder_alone(models: dict[str, Any], tmp_path: Path, module) -> None:
    """Nothing of the encoder moves, and while it is frozen the kept features are those of the reference and of a fresh pass."""
    learner = module(models["policy"], arena(models), FlowSDE(), GAE(warmup=0), chunks=2, minibatch=4, expert_only=True)
    _, rollout = play(models, FlowSDE(), GAE())
    obs = rollout.observations((slice(None), 0))
    torch.testing.assert_close(rollout.features.vector[:, 0], learner.reference.encode(obs).vector, rtol=0, atol=1e-5)
    check_learner(learner, learner.arena.world_model, learner.arena.reflector, models, tmp_path)
    before, after = (models["policy"].state_dict(), checkpoint.load(tmp_path / "run", Policy).state_dict())
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"expert_in", "expert"}


def test_a_policy_without_an_expert_of_its_own_says_so(models: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="FlowVLA does not tell its action expert apart; set model.expert_only=false"):
        FlowPolicy.expert_parameters(models["policy"])


class OddAndEven(GRPO):
    """Pairs of dreams from one start; by decree the first of each is the better one."""

    def assess(self, rollout: Rollout) -> Assessment:
        self.seen = rollout
        better = 1.0 - 2.0 * (torch.arange(len(rollout.group)) % 2)
        rollout.reward.zero_()[:, 0, 0] = better  # what PRDP compares
        advantage = better[:, None, None].expand(*rollout.decided.shape, 1)
        return Assessment(advantage, torch.zeros_like(advantage))


@pytest.mark.parametrize(
    ("module", "chain"),
    [(PPOPostTraining, FlowSDE), (PPOPostTraining, FlowNoise), (PRDPPostTraining, Diffusion), (NFTPostTraining, Deterministic)],
)
def test_what_turned_out_better_becomes_likelier(models: dict[str, Any], tmp_path: Path, module, chain: type[Chain]) -> None:
    """By the chain's log-probability, or without one by a likelihood bound, the cloning loss with equal noise."""
    advantage = OddAndEven(2)
    more = {"chunks": 2, "epochs": 6, "lr": 3e-3, "anchor": 0.0, "ema_decay": 0.0}
    learner = module(models["policy"], arena(models), chain(), advantage, **more)
    before = models["policy"]
    fit(learner, starts(6), tmp_path / "run", iterations=1)
    after, rollout = checkpoint.load(tmp_path / "run", Policy), advantage.seen
    rows = rollout.decided.nonzero(as_tuple=True)
    obs = rollout.observations(rows)

    @torch.no_grad()
    def likelihood(policy: Policy) -> torch.Tensor:
        features, path, stochastic = policy.encode(obs), rollout.chain[rows], rollout.stochastic[rows]
        if stochastic.any():
            return chain_logprob(replay(learner.chain.transition(policy, features), path, stochastic=stochastic), path).sum((1, 2))
        noise, action = torch.randn(200, 1, 4, 2, generator=torch.Generator().manual_seed(0)), path[:, -1].clamp(-1, 1)
        t = torch.linspace(0.05, 1, 200)
        errors = [
            policy.velocity(features, interpolate(action, x.expand_as(action), u.expand(len(action))), u.expand(len(action)))
            - velocity_target(action, x.expand_as(action))
            for x, u in zip(noise, t, strict=True)
        ]
        return -torch.stack(errors).square().mean((0, 2, 3))

    change = likelihood(after) - likelihood(before)
    first = rows[0] % 2 == 0
    assert change[first].mean() > change[~first].mean()


def test_economy_objects_work_together(models: dict[str, Any], tmp_path: Path) -> None:
    learner = PPOPostTraining(
        models["policy"],
        arena(models),
        FlowSDE(),
        GRPO(2),
        chunks=2,
        minibatch=4,
        kl=0.1,
        entropy=0.01,
        sampling=DynamicSampling(attempts=2),
        early_stop=EarlyStop(),
        starts=BetaStarts(pool=10, keep=0.5),
        buffer=SuccessBuffer(capacity=8, batch=4),
    )
    batch = {**starts(8), "start": torch.arange(8)}
    check_learner(learner, learner.arena.world_model, learner.arena.reflector, models, tmp_path, batch)
    assert learner.starts is not None
    assert (learner.starts.successes + learner.starts.failures).sum() > 0


def test_analytic_learner_moves_the_policy_and_nothing_else(models: dict[str, Any], tmp_path: Path) -> None:
    learner = AnalyticPostTraining(**models, critic_warmup=1, continuation=Continuation(0.5, 4))
    check_learner(learner, learner.world_model, learner.reflector, models, tmp_path)


def check_learner(learner, world_model, reflector, models, tmp_path: Path, batch: dict | None = None) -> None:
    frozen = {name: value.clone() for name, value in world_model.state_dict().items()}
    judge = {name: value.clone() for name, value in reflector.state_dict().items()}
    trainer = fit(learner, starts(4) if batch is None else batch, tmp_path / "run", iterations=3)
    before, after = (models["policy"].state_dict(), checkpoint.load(tmp_path / "run", Policy).state_dict())
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(torch.isfinite(value) for value in trainer.callback_metrics.values())
    assert all(torch.equal(frozen[name], value) for name, value in world_model.state_dict().items())
    assert all(torch.equal(judge[name], value) for name, value in reflector.state_dict().items())


class Rank(EpisodeReward):
    """Pays the place of each dream among all of the batch, at every decision; needs all of them to have ended."""

    def __call__(self, before, now):
        return torch.ones_like(now.progress)

    def episode(self, rollout):
        assert (rollout.reward == rollout.valid).all(), "what the actions earned is there to look at"
        return torch.arange(1.0, len(rollout.group) + 1)[:, None].expand(rollout.decided.shape)


def test_an_episodes_reward_comes_with_the_last_executed_action_of_each_decision(models: dict[str, Any]) -> None:
    place = DreamArena(models["world_model"], models["reflector"], Rank())
    learner = PPOPostTraining(models["policy"], place, FlowSDE(), GAE(), chunks=3)
    rollout = learner._play(starts(4), torch.Generator().manual_seed(0))
    assert rollout.valid.all()
    assert rollout.reward.tolist() == [[[0, 0, 0, row]] * 3 for row in (1, 2, 3, 4)]
    valid = rollout.valid.clone()
    valid[0, 1, 2:] = valid[0, 2] = valid[1, 0, 1:] = valid[1, 1:] = False
    rewarded = paid(replace(rollout, valid=valid), torch.tensor([[1.0, 2.0, 3.0]]).expand(4, 3)).reward
    assert rewarded[0].tolist() == [[0, 0, 0, 1], [0, 2, 0, 0], [0, 0, 0, 0]]
    assert rewarded[1].tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert rewarded[2].tolist() == [[0, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 3]]


def test_success_is_the_worlds_word_and_not_any_end(models: dict[str, Any]) -> None:
    """A reflector that never fires: time is up, and nothing was a success; one that always does: everything was."""
    for threshold, success in ((1.0, False), (0.0, True)):
        place = arena(models)
        place.reflector.threshold.fill_(threshold)
        world, obs, group = place.begin(starts(4), 1, torch.Generator().manual_seed(0), 40)
        world.max_episode_steps = 6
        policy, chain, advantage = models["policy"], FlowSDE(), GRPO(2)
        chain.build(policy)
        rollout = collect_rollout(policy, chain, advantage, world, obs, chunks=3, group=group, seed=0)
        assert rollout.success.tolist() == rollout.terminated.any(2).any(1).tolist() == [success] * 4
        buffer = SuccessBuffer(capacity=8)
        buffer.add(rollout, policy)
        assert len(buffer.kept["instruction"]) == 4 * success


def test_a_world_that_cannot_shrink_is_told_from_one_that_can(models: dict[str, Any], monkeypatch) -> None:
    monkeypatch.setattr(DreamWorld, "able", lambda world, ability: False)
    monkeypatch.setattr(EarlyStop, "worth_dropping", lambda economy, ended: True)
    with pytest.raises(ValueError, match="early_stop needs a Divisible world, DreamWorld is none; set model.early_stop=null"):
        play(models, FlowSDE(), GAE(), early_stop=EarlyStop())


def test_prdp_needs_groups(models: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="choose advantage=grpo or advantage=rloo"):
        PRDPPostTraining(models["policy"], arena(models), FlowSDE(), GAE())


def test_analytic_gradients_raise_the_imagined_return(models: dict[str, Any], tmp_path: Path) -> None:
    """On a fixed batch with a reflector that likes a brighter picture, the objective must rise."""
    learner = AnalyticPostTraining(**models, critic_warmup=0, lr=3e-3, anchor=0.0, gamma=0.0, exploration=0.0, chunks=1)
    batch = starts(8)
    noise = Noise.rows(3, 8)
    before = learner._dream(batch, noise).reward.mean()
    fit(learner, batch, tmp_path / "run", iterations=40)
    learner.policy.load_state_dict(checkpoint.load(tmp_path / "run", Policy).state_dict())
    after = learner._dream(batch, noise).reward.mean()
    assert after > before


def test_models_of_a_notebook_are_post_trained_without_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/learners.md, word for word."""
    example = re.search(r"(?s)```python\n(.*?)```", (Path(__file__).parents[3] / "docs" / "learners.md").read_text())
    assert example is not None
    monkeypatch.chdir(tmp_path)
    made: dict[str, Any] = {}
    exec(example.group(1), made)
    assert not list(tmp_path.iterdir())
    start, better = made["policy"].state_dict(), made["better"].state_dict()
    assert not all(torch.equal(value, better[name]) for name, value in start.items())
    reference = made["learner"].reference.state_dict()
    assert all(torch.equal(value, reference[name]) for name, value in start.items()), "a copy has learned"


def test_a_learner_does_not_care_in_which_mode_a_model_comes(models: dict[str, Any]) -> None:
    """Fresh from training, layers are noisy and weights want gradients."""
    for model in models.values():
        model.train().requires_grad_(True)
    for learner, names in (
        (AnalyticPostTraining(**models, rivals=(models["world_model"],)), ("reference", "world_model", "reflector", "rivals")),
        (NFTPostTraining(models["policy"], arena(models), Deterministic(), GRPO(2)), ("reference", "old", "arena")),
    ):
        for name in names:
            still = learner.get_submodule(name)
            assert not any(part.training for part in still.children()), name
            assert not any(parameter.requires_grad for parameter in still.parameters()), name
        assert all(parameter.requires_grad for parameter in learner.policy.parameters())
