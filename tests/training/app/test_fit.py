"""`run_fit`: conversion, saved configuration, exact resume, loggers and one-line constructor errors."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from training.app import cli
from training.app.fit import LastCheckpoint, explain, random_state, run_fit, set_random_state, to_class_path

TINY = """
import os
import signal
import torch
from lightning import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

class Net(nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.layer = nn.Linear(width, 1)

class Wide(Net):
    pass

class Model(LightningModule):
    def __init__(self, net: nn.Module, lr: float = 0.1, note: str | None = None) -> None:
        super().__init__()
        self.net, self.lr = net, lr

    def training_step(self, batch, batch_idx):
        if self.lr == 99.0:  # somebody ends the process
            os.kill(os.getpid(), signal.SIGTERM)
        noise = torch.randn_like(batch[0])  # the global generator: a resumed run must continue its stream
        loss = self.net.layer(batch[0] + noise).square().mean()
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        torch.rand(1)  # must not disturb training

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.lr)

class Data(LightningDataModule):
    def __init__(self, rows: int = 8, validate: bool = False) -> None:
        super().__init__()
        self.validate = validate
        self.dataset = TensorDataset(torch.arange(rows * 4.0).reshape(rows, 4) / 32)

    def train_dataloader(self):
        return DataLoader(self.dataset, batch_size=4, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.dataset, batch_size=4, generator=torch.Generator()) if self.validate else []
