"""The whole loop at toy size through the real commands: physics, data, training, post-training, evaluation, report.

Its run is that of a wheel in a folder with packages of the same names.
"""

import json
import subprocess
import sys
from pathlib import Path

import installed
import pytest
import torch
import yaml
from installed import ROOT, Demo
from omegaconf import OmegaConf

from training.app import cli
from training.studies import bench
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.data.lerobot import Dataset

pytestmark = [pytest.mark.slow, pytest.mark.studies]


SIZE = yaml.safe_load((ROOT / "configs" / "size" / "tiny.yaml").read_text())["size"]


@pytest.fixture
def run(demo: Demo) -> Path:
    """What a demo of an installed wheel left."""
    return demo.run


def test_summary_holds_everything(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary["physics_success"][when]) >= {"rate", "ci95", "episodes"}
        success = summary["physics_success"][when]
        assert success["episodes"] == SIZE["episodes"]
        assert 0 <= success["ci95"][0] <= success["rate"] <= success["ci95"][1] <= 1
    assert set(summary["physics_success"]["paired_gain"]) == {"points", "ci95"}
    assert summary["physics_steps"]["post_train_1"] == 0
    assert 8 * 5 < summary["physics_steps"]["collect_policy_1"] <= 8 * 40
    assert set(summary["learners"]) == {"final"}
    assert SIZE["demos"] * 4 < summary["physics_steps"]["collect_demos"] <= SIZE["demos"] * 40
    # Two policies on 8 starts, twice with other noise, and two recordings of 40 steps in 8 environments.
    assert 2 * 8 * 40 < summary["physics_steps"]["evaluate"] <= 6 * 8 * 40
    for evaluation in (run / "evaluation.json", run / "baseline" / "evaluation.json"):
        assert json.loads(evaluation.read_text())["n_action_steps"] == 2, "both policies look again after two actions"
    imagination = summary["imagination"]
    assert set(imagination) >= {"rate", "error_points", "self_agreement", "always_success", "calibration"}
    assert set(imagination["against_physics"]) >= {"agreement", "kappa", "false_success"}
    assert "threshold" in summary["reflector"]
    assert set(summary["judge"]) >= {"auc_real", "auc_imagined", "threshold"}
    assert set(summary["world_model"]) >= {"frames_per_s", "psnr_at_40", "block_error_m_at_40"}
    assert set(summary["wall_s"]) >= {"collect_demos", "world_model", "policy", "reflector", "post_train_1", "evaluate"}
    assert summary["peak_rss_mb"] > 100
    assert summary["seed"] == 3 and summary["command"] == f"worldsim demo size=tiny seed=3 run={run}"
    assert summary["world_model"]["psnr_at_40"] > 5
    assert "torch" in summary["versions"]
    page = (run / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_finished_stages_are_skipped_and_a_lost_one_is_made_again(demo: Demo, environment: Path) -> None:
    run, elsewhere = demo.run, demo.run.parent
    before = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/done.json")}
    (run / "stages" / "policy" / "done.json").unlink()
    assert installed.run(environment, *demo.command, cwd=elsewhere, timeout=300).returncode == 0
    after = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/done.json")}
    changed = {path.parent.name for path in after if after[path] != before[path]}
    assert changed == {"policy"}
    other = installed.run(environment, *demo.command, "seed=4", cwd=elsewhere)
    assert other.returncode == 2 and "another configuration" in other.stderr


def test_saved_config_trains_again_with_stock_lightning_syntax(run: Path) -> None:
    config = run / "world_model" / "config.yaml"
    command = [sys.executable, "-m", "training", "fit", "--config", str(config), "--trainer.max_steps", "10"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert yaml.safe_load(config.read_text())["trainer"]["max_steps"] == SIZE["world_model_steps"]  # the run itself is untouched
    again = run / "world_model" / "again"
    assert yaml.safe_load((again / "config.yaml").read_text())["trainer"]["max_steps"] == 10
    assert (again / "model.safetensors").is_file()
    assert (again / "checkpoints" / "last.ckpt").is_file()


def test_dreamed_rollout_is_a_video_and_a_dataset(run: Path, tmp_path: Path) -> None:
    dream = [f"world.world_model={run}/world_model", f"world.reflector={run}/reflector", f"world.data=[{run}/data/demos]"]
    arguments = [
        "rollout",
        f"policy={run}/post_train_1",
        "world=dream",
        "episodes=4",
        "world.num_envs=4",
        f"out={tmp_path}",
        *dream,
    ]
    assert cli.main(arguments) == 0
    assert (tmp_path / "grid.mp4").stat().st_size > 1000
    episodes = list(Dataset(tmp_path / "dataset").episodes())
    assert len(episodes) == 4
    assert episodes[0].images["front"].shape[1:] == (64, 64, 3)
    assert json.loads((tmp_path / "statistics.json").read_text())["judge"] == "DreamWorld"


def test_export_of_the_trained_policy(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "bundle"
    more = ("format=torch", f"out={bundle}", f"data={run}/data/demos", f"evaluation={run}/evaluation.json")
    assert cli.main(["export", f"policy={run}/post_train_1", *more]) == 0
    description = json.loads((bundle / "bundle.json").read_text())
    assert description["parity"]["max_abs_difference"] <= 1e-4
    measured = json.loads((run / "evaluation.json").read_text())["policies"]["policy"]
    assert {name: description["evaluation"][name] for name in ("rate", "ci95")} == {n: measured[n] for n in ("rate", "ci95")}
    assert "GenesisWorld(scene=push_block" in (bundle / "README.md").read_text()
    other = checkpoint.load(run / "policy", Policy)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    checkpoint.save(other, tmp_path / "other")
    assert cli.main(["export", f"policy={tmp_path / 'other'}", *more]) == 2
    assert "has no evaluation of the weights" in capsys.readouterr().err


def test_evaluation_under_randomised_conditions(run: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", f"policy={run}/policy", "randomization=strong", "episodes=4", f"out={tmp_path}"]
    assert cli.main([*arguments, "world.num_envs=4"]) == 0
    evaluation = json.loads((tmp_path / "evaluation.json").read_text())
    assert evaluation["policies"]["policy"]["episodes"] == 4
    assert evaluation["randomization"]["effects"]["light"]["exposure"]["high"] == 2.0
    assert 4 * 4 <= evaluation["physics_steps"] <= 4 * 40


def study(name: str, **values: object) -> dict:
    """The configuration of a study with other values."""
    config = OmegaConf.to_container(cli.compose_config("bench", [f"study={name}"]), resolve=True)
    assert isinstance(config, dict)
    models = {"world_model": "world_model_1", "reflector": "reflector_1", "data": ["demos", "play_a", "policy_1"]}
    return config | models | values


def test_bench_of_algorithms_gives_each_cell_its_time_and_its_own_start(run: Path, tmp_path: Path) -> None:
    config = study("algorithms", runs={3: str(run)}, seeds=[3], seconds=2, calibration_seconds=3, episodes=8, policy_steps=2)
    names = ("grpo_diffusion", "physics_ppo_flow_sde")
    config |= {"out": str(tmp_path), "envs": 8, "cells": {name: config["cells"][name] for name in names}}
    for name in names:
        config["cells"][name] += ["data.batch_size=4"]
    config["cells"]["physics_ppo_flow_sde"] += ["model.arena.world.num_envs=4"]
    bench.bench(config)
    rows = {row["cell"]: row for row in json.loads((tmp_path / "algorithms.json").read_text())["rows"]}
    assert set(rows) == set(names)
    assert [row["physics_steps"] > 0 for row in (rows[name] for name in names)] == [False, True]
    outcomes = json.loads((tmp_path / "evaluation_3" / "evaluation.json").read_text())["policies"]
    assert rows["physics_ppo_flow_sde"]["before"]["mean"] == outcomes["policy"]["rate"]
    assert rows["grpo_diffusion"]["before"]["mean"] == outcomes["diffusion"]["rate"]
    assert all(row["iterations"] >= 2 for row in rows.values())
    assert all(name in (tmp_path / "algorithms.md").read_text() for name in names)
    assert (tmp_path / "algorithms.png").stat().st_size > 1000


def test_bench_of_world_models_measures_what_a_policy_gains_in_each(run: Path, tmp_path: Path) -> None:
    config = study("world_model", runs={3: str(run)}, seeds=[3], seconds=1, calibration_seconds=3, iterations=2, episodes=8)
    cells = {"landed": [], "one_chunk": ["model.world_model.unroll=1"]}
    config |= {"out": str(tmp_path), "envs": 8, "measured": 8, "cells": cells}
    bench.bench(config)
    result = json.loads((tmp_path / "world_model.json").read_text())
    rows = {row["cell"]: row for row in result["rows"]}
    assert set(rows) == set(cells) and all(result["steps"][cell] >= 2 for cell in cells)
    outcomes = json.loads((tmp_path / "evaluation_3" / "evaluation.json").read_text())["policies"]
    assert rows["landed"]["after"]["mean"] == outcomes["policy"]["rate"]
    assert rows["one_chunk"]["after"]["mean"] == outcomes["one_chunk"]["rate"]
    assert all(row["figures"]["frames_per_s"] > 1 and -2 < row["figures"]["action_slope"] < 2 for row in rows.values())
    assert "| one_chunk |" in (tmp_path / "world_model.md").read_text()
    assert min((tmp_path / name).stat().st_size for name in ("world_model.png", "dreams.png")) > 1000


def test_bench_of_coevolution_goes_back_to_where_dreams_part(run: Path, tmp_path: Path) -> None:
    config = study(
        "coevolution", runs={3: str(run)}, seeds=[3], first=8, more=2, iterations=2, episodes=8, envs=4, out=str(tmp_path)
    )
    bench.bench(config | {"world_model_steps": 2, "reflector_steps": 2, "data": ["demos", "play_a"]})
    rows = {row["arm"]: row for row in json.loads((tmp_path / "coevolution.json").read_text())["rows"]}
    assert {arm: row["episodes"] for arm, row in rows.items()} == {"revisited": 10, "uniform": 10, "twice": 14}
    policies = json.loads((tmp_path / "evaluation_3" / "evaluation.json").read_text())["policies"]
    for arm, name in (("revisited", "policy"), ("uniform", "uniform"), ("twice", "twice")):
        assert rows[arm]["after"]["mean"] == policies[name]["rate"] and rows[arm]["physics_steps"] > 0
    assert rows["uniform"]["over_baseline"]["mean"] == 0 and "| revisited | 10 |" in (tmp_path / "coevolution.md").read_text()
    files = (tmp_path / "data_3" / name / "meta" / "starts.json" for name in ("first", "revisited"))
    first, revisited = (set(json.loads(file.read_text())["seeds"]) for file in files)
    assert first == set(range(3_500_000, 3_500_008)) and len(revisited) == 2 and revisited < first


def test_bench_of_profile_says_where_an_iteration_goes(run: Path, tmp_path: Path) -> None:
    config = study("profile", runs={3: str(run)}, seed=3, iterations=1, turns=2, out=str(tmp_path))
    few = ["learner=ppo", "data.batch_size=2", "+model.minibatch=2"]
    bench.bench(config | {"cells": {"long": few, "short": [*few, "+model.chunks=2"]}, "against": {"short": "long"}})
    result = json.loads((tmp_path / "profile.json").read_text())["seconds"]
    for seconds in result.values():
        assert min(seconds[part] for part in ("world model", "reflector", "policy, encoder", "critic", "backward", "rest")) > 0
    assert result["short"]["world model"] < result["long"]["world model"]
    assert "| times faster |  | " in (tmp_path / "profile.md").read_text()


def test_bench_of_exploitation_follows_both_runs(run: Path, tmp_path: Path) -> None:
    config = study("exploitation", run=str(run), seed=3, iterations=4, every=2, episodes=8, out=str(tmp_path), envs=8)
    judge = "trainer.callbacks.guard.judge"
    config["guards"]["guarded"] = [
        "guard=physics",
        "trainer.callbacks.guard.every=2",
        "trainer.callbacks.guard.verdict_alarms=[]",
        f"{judge}.episodes=4",
        f"{judge}.world.num_envs=4",
    ]
    bench.bench(config)
    curves = json.loads((tmp_path / "exploitation.json").read_text())["curves"]
    assert [point["iteration"] for point in curves["unguarded"]] == [0, 2, 4]
    assert curves["guarded"][-1]["iteration"] == 4
    assert curves["guarded"][0] == curves["unguarded"][0]
    verdicts = json.loads((tmp_path / "guarded" / "guard.json").read_text())["verdicts"]
    assert [verdict["step"] for verdict in verdicts] == [0, 2, 4]
    assert "| unguarded | 4 |" in (tmp_path / "exploitation.md").read_text()
    assert (tmp_path / "exploitation.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "policy={run}/post_train_1", "epsiodes=8"], "Did you mean 'episodes'"),
        (["evaluate", "policy={run}/nowhere"], "no exported model in"),
        (
            [
                "rollout",
                "policy={run}/post_train_1",
                "world.world_model={run}/world_model",
                "world.reflector={run}/reflector",
                "world.data=[{run}/nothing]",
                "out={tmp}/rollout",
            ],
            "nothing",
        ),
        (["evaluate", "policy={run}/world_model"], "expected a Policy"),
        (["collect", "world.num_envs=0", "root={tmp}/x"], "num_envs must be at least 1"),
        (["fit", "experiment=policy", "run_dir={tmp}/y", "data.roots=[{run}/data/demos]", "model.policy.state_dim=7"], "state_dim"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert cli.main([argument.format(run=run, tmp=tmp_path) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "rollout").exists(), "what did not begin leaves nothing that a second try would have to agree with"


def test_a_corrupt_checkpoint_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((run / "policy" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert cli.main(["export", f"policy={tmp_path}", f"out={tmp_path / 'bundle'}"]) == 2
    assert "damaged" in capsys.readouterr().err
