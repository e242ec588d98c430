"""Healthy runs are left alone, the best judged weights are shipped, and a resumed run continues exactly."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import CHUNK, Recorder, Scripted, ScriptedJudge, analytic, dream, fit, guarded, ppo, read, same, shipped
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from training.app.fit import LastCheckpoint
from training.guards.alarms import Alarm, FewUsable, GapTooWide, JudgeFalls, KLExplosion, NotFinite, RatioExplosion, SpreadCollapse
from training.guards.guard import Guard
from training.guards.held_out import PhysicsCheck, SecondReflector
from worldsim.core import checkpoint


def test_a_healthy_run_is_the_same_with_and_without_a_guard(models: dict[str, Any], data: list[str], tmp_path: Path) -> None:
    """Bit for bit, with every alarm, and with both judges built after the seed was set and asked after every iteration."""
    world = dream(models, data)
    second = copy.deepcopy(models["reflector"])  # agrees, so there is nothing to object to

    def alarms() -> list[Alarm]:
        return [NotFinite(), FewUsable(), RatioExplosion(), KLExplosion(), SpreadCollapse(), JudgeFalls(margin=1), GapTooWide(1)]

    def none() -> list[Callback]:
        return []

    def plain() -> list[Callback]:
        return [Guard(alarms(), every=1)]

    def reflectors() -> list[Callback]:
        judge = SecondReflector(models["world_model"], models["reflector"], second, data, 4, max_episode_steps=CHUNK)
        return [Guard(alarms(), judge, every=1, margin=1)]

    def physics() -> list[Callback]:
        judge = PhysicsCheck(world, models["world_model"], models["reflector"], episodes=4)
        return [Guard(alarms(), judge, every=1, margin=1)]

    for learner in (ppo, analytic):
        found = {}
        for make in (none, plain, reflectors, physics):
            folder = tmp_path / learner.__name__ / make.__name__
            torch.manual_seed(5)
            callbacks, module = make(), learner(models)  # the judge first, so that its own draws would be seen
            fit(module, folder, 4, *callbacks)
            assert not (folder / "alarm.json").exists()
            found[make.__name__] = shipped(folder), torch.rand(3)
        weights, draws = found.pop("none")
        assert not same(weights, models["policy"].state_dict())
        for other, drawn in found.values():
            assert same(other, weights) and torch.equal(drawn, draws)
        for make, checks in (("reflectors", 5), ("physics", 5)):
            record = read(tmp_path / learner.__name__ / make / "guard.json")
            assert [verdict["step"] for verdict in record["verdicts"]] == list(range(checks)) and record["shipped_iteration"] == 4


def test_nothing_of_an_alarm_is_left_behind_in_the_checkpoint(models: dict[str, Any], tmp_path: Path) -> None:
    """NaN reaches the weights, the average and Adam's moments; none of it is saved, and the run can go on from the good weights."""
    guard = Guard([NotFinite(), FewUsable(patience=1)], every=2)
    trainer, alarm, _ = guarded(Scripted(models["policy"], poison=4), tmp_path / "run", guard)
    assert (alarm["alarm"], alarm["iteration"], alarm["rolled_back_to"]) == ("NotFinite", 5, 4)
    path = tmp_path / "last.ckpt"
    trainer.save_checkpoint(path)
    saved = torch.load(path, weights_only=True)
    assert all(torch.isfinite(value).all() for value in [*saved["state_dict"].values(), *saved["ema"]["shadow_params"]])
    module = Scripted(models["policy"])
    resumed = Guard([NotFinite(), FewUsable(patience=1)], every=2)
    fit(module, tmp_path / "run", 8, resumed, ckpt=path, max_epochs=2)
    assert not (tmp_path / "run" / "alarm.json").exists()  # the old one would be misleading
    assert resumed.good["step"] == 12  # 5 + 8 = 13 iterations


def test_guards_are_for_post_training(models: dict[str, Any], tmp_path: Path) -> None:
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
def test_the_best_judged_weights_are_shipped(models, tmp_path: Path, capsys, judged, iterations: int, ships: int) -> None:
    recorder, judge = Recorder(), ScriptedJudge(*[(0.5, rate) for rate in judged])
    fit(Scripted(models["policy"]), tmp_path / "run", iterations, recorder, Guard([], judge, every=2))
    assert same(shipped(tmp_path / "run"), recorder.weights[ships])
    record = read(tmp_path / "run" / "guard.json")
    assert [verdict["judged"] for verdict in record["verdicts"]] == list(judged)
    assert record["shipped_iteration"] == ships
    expected = {"precision": "32-true", "device": "cpu", "num_envs": judge.num_envs, "threads": torch.get_num_threads()}
    assert record["circumstances"] == expected
    assert (f"iteration {ships} are shipped" in capsys.readouterr().out) == (ships != iterations)
    # The judge saw what would have been shipped, of the iterations that it is said to have seen.
    for verdict, asked in zip(record["verdicts"], judge.asked, strict=True):
        assert same(asked["weights"], recorder.weights[verdict["step"]])


