"""Tiny models and a tiny dataset, on which every learner runs within seconds."""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import demo, environment, wheel  # noqa: F401 - fixtures
from toy_spec import toy_spec
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.core import checkpoint, torchvision_remedy  # noqa: F401 - the latter before tests import Lightning
from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter

MARKS = ("mark.genesis", "mark.studies", "mark.slow")


def first_mark(file: Path) -> int:
    """The place among `MARKS` of the first that stands in a file; their number, if none does."""
    text = file.read_text()
    return next((i for i, mark in enumerate(MARKS) if mark in text), len(MARKS))


class WholeFiles(LoadScopeScheduling):
    """Gives files to workers as a whole, for their fixtures; to one all that use Genesis, which starts once then, and to another
    all that look at one run of the demo."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return ("genesis", "studies", file, file)[first_mark(self.config.rootpath / file)]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first, or one worker would be left alone with it at the end."""
    order = {item.path: first_mark(item.path) for item in items}
    items.sort(key=lambda item: order[item.path])


def pytest_collection_finish() -> None:
    """What is there for good is not looked through whenever garbage is collected."""
    gc.freeze()


def pytest_configure(config: pytest.Config) -> None:
    """Each of several workers has a core of its own, so that what it starts leaves the others alone."""
    if (name := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):
        usable = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {usable[int(name.removeprefix("gw")) % len(usable)]})


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WholeFiles:
    return WholeFiles(config, log)


@pytest.fixture
def models() -> dict[str, Any]:
    """Models by the name of the argument that takes them."""
    torch.manual_seed(0)
    world_model = LatentFlowWorldModel(channels=(8, 16), layers=(1, 1))
    frames = torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8)
    world_model.fit_statistics({"front": frames}, toy_spec(torch.randn(50, 4)))
    for parameter in world_model.net.parameters():
        if not parameter.any():  # what starts at zero would make the dream deaf to actions
            torch.nn.init.normal_(parameter, std=0.1)
    models = {
        "policy": FlowVLA(width=32, channels=8, blocks=1, num_steps=3),
        "world_model": world_model,
        "reflector": InstantReflector(features=32, channels=8, blocks=1),
    }
    models["reflector"].threshold.fill_(0.99)  # an untrained judge would end most dreams at once
    return {name: model.eval() for name, model in models.items()}


@pytest.fixture
def folders(models: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    """The same, exported."""
    return {name: str(checkpoint.save(model, tmp_path / name)) for name, model in models.items()}


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A dataset of four short episodes of noise, with the sizes of the tiny models."""
    generator = torch.Generator().manual_seed(2)
    episodes = [
        Episode(
            images={"front": torch.randint(0, 256, (9, 64, 64, 3), generator=generator, dtype=torch.uint8)},
            state=0.1 * torch.randn(9, 4, generator=generator),
            action=0.5 * torch.randn(8, 2, generator=generator).clamp(-1, 1),
            reward=torch.zeros(8),
            success=(torch.arange(9) == 8).float(),
            progress=torch.linspace(0, 1, 9),
            instruction=f"push the {colour} block onto the green disc",
            source="expert",
        )
        for colour in ("red", "blue", "red", "yellow")
    ]
    path = tmp_path_factory.mktemp("data") / "episodes"
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"]}
    with DatasetWriter(path, fps=10, robot_type="test", cameras={"front": (64, 64)}, storage="image", **names) as writer:
        writer.add(episodes)
    return str(path)
