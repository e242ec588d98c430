"""Compiled dreams are the same dreams, and a machine without a compiler goes on without."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from learners import arena, fit, starts

from training.app import compiled
from training.app.compiled import Compiled, compile_networks
from training.rl.chains import FlowSDE
from training.rl.estimators import GAE
from training.rl.ppo import PPOPostTraining


class Counted:
    """A backend that runs each graph as it is, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


def learned(models: dict[str, Any], folder: Path, *callbacks: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    learner = PPOPostTraining(models["policy"], arena(models), FlowSDE(), GAE(warmup=0), chunks=2)
    fit(learner, starts(8), folder, 2, *callbacks)
    return learner.policy.state_dict()


def test_a_policy_learns_the_same_in_compiled_dreams(models: dict[str, Any], tmp_path: Path) -> None:
    """By Dynamo's graphs, which eager kernels run, so that nothing may differ; foresight, which is first to call them, included."""
    plain, backend = learned(models, tmp_path / "plain"), Counted()
    graphs = learned(models, tmp_path / "graphs", Compiled(backend=backend))
    assert backend.graphs > 1, "more than the trial"
    assert plain.keys() == graphs.keys() and all(torch.equal(plain[key], graphs[key]) for key in plain)


def test_without_a_compiler_nothing_is_compiled(models: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("no C++ compiler\nwas found")

    monkeypatch.setattr(compiled.torch, "compile", broken)
    with pytest.warns(UserWarning, match="nothing is compiled on cpu, as torch.compile fails: RuntimeError: no C\\+\\+ compiler$"):
        assert not compile_networks(models["world_model"], torch.device("cpu"))
    assert all(part._compiled_call_impl is None for part in models["world_model"].children())
