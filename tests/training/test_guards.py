"""Every alarm is provoked in a training run, which stops cleanly and ships the last good weights; healthy runs are left alone."""

import inspect
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import get_object
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from omegaconf import OmegaConf
from torch import Tensor
from torch.utils.data import DataLoader

from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.advantage import GAE, GRPO
from training.analytic import AnalyticPostTraining
from training.arena import DreamArena
from training.chains import FlowNoise, FlowSDE
from training.cli import compose_config
from training.fit import LastCheckpoint, run_fit
from training.guards import (
    Alarm,
    EntropyCollapse,
    FewUsable,
    GapTooWide,
    Guard,
    JudgeFalls,
    KLExplosion,
    NotFinite,
    RatioExplosion,
)
from training.judges import HELD_OUT_SEED, Judge, PhysicsCheck, SecondReflector, Verdict
from training.post_training import PostTraining
from training.ppo import PPOPostTraining
from worldsim import checkpoint
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.windows import FrameTable
from worldsim.dream import DreamWorld, Starts
from worldsim.interfaces import Policy, Reflector, WorldModel
from worldsim.types import Episode

SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc")
EPISODES, CHUNK = 8, 4

Weights = dict[str, Tensor]


@pytest.fixture
def folders(folders: dict[str, str], tmp_path: Path) -> dict[str, str]:
    """Reflectors that judge single frames: some are a success, and `second_reflector` thinks so of all the others."""
    reflector = InstantReflector(features=32, channels=8, blocks=1, window=1)
    frames = starts(EPISODES)["frames"].flatten(0, 1)
    reflector.threshold.fill_(reflector.judge(frames, SENTENCES * EPISODES).p_success.detach().quantile(0.6))
    checkpoint.save(reflector, folders["reflector"])
    reflector.scale.fill_(-1)  # p becomes 1 - p
    reflector.threshold.fill_(1 - reflector.threshold)
    return {**folders, "second_reflector": str(checkpoint.save(reflector, tmp_path / "second_reflector"))}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Recorded episodes that begin with the frames of `starts`."""
    batch = starts(EPISODES)
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"]}
    with DatasetWriter(tmp_path / "data", fps=10, robot_type="test", cameras={"front": (64, 64)}, **names) as writer:
        writer.add(
            [
                Episode(
                    images={"front": batch["frames"][i]},
                    state=batch["state"][i],
                    action=torch.zeros(1, 2),
                    reward=torch.zeros(1),
                    success=torch.zeros(2, dtype=torch.bool),
                    progress=torch.zeros(2),
                    instruction=batch["instruction"][i],
                    source="expert",
                )
                for i in range(EPISODES)
            ]
        )
    return [str(tmp_path / "data")]


def starts(batch: int) -> dict[str, Any]:
    """The first `batch` of `EPISODES` moments at which nothing has moved yet."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (EPISODES, 1, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return {
        "frames": frames[:batch].repeat(1, 2, 1, 1, 1),
        "state": 0.1 * torch.randn(EPISODES, 1, 4, generator=generator)[:batch].repeat(1, 2, 1),
        "instruction": tuple(SENTENCES[i % 2] for i in range(batch)),
    }


class Scripted(PostTraining):
    """Logs what it is told to; every iteration moves the weights a little. No metric is logged where the script says None."""

    def __init__(self, policy: str, metrics: dict[str, Sequence[float | None]] | None = None, *, poison: int | None = None):
        super().__init__(policy, ema_decay=0.5)
        self.metrics, self.poison = metrics or {}, poison

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer: Any = self.optimizers()
        optimizer.zero_grad()
        loss = torch.stack([parameter.square().sum() for parameter in self.policy.parameters()]).sum()
        self.manual_backward(loss * (torch.nan if batch_idx == self.poison else 1))
        optimizer.step()
        self.ema.step(self.policy.parameters())
        for name, values in self.metrics.items():
            if values[batch_idx] is not None:
                self.log(f"train/{name}", values[batch_idx])

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.policy.parameters(), lr=1e-3)


class ScriptedJudge(Judge):
    """Says what it is told to: (imagined, judged) of each check. Notes under which circumstances it was asked."""

    def __init__(self, *rates: tuple[float, float], cost: int = 0):
        self.rates, self.cost, self.asked = list(rates), cost, []

    def measure(self, policy: Policy) -> Verdict:
        self.asked.append(
            {
                "autocast": torch.is_autocast_enabled("cpu"),
                "training": policy.training,
                "gradient": torch.is_grad_enabled(),
                "weights": {name: value.clone() for name, value in policy.state_dict().items()},
            }
        )
        self.physics_steps += self.cost
        return Verdict(0, *self.rates[len(self.asked) - 1], physics_steps=self.cost)


