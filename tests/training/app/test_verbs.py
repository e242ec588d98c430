"""What an earlier evaluation may stand for, and what it may not."""

import json
from pathlib import Path
from typing import Any

import pytest

from training.app.evaluate import _earlier
from training.app.verbs import _earned
from worldsim.core import checkpoint
from worldsim.robot.bundle import sha256

CONFIG = {
    "seed": 7,
    "world": {"_target_": "a.World", "scene": "push_block", "effects": {}},
    "episodes": 4,
    "n_action_steps": None,
    "randomization": None,
}
CONFIG |= {"precision": "32-true"}


@pytest.fixture
def evaluation(tmp_path: Path) -> Path:
    """An evaluation of the weights in `tmp_path`."""
    (tmp_path / checkpoint.WEIGHTS).write_bytes(b"weights")
    entry = {"rate": 0.5, "ci95": [0.1, 0.9], "episodes": 4, "outcomes": "0101", "folder": str(tmp_path)}
    entry["weights_sha256"] = sha256(tmp_path / checkpoint.WEIGHTS)
    file = tmp_path / "evaluation.json"
    circumstances = {"precision": "32-true", "device": "cpu", "num_envs": 4, "threads": 2}
    file.write_text(
        json.dumps({"policies": {"policy": entry}, "seed": 7, "world": CONFIG["world"], "circumstances": circumstances})
    )
    return file


def test_a_baseline_that_played_the_same_starts_counts(evaluation: Path):
    assert _earlier(evaluation, CONFIG)["outcomes"] == "0101"


@pytest.mark.parametrize(
    "change",
    [
        {"seed": 8},
        {"episodes": 8},
        {"precision": "bf16-mixed"},
        {"n_action_steps": 2},
        {"world": {"_target_": "a.World", "scene": "other"}},
    ],
)
def test_a_baseline_of_other_starts_is_refused(evaluation: Path, change: dict[str, Any]):
    with pytest.raises(ValueError, match=f"was measured with {next(iter(change))}"):
        _earlier(evaluation, CONFIG | change)


def test_weights_that_changed_since_are_refused(evaluation: Path):
    (evaluation.parent / checkpoint.WEIGHTS).write_bytes(b"other")
    with pytest.raises(ValueError, match="was measured with weights"):
        _earlier(evaluation, CONFIG)
    with pytest.raises(ValueError, match="has no evaluation of the weights"):
        _earned(evaluation, evaluation.parent)


def test_an_evaluation_that_names_no_weights_is_refused(tmp_path: Path):
    file = tmp_path / "evaluation.json"
    file.write_text(json.dumps({"policies": {"policy": {"rate": 1.0}}}))
    with pytest.raises(ValueError, match="does not say which weights"):
        _earlier(file, CONFIG)


def test_a_bundle_keeps_what_was_measured_and_where(evaluation: Path):
    earned = _earned(evaluation, evaluation.parent)
    expected = {"rate": 0.5, "ci95": [0.1, 0.9], "episodes": 4, "seed": 7, "world": "World(scene=push_block)"}
    expected["circumstances"] = "precision 32-true on the cpu, 4 environments, 2 threads"
    assert earned == expected
    evaluation.write_text(json.dumps({**json.loads(evaluation.read_text()), "n_action_steps": 2}))
    assert _earned(evaluation, evaluation.parent) == expected | {"n_action_steps": 2}
