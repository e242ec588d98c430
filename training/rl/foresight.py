"""Memory that an iteration will take at least, foretold from some of the starts before the first one is played.

A learner says what it does with few starts; what it takes grows with their number in a straight line (`worldsim/measure/cost.py`
counts). Read `rollout_learner.py` for who asks.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from training.supervised.batches import Batch
from worldsim.core.types import TensorBatch
from worldsim.measure.cost import Cost, free_bytes, gib

FEWEST = 8  # starts of which a part is tried; of one or two dreams the weights would take most
SEEN = {"cpu": 5}  # so many times the memory of its tensors was a process seen to take (docs/results/speed.md)

Foretold = Callable[[int], float]
"""Bytes of tensors that an iteration from so many starts has at a time, beyond what is there already."""


def tried(starts: int) -> tuple[int, int]:
    """An eighth and a quarter of them."""
    return starts // 8, starts // 4


def straight(run: Callable[[int], Any], few: tuple[int, int]) -> Callable[[float], float]:
    """Most bytes that live at a time in ``run(number)``, by two numbers."""
    peaks = []
    for number in few:
        with Cost() as cost:
            run(number)
        peaks.append(cost.peak)
    slope = (peaks[1] - peaks[0]) / (few[1] - few[0])
    return lambda number: peaks[0] + slope * (number - few[0])


def check_memory(foretold: Foretold, starts: int, device: torch.device) -> None:
    """Refuse a run that cannot have the memory, and warn of one that may not have it.

    Raises:
        ValueError: if its tensors alone need more than is free; it says how many starts would fit.
    """
    needed, free = foretold(starts), free_bytes(device)
    many = SEEN.get(device.type, 1)
    if many * needed <= free:
        return
    said = f"an iteration from {starts} starts needs {gib(needed)} at least, {gib(free)} are free on {device}"
    if needed <= free:
        warnings.warn(
            f"{said}, and processes were seen to take {many} times as much; lower data.batch_size if it is killed", stacklevel=2
        )
        return
    fits = next((number for number in range(starts - 1, 0, -1) if many * foretold(number) <= free), 0)
    remedy = f"{fits} would fit, set data.batch_size" if fits else "not even one would fit: take a smaller model.minibatch or model"
    raise ValueError(f"{said}; {remedy}")


def cut(batch: Batch, number: int) -> Batch:
    """Its first rows, so many of them, of what makes a start."""
    images = {name: frames[:number] for name, frames in batch["images"].items()}
    return {"images": images, "state": batch["state"][:number], "instruction": batch["instruction"][:number]}


def derive(result: Tensor, parameters: Iterable[Tensor]) -> None:
    """The gradient of a result, which nobody keeps, by what is not frozen."""
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    if learned and result.requires_grad:
        torch.autograd.grad(result.sum(), learned, allow_unused=True)


def size(value: Any) -> int:
    """Bytes of all tensors in a batch of any kind."""
    return sum(tensor.nbytes for tensor in _tensors(value))


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | TensorBatch):
        for part in (value if isinstance(value, dict) else vars(value)).values():
            yield from _tensors(part)