class Recorder(Callback):
    """Keeps what would have been shipped after every iteration, apart from the guard."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights.append(pl_module.shipped())

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.weights.append(pl_module.shipped())


def fit(module: LightningModule, folder: Path, iterations: int, *callbacks: Callback, ckpt: Path | None = None, **more) -> Trainer:
    trainer = Trainer(
        limit_train_batches=iterations,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
        callbacks=list(callbacks),
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **more},
    )
    trainer.fit(module, DataLoader([starts(EPISODES)] * iterations, batch_size=None), ckpt_path=ckpt, weights_only=True)
    return trainer


def same(a: Weights, b: Weights) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def shipped(folder: Path) -> Weights:
    return checkpoint.load(folder, Policy).state_dict()


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def guarded(
    module: LightningModule, folder: Path, guard: Guard, *more: Callback, iterations: int = 8
) -> tuple[Trainer, dict[str, Any], list[Weights]]:
    """A run that the guard must stop: the trainer, what alarm.json says, and the weights after every iteration.

    The assertions hold for every alarm: what is shipped are the weights that alarm.json names, bit for bit and finite, and
    nothing of what went wrong stays behind in the average or in the optimiser.
    """
    recorder = Recorder()
    trainer = fit(module, folder, iterations, recorder, guard, *more)
    alarm = read(folder / "alarm.json")
    assert len(recorder.weights) == alarm["iteration"] + 1 <= iterations + 1  # it stopped at once
    good = recorder.weights[alarm["rolled_back_to"]]
    assert same(shipped(folder), good)
    assert all(torch.isfinite(value).all() for value in good.values())
    assert isinstance(module, PostTraining) and same(module.shipped(), good) and same(module.policy.state_dict(), good)
    assert not any(optimizer.state for optimizer in trainer.optimizers)
    assert alarm["advice"] and alarm["message"]
    return trainer, alarm, recorder.weights


def ppo(folders: dict[str, str], **changes: Any) -> PPOPostTraining:
    advantage, chain = changes.pop("advantage", GAE(warmup=0)), changes.pop("chain", FlowSDE())
    arena = DreamArena(folders["world_model"], folders["reflector"])
    return PPOPostTraining(folders["policy"], arena, chain, advantage, **{"chunks": 2, "minibatch": 4, **changes})


def analytic(folders: dict[str, str], **changes: Any) -> AnalyticPostTraining:
    three = {name: folders[name] for name in ("policy", "world_model", "reflector")}
    return AnalyticPostTraining(**three, **{"chunks": 1, "critic_warmup": 0, "judged": (1, 3), **changes})


# Alarms in runs of the real learners --------------------------------------------------------------------------------------


def test_analytic_learner_that_diverges(folders: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, alarm, _ = guarded(analytic(folders, lr=1e30), tmp_path / "run", Guard([NotFinite()], every=1))
    assert alarm["alarm"] == "NotFinite" and alarm["iteration"] == 1 and alarm["rolled_back_to"] == 0
    assert "policy/sum_of_squares" in alarm["message"]
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("guard: ")]
    assert len(lines) == 1 and "NotFinite at iteration 1" in lines[0] and alarm["advice"] in lines[0]


def test_ppo_that_diverges(folders: dict[str, str], tmp_path: Path) -> None:
    _, alarm, _ = guarded(ppo(folders, lr=1e30), tmp_path / "run", Guard([NotFinite()], every=1))
    assert alarm["alarm"] == "NotFinite"


def test_groups_that_all_end_alike(folders: dict[str, str], tmp_path: Path) -> None:
    """A reflector without opinions: all dreams have the same return, so group advantages vanish."""
    reflector = checkpoint.load(folders["reflector"], InstantReflector)
    for parameter in reflector.head[-1].parameters():
        torch.nn.init.zeros_(parameter)
    reflector.threshold.fill_(1.0)
    checkpoint.save(reflector, folders["reflector"])
    guard = Guard([NotFinite(), FewUsable(patience=3)], every=2)
    _, alarm, _ = guarded(ppo(folders, advantage=GRPO(2)), tmp_path / "run", guard)
    assert (alarm["alarm"], alarm["iteration"], alarm["rolled_back_to"]) == ("FewUsable", 3, 2)
    assert "train/usable_fraction=0 " in alarm["message"]


@pytest.mark.parametrize(
    ("alarm", "changes"),
    [
        (
            RatioExplosion(above=20.0, patience=1),
            {"lr": 3e-3, "epochs": 16, "clip_high": 1e6},
        ),  # without its upper clip, PPO raises ratios without end
        (KLExplosion(), {"lr": 0.1, "epochs": 4}),  # so large steps make everything improbable: no ratio is large
    ],
)
def test_ppo_that_moves_too_far(folders: dict[str, str], tmp_path: Path, alarm: Alarm, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    _, record, _ = guarded(ppo(folders, **changes), tmp_path / "run", Guard([NotFinite(), alarm], every=1))
    assert record["alarm"] == type(alarm).__name__


def test_ppo_that_stops_exploring(folders: dict[str, str], tmp_path: Path) -> None:
    """A negative weight of the entropy teaches the noise network to be silent: from 0.5 towards 0.01, 2*log(50) = 7.8 nats."""
    learner = ppo(folders, chain=FlowNoise(low=0.01, high=1.0), entropy=-10.0, lr=5e-3)
    _, alarm, _ = guarded(learner, tmp_path / "run", Guard([NotFinite(), EntropyCollapse()], every=2), iterations=12)
    assert alarm["alarm"] == "EntropyCollapse" and alarm["rolled_back_to"] % 2 == 0


def deceive(folders: dict[str, str]) -> None:
    """Replace the models: actions show in the frames, and the reflector takes one certain action for success.

    A linear probe of its features tells dreams of action 1 (y = 1) from those of action -1 (y = -1); p > 1/2 where y > 1/2. The
    second reflector's p is 1 - p. An untrained policy's actions are near 0, so that the second one is content and the first is not.
    """
    torch.manual_seed(0)
    world_model = checkpoint.load(folders["world_model"], LatentFlowWorldModel)
    judge = InstantReflector(features=128, channels=8, blocks=1, window=1)
    batch = starts(EPISODES)
    sentences = [sentence for sentence in batch["instruction"] for _ in range(CHUNK)]
    with torch.no_grad():
        for parameter in world_model.net.parameters():
            parameter.mul_(3)
        state, noise = (
            world_model.init(batch["frames"], batch["state"]),
            world_model.noise(EPISODES, torch.Generator().manual_seed(0)),
        )
        features, y = [], torch.tensor([-1.0, 1.0]).repeat_interleave(EPISODES * CHUNK)
        for action in (-1.0, 1.0):
            frames = world_model.step(state, torch.full((EPISODES, CHUNK, 2), action), noise)[1].clamp(0, 1)
            features.append(judge.trunk(frames.flatten(0, 1), sentences))
        design = torch.nn.functional.pad(torch.cat(features), (0, 1), value=1.0)
        *weight, bias = (torch.linalg.pinv(design) @ y).unbind()
        for layer in (judge.head[0], judge.head[2]):
            layer.weight.zero_()
            layer.bias.zero_()
        judge.head[0].weight[0], judge.head[0].bias[0] = 10 * torch.stack(weight), 10 * bias
        judge.head[2].weight[0, 0], judge.head[2].bias[0] = 1, -5  # silu(10 y) - 5 is 0 at y = 1/2
    checkpoint.save(world_model, folders["world_model"])
    checkpoint.save(judge, folders["reflector"])
    judge.scale.fill_(-1)
    checkpoint.save(judge, folders["second_reflector"])


@pytest.mark.parametrize("alarm", [JudgeFalls(), GapTooWide()])
def test_policy_that_deceives_its_reflector(folders: dict[str, str], data: list[str], tmp_path: Path, alarm: Alarm) -> None:
    """In dreams of one frame, one reflector's success is the other's failure: what imagination wins, the judge loses."""
    deceive(folders)
    three = [folders[name] for name in ("world_model", "reflector", "second_reflector")]
    judge = SecondReflector(*three, data, episodes=EPISODES, max_episode_steps=1)
    torch.manual_seed(0)
    learner = analytic(folders, lr=1e-2, anchor=0.0, penalty=0.0, exploration=0.0, progress_weight=0.0, gamma=0.0, judged=(0,))
    _, record, _ = guarded(learner, tmp_path / "run", Guard([NotFinite(), alarm], judge, every=5), iterations=40)
    verdicts = read(tmp_path / "run" / "guard.json")["verdicts"]
    assert record["alarm"] == type(alarm).__name__
    assert all(verdict["imagined"] + verdict["judged"] == 1 for verdict in verdicts)
    assert verdicts[-1]["judged"] < verdicts[0]["judged"]
    assert read(tmp_path / "run" / "guard.json")["shipped_iteration"] == record["rolled_back_to"] < record["iteration"]


def test_a_healthy_run_is_the_same_with_and_without_a_guard(folders: dict[str, str], data: list[str], tmp_path: Path) -> None:
    """Bit for bit, with every alarm, and with both judges built after the seed was set and asked after every iteration."""
    world = dream(folders, data)
    twin = checkpoint.load(folders["reflector"], Reflector)
    second = str(checkpoint.save(twin, tmp_path / "twin"))  # agrees, so there is nothing to object to

    def alarms() -> list[Alarm]:
        return [NotFinite(), FewUsable(), RatioExplosion(), KLExplosion(), EntropyCollapse(), JudgeFalls(margin=1), GapTooWide(1)]

    def none() -> list[Callback]:
        return []

    def plain() -> list[Callback]:
        return [Guard(alarms(), every=1)]

    def reflectors() -> list[Callback]:
        judge = SecondReflector(folders["world_model"], folders["reflector"], second, data, 4, max_episode_steps=CHUNK)
        return [Guard(alarms(), judge, every=1, margin=1)]

    def physics() -> list[Callback]:
        judge = PhysicsCheck(world, folders["world_model"], folders["reflector"], episodes=4)
        return [Guard(alarms(), judge, every=1, margin=1)]

    for learner in (ppo, analytic):
        found = {}
        for make in (none, plain, reflectors, physics):
            folder = tmp_path / learner.__name__ / make.__name__
            torch.manual_seed(5)
            callbacks, module = make(), learner(folders)  # the judge first, so that its own draws would be seen
            fit(module, folder, 4, *callbacks)
            assert not (folder / "alarm.json").exists()
            found[make.__name__] = shipped(folder), torch.rand(3)
        weights, draws = found.pop("none")
        assert not same(weights, shipped(Path(folders["policy"])))
        for other, drawn in found.values():
            assert same(other, weights) and torch.equal(drawn, draws)
        for make, checks in (("reflectors", 5), ("physics", 5)):
            record = read(tmp_path / learner.__name__ / make / "guard.json")
            assert [verdict["step"] for verdict in record["verdicts"]] == list(range(checks)) and record["shipped_iteration"] == 4


def test_nothing_of_an_alarm_is_left_behind_in_the_checkpoint(folders: dict[str, str], tmp_path: Path) -> None:
    """NaN reaches the weights, the average and Adam's moments; none of it is saved, and the run can go on from the good weights."""
    guard = Guard([NotFinite(), FewUsable(patience=1)], every=2)
    trainer, alarm, _ = guarded(Scripted(folders["policy"], poison=4), tmp_path / "run", guard)
    assert (alarm["alarm"], alarm["iteration"], alarm["rolled_back_to"]) == ("NotFinite", 5, 4)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert all(torch.isfinite(value).all() for value in [*saved["state_dict"].values(), *saved["ema"]["shadow_params"]])
    module = Scripted(folders["policy"])
    resumed = Guard([NotFinite(), FewUsable(patience=1)], every=2)
    fit(module, tmp_path / "run", 8, resumed, ckpt=path, max_epochs=2)
    assert not (tmp_path / "run" / "alarm.json").exists()  # the old one would be misleading
    assert resumed.good["step"] == 12  # 5 + 8 = 13 iterations


