"""What half precision and kept memory bring on this machine's CPU: parts of an iteration of the demo, side by side in one process.

.venv/bin/python benchmarks/precision.py

Networks of the demo's sizes with random weights, in float32 and under bfloat16 autocast in turns; then a chunk of dreams in both,
before and after `keep_memory`.
"""

import time
from collections.abc import Callable

import torch

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.core.memory import keep_memory
from worldsim.core.precision import precision
from worldsim.core.types import Observation
from worldsim.worlds.dream import DreamWorld, Starts

REPEATS, BATCH, FRAMES = 7, 128, 512
SENTENCE = "push the red block onto the green disc"


def least(step: Callable[[], object]) -> tuple[float, float]:
    """Milliseconds of a step in float32 and in bfloat16: of each the least of some repeats, taken in turns."""
    took: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(REPEATS):
        for half, times in took.items():
            began = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                step()
            times.append(1000 * (time.perf_counter() - began))
    return min(took[False]), min(took[True])


def say(what: str, full: float, half: float) -> None:
    print(f"{what:44s} {full:8.1f} ms float32 {half:8.1f} ms bfloat16 {full / half:6.2f} times faster")


def parts() -> None:
    """Steps forward and backward."""
    world_model, reflector, policy = LatentFlowWorldModel(channels=(32, 96)), InstantReflector(), FlowVLA()
    inputs = torch.randn(BATCH, world_model.net.first.in_channels, 16, 16)
    condition, frames = torch.randn(BATCH, 256), torch.rand(FRAMES, 1, 64, 64, 3)
    pictures = torch.randint(0, 256, (FRAMES, 64, 64, 3), dtype=torch.uint8)
    obs = Observation({"front": pictures}, torch.zeros(FRAMES, 4), (SENTENCE,) * FRAMES)

    def dreamed() -> torch.Tensor:
        return world_model.net(inputs, condition).float().square().mean()

    def judged() -> torch.Tensor:
        return reflector.raw({"front": frames}, (SENTENCE,) * FRAMES)[0].float().square().mean()

    def seen() -> torch.Tensor:
        return policy.encode(obs).vector.square().mean()

    for name, step in (("world model's U-Net", dreamed), ("reflector", judged), ("policy's encoder", seen)):
        number = BATCH if step is dreamed else FRAMES
        with torch.no_grad():
            say(f"{name}, {number} rows", *least(step))
        say(f"{name}, {number} rows, with gradient", *least(lambda step=step: step().backward()))


def chunk() -> tuple[float, float]:
    """Of dreams: four frames dreamed and judged in each."""
    starts = Starts({"front": torch.zeros(1, 2, 64, 64, 3, dtype=torch.uint8)}, torch.zeros(1, 2, 4), (SENTENCE,))
    world = DreamWorld(LatentFlowWorldModel(channels=(32, 96)).eval(), InstantReflector().eval(), starts, num_envs=BATCH)
    return least(lambda: world.step_chunk(torch.zeros(BATCH, 4, 2)))


if __name__ == "__main__":
    torch.manual_seed(0)
    parts()
    before = chunk()
    keep_memory()
    after = chunk()
    say(f"a chunk of {BATCH} dreams", *before)
    say(f"a chunk of {BATCH} dreams, memory kept", *after)
    print(f"both together {before[0] / after[1]:.2f} times faster")
    print(f"{torch.get_num_threads()} threads; precision=auto is {precision()} here")
