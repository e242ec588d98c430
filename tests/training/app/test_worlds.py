"""Environments of other packages through the command line: recorded, evaluated, and refused in one line."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

import worldsim.worlds
from models.policies.flow_vla import FlowVLA
from training.app.cli import compose_config, main
from training.app.worlds import build_world
from worldsim.core import checkpoint
from worldsim.core.spec import Spec
from worldsim.data.lerobot import Dataset


def write_policy(folder: Path, spec: Spec, views: dict[str, tuple[int, int]]) -> str:
    """A tiny untrained one, with the units of a world whose numbers lie between 0 and 512."""
    rows = np.array([[0.0, 0.0], [512.0, 512.0]])
    policy = FlowVLA(state_dim=2, action_dim=2, width=16, channels=8, blocks=1, num_steps=2, views=views)
    policy.fit_statistics(spec.fitted(rows, rows))
    return str(checkpoint.save(policy, folder))


@pytest.fixture
def pusht_policy(tmp_path: Path) -> str:
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    from worldsim.worlds.pusht import PushTWorld

    return write_policy(tmp_path / "policy", PushTWorld(1).spec, {"image": (32, 32)})


@pytest.mark.parametrize("n_action_steps", ["null", "2"])
def test_a_policy_is_evaluated_in_pusht(pusht_policy: str, tmp_path: Path, n_action_steps: str):
    where = [f"policy={pusht_policy}", f"out={tmp_path / 'out'}", f"n_action_steps={n_action_steps}"]
    assert main(["evaluate", "world=pusht", "world.num_envs=2", "world.size=48", "episodes=3", *where]) == 0
    result = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert result["judge"] == "PushTWorld" and result["policies"]["policy"]["episodes"] == 3
    assert 0 < result["physics_steps"] <= 4 * 300, "three starts, and the one that the second table plays beside the last"


def test_a_policys_episodes_in_pusht_are_recorded(pusht_policy: str, tmp_path: Path):
    root = tmp_path / "pusht"
    actor = ["actor=policy", f"actor.folder={pusht_policy}"]
    assert main(["collect", "world=pusht", "world.num_envs=1", "world.size=48", "episodes=1", f"root={root}", *actor]) == 0
    data = Dataset(root)
    (episode,) = data.episodes()
    assert episode.images["image"].shape[1:] == (48, 48, 3) and len(episode) <= 300
    assert [(c.name, c.unit, c.low, c.high) for c in data.spec.action] == [(f"motor_{i}", "px", 0, 512) for i in (0, 1)]
    assert ((episode.progress >= 0) & (episode.progress <= 1)).all(), "coverage is known"
    assert ((episode.action >= 0) & (episode.action <= 512)).all()


def test_metaworlds_expert_is_recorded(tmp_path: Path):
    pytest.importorskip("metaworld", reason="needs the extra metaworld")
    root = tmp_path / "push"
    world = ["world=metaworld", "world.task=push-v3", "world.size=32", "world.num_envs=2"]
    assert main(["collect", *world, "actor=expert", "actor.noise=0", "episodes=2", f"root={root}"]) == 0
    data = Dataset(root)
    assert [(e.success[-1].item(), e.instruction, e.source) for e in data.episodes()] == [
        (1, "Push the puck to the goal.", "expert")
    ] * 2
    assert data.spec.robot_type == "sawyer" and data.spec.fps == 40 and list(data.spec.cameras) == ["corner2"]


def test_ones_own_environment_is_recorded_by_its_keys(tmp_path: Path):
    """`collect` asks for a policy, as nobody wrote an expert."""
    keys = ["world=gym", "world.env=toy_slide:toy/Slide-v0", "world.cameras={front: pixels.top}", "world.state=agent_pos"]
    keys += ["world.instruction=Slide to the right.", "world.num_envs=2"]
    config = compose_config("collect", keys)
    spec = build_world(OmegaConf.to_container(config, resolve=True)).spec  # type: ignore[arg-type]
    policy = FlowVLA(state_dim=1, action_dim=1, width=16, channels=8, blocks=1, num_steps=2, views={"front": (16, 16)})
    policy.fit_statistics(spec.fitted(np.array([[-1.0], [1.0]]), np.array([[-1.0], [1.0]])))
    folder = checkpoint.save(policy, tmp_path / "policy")
    assert main(["collect", *keys, "actor=policy", f"actor.folder={folder}", "episodes=3", f"root={tmp_path / 'slide'}"]) == 0
    assert [len(episode) <= 12 for episode in Dataset(tmp_path / "slide").episodes()] == [True] * 3


@pytest.mark.parametrize("world", ["pusht", "metaworld", "dream"])
def test_a_renderer_is_for_scenes(world: str):
    config = {"world": {"_target_": "worldsim.worlds.genesis.nerf.NerfWorld", "fields": ["x"], "num_envs": 1}}
    config["world"] |= {"world_model": "y"} if world == "dream" else {}
    what = "a dream" if world == "dream" else "an environment of another package"
    with pytest.raises(ValueError, match=f"{what} draws its own pictures; leave renderer out"):
        build_world(config | {"randomization": None})


@pytest.mark.parametrize(("world", "package", "extra"), [("pusht", "gym_pusht", "pusht"), ("metaworld", "metaworld", "metaworld")])
def test_a_package_that_is_not_there_is_named_with_its_extra(
    world: str, package: str, extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in [name for name in sys.modules if name.split(".")[0] == package or name == f"worldsim.worlds.{world}"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(worldsim.worlds, world, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["collect", f"world={world}", f"root={tmp_path / 'data'}", "episodes=1"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"worldsim: {package}") and " is not installed; run: pip install" in said
    assert f"[{extra}]" in said and said.count("\n") == 1