# When exactly an alarm fires ------------------------------------------------------------------------------------------------

CASES: list[tuple[Alarm, str, list[float | None], int | None]] = [
    (FewUsable(below=0.1, patience=3), "usable_fraction", [0, 0, 0.1, 0, 0, 0, 1], 6),  # 0.1 is not below 0.1
    (FewUsable(below=0.1, patience=3), "usable_fraction", [0, 0, 1, 0, 0, 1, 0], None),
    (RatioExplosion(above=20.0, patience=1), "ratio_max", [1, 20, 19, 20.5, 1], 4),
    (KLExplosion(above=0.5, patience=2), "approx_kl", [0.6, 0.5, 0.6, 0.1, 0.6, 0.6], 6),
    (EntropyCollapse(drop=3.0), "entropy", [5, 9, 2, 1.5], 4),  # from the first value, not from the highest
    (EntropyCollapse(drop=3.0), "entropy", [None, -1, -4, -4.5], 4),  # nothing is logged while only the critic learns
    (NotFinite(), "loss", [1, 1, float("inf")], 3),
    (NotFinite(), "loss", [1e30, -1e30, 1], None),
    (FewUsable(patience=1), "something_else", [0, 0, 0], None),  # what the learner does not log is ignored
]


@pytest.mark.parametrize(("alarm", "metric", "values", "expected"), CASES)
def test_iteration_at_which_an_alarm_fires(folders: dict[str, str], tmp_path: Path, alarm, metric, values, expected) -> None:
    module, guard = Scripted(folders["policy"], {metric: values}), Guard([alarm], every=1)
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
    (GapTooWide(max_gap=0.1, patience=2), [(0.5, 0.5), (0.7, 0.5), (0.8, 0.6)], 4, 0),  # the best judged so far, but not healthy
    (GapTooWide(max_gap=0.1, patience=2), [(0.5, 0.3), (0.5, 0.45), (0.7, 0.5), (0.5, 0.45), (0.5, 0.52)], None, 8),
    (GapTooWide(max_gap=0.1, patience=1), [(0.7, 0.5), (0.7, 0.5)], 1, 0),  # already the starting policy
]


