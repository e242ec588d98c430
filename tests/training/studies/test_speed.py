"""What the study of speed foretells and measures, and that dreams stay as many times faster than heavier networks as they were."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from models.world.latent_flow import LatentFlowWorldModel
from models.world.pixel_unet import PixelUNetWorldModel
from training.studies import speed
from training.studies.scaling import Measured, Paper, Size, described, foretold, on_paper, overhead, peak_of, rates, sizes
from worldsim.measure.cost import Cost

COMMITTED = sorted((Path(__file__).parents[3] / "docs" / "results" / "speed").glob("*.json"))


def test_operations_work_and_bytes_of_a_product_are_those_of_the_textbook() -> None:
    """[64, 32] x [32, 16]: 2*64*32*16 operations; what is freed is no longer alive, and a view is nothing of its own."""
    x, w = torch.ones(64, 32), torch.ones(32, 16)
    with Cost() as cost:
        y = (x @ w).relu()
        kept = y.view(16, 64)
        del y
        assert cost.alive == 4 * 64 * 16
        del kept
    assert cost.flops == 2 * 64 * 32 * 16 and cost.operations == 2
    assert cost.moved == 4 * (64 * 32 + 32 * 16 + 64 * 16 + 2 * 64 * 16)
    assert (cost.alive, cost.peak) == (0, 2 * 4 * 64 * 16)


def test_what_was_there_before_costs_no_memory() -> None:
    """Neither a view of a weight nor what is added to it; a product with it costs what comes out."""
    weight, x = torch.ones(64, 64), torch.ones(8, 4, 64)
    with Cost() as cost:
        turned = weight.t()
        weight.add_(1)
        assert cost.alive == 0
        out = x @ turned  # a matrix product of 32 rows, and a view of it
    assert cost.alive == out.nbytes and cost.operations == 2


def test_a_backward_pass_counts_two_products_more() -> None:
    x = torch.ones(64, 64, requires_grad=True)
    with Cost() as cost:
        (x @ x).sum().backward()
    assert cost.flops == 3 * 2 * 64**3


def test_rates_are_found_again_and_foretell_other_sizes() -> None:
    """A machine of 2 us, 1e11 FLOP/s and 1e10 B/s; of a machine whose work is free only bytes count."""
    papers = [Paper(400, n * 2e8, n * 1e7 + m * 1e6, 0) for n, m in ((1, 0), (16, 1), (64, 50), (128, 400))]
    true = {"overhead_s": 2e-6, "flops_per_s": 1e11, "bytes_per_s": 1e10}
    found = rates(papers, [foretold(paper, true) for paper in papers])
    assert found == pytest.approx(true, rel=1e-6)
    free = rates(papers, [paper.moved / 1e10 for paper in papers])
    assert free["bytes_per_s"] == pytest.approx(1e10) and foretold(papers[-1], free) == pytest.approx(papers[-1].moved / 1e10)


def test_a_process_takes_so_many_times_the_memory_of_its_tensors() -> None:
    assert overhead([Paper(0, 0, 0, 100.0), Paper(0, 0, 0, 1000.0)], [150.0, 6000.0]) == pytest.approx(3)


def test_few_dreams_say_what_many_cost() -> None:
    """The line through few dreams meets what is counted of many."""

    def build(size: Size) -> Any:
        torch.manual_seed(0)
        return speed.dream(LatentFlowWorldModel(channels=size.channels), size.dreams)  # type: ignore[arg-type]

    size = Size(96, 64, (32, 96))
    paper = on_paper(size, build, speed.chunk, speed.half)
    step = speed.chunk(build(size))
    step()
    with speed.half(), Cost() as cost:
        step()
    assert (paper.flops, paper.moved, paper.operations) == pytest.approx((cost.flops, cost.moved, cost.operations), rel=0.02)
    assert paper.peak == pytest.approx(cost.peak, rel=0.1)


def test_the_memory_of_a_step_is_what_it_took_for_a_while() -> None:
    """64 MiB come and go; what was freed before is not there any more."""
    torch.ones(2**24).sum()
    assert peak_of(lambda: torch.ones(2**24).sum(), torch.device("cpu")) == pytest.approx(2**26, rel=0.1)


@pytest.mark.alone
def test_dreams_stay_as_many_times_faster_as_they_were() -> None:
    """Frames per second side by side in one process, so that the machine does not matter: a third of the least ratio committed."""
    found = [json.loads(path.read_text()) for path in COMMITTED]
    least, n = min(one["cells"]["pixel_unet"]["times_first"] for one in found), found[0]["batch"]
    worlds = {"dream": speed.dream(LatentFlowWorldModel(), n), "pixels": speed.dream(PixelUNetWorldModel(), 4)}
    took = speed.seconds_of({name: speed.chunk(world) for name, world in worlds.items()}, 2)
    assert took["pixels"] / 4 > least / 3 * took["dream"] / n


def test_the_study_measures_what_it_is_given(tmp_path: Path) -> None:
    """Tiny worlds, from configuration to files; a size that calibrates and is not measured is refused before anything is."""
    cells = {
        name: {"_partial_": True, "_target_": f"training.studies.speed.{what}", "world_model": model}
        for name, what, model in (
            ("dream", "dream", {"_target_": "models.world.latent_flow.LatentFlowWorldModel", "channels": [8, 8]}),
            ("compiled", "compiled", {"_target_": "models.world.latent_flow.LatentFlowWorldModel", "channels": [8, 8]}),
            ("diffusers", "dream", {"_target_": "training.studies.speed.with_diffusers", "channels": [8, 8]}),
        )
    }
    cfg = {"cells": cells, "batch": 2, "windows": 2, "repeats": 1, "runs": None, "out": str(tmp_path)}
    cfg |= {"dreams": [1, 2, 4], "sides": [64], "channels": [[8, 8]]}
    with pytest.raises(ValueError, match="calibration must name 3 of the sizes"):
        speed.run_speed(cfg | {"calibration": [[1, 64, [8, 8]], [3, 64, [8, 8]], [4, 64, [8, 8]]]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.app.compiled.torch.compile", lambda function, **how: function)  # and no part is
        patch.setattr(torch.nn.Module, "compile", lambda self, **how: None)
        speed.run_speed(cfg | {"calibration": [[n, 64, [8, 8]] for n in (1, 2, 4)]})
    found = json.loads((tmp_path / "speed.json").read_text())
    assert found["cells"].keys() == cells.keys() and found["cells"]["dream"]["times_first"] == 1
    assert all(row["steps_per_s"] > 0 and row["frames_per_s"] > 0 and row["update_s"] > 0 for row in found["cells"].values())
    assert found["cells"]["diffusers"]["parameters"] != found["cells"]["dream"]["parameters"]
    assert [row["dreams"] for row in found["sizes"]] == [1, 2, 4] and all(row["foretold_bytes"] > 0 for row in found["sizes"])
    assert (tmp_path / "speed.png").stat().st_size > 1000 and "| compiled |" in (tmp_path / "speed.md").read_text()


def test_sizes_vary_one_thing_at_a_time() -> None:
    assert sizes([1, 8], [64, 128], [[8, 8], [16, 16]], 4) == [
        Size(1, 64, (8, 8)),
        Size(8, 64, (8, 8)),
        Size(4, 128, (8, 8)),
        Size(4, 64, (16, 16)),
    ]


def test_the_fastest_repeat_counts_and_the_first_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, durations = [0.0], {"a": [1.0, 9.0, 5.0], "b": [0.5, 4.0, 7.0]}

    def step(name: str) -> Callable[[], None]:
        def run() -> None:
            clock[0] += durations[name].pop(0)

        return run

    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    assert speed.seconds_of({name: step(name) for name in ("a", "b")}, 2) == {"a": 5.0, "b": 4.0}


def test_table_says_what_was_foretold_and_how_far_off_it_was() -> None:
    law = {"overhead_s": 1e-3, "flops_per_s": 1e12, "bytes_per_s": float("inf"), "bytes_factor": 0.75}
    paper, measured = Paper(10, 3e10, 1e9, 2**30), Measured(0.05, 2**29)
    rows = [described(Size(64, 64, (32, 96)), paper, measured, law, yes) for yes in (False, True)]
    machine = {"processor": "Abacus", "threads": 2, "precision": "32-true", "torch": "2", "device": "cpu"}
    cell = {"parameters": 2_000_000, "steps_per_s": 5120.0, "frames_per_s": 5000.0, "times_first": 1.0, "update_s": 0.04}
    text = speed.table({"machine": machine, "batch": 64, "windows": 48, "cells": {"dream": cell}, "law": law, "sizes": rows})
    assert "| dream | 2.00 M | 5,120 | 5,000 | 1.00 | 40 |" in text
    assert "| 64 | 64 | 32, 96 | 6,400 | 5,120 | -20 % | 768 MiB | 512 MiB | +50 % |" in text
    assert "| calibrates | 768 MiB" in text and "on Abacus, 2 threads" in text
