"""Training of the reflector: unknown labels teach nothing, and figures are of episodes that nothing was fitted to."""

import json
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from torch import Tensor, nn
from toy_datasets import DATA_FILE, edit_column

from reflectors.instant import InstantReflector
from training.supervised.data import ReflectorData
from training.supervised.reflector import ReflectorTraining
from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter

NAN, LENGTH = float("nan"), 4


class Green(InstantReflector):
    """Sees the green of the first pixel: the logit is half of how far it is above 9, progress a twentieth of it."""

    def __init__(self) -> None:
        super().__init__(features=8, channels=8, blocks=1)
        self.unit = nn.Parameter(torch.tensor(1.0))

    def raw(self, clip: Any, instruction: Any) -> tuple[Tensor, Tensor]:
        frames = clip["front"][:, -1]
        green = frames[:, 0, 0, 1].float() * (1 if frames.dtype == torch.uint8 else 255)
        return self.unit * (green - 9) / 2, self.unit * green / 20


def episode(green: list[int], success: list[float], progress: float | None = None) -> Episode:
    frames = torch.zeros(len(green), 64, 64, 3, dtype=torch.uint8)
    frames[..., 1] = torch.tensor(green)[:, None, None]
    known = torch.tensor(green) / 20 if progress is None else torch.full((len(green),), progress)
    return Episode(
        images={"front": frames},
        state=torch.zeros(len(green), 2),
        action=torch.zeros(len(green) - 1, 2),
        reward=torch.zeros(len(green) - 1),
        success=torch.tensor(success),
        progress=known,
        instruction="push",
        source="expert",
    )


def record(folder: Path, episodes: list[Episode], *, judged: bool = True) -> str:
    names = {"state_names": ["x", "y"], "action_names": ["dx", "dy"]}
    with DatasetWriter(folder, fps=10, robot_type="t", cameras={"front": (64, 64)}, judged=judged, **names) as writer:
        writer.add(episodes)
    return str(folder)


def data_of(root: Path, held_out: list[Episode], *, share: float | None = None) -> ReflectorData:
    """A data module whose last episodes are held out; of two training episodes, one succeeds."""
    training = [episode([0, 2, 4, 20], [0, 0, 0, 1]), episode([0, 1, 2, 3], [0, 0, 0, 0])]
    number = len(held_out) + len(training)
    share = len(held_out) / number if share is None else share
    data = taught(ReflectorData([record(root / "data", [*training, *held_out])], batch_size=8, held_out=share))
    data.setup("fit")
    return data


def taught(data: ReflectorData) -> ReflectorData:
    """As a trainer has it that trains a reflector."""
    module = ReflectorTraining(InstantReflector(features=8, channels=8, blocks=1))
    data.trainer = SimpleNamespace(lightning_module=module)  # pyright: ignore[reportAttributeAccessIssue]
    return data


def calibrate(data: ReflectorData, folder: Path, reflector: InstantReflector | None = None) -> dict[str, float]:
    """The end of a training that taught nothing."""
    module = ReflectorTraining(reflector or Green())
    module.trainer = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        datamodule=data, precision_plugin=SimpleNamespace(forward_context=nothing), default_root_dir=folder
    )
    module.on_train_end()
    return json.loads((folder / "calibration.json").read_text())


@contextmanager
def nothing() -> Iterator[None]:
    yield