@pytest.mark.parametrize(("alarm", "rates", "fires", "ships"), VERDICTS)
def test_verdict_at_which_an_alarm_fires(folders: dict[str, str], tmp_path: Path, alarm, rates, fires, ships) -> None:
    module, guard = Scripted(folders["policy"]), Guard([alarm], ScriptedJudge(*rates), every=2)
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
    with pytest.raises(ValueError, match="patience of FewUsable must be at least 1, got 0"):
        FewUsable(patience=0)
    with pytest.raises(ValueError, match="every must be at least 1"):
        Guard([], every=0)


def test_guards_are_for_post_training(folders: dict[str, str], tmp_path: Path) -> None:
    class Other(LightningModule):
        def training_step(self, batch: Any, batch_idx: int) -> None: ...

        def configure_optimizers(self) -> None: ...

    with pytest.raises(ValueError, match="needs a PostTraining, got a Other"):
        fit(Other(), tmp_path, 1, Guard([]))


# Rolling back to the best -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("judged", "iterations", "ships"),
    [
        ((0.5, 0.6, 0.8, 0.7), 6, 4),  # the best
        ((0.5, 0.6, 0.8, 0.78), 6, 6),  # within the margin: the last
        ((0.5, 0.4, 0.4, 0.4), 6, 0),  # nothing was better than the start
        ((0.5, 0.6, 0.8, 0.8, 0.7), 7, 4),  # of two equally good ones the first; iteration 7 is measured at the end
    ],
)
def test_the_best_judged_weights_are_shipped(folders, tmp_path: Path, capsys, judged, iterations: int, ships: int) -> None:
    recorder, judge = Recorder(), ScriptedJudge(*[(0.5, rate) for rate in judged])
    fit(Scripted(folders["policy"]), tmp_path / "run", iterations, recorder, Guard([], judge, every=2))
    assert same(shipped(tmp_path / "run"), recorder.weights[ships])
    record = read(tmp_path / "run" / "guard.json")
    assert [verdict["judged"] for verdict in record["verdicts"]] == list(judged)
    assert record["shipped_iteration"] == ships
    assert (f"iteration {ships} are shipped" in capsys.readouterr().out) == (ships != iterations)
    # The judge saw what would have been shipped, of the iterations that it is said to have seen.
    for verdict, asked in zip(record["verdicts"], judge.asked, strict=True):
        assert same(asked["weights"], recorder.weights[verdict["step"]])


