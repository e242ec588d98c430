"""A post-training run that is interrupted, at whatever moment, goes on bit for bit as if nothing had happened."""

import copy
import csv
import multiprocessing
import random
import signal
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from training.app import cli
from training.app.fit import LastCheckpoint
from training.rl.analytic import AnalyticPostTraining
from training.rl.arena import DreamArena
from training.rl.chains import Deterministic, FlowNoise, FlowSDE
from training.rl.estimators import GAE, GRPO
from training.rl.imagine import Continuation
from training.rl.nft import NFTPostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.sampling import BetaStarts, DynamicSampling, EarlyStop, SuccessBuffer
from training.supervised.bc import BehaviourCloning
from training.supervised.data import DemonstrationData, StartData
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy

ITERATIONS = 6
Models = dict[str, Any]


def analytic(models: Models) -> LightningModule:
    return AnalyticPostTraining(**models, critic_warmup=2, continuation=Continuation(share=1.0, max_chunks=9))


def ppo(models: Models) -> LightningModule:
    economy = {"early_stop": EarlyStop(value_below=-0.5, patience=1), "starts": BetaStarts(pool=12), "buffer": SuccessBuffer(8)}
    return PPOPostTraining(models["policy"], arena(models), FlowNoise(), GAE(warmup=2), chunks=3, minibatch=8, **economy)


def grpo(models: Models) -> LightningModule:
    sampling = DynamicSampling(attempts=2)
    return PPOPostTraining(models["policy"], arena(models), FlowSDE(), GRPO(2), chunks=2, minibatch=8, sampling=sampling)


def nft(models: Models) -> LightningModule:
    return NFTPostTraining(models["policy"], arena(models), Deterministic(), GAE(warmup=1), chunks=2, minibatch=8)


def arena(models: Models) -> DreamArena:
    """A judge that is content with something now and then, or nothing would be kept."""
    reflector = models["reflector"]
    frames = torch.randint(0, 256, (32, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    p_success = reflector.judge({"front": frames[:, None]}, ("push the red block onto the green disc",) * 32).p_success
    reflector.threshold.fill_(p_success.quantile(0.6).item())
    return DreamArena(models["world_model"], reflector)


class Killed(Exception):
    """The end of a run without any of its clean-up hooks."""


class Kill(Callback):
    """Dies within batch number `batch`, after the first of its optimiser steps."""

    def __init__(self, batch: int):
        self.batch, self.steps = batch, 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.steps += trainer.fit_loop.total_batch_idx == self.batch
        if self.steps == 2:
            raise Killed


ONE_EPOCH = {"max_epochs": 1, "limit_train_batches": ITERATIONS}


def run(
    learner: LightningModule, recorded: str, folder: Path, *, limits: dict[str, int] = ONE_EPOCH, kill: int | None = None
) -> dict[str, Any]:
    """Train until the end or the kill; gives the last checkpoint."""
    data = StartData([recorded], batch_size=6, pool=12, first_share=0.5)
    last = folder / "last.ckpt"
    trainer = Trainer(
        **limits,  # type: ignore[arg-type]
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=True,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[LastCheckpoint(str(folder), every_n_steps=1), *([] if kill is None else [Kill(kill)])],
        accelerator="cpu",
    )
    resume = str(last) if last.is_file() else None
    if kill is None:
        trainer.fit(learner, datamodule=data, ckpt_path=resume)
        checkpoint.save(learner.policy, folder)
    else:
        with pytest.raises(Killed):
            trainer.fit(learner, datamodule=data, ckpt_path=resume)
    return torch.load(last, weights_only=True)


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two checkpoints are not equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return [] if isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b) else [place]
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return [found for key in a for found in differences(a[key], b[key], f"{place}.{key}")]
    if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
        return [found for i, (x, y) in enumerate(zip(a, b, strict=True)) for found in differences(x, y, f"{place}.{i}")]
    return [] if type(a) is type(b) and a == b else [place]


def check(
    build: Callable[[Models], LightningModule], models: Models, recorded: str, tmp_path: Path, kills: tuple[int, ...], **more
):
    torch.manual_seed(5)
    straight = run(build(models), recorded, tmp_path / "straight", **more)
    torch.manual_seed(5)
    for kill in kills:
        run(build(models), recorded, tmp_path / "resumed", kill=kill, **more)
        torch.manual_seed(kill)  # nothing may come from the state in which the process starts again
    resumed = run(build(models), recorded, tmp_path / "resumed", **more)
    for last in (straight, resumed):
        del last["loops"]  # Lightning's counters differ harmlessly after a kill at the end of an epoch
    assert not differences(straight, resumed)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "resumed")]
    assert weights[0] == weights[1]
    return straight


@pytest.mark.parametrize("build", [analytic, ppo, grpo, nft])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(build, models: Models, recorded: str, tmp_path: Path) -> None:
    """Twice: while only the critic learns, and later. All of the last checkpoint is compared: weights, optimisers, schedules,
    random generators, moving average, dreams that go on, counts, and what is kept."""
    last = check(build, models, recorded, tmp_path, kills=(2, 4))
    state = last["state_dict"]
    if build is analytic:
        dreams = state["continuation._extra_state"]
        assert dreams["moment"] is not None and 0 < (dreams["chunks"] > 0).float().mean() < 1, (
            "some dreams go on, others have ended"
        )
    if build is ppo:
        assert len(state["buffer._extra_state"]["instruction"]) > 4
        assert state["starts.successes"].sum() > 0 and state["starts.failures"].sum() > 0


