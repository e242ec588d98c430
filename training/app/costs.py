"""What a training will cost on this machine, said before it begins: some steps on made-up frames of the size that it will see.

Read `training/studies/speed.py` for what a second buys with other sizes, and `worldsim/measure/cost.py` for what is counted.
"""

import time
import warnings
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from training.rl.foresight import straight
from training.supervised.batches import Batch
from training.supervised.bc import BehaviourCloning
from training.supervised.reflector import ReflectorTraining
from training.supervised.world_model import WorldModelTraining
from worldsim.core.precision import precision
from worldsim.core.types import Observation

FEW, TRIED = 4, 3  # of the rows of a batch, one in so many is tried; so often, of which the fastest counts
ALL_CORES = 0.65  # of the time of one thread, if there are more
Training = BehaviourCloning | ReflectorTraining | WorldModelTraining


class Price(NamedTuple):
    """Of a training.

    Attributes:
        steps: of the optimizer.
        minutes: on this machine's CPU, if it has nothing else to do; decoding the frames, once, comes on top.
        bytes: of the tensors of a step, at least.
        parameters: of the model.
    """

    steps: int
    minutes: float
    bytes: float
    parameters: int


def price(config: DictConfig) -> Price:
    """What the experiment of a `fit` configuration costs; its dataset is asked for sizes only.

    Raises:
        ValueError: if the experiment is none of a world model, a reflector or a policy.
    """
    model = OmegaConf.to_container(config.model, resolve=True)
    module: Any = instantiate(model, _convert_="all")
    if not isinstance(module, Training):
        raise ValueError(f"{type(module).__name__} is no supervised training; it costs what its dreams do")
    rows, steps = int(config.data.batch_size), int(config.trainer.max_steps)

    def step(number: int) -> None:
        batch = made_up(module, number)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of logging without a trainer
            loss = module.training_step(batch, 0)
        loss.backward()
        module.zero_grad()

    few, threads, took = max(2, rows // FEW), torch.get_num_threads(), float("inf")
    torch.set_num_threads(1)  # whatever else runs here slows several far more
    try:
        for _ in range(TRIED):
            began = time.monotonic()
            step(few)
            took = min(took, time.monotonic() - began)
    finally:
        torch.set_num_threads(threads)
    seconds = took * rows / few * (ALL_CORES if threads > 1 else 1.0)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    kept = 16 * parameters  # weights, gradients and two moments, 4 B each
    return Price(steps, steps * seconds / 60, straight(step, (max(1, few // 2), few))(rows) + kept, parameters)


def made_up(module: Training, rows: int) -> Batch:
    """A batch of black frames, of what this training learns from."""
    learner: Any = getattr(module, {WorldModelTraining: "world_model", ReflectorTraining: "reflector"}.get(type(module), "policy"))
    sentences = ("do what is asked",) * rows

    def images(*times: int) -> dict[str, torch.Tensor]:
        return {name: torch.zeros(rows, *times, *size, 3, dtype=torch.uint8) for name, size in learner.views.items()}

    if isinstance(module, ReflectorTraining):
        labels = {"success": torch.arange(rows) % 2.0, "progress": torch.zeros(rows)}
        return {"images": images(learner.context), **labels, "instruction": sentences, "seed": 0}
    state_dim, action_dim = (len(units.shift) for units in (learner.state_units, learner.action_units))
    if isinstance(module, BehaviourCloning):
        horizon, obs = learner.action_horizon, Observation(images(), torch.zeros(rows, state_dim), sentences)
        return {
            "obs": obs,
            "action": torch.zeros(rows, horizon, action_dim),
            "valid": torch.ones(rows, horizon, dtype=torch.bool),
            "seed": 0,
        }
    frames = learner.context + learner.horizon
    return {
        "images": images(frames),
        "state": torch.zeros(rows, frames, state_dim),
        "action": torch.zeros(rows, learner.horizon, action_dim),
        "valid": torch.ones(rows, learner.horizon, dtype=torch.bool),
        "instruction": sentences,
        "seed": 0,
    }
