"""The judge's threshold: as many dreams succeed as episodes did."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_datasets import edit_column

from reflectors.instant import InstantReflector
from training.supervised.dream_judge import DreamThreshold, highest_success, matching_threshold
from training.supervised.reflector import ReflectorTraining
from worldsim.core import checkpoint
from worldsim.core.interfaces import Reflector
from worldsim.core.types import Episode, Reflection
from worldsim.core.views import FRONT
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.store import FrameStore
from worldsim.measure.evaluate import imagine_outcomes
from worldsim.worlds.dream import Starts

STEPS = 8


def test_as_many_exceed_the_threshold_as_succeeded() -> None:
    highest = torch.tensor([0.1, 0.9, 0.5, 0.7])
    assert matching_threshold(highest, torch.tensor([True, False, True, False])) == pytest.approx(0.6)
    assert matching_threshold(highest, torch.tensor([True, False, False, False])) == pytest.approx(0.8)
    assert matching_threshold(highest, torch.ones(4, dtype=torch.bool)) is None
    assert matching_threshold(highest, torch.zeros(4, dtype=torch.bool)) is None


def recording(folder: Path, successes: list[bool]) -> str:
    """Episodes that succeed in their third frame, or do not; one file each."""
    generator = torch.Generator().manual_seed(3)
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"], "robot_type": "test"}
    with DatasetWriter(folder, fps=10, cameras={"front": (64, 64)}, storage="image", **names) as writer:
        for success in successes:
            frames = torch.randint(0, 256, (4, 64, 64, 3), generator=generator, dtype=torch.uint8)
            writer.add(
                [
                    Episode(
                        images={"front": frames},
                        state=torch.randn(4, 4, generator=generator),
                        action=torch.zeros(3, 2),
                        reward=torch.zeros(3),
                        success=torch.tensor([False, False, success, False]),
                        progress=torch.zeros(4),
                        instruction="push the red block onto the green disc",
                        source="policy",
                    )
                ]
            )
    return str(folder)


@pytest.mark.parametrize("successes", [[True, False, False, True, False], [False, False, False, True, False]])
def test_dreams_of_the_recorded_policy_succeed_as_often_as_its_episodes(
    models: dict[str, Any], tmp_path: Path, successes: list[bool]
) -> None:
    callback = DreamThreshold(models["policy"], models["world_model"], recording(tmp_path / "data", successes), STEPS, 3)
    assert callback.success.tolist() == successes
    module = ReflectorTraining(models["reflector"])
    (tmp_path / "calibration.json").write_text('{"auc": 0.5, "f1": 0.5, "threshold": 0.25}')
    trainer = SimpleNamespace(default_root_dir=tmp_path, precision_plugin=SimpleNamespace(forward_context=nullcontext))
    callback.on_fit_end(trainer, module)  # type: ignore[arg-type]
    judge = checkpoint.load(tmp_path, InstantReflector)
    size = {"max_episode_steps": STEPS, "n_action_steps": 3, "batch": len(successes), "seed": 0}
    imagined = imagine_outcomes(callback.policy, callback.world_model, judge, callback.starts, **size)
    assert int(imagined.success.sum()) == sum(successes)
    scores = json.loads((tmp_path / "calibration.json").read_text())
    assert scores["threshold"] == pytest.approx(float(judge.threshold))
    assert scores["auc"] == 0.5 and scores["frame_threshold"] == 0.25 and "f1" not in scores
    assert scores["recorded_success"] == pytest.approx(sum(successes) / len(successes))


def test_without_successes_the_threshold_stays(models: dict[str, Any], tmp_path: Path) -> None:
    callback = DreamThreshold(models["policy"], models["world_model"], recording(tmp_path / "data", [False, False]), STEPS)
    module = ReflectorTraining(models["reflector"])
    before = float(module.reflector.threshold)
    trainer = SimpleNamespace(default_root_dir=tmp_path, precision_plugin=SimpleNamespace(forward_context=nullcontext))
    with pytest.warns(UserWarning, match="all or none of the recorded episodes succeeded"):
        callback.on_fit_end(trainer, module)  # type: ignore[arg-type]
    assert float(module.reflector.threshold) == before


def test_episodes_that_nobody_judged_are_no_failures(models: dict[str, Any], tmp_path: Path) -> None:
    two, data = (models["policy"], models["world_model"]), recording(tmp_path / "data", [False, True, False, False])
    for number in (0, 2):
        edit_column(Path(data) / f"data/chunk-000/file-{number:03d}.parquet", "success", dict.fromkeys(range(4)))
    edit_column(Path(data) / "data/chunk-000/file-003.parquet", "success", {0: None})  # who has next.success says nothing of it
    callback = DreamThreshold(*two, data, STEPS)
    assert callback.success.tolist() == [True, False] and len(callback.starts) == 2
    table = FrameStore.read([data], {"front": None})
    assert torch.equal(callback.starts.images["front"][:, -1], table.frames[table.first.unique()][[1, 3]])
    for number in (1, 3):
        edit_column(Path(data) / f"data/chunk-000/file-{number:03d}.parquet", "success", dict.fromkeys(range(4)))
    with pytest.raises(ValueError, match="nobody judged whether an episode in .* succeeded"):
        DreamThreshold(*two, data, STEPS)


class Surer(Reflector):
    """Is surer with every call that a frame is a success, and always sure enough to end an ordinary dream."""

    views = FRONT

    def __init__(self):
        super().__init__()
        self.threshold, self.consecutive, self.window, self.calls = torch.tensor(0.0), 1, 1, 0

    def judge(self, images, instruction):
        self.calls += 1
        ones = torch.ones(len(instruction))
        return Reflection(0.01 * self.calls * ones, ones, ones)


def test_the_highest_probability_is_that_of_dreams_that_go_on_until_time_is_up(models: dict[str, Any], tmp_path: Path) -> None:
    policy, world_model = models["policy"], models["world_model"]
    table = FrameStore.read([recording(tmp_path / "data", [True, False, False])], {"front": None})
    starts = Starts.first_frames(table, world_model.context)
    first = highest_success(policy, world_model, Surer(), starts, max_episode_steps=4)
    later = highest_success(policy, world_model, Surer(), starts, max_episode_steps=12)
    often = highest_success(policy, world_model, Surer(), starts, max_episode_steps=12, n_action_steps=2)
    torch.testing.assert_close(later - first, torch.full((3,), 0.02), msg="two chunks, hence calls, more")
    torch.testing.assert_close(often - later, torch.full((3,), 0.03), msg="six calls instead of three")
