"""The whole loop at toy size through the real commands: physics, data, training, post-training, evaluation, report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from training import cli
from worldsim.data.lerobot import Dataset

SIZES = {
    "envs": 8,
    "demos": 8,
    "play_a": 8,
    "play_b": 16,
    "policy_steps": 4,
    "reflector_steps": 4,
    "world_model_steps": 4,
    "iterations": 2,
    "episodes": 8,
    "evaluation_envs": 8,
}

EVOLVE = [
    "evolve.rounds=1",
    "evolve.episodes=8",
    "evolve.world_model_steps=2",
    "evolve.reflector_steps=2",
    "evolve.iterations=2",
]

pytestmark = [pytest.mark.slow, pytest.mark.genesis]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "demo"
    sizes = [f"size.{name}={value}" for name, value in SIZES.items()]
    assert cli.main(["demo", f"run={folder}", "seed=3", *sizes, *EVOLVE]) == 0
    return folder


def test_summary_holds_everything(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for when in ("before", "after"):
        assert set(summary["physics_success"][when]) >= {"rate", "ci95", "episodes"}
        assert summary["physics_success"][when]["episodes"] == 8
    assert set(summary["physics_success"]["paired_gain"]) == {"points", "ci95"}
    assert summary["physics_steps"]["post_train"] == 0
    assert summary["physics_steps"]["post_train_1"] == 0
    assert 8 * 5 < summary["physics_steps"]["collect_policy_1"] <= 8 * 40
    assert set(summary["learners"]) == {"final", "no_fresh_data"}
    assert 8 * 5 < summary["physics_steps"]["collect_demos"] <= 8 * 40
    # Three policies on 8 starts, and two recordings of 40 steps in 8 environments.
    assert 2 * 8 * 40 < summary["physics_steps"]["evaluate"] <= 5 * 8 * 40
    assert set(summary["imagination"]) >= {"agreement", "false_success", "missed_success"}
    assert set(summary["reflector"]) >= {"auc_real", "auc_imagined", "threshold"}
    assert set(summary["world_model"]) >= {"frames_per_s", "psnr_at_40", "block_error_m_at_40"}
    assert set(summary["wall_s"]) >= {"collect_demos", "world_model", "policy", "reflector", "post_train", "evaluate"}
    assert summary["peak_rss_mb"] > 100
    assert summary["seed"] == 3
    assert "torch" in summary["versions"]
    page = (run / "report.html").read_text()
    assert "data:video/mp4" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")


def test_finished_stages_are_skipped_and_a_lost_one_is_made_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/done.json")}
    (run / "stages" / "policy" / "done.json").unlink()
    sizes = [f"size.{name}={value}" for name, value in SIZES.items()]
    assert cli.main(["demo", f"run={run}", "seed=3", *sizes, *EVOLVE]) == 0
    after = {path: path.stat().st_mtime_ns for path in run.glob("stages/*/done.json")}
    changed = {path.parent.name for path in after if after[path] != before[path]}
    assert changed == {"policy"}
    assert cli.main(["demo", f"run={run}", "seed=4"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_saved_config_trains_again_with_stock_lightning_syntax(run: Path) -> None:
    config = run / "world_model" / "config.yaml"
    command = [sys.executable, "-m", "training", "fit", "--config", str(config), "--trainer.max_steps", "6"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert yaml.safe_load(config.read_text())["trainer"]["max_steps"] == 4  # the run itself is untouched
    again = run / "world_model" / "again"
    assert yaml.safe_load((again / "config.yaml").read_text())["trainer"]["max_steps"] == 6
    assert (again / "model.safetensors").is_file()
    assert (again / "checkpoints" / "last.ckpt").is_file()


def test_dreamed_rollout_is_a_video_and_a_dataset(run: Path, tmp_path: Path) -> None:
    dream = [f"world.world_model={run}/world_model", f"world.reflector={run}/reflector", f"world.data=[{run}/data/demos]"]
    arguments = ["rollout", f"policy={run}/post_train", "world=dream", "episodes=4", "world.num_envs=4", f"out={tmp_path}", *dream]
    assert cli.main(arguments) == 0
    assert (tmp_path / "grid.mp4").stat().st_size > 1000
    episodes = list(Dataset(tmp_path / "dataset").episodes())
    assert len(episodes) == 4
    assert episodes[0].images["front"].shape[1:] == (64, 64, 3)
    assert json.loads((tmp_path / "statistics.json").read_text())["judge"] == "DreamWorld"


def test_export_of_the_trained_policy(run: Path, tmp_path: Path) -> None:
    arguments = ["export", f"policy={run}/post_train", "format=torch", f"out={tmp_path / 'bundle'}", f"data={run}/data/demos"]
    assert cli.main(arguments) == 0
    parity = json.loads((tmp_path / "bundle" / "bundle.json").read_text())["parity"]
    assert parity["max_abs_difference"] <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["evaluate", "policy={run}/post_train", "epsiodes=8"], "Did you mean 'episodes'"),
        (["evaluate", "policy={run}/nowhere"], "no exported model in"),
        (
            [
                "rollout",
                "policy={run}/post_train",
                "world.world_model={run}/world_model",
                "world.reflector={run}/reflector",
                "world.data=[{run}/nothing]",
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


def test_a_corrupt_checkpoint_is_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("model.yaml", "model.safetensors"):
        (tmp_path / name).write_bytes((run / "policy" / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 100)
    assert cli.main(["export", f"policy={tmp_path}", f"out={tmp_path / 'bundle'}"]) == 2
    assert "damaged" in capsys.readouterr().err