def test_figures_are_of_episodes_that_calibrated_nothing(tmp_path: Path) -> None:
    """Held out are four episodes; the successful ones are 0 and 3, so 0 and 1 calibrate, 3 and 2 report (`calibration_half`).

    In the calibrating half success is green > 10. In the other, frame 12 is a failure and 8 is a success: with the threshold
    between 10 and 12, of frames 2 4 8+ 20+ | 2 4 6 12 the alarms are 20+ and 12, one of two right, and one of two successes is
    found: precision 1/2, recall 1/2, f1 1/2. Of the 2 x 6 pairs of a success and a failure, 20+ wins 6 and 8+ wins 5: auc 11/12.
    """
    held_out = [
        episode([2, 4, 12, 20], [0, 0, 1, 1]),
        episode([2, 4, 6, 10], [0, 0, 0, 0]),
        episode([2, 4, 6, 12], [0, 0, 0, 0], progress=0.5),
        episode([2, 4, 8, 20], [0, 0, 1, 1], progress=0.5),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", ".* episodes to learn from")
        scores = calibrate(data_of(tmp_path, held_out), tmp_path)
    assert scores["f1"] == pytest.approx(1 / 2)
    assert scores["auc"] == pytest.approx(11 / 12)
    # |green / 20 - 1/2| over 2 4 8 20 2 4 6 12: (8 + 6 + 2 + 10 + 8 + 6 + 4 + 2) / 20 / 8 = 46 / 160
    assert scores["progress_error"] == pytest.approx(46 / 160)
    assert 0 < scores["ece"] < 1
    assert {name: scores[name] for name in scores if name.endswith(("episodes", "frames"))} == {
        "calibration_episodes": 2,
        "calibration_frames": 8,
        "report_episodes": 2,
        "report_frames": 8,
    }


@pytest.mark.parametrize(
    ("number", "share"), [(1, None), (0, 0.0), (0, 0.5)], ids=["one held out", "none held out", "share of a dataset"]
)
def test_without_two_held_out_episodes_there_are_no_figures(tmp_path: Path, number: int, share: float | None) -> None:
    data = data_of(tmp_path, [episode([2, 4, 12, 20], [0, 0, 1, 1])] * number, share=share)
    with pytest.warns(UserWarning, match="fewer than two held-out episodes.*has no figures"):
        scores = calibrate(data, tmp_path)
    assert scores.keys() == {"threshold", *(f"{a}_{b}" for a in ("calibration", "report") for b in ("episodes", "frames"))}
    assert scores["report_episodes"] == scores["report_frames"] == 0
    assert scores["calibration_episodes"] == (1 if number or share else 2)


def test_a_dataset_that_counts_twice_is_held_out_once(tmp_path: Path) -> None:
    """Otherwise one copy of an episode calibrates and the other one reports; three, so that they are not dealt out in pairs."""
    held_out = [episode([2, 4, 12, 20], [0, 0, 1, 1]), episode([2, 4, 6, 10], [0, 0, 0, 0]), episode([2, 4, 8, 20], [0, 0, 1, 1])]
    once = data_of(tmp_path, held_out)
    twice = taught(ReflectorData([once.roots[0], f"{tmp_path}/data/../data"], batch_size=8, held_out=3 / 5))
    twice.setup("fit")
    assert len(twice.table.instruction) == 2 * len(once.table.instruction), "of training it is a larger share"
    scores = calibrate(twice, tmp_path)
    assert (scores["calibration_episodes"], scores["report_episodes"]) == (2, 1)


def test_a_half_without_success_has_no_figures_of_success(tmp_path: Path) -> None:
    held_out = [episode([2, 4, 6, 8], [0, 0, 0, 0]), episode([2, 4, 12, 20], [0, 0, 1, 1])]
    with pytest.warns(UserWarning, match="neither auc, f1 nor ece"):
        scores = calibrate(data_of(tmp_path, held_out), tmp_path)
    assert scores["progress_error"] == pytest.approx(0) and not {"auc", "f1", "ece"} & scores.keys()
    assert math.isfinite(scores["threshold"])


def test_unknown_frames_calibrate_and_report_nothing(tmp_path: Path) -> None:
    """With the unknown ones, f1 would be another."""
    held_out = [episode([2, 4, 12, 20], [0, 0, 1, 1]), episode([2, 4, 6, 10], [0, 0, 0, 0])] * 2
    data = data_of(tmp_path, held_out)
    expected = calibrate(data, tmp_path)
    success, progress = data.calibration.success.clone(), data.calibration.progress.clone()
    more = data.calibration.frames[:][:, 0, 0, 1] == 4
    success[more], progress[more] = NAN, NAN
    data.calibration = replace(data.calibration, success=success, progress=progress)
    scores = calibrate(data, tmp_path)
    assert (scores["calibration_frames"], scores["report_frames"]) == (6, 6) != (expected["report_frames"],)
    assert all(math.isfinite(value) for value in scores.values())
    success[:], progress[:] = NAN, NAN
    with pytest.warns(UserWarning, match="no success or nothing else"):
        scores = calibrate(data, tmp_path)
    assert scores["threshold"] == 0.5 and not {"auc", "f1", "ece", "progress_error"} & scores.keys()


def batch_of(success: list[float], progress: list[float]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (len(success), 64, 64, 3), generator=generator, dtype=torch.uint8)
    words = tuple("push" for _ in success)
    return {
        "images": {"front": frames[:, None]},
        "instruction": words,
        "success": torch.tensor(success),
        "progress": torch.tensor(progress),
        "seed": 1,
    }


def step(module: ReflectorTraining, batch: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a training step."""
    module.zero_grad()
    module.log = module.log_dict = lambda *_, **__: None  # pyright: ignore[reportAttributeAccessIssue]
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def test_what_is_unknown_teaches_nothing() -> None:
    """A frame without labels changes neither loss nor gradient; one without success still teaches progress."""
    torch.manual_seed(0)
    module = ReflectorTraining(InstantReflector(features=8, channels=8, blocks=1), noise=0.0).eval()
    whole = batch_of([1, 0, NAN, NAN], [1, 0.5, NAN, NAN])
    judged = {name: value if name == "seed" else value[:2] for name, value in whole.items() if name != "images"}
    judged["images"] = {name: frames[:2] for name, frames in whole["images"].items()}
    (loss, gradient), (alone, expected) = step(module, whole), step(module, judged)
    assert loss == pytest.approx(alone, rel=1e-6) and gradient.keys() == expected.keys()
    assert all(torch.allclose(gradient[name], expected[name], rtol=1e-5, atol=1e-7) for name in expected)
    assert step(module, batch_of([1, NAN, 0], [1, 0.9, 0.5]))[0] != pytest.approx(
        step(module, batch_of([1, NAN, 0], [1, NAN, 0.5]))[0]
    )
    nothing, gradient = step(module, batch_of([NAN] * 3, [NAN] * 3))
    assert nothing == 0 and not any(g.any() for g in gradient.values())


def test_frames_without_labels_are_not_drawn_and_a_root_without_any_is_refused(tmp_path: Path) -> None:
    """Of the second of two training episodes, frames 4 to 7, success is unknown, and progress but for frame 7."""
    data = data_of(tmp_path, [episode([2, 4, 12, 20], [0, 0, 1, 1])] * 2)
    edit_column(tmp_path / "data" / DATA_FILE, "success", dict.fromkeys(range(4, 8)))
    edit_column(tmp_path / "data" / DATA_FILE, "progress", dict.fromkeys(range(4, 7), NAN))
    partly = taught(ReflectorData(data.roots, batch_size=64, held_out=0.5, max_shift=0))
    with pytest.warns(UserWarning, match=r"somebody judged success of 50.0 % and progress of 62.5 % of the frames; the reflector"):
        partly.setup("fit")
    assert partly.judged.tolist() == [0, 1, 2, 3, 7]
    batch = partly.draw(torch.Generator().manual_seed(0))
    assert set(batch["images"]["front"][:, 0, 0, 0, 1].tolist()) == {0, 2, 4, 20, 3}
    assert (
        torch.equal(batch["success"].isnan(), batch["images"]["front"][:, 0, 0, 0, 1] == 3) and not batch["progress"].isnan().any()
    )
    unknown = torch.full((4,), NAN)
    robot = record(tmp_path / "robot", [replace(episode([0, 1, 2, 3], [NAN] * 4), progress=unknown)] * 2, judged=False)
    with pytest.raises(ValueError, match=r"nobody judged success or progress in .*robot; leave it out of a reflector's data.roots"):
        taught(ReflectorData([*data.roots, robot])).setup("fit")


def test_a_run_of_one_step_writes_them_all(tmp_path: Path) -> None:
    """Through Lightning, with unknown labels in the data that validate."""
    unknown = [replace(episode([2, 4, 12, 20], [0, 0, 1, 1]), success=torch.tensor([0, NAN, 1, 1]))]
    data = data_of(tmp_path, [episode([2, 4, 12, 20], [0, 0, 1, 1])] * 4)
    data.calibration = replace(data.calibration, success=torch.cat([unknown[0].success] * 4))
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(max_steps=2, val_check_interval=1, accelerator="cpu", default_root_dir=tmp_path / "run", **options)
    data.setup = lambda stage: None
    trainer.fit(ReflectorTraining(InstantReflector(features=8, channels=8, blocks=1)), datamodule=data)
    scores = json.loads((tmp_path / "run" / "calibration.json").read_text())
    assert scores["report_frames"] == 6 and {"auc", "f1", "ece", "progress_error", "threshold"} <= scores.keys()
    assert math.isfinite(float(trainer.callback_metrics["val/success_loss"]))