@pytest.mark.parametrize("kill", [ITERATIONS - 1, ITERATIONS, ITERATIONS + 2])
def test_a_second_epoch_resumes_too(models: Models, recorded: str, tmp_path: Path, kill: int) -> None:
    """Killed in the last batch of the first epoch, in the first of the second, and within the second."""
    check(analytic, models, recorded, tmp_path, kills=(kill,), limits={**ONE_EPOCH, "max_epochs": 2})


@pytest.mark.parametrize("epochs", [-1, 1])
def test_a_run_that_is_limited_by_steps_resumes_too(models: Models, recorded: str, tmp_path: Path, epochs: int) -> None:
    """Lightning opens an endless stream and draws a batch ahead: late with one way of asking for the run's length, early with the
    other. The 16 steps are six iterations: two of two for the critic, four with one for the policy as well."""
    check(analytic, models, recorded, tmp_path, kills=(2, 4), limits={"max_epochs": epochs, "max_steps": 16})


class KillAtTheEnd(Callback):
    """Dies after the last save, before the model is shipped."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        raise Killed


@pytest.mark.parametrize("limit", [{"max_epochs": 1, "limit_train_batches": 3}, {"max_steps": 3}])
def test_a_run_killed_before_it_shipped_ships_when_resumed(models: Models, recorded: str, tmp_path: Path, limit) -> None:
    """Nothing is left to train, by epochs (as in post-training) or by steps, where Lightning would return at once."""

    def train(*more: Callback, ckpt_path: Path | None = None) -> None:
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
        callbacks = [LastCheckpoint(str(tmp_path / "run")), *more]
        trainer = Trainer(default_root_dir=tmp_path / "run", callbacks=callbacks, **options, **limit)
        data = DemonstrationData([recorded], batch_size=4)
        trainer.fit(BehaviourCloning(copy.deepcopy(models["policy"])), datamodule=data, ckpt_path=ckpt_path)

    with pytest.raises(Killed):
        train(KillAtTheEnd())
    assert not (tmp_path / "run" / "model.safetensors").exists()
    train(ckpt_path=tmp_path / "run" / "last.ckpt")
    trained = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    shipped = checkpoint.load(tmp_path / "run", Policy).state_dict()
    assert all(torch.equal(shipped[name], trained[f"policy.{name}"]) for name in shipped)


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    class Dying:
        global_step, is_global_zero = 3, True

        def save_checkpoint(self, path: Path) -> None:
            path.write_text("half")
            raise Killed

    (tmp_path / "last.ckpt").write_text("whole")
    with pytest.raises(Killed):
        LastCheckpoint(str(tmp_path))._save(Dying())  # pyright: ignore[reportArgumentType]
    assert (tmp_path / "last.ckpt").read_text() == "whole"


def curve(folder: Path) -> dict[int, list[dict[str, str]]]:
    """Logged rows by step, without empty cells, in all files of a run."""
    rows: dict[int, list[dict[str, str]]] = {}
    for path in sorted(folder.glob("csv/version_*/metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                rows.setdefault(int(row["step"]), []).append({name: value for name, value in row.items() if value})
    return rows


@pytest.mark.slow
def test_kill_minus_9_and_the_same_command_again(
    folders: dict[str, str], recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The `worldsim` command in processes of its own, killed by the system while it starts and thrice soon after it has saved
    something, then let through. The processes are forks of one that has done the imports, which take longer than the rest."""
    iterations, delays = 30, random.Random(0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training.app.verbs"])
    arguments = ["fit", "experiment=post_train", "resume=true"]
    arguments += [f"model.{name}.folder={folder}" for name, folder in folders.items()]
    arguments += [f"data.roots=[{recorded}]", "data.batch_size=8", "+model.critic_warmup=4", "trainer.accelerator=cpu"]
    arguments += [
        f"trainer.limit_train_batches={iterations}",
        "trainer.log_every_n_steps=1",
        "trainer.callbacks.last.every_n_steps=6",
    ]

    def start(name: str) -> ForkServerProcess:
        process = context.Process(target=cli.main, args=([*arguments, f"run_dir={tmp_path / name}"],))
        process.start()
        return process

    start("straight").join()
    last = tmp_path / "killed" / "checkpoints" / "last.ckpt"
    for wait in (False, True, True, True):
        before = last.stat().st_mtime_ns if last.is_file() else 0
        process = start("killed")
        while wait and process.is_alive() and not (last.is_file() and last.stat().st_mtime_ns != before):
            time.sleep(0.01)
        time.sleep(delays.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run is too short to be killed"
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    start("killed").join()

    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("straight", "killed")]
    assert weights[0] == weights[1]
    expected, logged = curve(tmp_path / "straight"), curve(tmp_path / "killed")
    assert list(expected) == list(range(iterations))
    assert set(logged) <= set(expected)
    assert all(row == expected[step][0] for step, rows in logged.items() for row in rows), "what is repeated is the same"
    # The row of a batch is written right after its checkpoint: a kill in between loses it, and nothing else is ever lost.
    assert len(logged) >= iterations - 3
