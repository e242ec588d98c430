"""Dreams on paper: seconds and memory of a chunk for any number of dreams, size of picture and size of model, foretold from few.

A chunk makes `operations` calls of kernels, computes `flops` and moves `bytes`, each a straight line in the number of dreams that
some dreams give away (`worldsim/measure/cost.py`). A machine has three rates, so

    seconds = operations * overhead + flops / (FLOP/s) + bytes / (B/s)

(an additive roofline, Williams et al. 2009, doi:10.1145/1498765.1498785), which some measured sizes determine, as they do
how much more memory a process takes than its tensors. The other sizes check it.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from worldsim.core.memory import give_memory_back
from worldsim.core.world import World
from worldsim.measure.cost import Cost, gib

FEW = (16, 32)  # dreams that are counted: of fewer, the weights are what takes most
Builder = Callable[["Size"], World]


@dataclass(frozen=True)
class Size:
    """What dreams, and how many: the side of their pictures in pixels and the widths of the network."""

    dreams: int
    side: int
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Paper:
    """What a chunk of a size costs, as counted of few dreams; `peak` in bytes beyond what is there before."""

    operations: float
    flops: float
    moved: float
    peak: float


@dataclass(frozen=True)
class Measured:
    """A chunk of a size on this machine: seconds, and the most bytes beyond what was there before (NaN if nobody counts)."""

    seconds: float
    peak: float


def sizes(dreams: Sequence[int], sides: Sequence[int], channels: Sequence[Sequence[int]], usual: int) -> list[Size]:
    """Numbers of dreams for the first side and widths; other sides and widths for the usual number."""
    small = Size(usual, sides[0], tuple(channels[0]))
    numbers = [Size(number, small.side, small.channels) for number in dreams]
    larger = [Size(usual, side, small.channels) for side in sides[1:]]
    return [*numbers, *larger, *(Size(usual, small.side, tuple(widths)) for widths in channels[1:])]


def on_paper(size: Size, build: Builder, step: Callable[[World], Callable[[], object]], counted: Callable[[], Any]) -> Paper:
    """Count a chunk of few dreams, and draw the line to all.

    Args:
        size: of which the number of dreams is the line's end.
        build: makes the world of a size.
        step: a chunk of it.
        counted: the context in which it computes, autocast for instance.
    """
    few = []
    for number in FEW:
        play = step(build(Size(number, size.side, size.channels)))
        with counted(), Cost() as cost:
            play()
        few.append(np.array([cost.operations, cost.flops, cost.moved, cost.peak], dtype=float))
    slope = (few[1] - few[0]) / (FEW[1] - FEW[0])
    return Paper(*(few[0] + slope * (size.dreams - FEW[0])).tolist())


def rates(papers: Sequence[Paper], seconds: Sequence[float]) -> dict[str, float]:
    """Overhead of an operation [s], FLOP/s and B/s that explain some measured sizes best, by relative squares and none negative."""
    costs = np.array([[paper.operations, paper.flops, paper.moved] for paper in papers]) / np.array(seconds)[:, None]
    scale = costs.max(axis=0)
    found, _ = nnls(costs / scale, np.ones(len(costs)))
    overhead, per_flop, per_byte = found / scale
    inverse = (1 / one if one > 0 else float("inf") for one in (per_flop, per_byte))
    return dict(zip(("overhead_s", "flops_per_s", "bytes_per_s"), (float(overhead), *inverse), strict=True))


def overhead(papers: Sequence[Paper], peaks: Sequence[float]) -> float:
    """How many times the memory of its tensors a process takes: kernels have scratch space of their own. The geometric mean."""
    return float(np.exp(np.nanmean(np.log(peaks) - np.log([paper.peak for paper in papers]))))


def foretold(paper: Paper, law: dict[str, float]) -> float:
    """Seconds of a chunk by these rates."""
    return paper.operations * law["overhead_s"] + paper.flops / law["flops_per_s"] + paper.moved / law["bytes_per_s"]


def peak_of(step: Callable[[], object], device: torch.device) -> float:
    """The most memory that a step takes beyond what is there [B]: of the process on Linux, of torch on a GPU, elsewhere NaN.

    On a CPU the process gives its memory back from then on.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    give_memory_back()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
    except OSError:
        return float("nan")
    before = _status("VmRSS")
    step()
    return _status("VmHWM") - before or float("nan")


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return 1024 * float(line.split()[1])


def described(size: Size, paper: Paper, measured: Measured, law: dict[str, float], calibrates: bool) -> dict[str, Any]:
    """One row of the results."""
    said = foretold(paper, law)
    return {
        **asdict(size),
        "calibrates": calibrates,
        "measured_s": measured.seconds,
        "foretold_s": said,
        "error": said / measured.seconds - 1,
        "bytes_error": paper.peak * law["bytes_factor"] / measured.peak - 1,
        "measured_bytes": measured.peak,
        "foretold_bytes": paper.peak * law["bytes_factor"],
        "paper": asdict(paper),
    }


def scaling_table(rows: Sequence[dict[str, Any]], chunk: int) -> list[str]:
    """The results as lines of Markdown."""
    lines = ["| dreams | side | widths | frames/s foretold | measured | off by | memory foretold | measured | off by |"]
    lines.append("|" + " --- |" * 9)
    for row in rows:
        speeds = (chunk * row["dreams"] / row[name] for name in ("foretold_s", "measured_s"))
        memory = [gib(row[name]) for name in ("foretold_bytes", "measured_bytes")]
        off = ["calibrates" if row["calibrates"] else f"{100 * row[name]:+.0f} %" for name in ("error", "bytes_error")]
        widths = ", ".join(map(str, row["channels"]))
        told, found = (f"{speed:,.0f}" for speed in speeds)
        lines.append(
            f"| {row['dreams']} | {row['side']} | {widths} | {told} | {found} | {off[0]} | {' | '.join(memory)} | {off[1]} |"
        )
    return lines