def test_weights_that_are_not_finite_are_neither_judged_nor_shipped(folders: dict[str, str], tmp_path: Path) -> None:
    """Even without an alarm: the last two iterations are NaN, and the interval ends there."""
    recorder, judge = Recorder(), ScriptedJudge((0.5, 0.5), (0.5, 0.6))
    fit(Scripted(folders["policy"], poison=2), tmp_path / "run", 4, recorder, Guard([], judge, every=2))
    assert not all(torch.isfinite(value).all() for value in recorder.weights[-1].values())
    assert same(shipped(tmp_path / "run"), recorder.weights[2])
    assert read(tmp_path / "run" / "guard.json")["shipped_iteration"] == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_judge_works_as_the_trainer_does(folders: dict[str, str], tmp_path: Path, precision: Any) -> None:
    judge = ScriptedJudge((0.5, 0.5), (0.7, 0.6))
    fit(Scripted(folders["policy"]), tmp_path, 1, Guard([], judge, every=1), precision=precision, logger=CSVLogger(tmp_path))
    for asked in judge.asked:
        assert asked["autocast"] == (precision == "bf16-mixed")
        assert not asked["gradient"] and not asked["training"]
    (rows,) = tmp_path.rglob("metrics.csv")
    header, *lines = rows.read_text().splitlines()
    logged = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert [(row["step"], row["judge/imagined"], row["judge/success"]) for row in logged] == [
        ("0", "0.5", "0.5"),
        ("1", "0.7", "0.6"),
    ]
    assert float(logged[1]["judge/gap"]) == pytest.approx(0.1)


