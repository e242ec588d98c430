"""Every configuration composes, and every object that it names is built with arguments that its constructor takes."""

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

from training.cli import CONFIG_DIR, VERBS, compose_config

EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
WORLDS = sorted(path.stem for path in (CONFIG_DIR / "world").glob("*.yaml"))


def targets(node: Any):
    """Every (class path, arguments) of a configuration."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], [key for key in node if not key.startswith("_")]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def check(config: Any) -> None:
    found = list(targets(OmegaConf.to_container(config, resolve=False)))
    for target, arguments in found:
        if "genesis" in target:
            continue  # importing it starts the simulator; test_genesis.py builds it
        signature = inspect.signature(get_object(target))
        takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
        unknown = [] if takes_any else [name for name in arguments if name not in signature.parameters]
        assert not unknown, f"{target} does not take {unknown}"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "fit"])
def test_verbs(verb: str) -> None:
    check(compose_config(verb))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments(experiment: str) -> None:
    config = compose_config("fit", [f"experiment={experiment}"])
    check(config)
    found = [target for target, _ in targets(OmegaConf.to_container(config))]
    assert any(target.startswith("training.data.") for target in found)


@pytest.mark.parametrize("world", WORLDS)
def test_worlds(world: str) -> None:
    check(compose_config("rollout", [f"world={world}"]))


def test_configs_stay_few_and_small() -> None:
    files = list(CONFIG_DIR.rglob("*.yaml"))
    assert len(files) <= 60
    assert all(len(Path(file).read_text().splitlines()) <= 40 for file in files)