def test_weights_that_are_not_finite_are_neither_judged_nor_shipped(models: dict[str, Any], tmp_path: Path) -> None:
    """Even without an alarm: the last two iterations are NaN, and the interval ends there."""
    recorder, judge = Recorder(), ScriptedJudge((0.5, 0.5), (0.5, 0.6))
    fit(Scripted(models["policy"], poison=2), tmp_path / "run", 4, recorder, Guard([], judge, every=2))
    assert not all(torch.isfinite(value).all() for value in recorder.weights[-1].values())
    assert same(shipped(tmp_path / "run"), recorder.weights[2])
    assert read(tmp_path / "run" / "guard.json")["shipped_iteration"] == 2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_judge_works_as_the_trainer_does(models: dict[str, Any], tmp_path: Path, precision: Any) -> None:
    judge = ScriptedJudge((0.5, 0.5), (0.7, 0.6))
    fit(Scripted(models["policy"]), tmp_path, 1, Guard([], judge, every=1), precision=precision, logger=CSVLogger(tmp_path))
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


@pytest.mark.parametrize("alarm", [FewUsable(patience=4), SpreadCollapse(0.3, patience=1), GapTooWide(patience=3)])
def test_a_resumed_run_continues_exactly(models: dict[str, Any], tmp_path: Path, alarm: Alarm) -> None:
    """Interrupted after 5 of 9 iterations, in the middle of what each alarm counts."""
    metrics = {"usable_fraction": [1, 1, 1, 0, 0, 0, 0, 0, 0], "action_spread": [5, 4, 4, 4, 4, 3, 1, 4, 4]}
    rates = [(0.5, 0.5), (0.5, 0.6), (0.7, 0.4), (0.7, 0.45), (0.7, 0.4)]  # iterations 0, 2, 4, 6, 8
    path = tmp_path / "middle.ckpt"
    alarm.memory = {}
    judge = ScriptedJudge(*rates, cost=10)
    guard = Guard([alarm], judge, every=2)
    _, straight, weights = guarded(Scripted(models["policy"], metrics), tmp_path / "run", guard, Save(path, 5), iterations=9)
    saved = torch.load(path, weights_only=True)["callbacks"]["Guard"]
    assert saved["physics_steps"] == 30 and len(saved["history"]) == 3 and saved["good"]["step"] == 2

    alarm.memory = {}
    judge = ScriptedJudge(*rates[3:], cost=10)
    guard = Guard([alarm], judge, every=2)
    fit(Scripted(models["policy"], metrics), tmp_path / "resumed", 9, guard, ckpt=path)
    assert read(tmp_path / "resumed" / "alarm.json") == straight
    assert read(tmp_path / "resumed" / "guard.json") == read(tmp_path / "run" / "guard.json")
    assert same(shipped(tmp_path / "resumed"), weights[2])
    assert judge.physics_steps == 10 * len(read(tmp_path / "run" / "guard.json")["verdicts"])


def test_a_finished_run_that_is_resumed_ships_the_same_again(models: dict[str, Any], tmp_path: Path) -> None:
    """LastCheckpoint saves after the last iteration and ships what was killed before its end; the guard decides again then."""
    for name, rates in (("best", [(0.5, 0.5), (0.5, 0.8), (0.5, 0.6)]), ("alarm", [(0.5, 0.5), (0.6, 0.8), (0.7, 0.5)])):
        run, found = tmp_path / name, []
        for ckpt in (None, run / "last.ckpt"):
            guard = Guard([GapTooWide(max_gap=0.15, patience=1)], ScriptedJudge(*rates), every=2)
            fit(Scripted(models["policy"]), run, 4, LastCheckpoint(str(run)), guard, ckpt=ckpt, enable_checkpointing=True)
            found.append((shipped(run), read(run / "guard.json"), (run / "alarm.json").exists()))
            checkpoint.save(models["policy"], run)
        assert same(found[0][0], found[1][0]) and found[0][1:] == found[1][1:]
        assert found[0][1]["shipped_iteration"] == 2 and found[0][2] == (name == "alarm")