# Resuming ---------------------------------------------------------------------------------------------------------------------


class Save(Callback):
    """Saves a checkpoint after an iteration, as LastCheckpoint does: after the guard."""

    def __init__(self, path: Path, iteration: int):
        self.path, self.iteration = path, iteration

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx + 1 == self.iteration:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("alarm", [FewUsable(patience=4), EntropyCollapse(drop=3.0), GapTooWide(patience=3)])
def test_a_resumed_run_continues_exactly(folders: dict[str, str], tmp_path: Path, alarm: Alarm) -> None:
    """Interrupted after 5 of 9 iterations, in the middle of what each alarm counts."""
    metrics = {"usable_fraction": [1, 1, 1, 0, 0, 0, 0, 0, 0], "entropy": [5, 4, 4, 4, 4, 3, 1, 4, 4]}
    rates = [(0.5, 0.5), (0.5, 0.6), (0.7, 0.4), (0.7, 0.45), (0.7, 0.4)]  # iterations 0, 2, 4, 6, 8
    path = tmp_path / "middle.ckpt"
    alarm.memory = {}
    judge = ScriptedJudge(*rates, cost=10)
    guard = Guard([alarm], judge, every=2)
    _, straight, weights = guarded(Scripted(folders["policy"], metrics), tmp_path / "run", guard, Save(path, 5), iterations=9)
    saved = torch.load(path, weights_only=True)["callbacks"]["Guard"]
    assert saved["physics_steps"] == 30 and len(saved["history"]) == 3 and saved["good"]["step"] == 2

    alarm.memory = {}
    judge = ScriptedJudge(*rates[3:], cost=10)
    guard = Guard([alarm], judge, every=2)
    fit(Scripted(folders["policy"], metrics), tmp_path / "resumed", 9, guard, ckpt=path)
    assert read(tmp_path / "resumed" / "alarm.json") == straight
    assert read(tmp_path / "resumed" / "guard.json") == read(tmp_path / "run" / "guard.json")
    assert same(shipped(tmp_path / "resumed"), weights[2])
    assert judge.physics_steps == 10 * len(read(tmp_path / "run" / "guard.json")["verdicts"])


def test_a_finished_run_that_is_resumed_ships_the_same_again(folders: dict[str, str], tmp_path: Path) -> None:
    """LastCheckpoint saves after the last iteration and ships what was killed before its end; the guard decides again then."""
    for name, rates in (("best", [(0.5, 0.5), (0.5, 0.8), (0.5, 0.6)]), ("alarm", [(0.5, 0.5), (0.6, 0.8), (0.7, 0.5)])):
        run, found = tmp_path / name, []
        for ckpt in (None, run / "last.ckpt"):
            guard = Guard([GapTooWide(max_gap=0.15, patience=1)], ScriptedJudge(*rates), every=2)
            fit(Scripted(folders["policy"]), run, 4, LastCheckpoint(str(run)), guard, ckpt=ckpt, enable_checkpointing=True)
            found.append((shipped(run), read(run / "guard.json"), (run / "alarm.json").exists()))
            checkpoint.save(checkpoint.load(folders["policy"], Policy), run)
        assert same(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]
        assert found[0][1]["shipped_iteration"] == 2 and found[0][2] == (name == "alarm")


# Judges -----------------------------------------------------------------------------------------------------------------------


def dream(folders: dict[str, str], data: list[str], cls: type[DreamWorld] = DreamWorld) -> DreamWorld:
    """A dream in the place of physics: any world will do."""
    model = checkpoint.load(folders["world_model"], WorldModel)
    judge = checkpoint.load(folders["reflector"], Reflector)
    return cls(model, judge, Starts.first_frames(FrameTable.read(data, "front"), model.context), num_envs=4, max_episode_steps=6)