"""

EXPERIMENT = """# @package _global_
name: tiny
model: {_target_: worldsim_tiny_fit.Model, net: {_target_: worldsim_tiny_fit.Net, width: 4}}
data: {_target_: worldsim_tiny_fit.Data}
trainer: {accelerator: cpu, max_steps: 2, log_every_n_steps: 1}
"""

Compose = Callable[..., dict[str, Any]]


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Compose]:
    """An importable module and experiment of one linear layer; returns a function that composes its configuration."""
    (tmp_path / "worldsim_tiny_fit.py").write_text(TINY)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(str(tmp_path))

    def composed(run: str, *overrides: str) -> dict[str, Any]:
        config = cli.compose_config("fit", ["experiment=tiny", f"run_dir={tmp_path / run}", *overrides], str(tmp_path))
        container = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
        assert isinstance(container, dict)
        return {str(key): value for key, value in container.items()}

    yield composed
    sys.modules.pop("worldsim_tiny_fit", None)


def last(tmp_path: Path, run: str) -> dict[str, Any]:
    return torch.load(tmp_path / run / "checkpoints" / "last.ckpt", weights_only=True)


def test_targets_become_class_paths():
    node = {"a": [{"_target_": "m.A", "_partial_": True, "x": {"_target_": "m.B"}}], "n": 1}
    expected = {"a": [{"class_path": "m.A", "init_args": {"x": {"class_path": "m.B", "init_args": {}}}}], "n": 1}
    assert to_class_path(node) == expected


def test_a_saved_run_is_accepted_by_stock_lightning_syntax(tiny, tmp_path):
    run_fit(tiny("run"))
    assert last(tmp_path, "run")["global_step"] == 2
    assert (tmp_path / "run" / "csv" / "version_0" / "metrics.csv").is_file()
    assert list((tmp_path / "run" / "tensorboard" / "version_0").glob("events*"))
    saved = tmp_path / "run" / "config.yaml"
    assert yaml.safe_load(saved.read_text())["model"]["init_args"]["lr"] == 0.1

    command = [sys.executable, "-m", "training", "fit", "--config", str(saved), "--trainer.max_steps", "4"]
    paths = [str(tmp_path), str(Path(cli.__file__).parents[2])]
    result = subprocess.run(command, env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)}, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "step 4/4" in result.stdout  # a pipe gets plain lines
    assert last(tmp_path, "run/again")["global_step"] == 4
    assert last(tmp_path, "run")["global_step"] == 2  # the run itself is untouched


@pytest.mark.parametrize("limit", ["max_steps", "max_epochs"])
@pytest.mark.parametrize("validate", ["false", "true"])
def test_a_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tiny, tmp_path, limit, validate):
    """An epoch has two batches, so 4 steps are 2 epochs."""
    half, full = ("trainer.max_steps=4", "trainer.max_steps=8") if limit == "max_steps" else ("max_epochs=2", "max_epochs=4")
    if limit == "max_epochs":
        half, full = f"+trainer.{half}", f"+trainer.{full}"
    common = [f"+data.validate={validate}"] + (["trainer.max_steps=-1"] if limit == "max_epochs" else [])
    run_fit(tiny("straight", full, *common))
    run_fit(tiny("resumed", half, *common))
    run_fit(tiny("resumed", full, *common, "resume=true"))
    straight, resumed = (last(tmp_path, run) for run in ("straight", "resumed"))
    assert resumed["global_step"] == straight["global_step"] == 8
    assert resumed["epoch"] == straight["epoch"]
    for key, value in straight["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key
    assert len(list((tmp_path / "resumed" / "csv").glob("version_*/metrics.csv"))) == 2  # history is kept


def test_without_resume_a_run_starts_afresh_and_says_so(tiny, tmp_path):
    run_fit(tiny("run", "trainer.max_steps=3"))
    with pytest.warns(UserWarning, match="resume=true"):
        run_fit(tiny("run"))
    assert last(tmp_path, "run")["global_step"] == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+model.lr=0.2"], "model.lr is 0.1 there, 0.2 here"),
        (["model.net.width=3", "+data.rows=12"], "model.net.width is 4 there, 3 here; data.rows is 8 there, 12 here"),
        (["seed_everything=7"], "seed_everything is 0 there, 7 here"),
        (["+model.note=x"], "model.note is null there, x here"),
        (["+trainer.accumulate_grad_batches=2"], "trainer.accumulate_grad_batches is 1 there, 2 here"),
        (["+trainer.gradient_clip_val=0.5"], "trainer.gradient_clip_val is null there, 0.5 here"),
        (["trainer.precision=64-true"], "trainer.precision is 32-true there, 64-true here"),
        (
            ["model.net._target_=worldsim_tiny_fit.Wide"],
            "model.net._target_ is worldsim_tiny_fit.Net there, worldsim_tiny_fit.Wide here",
        ),
    ],
)
def test_a_run_is_not_resumed_as_another(tiny, tmp_path, overrides, message):
    run_fit(tiny("run", "trainer.precision=32-true"))
    before = (tmp_path / "run" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=f"with other hyperparameters: {message}; use the same ones, another run_dir") as error:
        run_fit(tiny("run", "trainer.precision=32-true", "resume=true", "trainer.max_steps=4", *overrides))
    assert "\n" not in str(error.value)
    assert (tmp_path / "run" / "config.yaml").read_text() == before
    run_fit(tiny("run", "trainer.precision=32-true", "ckpt_path=last", "trainer.max_steps=3", "+model.lr=0.3"))  # who asks for it


@pytest.mark.parametrize("text", ["", "model: [", "- 1", "model: {}", "\x00", "trainer: 3\nmodel: 1\ndata: 1"])
def test_a_run_whose_configuration_is_damaged_is_one_line(tiny, tmp_path, text):
    run_fit(tiny("run"))
    (tmp_path / "run" / "config.yaml").write_text(text)
    with pytest.raises(
        ValueError, match=r"config.yaml is damaged \(.*\); resume=false starts afresh, ckpt_path=last goes on"
    ) as error:
        run_fit(tiny("run", "resume=true", "trainer.max_steps=4"))
    assert "\n" not in str(error.value)


def test_a_resumed_run_may_be_longer_and_looked_at_in_other_ways(tiny, tmp_path):
    """A parameter that the old configuration does not know had its default."""
    run_fit(tiny("run"))
    saved = tmp_path / "run" / "config.yaml"
    saved.write_text(saved.read_text().replace("    lr: 0.1\n", ""))
    more = [
        "trainer.max_steps=4",
        "trainer.log_every_n_steps=2",
        "trainer.logger.tensorboard=null",
        "+trainer.limit_train_batches=2",
    ]
    run_fit(tiny("run", *more, "+trainer.check_val_every_n_epoch=2", "trainer.callbacks.last.every_n_steps=9", "resume=true"))
    assert last(tmp_path, "run")["global_step"] == 4
    saved.unlink()
    with pytest.warns(UserWarning, match="config.yaml is missing: nobody can tell"):
        run_fit(tiny("run", "trainer.max_steps=6", "resume=true"))


@pytest.mark.parametrize(
    ("key", "remedy"),
    [
        ("val_check_interval", "trainer.limit_val_batches=0 turns validation off"),
        ("check_val_every_n_epoch", "trainer.limit_val_batches=0 turns validation off"),
        ("accumulate_grad_batches", "1 steps after every batch"),
    ],
)
def test_an_interval_of_zero_is_one_line(tiny, tmp_path, capsys, key, remedy):
    arguments = ["fit", "--config-dir", str(tmp_path), "experiment=tiny", f"run_dir={tmp_path / 'run'}", f"+trainer.{key}=0"]
    assert cli.main([*arguments, "+data.validate=true"]) == 2
    assert capsys.readouterr().err == f"worldsim: trainer.{key} must be positive, got 0; {remedy}\n"


def test_a_checkpoint_that_does_not_exist_is_an_error(tiny):
    with pytest.raises(FileNotFoundError, match="ckpt_path"):
        run_fit(tiny("run", "ckpt_path=last"))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("+model.lrr=0.5", "model: worldsim_tiny_fit.Model: Option 'lrr' is not accepted. Did you mean 'lr'?"),
        ("+model.net.widht=5", "worldsim_tiny_fit.Net: Option 'widht' is not accepted. Did you mean 'width'?"),
        ("+trainer.max_stepz=5", "'max_stepz'. Did you mean 'max_steps'?"),
        ("+model.lr=fast", "Expected a <class 'float'>"),
        ("trainer.callbacks.last.every_n_steps=0", "every_n_steps must be at least 1, got 0"),
        ("model._target_=worldsim_tiny_fit.Modl", "has no attribute 'Modl'"),
        ("trainer.accelerator=mps", "trainer.accelerator=mps needs a GPU of CUDA, torch sees"),
    ],
)
def test_a_wrong_constructor_argument_is_one_line(tiny, override, expected):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the message is checked below
        run_fit(tiny("run", override))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.continuation.share=2", "share must be in (0, 1], got 2.0; null starts every dream from data"),
        (
            "model.continuation.doubt=0.5",
            "continuation.doubt=0.5 ends dreams about which world models disagree, and there is one; name others with model.rivals",
        ),
    ],
)
def test_what_a_constructor_refuses_is_said_alone(
    override: str, words: str, folders: dict[str, str], recorded: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Although its argument might have been null, of which the parser would tell as well."""
    models = [f"model.{name}.folder={folder}" for name, folder in folders.items()]
    run = ["fit", "experiment=post_train", *models, f"data.roots=[{recorded}]", f"run_dir={tmp_path / 'run'}", override]
    assert cli.main(run) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"worldsim: {words}"


