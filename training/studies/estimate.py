"""How long a demo will take on the machine at hand, said before it begins.

The work of a stage is counted from its command and priced by what it took on a known machine; how fast this one is, some training
steps of a world model tell. `training/app/stages.py` runs the stages in the order that is foretold here.
"""

import time

import torch

from models.world.latent_flow import LatentFlowWorldModel
from training.app.stages import Stage
from worldsim.core.precision import precision

# Seconds on one thread of a Xeon without AMX, in float32: of one training step, iteration or episode, from the `wall_s` of what
# `worldsim demo seed=2` did at 6d4a602.
STEP_S = {"world_model": 0.34, "push_policy": 0.093, "reflector": 0.09, "judge": 0.19}
ITERATION_S = 0.75
EPISODE_S = {"collect": 0.15, "evaluate": 0.25}
PROBE_S = 0.30  # of `probe` there
ALL_CORES = 0.65  # of the time, for a stage that has more than one thread
START_S = 4.0


def minutes(todo: list[Stage], *, jobs: int, cores: int, probed_s: float) -> float:
    """Of all stages, where `probe` takes so long; no more stages side by side than cores."""

    def seconds(stage: Stage) -> float:
        return START_S + work_s(stage) * (ALL_CORES if stage.alone and cores > 1 else 1.0) * probed_s / PROBE_S

    waiting, running, finished, now = list(todo), dict[str, float](), set[str](), 0.0
    while waiting or running:
        for stage in list(waiting):
            if len(running) < (1 if stage.alone else min(jobs, cores)) and finished.issuperset(stage.needs):
                running[stage.name] = now + seconds(stage)
                waiting.remove(stage)
        first = min(running, key=lambda name: running[name])
        now = running.pop(first)
        finished.add(first)
    return now / 60


def work_s(stage: Stage) -> float:
    """A stage's work in seconds of that machine's thread."""
    verb, *options = stage.arguments
    said = dict(option.split("=", 1) for option in options if "=" in option)
    if verb != "fit":
        return EPISODE_S[verb] * int(said["episodes"])
    if said["experiment"] == "post_train":
        return ITERATION_S * int(said["trainer.limit_train_batches"])
    return STEP_S[said["experiment"]] * int(said["trainer.max_steps"])


def probe(steps: int = 4) -> float:
    """Seconds of a training step of the demo's world model on one thread: the best of some, as others are slowed by whatever else
    there is."""
    threads, best, b = torch.get_num_threads(), float("inf"), 48
    model, generator = LatentFlowWorldModel(), torch.Generator().manual_seed(0)
    frames = model.context + model.horizon
    batch = {
        "images": {"front": torch.zeros(b, frames, 64, 64, 3, dtype=torch.uint8)},
        "state": torch.zeros(b, frames, 4),
        "action": torch.zeros(b, model.horizon, model.action_dim),
        "valid": torch.ones(b, model.horizon, dtype=torch.bool),
    }
    torch.set_num_threads(1)
    try:
        for _ in range(steps):
            began = time.monotonic()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"):
                loss, _ = model.loss(batch, generator)
            loss.backward()
            best = min(best, time.monotonic() - began)
    finally:
        torch.set_num_threads(threads)
    return best
