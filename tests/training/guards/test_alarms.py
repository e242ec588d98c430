"""Every alarm is provoked in a training run, which stops cleanly and ships the last good weights; when exactly each fires."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import CHUNK, EPISODES, Recorder, Scripted, ScriptedJudge, analytic, fit, guarded, ppo, read, same, shipped, starts
from lightning import Callback

from reflectors.instant import InstantReflector
from training.guards.alarms import (
    Alarm,
    EntropyCollapse,
    FewUsable,
    GapTooWide,
    JudgeFalls,
    KLExplosion,
    NoLongerRises,
    NotFinite,
    RatioExplosion,
    SpreadCollapse,
)
from training.guards.guard import Guard
from training.guards.held_out import SecondReflector
from training.rl.chains import Deterministic, Diffusion, FlowNoise, FlowSDE, OneStepFlowSDE
from training.rl.estimators import GRPO
from worldsim.core.noise import Noise
from worldsim.tasks.reward import ProgressReward

# Alarms in runs of the real learners --------------------------------------------------------------------------------------


def test_analytic_learner_that_diverges(models: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, alarm, _ = guarded(analytic(models, lr=1e30), tmp_path / "run", Guard([NotFinite()], every=1))
    assert alarm["alarm"] == "NotFinite" and alarm["iteration"] == 1 and alarm["rolled_back_to"] == 0
    assert "policy/sum_of_squares" in alarm["message"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("guard: ")]
    assert len(lines) == 1 and "NotFinite at iteration 1" in lines[0] and alarm["advice"] in lines[0]


def test_ppo_that_diverges(models: dict[str, Any], tmp_path: Path) -> None:
    _, alarm, _ = guarded(ppo(models, lr=1e30), tmp_path / "run", Guard([NotFinite()], every=1))
    assert alarm["alarm"] == "NotFinite"


def test_groups_that_all_end_alike(models: dict[str, Any], tmp_path: Path) -> None:
    """A reflector without opinions: all dreams have the same return, so group advantages vanish."""
    reflector = models["reflector"]
    for parameter in reflector.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    reflector.threshold.fill_(1.0)
    guard = Guard([NotFinite(), FewUsable(patience=3)], every=2)
    _, alarm, _ = guarded(ppo(models, advantage=GRPO(2)), tmp_path / "run", guard)
    assert (alarm["alarm"], alarm["iteration"], alarm["rolled_back_to"]) == ("FewUsable", 3, 2)
    assert "train/usable_fraction=0 " in alarm["message"]


@pytest.mark.parametrize(
    ("alarm", "changes"),
    [
        (
            RatioExplosion(above=20.0, patience=1),
            {"lr": 3e-3, "epochs": 16, "clip_high": 1e6},
        ),  # without its upper clip, PPO raises ratios without end
        # Large steps that nothing holds back make all that was done improbable, for good: no ratio is large.
        (KLExplosion(), {"lr": 0.03, "epochs": 16, "anchor": 0.0, "clip": 1e6}),
    ],
)
def test_ppo_that_moves_too_far(models: dict[str, Any], tmp_path: Path, alarm: Alarm, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    _, record, _ = guarded(ppo(models, **changes), tmp_path / "run", Guard([NotFinite(), alarm], every=1))
    assert record["alarm"] == type(alarm).__name__


def test_ppo_that_stops_exploring(models: dict[str, Any], tmp_path: Path) -> None:
    """A negative weight of the entropy teaches the noise network to be silent: from 0.5 towards 0.01."""
    learner = ppo(models, chain=FlowNoise(low=0.01, high=1.0), entropy=-10.0, lr=5e-3)
    _, alarm, _ = guarded(learner, tmp_path / "run", Guard([NotFinite(), EntropyCollapse()], every=2), iterations=12)
    assert alarm["alarm"] == "EntropyCollapse" and alarm["rolled_back_to"] % 2 == 0


EXPLORERS = [FlowSDE, OneStepFlowSDE, FlowNoise, Diffusion, Deterministic]


@pytest.mark.parametrize("chain", EXPLORERS)
def test_a_policy_that_no_longer_listens_to_noise_is_noticed_whatever_its_chain(models, tmp_path: Path, chain) -> None:
    """From the third iteration on v = x/t, which leads every noise to the action 0: in K Euler steps of 1/K, x (1 - 1/(K t)) = 0 at
    the last one."""

    class GoDeaf(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                hears = pl_module.policy.velocity
                pl_module.policy.velocity = lambda f, x, t: x / t[:, None, None] + 0 * hears(f, x, t)

    learner = ppo(models, chain=chain()) if chain is not Deterministic else analytic(models)
    guard = Guard([NotFinite(), SpreadCollapse(patience=2)], every=1)
    _, alarm, _ = guarded(learner, tmp_path / "run", guard, GoDeaf())
    assert (alarm["alarm"], alarm["iteration"]) == ("SpreadCollapse", 4)


@pytest.mark.parametrize("chain", EXPLORERS[:-1])
def test_an_alarm_that_could_never_fire_is_refused(models: dict[str, Any], chain) -> None:
    alarm = EntropyCollapse()
    if chain is FlowNoise:
        alarm.begin(ppo(models, chain=chain()))
        return
    with pytest.raises(ValueError, match=f"EntropyCollapse never fires for a PPOPostTraining with {chain.__name__}"):
        alarm.begin(ppo(models, chain=chain()))


def test_entropy_collapse_counts_from_the_first_value_to_the_floor(models: dict[str, Any]) -> None:
    """Bounds 0.1 and 1, two dimensions: the floor is 2 (log 0.1 + 1.4189) = -1.767. Of the 5 nats above it, 4 may go."""
    alarm = EntropyCollapse(share=0.8)
    alarm.begin(ppo(models, chain=FlowNoise(low=0.1, high=1.0)))
    assert alarm.lowest == pytest.approx(-1.7673, abs=1e-4)
    values = [None, alarm.lowest + 5, alarm.lowest + 9, alarm.lowest + 1.01, alarm.lowest + 0.99]
    fired = [alarm.check({} if value is None else {"train/entropy": value}, []) is not None for value in values]
    assert fired == [False, False, False, False, True]


def deceive(models: dict[str, Any]) -> None:
    """Replace the models: actions show in the frames, and the reflector takes one certain action for success.

    A linear probe of its features reads the action off the dream (y = -1, 0, 1); p > 1/2 where y > 1/2. The
    second reflector's p is 1 - p. An untrained policy's actions are near 0, so that the second one is content and the first is not.
    """
    torch.manual_seed(0)
    world_model = models["world_model"]
    judge = InstantReflector(features=128, channels=8, blocks=1, window=1)
    batch = starts(EPISODES)
    sentences = [sentence for sentence in batch["instruction"] for _ in range(CHUNK)]
    with torch.no_grad():
        for parameter in world_model.net.parameters():
            parameter.mul_(2)
        state, noise = (
            world_model.init(batch["images"], batch["state"], batch["instruction"]),
            Noise.rows(0, EPISODES),
        )
        features, y = [], torch.tensor([-1.0, 0.0, 1.0]).repeat_interleave(EPISODES * CHUNK)
        for action in (-1.0, 0.0, 1.0):
            frames = world_model.step(state, torch.full((EPISODES, CHUNK, 2), action), noise)[1]["front"].clamp(0, 1)
            features.append(judge.trunk({"front": frames.flatten(0, 1)}, sentences))
        design = torch.nn.functional.pad(torch.cat(features), (0, 1), value=1.0)
        *weight, bias = (torch.linalg.pinv(design) @ y).unbind()
        for layer in (judge.head[0], judge.head[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        judge.head[0].weight[0], judge.head[0].bias[0] = 10 * torch.stack(weight), 10 * bias
        judge.head[2].weight[0, 0], judge.head[2].bias[0] = 1, -5  # silu(10 y) - 5 is 0 at y = 1/2
    second = copy.deepcopy(judge)
    second.scale.fill_(-1)
    models |= {"reflector": judge.eval(), "second_reflector": second.eval()}


@pytest.mark.parametrize("alarm", [JudgeFalls(), GapTooWide()])
def test_policy_that_deceives_its_reflector(models: dict[str, Any], data: list[str], tmp_path: Path, alarm: Alarm) -> None:
    """In dreams of one frame, one reflector's success is the other's failure: what imagination wins, the judge loses."""
    deceive(models)
    three = [models[name] for name in ("world_model", "reflector", "second_reflector")]
    judge = SecondReflector(*three, data, episodes=EPISODES, max_episode_steps=1)
    torch.manual_seed(0)
    learner = analytic(
        models, lr=1e-2, anchor=0.0, penalty=0.0, exploration=0.0, reward=ProgressReward(progress=0.0), gamma=0.0, judged=(0, 3)
    )
    _, record, _ = guarded(learner, tmp_path / "run", Guard([NotFinite(), alarm], judge, every=5), iterations=40)
    verdicts = read(tmp_path / "run" / "guard.json")["verdicts"]
    assert record["alarm"] == type(alarm).__name__
    assert all(verdict["imagined"] + verdict["judged"] == 1 for verdict in verdicts)
    assert verdicts[-1]["judged"] < verdicts[0]["judged"]
    assert read(tmp_path / "run" / "guard.json")["shipped_iteration"] == record["rolled_back_to"] < record["iteration"]


# When exactly an alarm fires ------------------------------------------------------------------------------------------------

CASES: list[tuple[Alarm, str, list[float | None], int | None]] = [
    (FewUsable(below=0.1, patience=3), "usable_fraction", [0, 0, 0.1, 0, 0, 0, 1], 6),  # 0.1 is not below 0.1
    (FewUsable(below=0.1, patience=3), "usable_fraction", [0, 0, 1, 0, 0, 1, 0], None),
    (RatioExplosion(above=20.0, patience=1), "ratio_max", [1, 20, 19, 20.5, 1], 4),
    (KLExplosion(above=0.5, patience=2), "approx_kl", [0.6, 0.5, 0.6, 0.1, 0.6, 0.6], 6),
    # Less than a tenth of the first value, not of the highest; 0.5 is not less.
    (SpreadCollapse(share=0.1, patience=2), "action_spread", [5, 9, 0.4, 0.6, 0.5, 0.49, 0.1], 7),
    (SpreadCollapse(share=0.1, patience=1), "action_spread", [None, 5, 1, 0.4], 4),
    (SpreadCollapse(share=0.1, patience=1), "action_spread", [5, 1, 0.5], None),
    (NotFinite(), "loss", [1, 1, float("inf")], 3),
    (NotFinite(), "loss", [1e30, -1e30, 1], None),
    (FewUsable(patience=1), "something_else", [0, 0, 0], None),  # what the learner does not log is ignored
]


@pytest.mark.parametrize(("alarm", "metric", "values", "expected"), CASES)
def test_iteration_at_which_an_alarm_fires(models: dict[str, Any], tmp_path: Path, alarm, metric, values, expected) -> None:
    module, guard = Scripted(models["policy"], {metric: values}), Guard([alarm], every=1)
    if expected is None:
        recorder = Recorder()
        fit(module, tmp_path / "run", len(values), recorder, guard)
        assert not (tmp_path / "run" / "alarm.json").exists()
        assert same(shipped(tmp_path / "run"), recorder.weights[-1])
    else:
        _, record, _ = guarded(module, tmp_path / "run", guard, iterations=len(values))
        assert (record["alarm"], record["iteration"]) == (type(alarm).__name__, expected)
        assert record["rolled_back_to"] == expected - 1


VERDICTS = [
    # (imagined, judged) of the starting policy, then after iterations 2, 4, ...; when it fires and what is shipped then.
    (JudgeFalls(margin=0.05, patience=2), [(0.5, 0.5), (0.6, 0.7), (0.7, 0.6), (0.8, 0.6)], 6, 2),
    (JudgeFalls(margin=0.05, patience=2), [(0.5, 0.5), (0.6, 0.7), (0.7, 0.6), (0.8, 0.68), (0.8, 0.6)], None, 2),  # not in a row
    (JudgeFalls(margin=0.05, patience=2), [(0.5, 0.5), (0.6, 0.7), (0.5, 0.6), (0.5, 0.6)], None, 2),  # imagination sees it as well
    (JudgeFalls(margin=0.05, patience=1), [(0.5, 0.5), (0.5, 0.44)], 2, 0),
    (NoLongerRises(patience=2), [(0.5, 0.5), (0.6, 0.6), (0.7, 0.6), (0.8, 0.58)], 6, 2),
    (NoLongerRises(patience=2), [(0.5, 0.5), (0.6, 0.6), (0.7, 0.59), (0.8, 0.61)], None, 6),
    (GapTooWide(max_gap=0.1, patience=2), [(0.5, 0.5), (0.7, 0.5), (0.8, 0.6)], 4, 0),  # the best judged so far, but not healthy
    (GapTooWide(max_gap=0.1, patience=2), [(0.5, 0.3), (0.5, 0.45), (0.7, 0.5), (0.5, 0.45), (0.5, 0.52)], None, 8),
    (GapTooWide(max_gap=0.1, patience=1), [(0.7, 0.5), (0.7, 0.5)], 1, 0),  # already the starting policy
]


@pytest.mark.parametrize(("alarm", "rates", "fires", "ships"), VERDICTS)
def test_verdict_at_which_an_alarm_fires(models: dict[str, Any], tmp_path: Path, alarm, rates, fires, ships) -> None:
    module, guard = Scripted(models["policy"]), Guard([alarm], ScriptedJudge(*rates), every=2)
    iterations = 2 * len(rates) - 2
    if fires is None:
        recorder = Recorder()
        fit(module, tmp_path / "run", iterations, recorder, guard)
        assert not (tmp_path / "run" / "alarm.json").exists()
        assert same(shipped(tmp_path / "run"), recorder.weights[ships])
    else:
        _, record, _ = guarded(module, tmp_path / "run", guard, iterations=iterations)
        assert (record["alarm"], record["iteration"], record["rolled_back_to"]) == (type(alarm).__name__, fires, ships)


def test_a_patience_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="patience of NoLongerRises must be 1 check or more, got 0"):
        NoLongerRises(patience=0)
    with pytest.raises(ValueError, match="patience of FewUsable must be at least 1, got 0"):
        FewUsable(patience=0)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Guard([], every=0)
