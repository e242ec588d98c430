"""The loop on tasks of others: what its stages are, and all of it once, with almost nothing of each."""

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from models.policies.flow_vla import FlowVLA
from training.app.cli import compose_config, main
from training.studies.task_demo import stages
from worldsim.core import checkpoint
from worldsim.data.lerobot import Dataset


def composed(*overrides: str) -> dict:
    config = OmegaConf.to_container(compose_config("demo", overrides), resolve=True)
    assert isinstance(config, dict)
    return config


def test_people_demonstrate_pusht_and_experts_metaworld() -> None:
    pusht = {stage.name: stage for stage in stages(composed("task=pusht", "data=D", "seed=2"))}
    assert [*pusht] == [
        *(
            "policy",
            "collect_policy_1",
            "collect_noisy_1",
            "world_model_1",
            "reflector_1",
            "post_train_1",
            "models",
            "evaluate_pusht",
        )
    ]
    assert "data.roots=[D]" in pusht["policy"].arguments and pusht["policy"].needs == ()
    recorded = "runs/pusht/data/policy_1,runs/pusht/data/noisy_1"
    assert f"data.roots=[{recorded},D]" in pusht["world_model_1"].arguments, "who recorded with limits comes first"
    assert f"data.roots=[{recorded}]" in pusht["reflector_1"].arguments, "people's demonstrations say nothing of success"
    seeds = {
        argument
        for stage in pusht.values()
        if stage.name.startswith("collect")
        for argument in stage.arguments
        if "seed=" in argument
    }
    assert seeds == {"seed=2100000", "seed=2200000"}
    meta = stages(composed("task=metaworld", "evolve.rounds=2"))
    names = [stage.name for stage in meta]
    assert names[0] == "collect_demos" and names[-4:] == [
        f"evaluate_{n}" for n in ("push", "drawer_open", "button_press", "unseen")
    ]
    few = {stage.name: stage.arguments for stage in stages(composed("task=few", "size.demos=10"))}
    assert "episodes=10" in few["collect_demos"] and "experiment=push_policy" in few["policy"]
    assert all("augmentation=push_block" in few[name] for name in ("policy", "world_model_1", "reflector_1", "post_train_1"))
    second = next(stage for stage in meta if stage.name == "world_model_2")
    assert "model.weights=runs/metaworld/world_model_1" in second.arguments and "world_model_1" in second.needs


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["task=pusht", "data=nowhere"], "there is no dataset at data=nowhere; name its folder"),
        (["task=pusht"], "data has no value; pass data=..."),
        (["task=pusht", "data=.", "evolve.rounds=0"], "evolve.rounds is 0, expected 1 to 4"),
    ],
)
def test_what_cannot_run_is_one_line(overrides: list[str], expected: str, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *overrides]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.studies
def test_all_of_it_once(tmp_path: Path, capsys) -> None:
    """On demonstrations of a policy that has learned nothing."""
    pytest.importorskip("gym_pusht", reason="needs the extra pusht")
    from worldsim.worlds.pusht import PushTWorld

    rows = np.array([[0.0, 0.0], [512.0, 512.0]])
    untrained = FlowVLA(state_dim=2, action_dim=2, width=16, channels=8, blocks=1, num_steps=2, views={"image": (32, 32)})
    untrained.fit_statistics(PushTWorld(1).spec.fitted(rows, rows))
    world = ["world=pusht", "world.num_envs=2", "world.size=32"]
    actor = ["actor=policy", f"actor.folder={checkpoint.save(untrained, tmp_path / 'untrained')}"]
    assert main(["collect", *world, *actor, "episodes=3", f"root={tmp_path / 'demos'}"]) == 0
    few = ["size.envs=2", "size.policy_steps=2", "size.world_model_steps=2", "size.reflector_steps=2", "size.iterations=2"]
    few += ["size.episodes=2", "evolve.episodes=40", "jobs=1", 'environment=["world=pusht","world.size=32"]']
    assert main(["demo", "task=pusht", f"data={tmp_path / 'demos'}", f"run={tmp_path / 'run'}", *few]) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["evaluations"]["pusht"]["after"]["episodes"] == 2 and "score" in summary["evaluations"]["pusht"]["before"]
    assert summary["physics_steps"].keys() == {"policy_1", "noisy_1"} and min(summary["physics_steps"].values()) > 0
    assert Dataset(tmp_path / "run/data/policy_1").num_episodes == 20
    assert "physics steps of data, none for learning in the dream" in capsys.readouterr().out
