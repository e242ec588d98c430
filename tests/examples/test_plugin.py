"""The example of a plug-in, installed beside worldsim in a process of its own: its classes go through the whole loop."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]

# Its world keeps the contract; then what its README types, at toy sizes, and what came out.
LOOP = """
import sys
import torch
import worldsim
from training.app.cli import main
from worldsim.core.checks import check_world
from worldsim.core.interfaces import Policy
from worldsim_point.policy import PointPolicy
from worldsim_point.reflector import PointReflector
from worldsim_point.world import PointWorld

check_world(PointWorld(num_envs=4))
commands = [
    "collect world=point world.num_envs=8 actor.noise=0.3 episodes=24 root=data/point",
    "fit experiment=point_world_model trainer.max_steps=2 trainer.val_check_interval=2 +model.world_model.channels=[16,16]",
    "fit experiment=point_reflector trainer.max_steps=2 trainer.val_check_interval=2",
    "fit experiment=point_policy trainer.max_steps=2",
    "fit experiment=point_post_train data.batch_size=8 trainer.limit_train_batches=2 +model.critic_warmup=0",
    "fit experiment=point_post_train_ppo data.batch_size=8 trainer.limit_train_batches=2 +model.chunks=2 model.advantage.warmup=0",
    "evaluate policy=runs/point_post_train baseline=runs/point_post_train_ppo world=point world.num_envs=8 episodes=8 out=out",
    "doctor check=plugins",
]
for command in commands:
    assert main([*command.split(), "--config-dir", sys.argv[1]]) == 0, command
start = worldsim.load("runs/point_policy")
assert type(start) is PointPolicy and not start.training
assert type(worldsim.load("runs/point_reflector")) is PointReflector
for name in ("point_post_train", "point_post_train_ppo"):
    weights = worldsim.load(f"runs/{name}", Policy).state_dict()
    assert any(not torch.equal(weights[key], value) for key, value in start.state_dict().items()), f"{name} learned nothing"
"""


def test_a_world_a_policy_and_a_reflector_of_somebody_else_go_through_the_whole_loop(tmp_path):
    source, site = tmp_path / "plugin", tmp_path / "site"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # the build writes beside it
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(site), str(source)], check=True, timeout=120)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{site}", "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    command = [sys.executable, "-W", "ignore", "-c", LOOP, str(source / "configs")]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    for name in ("world.PointWorld", "policy.PointPolicy", "reflector.PointReflector", "eye.Eye"):
        assert f"ok  worldsim_point.{name}, worldsim-point 0.1.0" in done.stdout
    description = yaml.safe_load((tmp_path / "runs" / "point_post_train" / "model.yaml").read_text())
    sizes = {"features": 64, "channels": 16, "views": {"front": [64, 64]}}
    assert description["eye"] == {"_target_": "worldsim_point.eye.Eye", **sizes}
    evaluation = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert evaluation["policies"]["policy"]["episodes"] == 8
    assert evaluation["physics_steps"] > 0