def test_an_unfamiliar_message_is_folded_into_one_line():
    assert explain("a\n  b") == "a b"


def test_wandb_offline_writes_a_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_fit(tiny("run", "logger=wandb"))
    assert list((tmp_path / "run" / "wandb").glob("offline-run-*"))


def test_named_callbacks_and_loggers_can_be_dropped(tiny, tmp_path):
    run_fit(tiny("run", "trainer.callbacks.last=null", "trainer.logger.tensorboard=null", "+trainer.enable_checkpointing=false"))
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not (tmp_path / "run" / "tensorboard").exists()
    assert (tmp_path / "run" / "config.yaml").is_file()


def test_random_streams_continue():
    state = random_state()
    drawn = torch.rand(3)
    torch.rand(5)
    set_random_state(state)
    assert torch.equal(torch.rand(3), drawn)


def test_last_checkpoint_rejects_a_period_of_zero():
    with pytest.raises(ValueError, match="every_n_steps"):
        LastCheckpoint("folder", every_n_steps=0)


def test_a_terminated_run_is_not_a_finished_one(tiny: Compose, tmp_path: Path) -> None:
    """Lightning alone would leave with exit code 0, and a demo would take the stage for done."""
    with pytest.raises(SystemExit, match="terminated by a signal; nothing was saved yet"):
        run_fit(tiny("run", "+model.lr=99.0"))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.parent.mkdir(parents=True, exist_ok=True)
    last.touch()
    with pytest.raises(SystemExit, match="terminated by a signal; resume=true continues"):
        run_fit(tiny("run", "+model.lr=99.0"))