class CountedDream(DreamWorld):
    """Counts its steps as physics would."""

    def step_chunk(self, actions: Tensor) -> Any:
        result = super().step_chunk(actions)
        self.physics_steps += int(result.valid.sum())  # of this world alone, not of the process
        return result


def test_second_reflector_judges_the_same_dreams_differently(folders: dict[str, str], data: list[str], tmp_path: Path) -> None:
    """The two reflectors disagree on every frame. In dreams of one chunk ended by the first success, 1 - judged is the share of
    dreams with successes only."""
    policy = checkpoint.load(folders["policy"], Policy)
    three = (folders["world_model"], folders["reflector"], folders["second_reflector"])
    judge = SecondReflector(*three, data, episodes=EPISODES, max_episode_steps=CHUNK)
    verdict = judge.measure(policy)
    assert verdict == judge.measure(policy)
    twin = str(checkpoint.save(checkpoint.load(folders["reflector"], Reflector), tmp_path / "twin"))
    equal = SecondReflector(*three[:2], twin, data, episodes=EPISODES, max_episode_steps=CHUNK).measure(policy)
    assert equal.imagined == equal.judged == verdict.imagined
    assert verdict.judged != verdict.imagined and verdict.imagined + verdict.judged >= 1  # every dream pleases one of the two
    swapped = SecondReflector(three[0], three[2], three[1], data, episodes=EPISODES, max_episode_steps=CHUNK).measure(policy)
    assert (swapped.imagined, swapped.judged) == (verdict.judged, verdict.imagined)


def test_second_reflector_chooses_episodes_by_its_seed(folders: dict[str, str], data: list[str]) -> None:
    three = (folders["world_model"], folders["reflector"], folders["second_reflector"])
    a, b, again = (SecondReflector(*three, data, episodes=4, seed=seed).starts for seed in (0, 1, 0))
    assert len(a) == 4 and torch.equal(a.state, again.state) and not torch.equal(a.state, b.state)
    with pytest.raises(ValueError, match=r"episodes must be in \[1, 8\]"):
        SecondReflector(*three, data, episodes=9)
    with pytest.raises(ValueError, match="second_reflector must differ from reflector"):
        SecondReflector(*three[:2], three[1] + "/.", data, episodes=4)


def test_physics_check_measures_both_on_the_same_starts(folders: dict[str, str], data: list[str]) -> None:
    """The same world model in the place of physics predicts the same from the same starts: with one sampling step it does not
    depend on its noise, and the policy's noise has the check's seed in both."""
    policy = checkpoint.load(folders["policy"], Policy)
    world = dream(folders, data)
    verdicts = []
    for seed in range(800_000_000, 800_000_048, 8):
        verdict = PhysicsCheck(world, folders["world_model"], folders["reflector"], episodes=8, seed=seed).measure(policy)
        assert verdict is not None and verdict.step == verdict.physics_steps == 0
        assert verdict.imagined == verdict.judged
        verdicts.append(verdict.judged)
    assert len(set(verdicts)) > 1
    # Imagination is judged by the reflector, physics by itself.
    never = checkpoint.load(folders["reflector"], InstantReflector)
    never.threshold.fill_(1.0)
    checkpoint.save(never, folders["reflector"])
    judge = PhysicsCheck(world, folders["world_model"], folders["reflector"], episodes=8)
    assert judge.measure(policy) == judge.measure(policy) == Verdict(0, imagined=0.0, judged=verdicts[0], physics_steps=0)


def test_physics_check_stays_within_its_budget(folders: dict[str, str], data: list[str], tmp_path: Path) -> None:
    """A check of 4 episodes of at most 6 steps, in chunks of 4, takes up to 4 * 8 = 32 steps."""
    policy, world = checkpoint.load(folders["policy"], Policy), dream(folders, data, CountedDream)
    judge = PhysicsCheck(world, folders["world_model"], folders["reflector"], episodes=4, budget=80)
    spent = 0
    while spent + 32 <= 80:
        verdict = judge.measure(policy)
        assert verdict is not None and 0 < verdict.physics_steps <= 32
        spent += verdict.physics_steps
        assert judge.physics_steps == world.physics_steps == spent
    assert judge.measure(policy) is None
    assert world.physics_steps == spent <= 80
    # A run goes on without it, and still ships the best of what was measured only if the last measured was clearly worse.
    recorder, guard = Recorder(), Guard([JudgeFalls(margin=1)], judge, every=1)
    fit(Scripted(folders["policy"]), tmp_path / "run", 3, recorder, guard)
    assert guard.history == [] and same(shipped(tmp_path / "run"), recorder.weights[-1])


