"""A policy server under load: 64 concurrent clients, each of which asks again as soon as it is answered.

.venv/bin/python benchmarks/server.py [--seconds 600] [--clients 64] [--policy FOLDER | --bundle FOLDER]

`worldsim serve` runs in a process of its own, with an untrained policy of the default size if no folder is given; the clients share
another process and the same cores. Prints errors, latency, answers per second and the server's memory at both ends.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import psutil
import torch
from websockets.asyncio.client import connect

from models.policies.flow_vla import FlowVLA
from worldsim.core import checkpoint
from worldsim.robot.protocol import pack, unpack

WARM_UP_S = 10.0  # torch keeps kernels for each size of a batch that it meets


async def ask(url: str, seed: int, end: float, latencies: list[float], errors: list[str]) -> None:
    """One client: the latency of every answer after the warm-up, and what went wrong."""
    chance, began = np.random.default_rng(seed), time.monotonic()
    async with connect(url, compression=None, max_size=None, proxy=None) as connection:
        metadata = unpack(await connection.recv())
        images = {
            f"observation/images/{name}": chance.integers(0, 256, (*size, 3), dtype=np.uint8)
            for name, size in metadata["views"].items()
        }
        while (sent := time.monotonic()) < end:
            state = chance.standard_normal(metadata["state_dim"], dtype=np.float32)
            fields = {"observation/state": state, "prompt": "push the red block onto the green disc", **images}
            await connection.send(pack(fields))
            answer: Any = await connection.recv()
            if isinstance(answer, str):
                errors.append(answer)
                return
            actions = unpack(answer)["actions"]
            if actions.shape != (metadata["action_horizon"], metadata["action_dim"]) or not np.isfinite(actions).all():
                errors.append(f"actions of shape {actions.shape}")
            if sent - began > WARM_UP_S:
                latencies.append(time.monotonic() - sent)


async def load(url: str, clients: int, seconds: float, server: psutil.Process) -> tuple[list[float], list[str], float]:
    """Latencies, errors and the server's resident memory after the warm-up."""
    latencies, errors, end = [], [], time.monotonic() + WARM_UP_S + seconds
    tasks = [asyncio.create_task(ask(url, seed, end, latencies, errors)) for seed in range(clients)]
    await asyncio.sleep(WARM_UP_S)
    memory = server.memory_info().rss
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(result, BaseException):
            errors.append(f"{type(result).__name__}: {result}")
    return latencies, errors, memory


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--clients", type=int, default=64)
    served = parser.add_mutually_exclusive_group()
    served.add_argument("--policy")
    served.add_argument("--bundle")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        what = f"bundle={options.bundle}" if options.bundle else f"policy={options.policy or checkpoint.save(FlowVLA(), folder)}"
        command = [sys.executable, "-W", "ignore", "-m", "training.app.cli", "serve", what, "port=0"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        try:
            url, server = process.stdout.readline().split()[-1], psutil.Process(process.pid)
            latencies, errors, before = asyncio.run(load(url, options.clients, options.seconds, server))
            after = server.memory_info().rss
        finally:
            process.terminate()
            process.wait(20)
    p50, p99 = np.percentile(latencies, [50, 99])
    kind = what.partition("=")[0]
    print(f"{kind}, {options.clients} clients, {options.seconds:g} s: {len(latencies)} answers, {len(errors)} errors")
    print(f"latency p50 {1e3 * p50:.1f} ms, p99 {1e3 * p99:.1f} ms, longest {1e3 * max(latencies):.1f} ms")
    print(f"{len(latencies) / options.seconds:.0f} answers/s; memory of the server {before / 2**20:.1f} -> {after / 2**20:.1f} MiB")
    for error in sorted(set(errors))[:5]:
        print(f"error: {error}")
    sys.exit(1 if errors else 0)
