"""`worldsim export` of a policy with two cameras, from recorded episodes whose pictures are larger than its views."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from models.policies.flow_vla import FlowVLA
from training.app import cli
from training.app.verbs import _example
from worldsim.core import checkpoint
from worldsim.core.types import Episode
from worldsim.core.views import mosaic
from worldsim.data.lerobot import DatasetWriter
from worldsim.robot.bundle import load_bundle
from worldsim.robot.check import read_recorded, replay
from worldsim.robot.reliability import read_reference

VIEWS = {"wrist": (32, 32), "front": (24, 40)}
SIZES = {"front": (48, 80), "wrist": (40, 40), "top": (8, 8)}


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    generator = torch.Generator().manual_seed(2)

    def frames(height: int, width: int) -> torch.Tensor:
        return torch.randint(0, 256, (9, height, width, 3), generator=generator, dtype=torch.uint8)

    return [
        Episode(
            images={name: frames(*size) for name, size in SIZES.items()},
            state=0.1 * torch.randn(9, 4, generator=generator),
            action=torch.zeros(8, 2),
            reward=torch.zeros(8),
            success=torch.zeros(9),
            progress=torch.zeros(9),
            instruction="push the red block onto the green disc",
            source="expert",
        )
        for _ in range(6)
    ]


@pytest.fixture(scope="module")
def data(episodes: list[Episode], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data") / "episodes"
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"]}
    with DatasetWriter(root, fps=10, robot_type="test", cameras=SIZES, storage="image", **names) as writer:
        writer.add(episodes)
    return root


def folder(tmp_path: Path, **views: tuple[int, int]) -> str:
    torch.manual_seed(0)
    return str(checkpoint.save(FlowVLA(width=16, channels=8, blocks=1, views=views), tmp_path / "policy"))


def test_a_bundle_keeps_what_the_policy_sees_of_both_cameras(data: Path, episodes: list[Episode], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert cli.main(["export", f"policy={folder(tmp_path, **VIEWS)}", f"data={data}", f"out={out}", "format=torch"]) == 0
    bundle, recorded = load_bundle(out), read_recorded(out)
    assert list(bundle.description["views"].items()) == [("wrist", [32, 32]), ("front", [24, 40])]
    assert recorded is not None and replay(bundle, recorded) <= 1e-4
    first = {name: frames[0].numpy() for name, frames in episodes[0].images.items()}
    np.testing.assert_array_equal(recorded.images[0], mosaic(first, VIEWS))
    images = mosaic({name: frames.numpy() for name, frames in episodes[1].images.items()}, VIEWS)
    assert read_reference(out).familiarity(images[0], episodes[1].state[0].numpy()) == 1  # a held-out episode


def test_data_without_one_of_the_cameras_are_one_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy = folder(tmp_path, front=(48, 80), side=(8, 8))
    assert cli.main(["export", f"policy={policy}", f"data={data}", f"out={tmp_path / 'bundle'}"]) == 2
    error = capsys.readouterr().err
    assert "FlowVLA looks through camera 'side', the data have front, top, wrist; rename one" in error and error.count("\n") == 1


def test_the_description_says_the_policys_views(tmp_path: Path) -> None:
    """Without data pictures and states are made up, at the sizes that the policy has, whatever its arguments are called."""
    assert cli.main(["export", f"policy={folder(tmp_path, **VIEWS)}", f"out={tmp_path / 'bundle'}", "format=torch"]) == 0
    description = json.loads((tmp_path / "bundle" / "bundle.json").read_text())
    assert description["views"] == {"wrist": [32, 32], "front": [24, 40]}
    policy = FlowVLA(state_dim=5, views=VIEWS)
    policy.arguments = {}
    example = _example(policy)
    assert example.state.shape == (1, 5)
    assert {name: frames.shape for name, frames in example.images.items()} == {"wrist": (1, 32, 32, 3), "front": (1, 24, 40, 3)}