def test_physics_check_refuses_starts_of_training_and_of_the_final_evaluation(folders: dict[str, str], data: list[str]) -> None:
    three = (dream(folders, data), folders["world_model"], folders["reflector"])
    for seed in (0, 799_999_999, HELD_OUT_SEED, HELD_OUT_SEED + 5, HELD_OUT_SEED - 63):  # the last one reaches into them
        with pytest.raises(ValueError, match=r"seed must be in \[800000000, 899999936\]"):
            PhysicsCheck(*three, episodes=64, seed=seed)
    PhysicsCheck(*three, episodes=64, seed=HELD_OUT_SEED - 64)


# Configuration ----------------------------------------------------------------------------------------------------------------


def configured(folders: dict[str, str], data: list[str], run: Path, guard: str, *overrides: str) -> dict[str, Any]:
    roots = f"[{data[0]}]"
    models = [f"model.{name}={folders[name]}" for name in ("policy", "world_model", "reflector")]
    small = ["data.batch_size=4", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", f"data.roots={roots}"]
    named = ["experiment=post_train", f"guard={guard}", f"run_dir={run}"]
    config = OmegaConf.to_container(compose_config("fit", [*named, *models, *small, *overrides]), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_guards_are_chosen_by_configuration(folders: dict[str, str], data: list[str], tmp_path: Path) -> None:
    assert "guard" not in configured(folders, data, tmp_path, "none")["trainer"]["callbacks"]
    assert "judge" not in configured(folders, data, tmp_path, "alarms")["trainer"]["callbacks"]["guard"]
    judge = "trainer.callbacks.guard.judge"
    overrides = [f"{judge}.{name}={folders[name]}" for name in ("world_model", "reflector", "second_reflector")]
    overrides += [f"{judge}.data=[{data[0]}]", f"{judge}.episodes=4", f"{judge}.max_episode_steps=4"]
    run_fit(configured(folders, data, tmp_path / "run", "second_reflector", *overrides))
    steps = [verdict["step"] for verdict in read(tmp_path / "run" / "guard.json")["verdicts"]]
    assert steps == [0, 2]
    assert "judge/gap" in next((tmp_path / "run" / "csv").rglob("metrics.csv")).read_text()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Guard"]
    assert [Verdict(**verdict).step for verdict in saved["history"]][0] == 0 and saved["good"]["step"] == 0


@pytest.mark.parametrize("guard", ["alarms", "second_reflector", "physics"])
def test_a_guard_shows_all_its_numbers(guard: str) -> None:
    """What stands in the YAML are the defaults of the code, but for the interval and the check's world."""

    def compare(node: Any) -> None:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        numbers = {name: p.default for name, p in parameters.items() if type(p.default) in (int, float)}
        written = {name: value for name, value in node.items() if name in numbers}
        if node["_target_"] != "training.guards.Guard":
            assert written == numbers, node
        else:
            assert numbers["margin"] == written.get("margin", numbers["margin"])
        for child in [node.get("judge"), *node.get("alarms", [])]:
            if child is not None:
                compare(child)

    compare(OmegaConf.to_container(compose_config("fit", ["experiment=post_train", f"guard={guard}"]).trainer.callbacks.guard))


def test_every_experiment_of_post_training_is_guarded() -> None:
    for name in ("post_train", "post_train_ppo", "post_train_grpo", "post_train_nft", "post_train_prdp"):
        config = compose_config("fit", [f"experiment={name}"])
        assert config.trainer.callbacks.guard._target_ == "training.guards.Guard"


@pytest.mark.slow
@pytest.mark.genesis
def test_physics_guard_of_the_configuration(folders: dict[str, str], data: list[str], tmp_path: Path) -> None:
    judge = "trainer.callbacks.guard.judge"
    overrides = [f"{judge}.{name}={folders[name]}" for name in ("world_model", "reflector")]
    overrides += [f"{judge}.world.num_envs=2", f"{judge}.episodes=2", f"{judge}.budget=200"]
    run_fit(configured(folders, data, tmp_path / "run", "physics", *overrides))
    verdicts = [Verdict(**verdict) for verdict in read(tmp_path / "run" / "guard.json")["verdicts"]]
    assert [verdict.step for verdict in verdicts] == [0, 2]
    assert all(0 < verdict.physics_steps <= 80 for verdict in verdicts)
    assert asdict(verdicts[0])["step"] == 0
