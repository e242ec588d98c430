"""Scripted learners and judges, and runs that a guard must stop: what the tests in `training/guards` share."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from training.guards.guard import Guard
from training.guards.held_out import HeldOut, Verdict
from training.rl.analytic import AnalyticPostTraining
from training.rl.arena import DreamArena
from training.rl.chains import FlowSDE
from training.rl.estimators import GAE
from training.rl.post_training import PostTraining
from training.rl.ppo import PPOPostTraining
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.data.store import FrameStore
from worldsim.worlds.dream import DreamWorld, Starts

SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc")
EPISODES, CHUNK = 8, 4

Weights = dict[str, Tensor]


def starts(batch: int) -> dict[str, Any]:
    """The first `batch` of `EPISODES` moments at which nothing has moved yet."""
    generator = torch.Generator().manual_seed(1)
    frames = torch.randint(0, 256, (EPISODES, 1, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return {
        "images": {"front": frames[:batch].repeat(1, 2, 1, 1, 1)},
        "state": 0.1 * torch.randn(EPISODES, 1, 4, generator=generator)[:batch].repeat(1, 2, 1),
        "instruction": tuple(SENTENCES[i % 2] for i in range(batch)),
    }


class Scripted(PostTraining):
    """Logs what it is told to; every iteration moves the weights a little. No metric is logged where the script says None."""

    def __init__(self, policy: Policy, metrics: dict[str, Sequence[float | None]] | None = None, *, poison: int | None = None):
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
                self.tell({name: torch.tensor(float(values[batch_idx]))})

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.policy.parameters(), lr=1e-3)


class ScriptedJudge(HeldOut):
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
    batches = [{**starts(EPISODES), "seed": i} for i in range(iterations)]
    trainer.fit(module, DataLoader(batches, batch_size=None), ckpt_path=ckpt, weights_only=True)
    if isinstance(module, PostTraining):
        checkpoint.save(module.policy, folder)
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


def ppo(models: dict[str, Any], **changes: Any) -> PPOPostTraining:
    advantage, chain = changes.pop("advantage", GAE(warmup=0)), changes.pop("chain", FlowSDE())
    arena = DreamArena(models["world_model"], models["reflector"])
    return PPOPostTraining(models["policy"], arena, chain, advantage, **{"chunks": 2, "minibatch": 4, **changes})


def analytic(models: dict[str, Any], **changes: Any) -> AnalyticPostTraining:
    three = {name: models[name] for name in ("policy", "world_model", "reflector")}
    return AnalyticPostTraining(**three, **{"chunks": 1, "critic_warmup": 0, "judged": (1, 3), **changes})


def dream(models: dict[str, Any], data: list[str], cls: type[DreamWorld] = DreamWorld) -> DreamWorld:
    """A dream in the place of physics: any world will do."""
    model, judge = models["world_model"], models["reflector"]
    return cls(
        model, judge, Starts.first_frames(FrameStore.read(data, {"front": None}), model.context), num_envs=4, max_episode_steps=6
    )


class CountedDream(DreamWorld):
    """Counts its steps as physics would."""

    def step_chunk(self, actions: Tensor) -> Any:
        result = super().step_chunk(actions)
        self.physics_steps += int(result.valid.sum())  # of this world alone, not of the process
        return result
