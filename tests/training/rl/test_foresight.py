"""Memory that an iteration takes: foretold from few starts, counted over a whole one, and refused where it is not there."""

from pathlib import Path
from typing import Any

import pytest
import torch
from learners import arena, fit, starts
from lightning import Callback, LightningModule, Trainer

from training.rl import foresight
from training.rl.analytic import AnalyticPostTraining
from training.rl.chains import FlowSDE
from training.rl.estimators import GAE, GRPO
from training.rl.foresight import check_memory
from training.rl.post_training import PostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.sampling import BetaStarts, DynamicSampling
from worldsim.measure.cost import Cost, gib

GIB = 2**30


class Counted(Callback):
    """The most bytes that an iteration held, the second one, whose optimisers have their moments."""

    def __init__(self) -> None:
        self.peak = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.cost = Cost()
        self.cost.__enter__()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.cost.__exit__(None, None, None)
        self.peak = self.cost.peak


def learner(models: dict[str, Any], name: str) -> PostTraining:
    if name == "analytic":
        return AnalyticPostTraining(models["policy"], models["world_model"], models["reflector"], critic_warmup=0)
    advantage = GRPO(group_size=2) if name == "grpo" else GAE(warmup=0)
    more = {"expert_only": name == "expert", "chunks": 3, "minibatch": 16, "epochs": 1}
    return PPOPostTraining(models["policy"], arena(models), FlowSDE(), advantage, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["ppo", "expert", "grpo", "analytic"])
def test_what_an_iteration_takes_is_foretold_within_a_fifth(models: dict[str, Any], tmp_path: Path, name: str) -> None:
    module, counted, said = learner(models, name), Counted(), []
    models["reflector"].threshold.fill_(2.0)  # no dream ends, as foresight supposes

    def told(foretold: foresight.Foretold, number: int, device: torch.device) -> None:
        said.append(foretold(number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.rl.post_training.check_memory", told)
        fit(module, starts(32), tmp_path, 2, counted)
    assert len(said) == 1, "asked once"
    assert said[0] / counted.peak == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("name", ["expert", "grpo", "analytic"])
def test_foresight_changes_nothing(models: dict[str, Any], tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = []
    for number in range(2):
        torch.manual_seed(0)  # of the critic
        module = learner(models, name)
        if number:
            monkeypatch.setattr(type(module), "foresee", lambda self, batch: None)
        fit(module, starts(8), tmp_path / str(number), 2)
        weights.append(module.policy.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_run_without_the_memory_is_refused_before_it_begins(
    models: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foresight, "free_bytes", lambda device: 0)
    module = learner(models, "expert")
    before = {key: value.clone() for key, value in module.policy.state_dict().items()}
    with pytest.raises(ValueError, match=r"an iteration from 8 starts needs \d+ MiB at least, 0 MiB are free on cpu; not even one"):
        fit(module, starts(8), tmp_path, 1)
    assert all(torch.equal(before[key], value) for key, value in module.policy.state_dict().items())


def test_it_says_how_many_starts_would_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 1 GiB and 0.5 GiB for each start, 8 GiB hold 14 on a GPU; a process on a CPU takes five times as much: they hold one."""
    monkeypatch.setattr(foresight, "free_bytes", lambda device: 8 * GIB)
    needs = lambda starts: GIB + 0.5 * GIB * starts  # noqa: E731
    check_memory(needs, 14, torch.device("cuda"))
    check_memory(needs, 1, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"128 starts needs 65.0 GiB at least, 8.0 GiB are free on cuda; 14 would fit, set"):
        check_memory(needs, 128, torch.device("cuda"))
    with pytest.raises(ValueError, match=r"15 starts needs 8.5 GiB at least, 8.0 GiB are free on cpu; 1 would fit"):
        check_memory(needs, 15, torch.device("cpu"))
    with pytest.warns(UserWarning, match=r"14 starts needs 8.0 GiB at least, 8.0 GiB are free on cpu, and .* 5 times as much"):
        check_memory(needs, 14, torch.device("cpu"))


def test_what_a_container_may_take_bounds_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    from worldsim.measure import cost

    files = f"anon 7\ninactive_file {GIB}\nactive_file {GIB // 2}"
    limits = {"memory.max": str(3 * GIB), "memory.current": str(2 * GIB), "memory.stat": files}
    monkeypatch.setattr(cost, "cgroup", limits.__getitem__)
    monkeypatch.setattr(cost.psutil, "virtual_memory", lambda: type("Memory", (), {"available": 16 * GIB}))
    assert gib(cost.free_bytes(torch.device("cpu"))) == "2.5 GiB", "files in memory make room"
    limits["memory.max"] = "max"
    assert gib(cost.free_bytes(torch.device("cpu"))) == "16.0 GiB"


def test_what_is_frozen_is_not_asked_for_a_gradient(models: dict[str, Any], tmp_path: Path) -> None:
    """A policy whose backbone somebody froze, and a critic without parameters that learn."""
    models["policy"].trunk.requires_grad_(False)
    module = learner(models, "ppo")
    module.advantage.requires_grad_(False)
    with torch.random.fork_rng():
        foretold = module.foresee(starts(8))
    assert foretold is not None and foretold(16) > foretold(8) > 0


def test_a_part_of_the_starts_needs_a_part_of_the_memory(models: dict[str, Any]) -> None:
    """Half of them are played (MoPPS), or a quarter at a time (DAPO)."""
    foretold = []
    for economy in ({}, {"starts": BetaStarts(pool=8, keep=0.5)}, {"sampling": DynamicSampling(attempts=4)}):
        advantage = GRPO(group_size=2)
        module = PPOPostTraining(models["policy"], arena(models), FlowSDE(), advantage, chunks=3, minibatch=16, **economy)  # type: ignore[arg-type]
        foretold.append(module.foresee(starts(8)))
    whole, half, quarter = (one(10**4) for one in foretold)
    assert half / whole == pytest.approx(0.5, rel=0.05) and quarter / whole == pytest.approx(0.25, rel=0.05)


def test_a_long_rollout_is_kept_and_for_a_moment_twice(models: dict[str, Any]) -> None:
    """Of 400 decisions the pictures alone, three bytes a pixel, are most of it."""
    module = learner(models, "expert")
    module.chunks = 400  # type: ignore[assignment]
    foretold = module.foresee(starts(8))
    assert foretold is not None
    assert foretold(1000) / (2 * 1000 * 400 * 64 * 64 * 3) == pytest.approx(1.1, abs=0.1)
