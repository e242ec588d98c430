"""A policy and its bundles: success on the same starts, and the time of a decision, beside eager PyTorch.

.venv/bin/python benchmarks/bundle.py POLICY DATA [--episodes 256] [--rounds 5]

POLICY is a folder of `worldsim fit` on the default world, DATA a dataset that fits it. The bundles run in a fresh virtual
environment with what a robot needs and nothing else; a server there answers for the robots simulated here. Latency is measured in
turns, one process after the other, with two threads each."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.app.cli import main as worldsim
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.seeds import CHOOSING
from worldsim.deploy.serving import TorchPolicy
from worldsim.measure.evaluate import Player, evaluate
from worldsim.measure.metrics import paired_difference, success_rate
from worldsim.measure.remote import RemoteActor, RemotePolicies
from worldsim.robot.check import read_recorded
from worldsim.robot.loop import percentiles
from worldsim.robot.observation import IMAGE, NOISE, PROMPT, STATE
from worldsim.worlds.genesis.world import GenesisWorld

ROOT = Path(__file__).resolve().parents[1]
SEED, SECONDS, THREADS, ENVS = CHOOSING, 4.0, 2, 64
NEEDS = ("numpy", "onnxruntime", "tokenizers", "msgpack", "websockets")
SERVE = """
import sys
from worldsim.robot.bundle import load_bundle
from worldsim.robot.served_bundle import BundlePolicy
from worldsim.robot.server import Server
assert "torch" not in sys.modules
server = Server(BundlePolicy(load_bundle(sys.argv[1], threads=1)), port=0, max_batch=1)
server.run(ready=lambda: print(server.url, flush=True))
"""


def fresh_python(folder: Path) -> list[str]:
    """The command of a Python that has numpy, onnxruntime, tokenizers and the extra `robot`."""
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-qq", "-c", str(ROOT / "constraints.txt"), *NEEDS], check=True)
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode != 0
    return [python]


@contextmanager
def served(python: list[str], bundle: Path) -> Iterator[RemotePolicies]:
    """A bundle behind a websocket, in the other environment."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    server = subprocess.Popen([*python, "-c", SERVE, str(bundle)], stdout=subprocess.PIPE, text=True, env=environment)
    assert server.stdout is not None
    try:
        with RemotePolicies(server.stdout.readline().strip(), connections=8) as remote:
            yield remote
    finally:
        server.terminate()
        server.wait()


def eager_latency(policy: Policy, bundle: Path, seconds: float) -> dict[str, float]:
    """Percentiles [ms] of a decision in PyTorch, on what the bundle recorded."""
    recorded = read_recorded(bundle)
    assert recorded is not None
    served = TorchPolicy(policy, state_dim=recorded.states.shape[1])
    parts = (recorded.images[0], recorded.states[0], recorded.instructions[0], recorded.noises[0])
    observation = dict(zip((IMAGE, STATE, PROMPT, NOISE), parts, strict=True))
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        began = time.perf_counter()
        served.infer([observation])
        times.append(1e3 * (time.perf_counter() - began))
    return percentiles(times[3:])


def bundle_latency(python: list[str], bundle: Path, seconds: float) -> dict[str, float]:
    """The same, as the robot's own check measures it."""
    command = [*python, "-m", "worldsim.robot.check", str(bundle), "--seconds", str(seconds), "--threads", str(THREADS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return json.loads(done.stdout)["latency_ms"]


def success(world: GenesisWorld, player: Player, episodes: int) -> torch.Tensor:
    return evaluate(world, player, episodes=episodes, seed=SEED).success


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("policy", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--episodes", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(THREADS)
    policy = checkpoint.load(options.policy, Policy).eval()
    with tempfile.TemporaryDirectory() as scratch:
        python, bundles = fresh_python(Path(scratch) / "venv"), {}
        for precision in ("float32", "int8"):
            bundles[precision] = Path(scratch) / precision
            arguments = (f"policy={options.policy}", f"data={options.data}", f"precision={precision}", f"out={bundles[precision]}")
            if worldsim(["export", *arguments]):
                sys.exit(1)
        rows: dict[str, list[dict[str, Any]]] = {"pytorch": [], **{name: [] for name in bundles}}
        for _ in range(options.rounds):
            rows["pytorch"].append(eager_latency(policy, bundles["float32"], SECONDS))
            for name, bundle in bundles.items():
                rows[name].append(bundle_latency(python, bundle, SECONDS))
        world = GenesisWorld(num_envs=ENVS, phrasings="eval")
        outcomes = {"pytorch": success(world, policy, options.episodes)}
        for name, bundle in bundles.items():
            with served(python, bundle) as remote:
                outcomes[name] = success(world, RemoteActor(remote), options.episodes)
        sizes = {name: sum(file.stat().st_size for file in folder.glob("policy.*")) for name, folder in bundles.items()}
    for name, rounds in rows.items():
        p50, p99 = (statistics.median(entry[key] for entry in rounds) for key in ("p50", "p99"))
        reached, against = success_rate(outcomes[name]), paired_difference(outcomes["pytorch"], outcomes[name])
        size = f"{sizes[name] / 1e6:.1f} MB" if name in sizes else "-"
        print(
            f"{name}: {size}, p50 {p50:.2f} ms, p99 {p99:.2f} ms (medians of {options.rounds} rounds); success "
            f"{100 * reached['rate']:.1f} % [{100 * reached['ci95'][0]:.1f}, {100 * reached['ci95'][1]:.1f}], against PyTorch "
            f"{against['points']:+.1f} [{against['ci95'][0]:+.1f}, {against['ci95'][1]:+.1f}] points, "
            f"{int((outcomes[name] == outcomes['pytorch']).sum())} of {options.episodes} outcomes the same"
        )
    ratios = {
        key: np.median([a[key] / b[key] for a, b in zip(rows["pytorch"], rows["float32"], strict=True)]) for key in ("p50", "p99")
    }
    print(f"the float32 bundle is {ratios['p50']:.1f} (p50) and {ratios['p99']:.1f} (p99) times as fast as eager PyTorch")


if __name__ == "__main__":
    main()
