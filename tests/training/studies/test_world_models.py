"""What a comparison of world models makes of its files."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.studies.world_models import FIGURES, correlations, run_world_models, summarise, table
from worldsim.measure.metrics import seeds_interval


def results(out: Path, won: dict[str, tuple[int, int]], figures: dict[str, float]) -> dict[str, Any]:
    """Two seeds of 100 starts, of which the cloned policy wins 40 and a policy of a cell so many more."""
    cells = dict.fromkeys(won, [])
    for number, seed in enumerate((1, 2)):
        names = {"policy": next(iter(won)), **{cell: cell for cell in list(won)[1:]}}
        policies = {name: {"outcomes": _letters(40 + won[cell][number])} for name, cell in names.items()}
        evaluation = {"policies": policies | {"baseline": {"outcomes": _letters(40)}}, "circumstances": CIRCUMSTANCES}
        (out / f"evaluation_{seed}").mkdir(parents=True)
        (out / f"evaluation_{seed}/evaluation.json").write_text(json.dumps(evaluation))
        for cell in won:
            measured = dict.fromkeys(FIGURES, 1.0) | {"psnr_at_40": 10 * figures[cell], "block_error_m_at_20": figures[cell]}
            (out / f"figures_{cell}_{seed}.json").write_text(json.dumps(measured | {"frames_per_s": figures[cell] + seed}))
    more = {"seconds": 300, "jobs": 2, "iterations": 250, "learner": ["chain=flow_noise"], "episodes": 100}
    return {"cells": cells, "seeds": [1, 2], "out": str(out), "baseline": "landed", "evaluation_seed": 700_000_000, **more}


CIRCUMSTANCES = {"precision": "32-true", "device": "cpu", "num_envs": 8, "threads": 2}


def _letters(won: int) -> str:
    return "1" * won + "0" * (100 - won)


def test_cells_are_ordered_by_what_a_policy_gains_and_figures_by_how_they_rank_them(tmp_path: Path) -> None:
    """Of three cells the sharpest is the least useful: PSNR ranks them backwards, and so does a small block error."""
    won = {"landed": (10, 30), "sharp": (0, 10), "useful": (40, 50)}
    cfg = results(tmp_path, won, {"landed": 2.0, "sharp": 3.0, "useful": 1.0})
    rows = summarise(cfg)
    assert [row["cell"] for row in rows] == ["useful", "landed", "sharp"]
    assert rows[1]["gain"]["mean"] == pytest.approx(20) and rows[1]["gain"]["ci95"] == pytest.approx(seeds_interval([10, 30]))
    assert [row["over_baseline"]["mean"] for row in rows] == pytest.approx([25, 0, -15]), "paired with the landed cell's policy"
    assert rows[0]["figures"]["frames_per_s"] == pytest.approx(2.5), "the mean over seeds"
    ranks = correlations(rows)
    assert ranks["psnr_at_40"] == pytest.approx(-1), "more is called better, and gains less"
    assert ranks["block_error_m_at_20"] == pytest.approx(1), "less is called better, and gains more"
    text = table(cfg, rows, ranks)
    assert text.count("\n| ") == 2 + 3 and "| useful | 85.0 [" in text and "block_error_m_at_20 +1.00" in text


def test_a_comparison_needs_its_baseline_and_starts_that_choose(tmp_path: Path) -> None:
    cfg = results(tmp_path, {"landed": (0, 0)}, {"landed": 1.0})
    with pytest.raises(ValueError, match="baseline=best is none of the cells landed; name one of them"):
        run_world_models(cfg | {"baseline": "best"})
    with pytest.raises(ValueError, match="starts that choose lie in"):
        run_world_models(cfg | {"evaluation_seed": 900_000_000})
