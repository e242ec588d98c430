"""Rollout economy: what is resampled, left, chosen and kept."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from models.policies.flow_vla import FlowVLA
from training.rl.arena import DreamArena
from training.rl.chains import FlowSDE
from training.rl.estimators import GAE, GRPO
from training.rl.ppo import PPOPostTraining
from training.rl.rollout_learner import RolloutLearner, join
from training.rl.sampling import BetaStarts, DynamicSampling, EarlyStop, SuccessBuffer
from worldsim.core.flow import sample_ode
from worldsim.core.types import Rollout
from worldsim.core.units import Units

SENTENCES = ("push the red block onto the green disc", "push the blue block onto the green disc")
CAMERAS = (("front", 8, 1), ("wrist", 16, 10))  # name, width, and what its frames are multiplied by


def rollout(returns: list[float], group: list[int], *, t: int = 2, success: list[bool] | None = None, mark: float = 0.0) -> Rollout:
    """Trajectories of t decisions of four actions; the first action earns the whole return, and a success ends with the last one.

    Every number of a trajectory is `mark`, so that it is known again.
    """
    b = len(returns)
    reward, terminated = torch.zeros(b, t, 4), torch.zeros(b, t, 4, dtype=torch.bool)
    reward[:, 0, 0] = torch.tensor(returns)
    terminated[:, -1, -1] = torch.tensor(success or [False] * b)
    return Rollout(
        images={"front": torch.full((b, t, 64, 64, 3), int(mark), dtype=torch.uint8)},
        state=torch.full((b, t, 4), mark),
        features=torch.full((b, t, 6), mark),
        instruction=tuple(SENTENCES[i % 2] for i in range(b)),
        chain=torch.full((b, t, 4, 4, 2), mark),
        stochastic=torch.ones(b, t, 3, dtype=torch.bool),
        logprob=torch.full((b, t, 3, 4), mark),
        reward=reward,
        terminated=terminated,
        success=torch.tensor(success or [False] * b),
        valid=torch.ones(b, t, 4, dtype=torch.bool),
        group=torch.tensor(group),
        value=torch.full((b, t, 1), mark),
        final_value=torch.full((b,), mark),
    )


# DynamicSampling --------------------------------------------------------------------------------------------------------


def test_groups_whose_returns_differ_are_usable() -> None:
    played = rollout([1.0, 0.0, 0.5, 0.5, 0.2, 0.2005], group=[0, 0, 1, 1, 2, 2])
    assert DynamicSampling.usable(played).tolist() == [True, True, False, False, False, False], "2 differs by less than 0.001"
    apart = rollout([0.5, 1.0, 0.5, 1.0], group=[3, 0, 3, 3])
    assert DynamicSampling.usable(apart).tolist() == [True, False, True, True], "groups need not be neighbours"


def learner(models: dict[str, Any], parts: list[Rollout], **more: Any) -> tuple[RolloutLearner, list[dict[str, Any]]]:
    """A learner with groups of two that is dealt `parts` one by one, and the list of the batches that it has asked for."""
    arena = DreamArena(models["world_model"], models["reflector"])
    module = PPOPostTraining(models["policy"], arena, FlowSDE(), more.pop("advantage", None) or GRPO(2), **more)
    asked: list[dict[str, Any]] = []

    def play(batch: dict[str, Any], generator: torch.Generator) -> Rollout:
        asked.append(batch)
        return parts[len(asked) - 1]

    module._play = play  # type: ignore[method-assign]
    return module, asked


def starts(number: int) -> dict[str, Any]:
    return {"instruction": [f"sentence {i}" for i in range(number)], "images": {"front": torch.arange(number)}}


GOOD, HALF, BAD = [1.0, 0.0, 0.0, 1.0], [0.5, 0.5, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]


def test_sampling_plays_on_until_one_part_is_usable(models: dict[str, Any]) -> None:
    """Six starts in three parts of two, each played twice: four usable trajectories are wanted. 2 + 0 + 4 of 12 are found."""
    parts = [rollout(returns, [0, 0, 1, 1], mark=mark) for mark, returns in enumerate([HALF, BAD, GOOD], start=1)]
    module, asked = learner(models, parts, sampling=DynamicSampling(attempts=3))
    played, share = module.imagine(starts(6), torch.Generator())
    assert [batch["instruction"] for batch in asked] == [
        ["sentence 0", "sentence 1"],
        ["sentence 2", "sentence 3"],
        ["sentence 4", "sentence 5"],
    ]
    assert [batch["images"]["front"].tolist() for batch in asked] == [[0, 1], [2, 3], [4, 5]]
    assert played.final_value.tolist() == [1, 1, 3, 3, 3, 3], "the first part's second group and all of the third"
    assert len(played.group.unique()) == 3 and all(len(set(pair)) == 1 for pair in played.group.reshape(3, 2).tolist())
    assert share == pytest.approx(6 / 12)


def test_sampling_stops_as_soon_as_it_has_enough(models: dict[str, Any]) -> None:
    module, asked = learner(models, [rollout(GOOD, [0, 0, 1, 1])], sampling=DynamicSampling(attempts=3))
    played, share = module.imagine(starts(6), torch.Generator())
    assert len(asked) == 1 and len(played.group) == 4 and share == 1


def test_sampling_gives_up_after_its_attempts(models: dict[str, Any]) -> None:
    """Nothing usable: the last part is kept, whose advantages vanish, and the share is zero."""
    module, asked = learner(models, [rollout(BAD, [0, 0, 1, 1], mark=i) for i in (1, 2, 3)], sampling=DynamicSampling(attempts=3))
    played, share = module.imagine(starts(6), torch.Generator())
    assert len(asked) == 3 and share == 0
    assert played.final_value.tolist() == [3, 3, 3, 3]
    torch.testing.assert_close(module.advantage.assess(played).advantage, torch.zeros(4, 2, 1), rtol=0, atol=1e-6)


def test_without_sampling_everything_is_kept_and_counted(models: dict[str, Any]) -> None:
    module, _ = learner(models, [rollout(HALF, [0, 0, 1, 1])])
    played, share = module.imagine(starts(2), torch.Generator())
    assert len(played.group) == 4 and share == 0.5
    module, _ = learner(models, [rollout(BAD, [0, 1, 2, 3])], advantage=GAE())
    assert module.imagine(starts(4), torch.Generator())[1] == 1, "with a critic every decision teaches"


def test_sampling_needs_a_batch_that_it_can_cut(models: dict[str, Any]) -> None:
    module, _ = learner(models, [], sampling=DynamicSampling(attempts=4))
    with pytest.raises(ValueError, match="data.batch_size=6 must be a multiple of sampling.attempts=4"):
        module.imagine(starts(6), torch.Generator())
    with pytest.raises(ValueError, match="attempts must be at least 1, got 0"):
        DynamicSampling(attempts=0)


def test_joined_rollouts_are_padded_and_their_groups_stay_apart() -> None:
    parts = [
        rollout([1, 0], [0, 0], t=1, mark=1),
        rollout([1, 0, 0, 0], [0, 0, 1, 1], t=3, mark=2),
        rollout([1, 0], [4, 4], mark=3),
    ]
    whole = join(parts)
    assert whole.valid.shape == (8, 3, 4)
    assert whole.valid[..., 0].tolist() == [[True, False, False]] * 2 + [[True] * 3] * 4 + [[True, True, False]] * 2
    assert whole.chain[:, :, 0, 0, 0].tolist() == [[1, 0, 0]] * 2 + [[2, 2, 2]] * 4 + [[3, 3, 0]] * 2
    assert whole.reward.sum((1, 2)).tolist() == [1, 0, 1, 0, 0, 0, 1, 0]
    assert whole.instruction == SENTENCES * 4 and whole.final_value.tolist() == [1, 1, 2, 2, 2, 2, 3, 3]
    assert whole.group.unique(return_counts=True)[1].tolist() == [2, 2, 2, 2]
    nothing = parts[0][torch.zeros(2, dtype=torch.bool)]
    assert torch.equal(join([nothing, parts[1]]).group, parts[1].group)


# EarlyStop --------------------------------------------------------------------------------------------------------------


def test_hopeless_is_what_is_worth_little_after_some_patience() -> None:
    value = torch.tensor([-0.2, 0.1, 0.3])
    stop = EarlyStop(value_below=0.2, patience=3)
    assert [stop.hopeless(value, t).tolist() for t in (1, 2)] == [[False] * 3, [True, True, False]]
    assert not EarlyStop(patience=1).hopeless(value, 5).any(), "without a bound nothing is"


def test_a_batch_shrinks_when_enough_has_ended() -> None:
    ended = torch.tensor([True, False, False, False])
    assert EarlyStop(drop_share=0.25).worth_dropping(ended)
    assert not EarlyStop(drop_share=0.3).worth_dropping(ended)
    with pytest.raises(ValueError, match=r"drop_share must be in \(0, 1\], got 0"):
        EarlyStop(drop_share=0)


# BetaStarts -------------------------------------------------------------------------------------------------------------


def chances(wins: float, losses: float, draws: int = 4000) -> float:
    """How often a start with these counts is preferred to one that is known to succeed with probability 1/4, 1/4 off the target."""
    starts = BetaStarts(pool=2, keep=0.5)
    starts.successes[:], starts.failures[:] = torch.tensor([wins, 1e7]), torch.tensor([losses, 3e7])
    generator = torch.Generator().manual_seed(0)
    return sum(int(starts.choose(torch.tensor([0, 1]), generator)) == 0 for _ in range(draws)) / draws


@pytest.mark.parametrize(("wins", "losses", "expected"), [(0, 0, 0.5), (2, 0, 0.75**3 - 0.25**3), (0, 2, 0.75**3 - 0.25**3)])
def test_a_success_rate_is_drawn_from_its_posterior(wins: float, losses: float, expected: float) -> None:
    """P(1/4 < p < 3/4) under Beta(wins + 1, losses + 1), whose distribution function is p, p^3 and 1 - (1 - p)^3. The standard
    deviation of the share is 0.008."""
    assert chances(wins, losses) == pytest.approx(expected, abs=0.032)


def test_counts_decay_when_a_start_is_played_again() -> None:
    starts = BetaStarts(pool=4, memory=0.8)
    starts.update(torch.tensor([1, 1, 1, 2]), torch.tensor([True, True, False, False]))  # a group of three, and one alone
    assert starts.successes.tolist() == [0, 2, 0, 0] and starts.failures.tolist() == [0, 1, 1, 0]
    starts.update(torch.tensor([1, 3, 1]), torch.tensor([False, True, False]))
    assert starts.successes.tolist() == pytest.approx([0, 1.6, 0, 1]), "once, however often it was played"
    assert starts.failures.tolist() == pytest.approx([0, 2.8, 1, 0]), "what was not played is remembered whole"


@pytest.mark.parametrize(("target", "chosen"), [(0.5, [1, 4]), (0.9, [0, 4]), (0.0, [2, 3])])
def test_the_starts_nearest_to_the_target_are_played(target: float, chosen: list[int]) -> None:
    """Candidates with rates 0.9, 0.5, 0, 0.2, 0.7, certain after a million dreams each. A start outside them would be nearest."""
    starts = BetaStarts(pool=6, target=target, keep=0.4)
    rate = torch.tensor([0.9, 0.2, target, 0.5, 0.7, 0.0])
    starts.successes[:], starts.failures[:] = 1e6 * rate, 1e6 * (1 - rate)
    assert starts.choose(torch.tensor([0, 3, 5, 1, 4]), torch.Generator().manual_seed(0)).tolist() == chosen


def test_at_least_one_start_is_played_and_the_share_is_checked() -> None:
    assert len(BetaStarts(pool=3, keep=0.01).choose(torch.tensor([2, 0]), torch.Generator())) == 1
    with pytest.raises(ValueError, match=r"keep must be in \(0, 1\], got 0"):
        BetaStarts(pool=3, keep=0)


def test_the_choice_is_a_matter_of_the_generator_and_the_counts_alone() -> None:
    one, other = BetaStarts(pool=50), BetaStarts(pool=50)
    one.update(torch.arange(50), torch.arange(50) % 3 == 0)
    other.load_state_dict(one.state_dict())
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    first = one.choose(ids, torch.Generator().manual_seed(2))
    torch.manual_seed(1)
    assert torch.equal(first, other.choose(ids, torch.Generator().manual_seed(2)))
    assert not torch.equal(first, one.choose(ids, torch.Generator().manual_seed(3)))


def test_starts_need_a_pool(models: dict[str, Any]) -> None:
    arena = DreamArena(models["world_model"], models["reflector"])
    module = PPOPostTraining(models["policy"], arena, FlowSDE(), GAE(), starts=BetaStarts(pool=4))
    with pytest.raises(ValueError, match="set data.pool=4"):
        module.imagine(starts(2), torch.Generator())


# SuccessBuffer ----------------------------------------------------------------------------------------------------------


POLICY: Any = SimpleNamespace(action_units=Units(2))  # what of a policy turns a chain into actions


def marks(buffer: SuccessBuffer) -> list[float]:
    return buffer.kept["state"][:, 0].tolist()


def test_only_decisions_of_successes_are_kept_and_the_newest_stay() -> None:
    buffer = SuccessBuffer(capacity=5)
    buffer.add(rollout([0, 0, 0], [0, 1, 2], success=[False, True, False], mark=1), POLICY)
    assert marks(buffer) == [1, 1] and buffer.kept["instruction"] == [SENTENCES[1]] * 2
    failed = rollout([1, 1], [0, 1], success=[False, False], mark=2)
    buffer.add(failed, POLICY)
    assert marks(buffer) == [1, 1], "a return without success is not enough"
    buffer.add(rollout([0, 0], [0, 1], success=[True, True], mark=3), POLICY)
    assert marks(buffer) == [1, 3, 3, 3, 3]
    assert buffer.kept["instruction"] == [SENTENCES[1], SENTENCES[0], SENTENCES[0], SENTENCES[1], SENTENCES[1]]
    assert buffer.kept["action"].shape == (5, 4, 2) and buffer.kept["action"].max() == 1, "the executed, clamped action"
    assert {len(value) for value in buffer.kept.values()} == {5}


def test_decisions_after_the_end_are_not_kept() -> None:
    played = rollout([0], [0], t=3, success=[True], mark=1)
    played.valid[:, 2] = False
    played.state[:, 2] = 9
    buffer = SuccessBuffer()
    buffer.add(played, POLICY)
    assert marks(buffer) == [1, 1]


def test_an_empty_buffer_has_no_loss() -> None:
    buffer, policy = SuccessBuffer(), FlowVLA(width=32, channels=8, blocks=1)
    assert buffer.loss(policy, torch.Generator()) is None
    buffer.add(rollout([1], [0], success=[False]), POLICY)
    assert buffer.loss(policy, torch.Generator()) is None
    with pytest.raises(ValueError, match="at least 1, got 0 and 64"):
        SuccessBuffer(capacity=0)


def test_what_is_kept_survives_a_checkpoint() -> None:
    buffer, again = SuccessBuffer(), SuccessBuffer()
    buffer.add(rollout([0], [0], success=[True], mark=1), POLICY)
    again.load_state_dict(buffer.state_dict())
    again.add(rollout([0], [0], success=[True], mark=2), POLICY)
    assert marks(again) == [1, 1, 2, 2]


def test_imitation_moves_the_policy_towards_what_worked() -> None:
    """Two sentences with opposite actions: after some steps each draws the policy its own way. The loss grows with the weight."""
    torch.manual_seed(0)
    policy = FlowVLA(width=32, channels=8, blocks=1, num_steps=3).eval()
    played = rollout([0, 0], [0, 1], success=[True, True])
    played.chain[0, :, -1], played.chain[1, :, -1] = 0.8, -0.8
    buffer, heavy = SuccessBuffer(weight=0.1, batch=16), SuccessBuffer(weight=0.3, batch=16)
    buffer.add(played, policy), heavy.add(played, policy)

    def loss(of: SuccessBuffer) -> Tensor:
        torch.manual_seed(1)  # the noise of the matching loss
        value = of.loss(policy, torch.Generator().manual_seed(0))
        assert value is not None
        return value

    torch.testing.assert_close(loss(heavy), 3 * loss(buffer))
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for step in range(150):
        value = buffer.loss(policy, torch.Generator().manual_seed(step))
        assert value is not None
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    with torch.no_grad():
        obs = played.observations((slice(None), 0))
        features, noise = policy.encode(obs), torch.randn(2, 4, 2, generator=torch.Generator().manual_seed(2))
        action = sample_ode(lambda x, t: policy.velocity(features, x, t), noise, num_steps=3).mean((1, 2))
    assert action[0] > 0.4 and action[1] < -0.4


def test_rollouts_of_two_cameras_are_joined_and_kept_camera_by_camera() -> None:
    """Frames of the front are 1 and 2, those of the wrist ten times that; the shorter rollout is padded."""

    def played(mark: int, t: int) -> Rollout:
        images = {name: torch.full((2, t, 8, width, 3), mark * k, dtype=torch.uint8) for name, width, k in CAMERAS}
        return replace(rollout([1.0, 0.0], group=[0, 0], success=[True, False], t=t, mark=mark), images=images)

    whole, seen = join([played(1, 3), played(2, 1)]), []
    policy: Any = SimpleNamespace(action_units=Units(2), encode=seen.append, cloning_loss=lambda *_: torch.ones(()))
    buffer = SuccessBuffer(capacity=8, batch=16)
    buffer.add(whole, policy)
    buffer.loss(policy, torch.Generator().manual_seed(0))
    obs = whole.observations((torch.tensor([3, 0]), torch.tensor([0, 2])))
    assert obs.instruction == (SENTENCES[1], SENTENCES[0])
    for name, width, k in CAMERAS:
        assert whole.images[name].shape == (4, 3, 8, width, 3)
        assert whole.images[name][:, :, 0, 0, 0].tolist() == [[k] * 3, [k] * 3, [2 * k, 0, 0], [2 * k, 0, 0]]
        assert obs.images[name][:, 0, 0, 0].tolist() == [2 * k, k]
        kept = seen[0].images[name]
        assert kept.shape == (16, 8, width, 3) and kept.unique().tolist() == [k, 2 * k]
        assert torch.equal(kept[:, 0, 0, 0], k * seen[0].state[:, 0])
