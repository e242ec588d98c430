"""What a comparison of learners makes of several seeds."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.studies import algorithms as bench
from worldsim.measure.metrics import seeds_interval


def test_an_interval_is_over_seeds_and_each_seeds_own_over_its_starts(tmp_path: Path) -> None:
    """Two seeds of 100 starts whose gains are 10 and 30 points: 200 starts would promise 20 ± 6, two seeds 20 ± 127."""
    for seed, won in ((1, 10), (2, 30)):
        policies = {name: {"outcomes": "1" * n + "0" * (100 - n)} for name, n in (("policy", 40), ("cell", 40 + won))}
        files = {
            f"evaluation_{seed}/evaluation.json": {"policies": policies},
            f"cell_{seed}/physics_steps.json": {"physics_steps": 0},
        }
        files |= {f"cell_{seed}/pace.json": {"seconds": 60.0, "iterations": 5}}
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
    config = {"cells": {"cell": []}, "seeds": [1, 2], "diffusion_cells": [], "out": str(tmp_path)}
    (row,) = bench.summarise(config)
    assert row["gain"]["mean"] == pytest.approx(20) and row["gain"]["ci95"] == pytest.approx(seeds_interval([10, 30]))
    assert row["gain"]["ci95"][1] > 100
    assert [gain["points"] for gain in row["gain_per_seed"]] == pytest.approx([10, 30])
    assert all(gain["ci95"][1] - gain["ci95"][0] < 25 for gain in row["gain_per_seed"])
    (alone,) = bench.summarise({**config, "seeds": [1]})
    assert alone["gain"]["ci95"] == alone["gain_per_seed"][0]["ci95"], "one seed says nothing of others"


def test_there_is_a_ratio_of_gains_only() -> None:
    def row(cell: str, mean: float, low: float, steps: int) -> dict[str, Any]:
        gain = {"mean": mean, "ci95": [low, 2 * mean - low]}
        return {"cell": cell, "gain": gain, "points_per_minute": mean, "seconds": 60.0, "physics_steps": steps}

    lost = bench.verdict([row("dream", 4.0, -9.0, 0), row("physics", -0.2, -8.0, 28_020)])
    assert lost[1] == "physics (28020 steps of physics): -0.2 points per minute."
    unsure = bench.verdict([row("dream", 4.0, -9.0, 0), row("physics", 2.0, 1.0, 28_020)])
    assert unsure[1] == "physics (28020 steps of physics): +2.0 points per minute, 2.0 times less."
    sure = bench.verdict([row("dream", 4.0, 3.0, 0), row("physics", 1.0, 0.5, 28_020)])
    assert sure[1].endswith("4.0 times less; at the unfavourable ends of both intervals 2.0 times.")
