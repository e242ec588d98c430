"""The rehearsal at toy size, through the real commands: train, record on the stand-in, identify, train again, measure."""

import json
from pathlib import Path

import pytest
import torch

from training.app import cli
from training.studies.rehearsal import gap_closed

SIZES = {
    "demos": 8,
    "policy_steps": 3,
    "recorded": 2,
    "generations": 1,
    "envs": 8,
    "episodes": 8,
    "evaluation_envs": 8,
}


def test_share_of_the_gap_and_its_interval():
    starts = torch.arange(400)
    closed = gap_closed(starts < 320, starts < 80, starts < 200)  # 80 %, 20 % and 50 %
    assert closed["share"] == pytest.approx(0.5)
    low, high = closed["ci95"]
    assert 0.4 < low < 0.5 < high < 0.6


@pytest.mark.slow
@pytest.mark.studies
def test_rehearsal_ends_with_a_table_of_three_trainings(tmp_path: Path) -> None:
    sizes = [f"{name}={value}" for name, value in SIZES.items()]
    assert cli.main(["bench", "rehearsal", f"out={tmp_path}", "seed=3", *sizes]) == 0
    result = json.loads((tmp_path / "rehearsal.json").read_text())
    assert list(result["on_the_robot"]) == ["nominal", "randomised", "identified"]
    assert all(entry["episodes"] == 8 for entry in result["on_the_robot"].values())
    truth = {name: entry["truth"] for name, entry in result["parameters"].items()}
    assert truth["latency.delay"] == 0.06
    assert truth["dynamics.gain"] == 0.6
    assert truth["view.roll"] == 4.0
    # Two starts are enough to see how the camera is turned.
    assert result["parameters"]["view.roll"]["found"] == pytest.approx(4.0, abs=1.0)
    table = (tmp_path / "rehearsal.md").read_text()
    assert "| identified |" in table
    assert (tmp_path / "rehearsal.png").stat().st_size > 1000
    recorded = json.loads((tmp_path / "data" / "robot" / "meta" / "info.json").read_text())
    assert recorded["total_episodes"] == 2
