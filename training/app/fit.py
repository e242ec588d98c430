"""Training through Lightning: a composed configuration becomes a LightningCLI run that can be saved, repeated and resumed.

Constructor signatures are the schema, so a misspelt argument is an error and no config class mirrors them. Read `cli.py` for
how the configuration is composed, `configs/fit.yaml` for its keys and `resume.py` for what may be continued.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import inspect
import os
import random
import re
import sys
import time
from argparse import ArgumentError
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import get_object
from jsonargparse import ArgumentParser
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint, ProgressBar, RichProgressBar
from lightning.pytorch.cli import LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities.exceptions import SIGTERMException

from training.app.resume import CONFIG_FILE, check_same_run, find_checkpoint
from training.rl.post_training import PostTraining
from worldsim.core import checkpoint, loading
from worldsim.core.files import write_json
from worldsim.core.memory import keep_memory
from worldsim.core.precision import precision
from worldsim.core.world import World

# What a trainer divides by, and what somebody may have meant by 0.
INTERVALS = {
    "val_check_interval": "trainer.limit_val_batches=0 turns validation off",
    "check_val_every_n_epoch": "trainer.limit_val_batches=0 turns validation off",
    "accumulate_grad_batches": "1 steps after every batch",
}


def fit(config: dict[str, Any]) -> None:
    """The verb: `run_fit`, and beside the model how many physics steps that took."""
    run_fit(config)
    write_json(Path(config["run_dir"]) / "physics_steps.json", {"physics_steps": World.physics_steps_of_process})


def run_fit(config: dict[str, Any]) -> None:
    """Train `config["model"]` on `config["data"]` and leave config, checkpoints and logs in `trainer.default_root_dir`.

    Args:
        config: resolved configuration with the keys ``model``, ``data``, ``trainer`` and optionally ``seed_everything``,
            ``resume`` (continue from ``checkpoints/last.ckpt`` of the run directory if it exists, under that run's
            hyperparameters) and ``ckpt_path`` (a file, or "last"; wins over ``resume``, under any hyperparameters). Objects are
            ``_target_`` plus arguments. ``trainer.callbacks`` and ``trainer.logger`` may be dictionaries from a name to an
            object; a null entry is dropped. ``trainer.precision`` may be "auto": what this machine is fast at.
            Other keys are ignored.

    Raises:
        ValueError: if a key or value does not fit a constructor's signature, the trainer rejects a combination, or a run would be
            resumed as another one.
        FileNotFoundError: if `ckpt_path` names no file.
    """
    keep_memory()
    trainer = {**config["trainer"]}
    for key in ("callbacks", "logger"):
        if isinstance(trainer.get(key), dict) and "_target_" not in trainer[key]:
            trainer[key] = [item for item in trainer[key].values() if item is not None]
    trainer["accelerator"] = accelerator(trainer.get("accelerator", "auto"))
    if trainer.get("precision") == "auto":
        trainer["precision"] = precision(cuda=trainer["accelerator"] != "cpu")
    if never := [key for key in INTERVALS if trainer.get(key) == 0]:
        raise ValueError(f"trainer.{never[0]} must be positive, got 0; {INTERVALS[never[0]]}")
    run_dir = Path(trainer.get("default_root_dir") or ".")
    ckpt_path = find_checkpoint(run_dir, ckpt_path=config.get("ckpt_path"), resume=config.get("resume", False))
    args = to_class_path({"model": config["model"], "data": config["data"], "trainer": trainer})
    if config.get("seed_everything") is not None:
        args["seed_everything"] = config["seed_everything"]

    argv, sys.argv = sys.argv, sys.argv[:1]  # LightningCLI must not read it, while a DDP child process needs it whole
    try:
        cli = FitCLI(args=args, run=False, parser_kwargs={"exit_on_error": False})
    except ArgumentError as error:
        raise ValueError(explain(str(error))) from error
    except (ValueError, MisconfigurationException) as error:  # from a constructor, which the parser may wrap in its own words
        raise ValueError(explain(str(error))) from error
    finally:
        sys.argv = argv
    if ckpt_path is not None and config.get("ckpt_path") is None:
        check_same_run(run_dir, cli.parser.dump(cli.config))
    try:
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=None if ckpt_path is None else str(ckpt_path))
    except MisconfigurationException as error:
        raise ValueError(str(error)) from error
    except SIGTERMException as error:  # Lightning's own exit code is 0, as if the run had finished
        saved = find_checkpoint(run_dir, ckpt_path=None, resume=True) is not None
        raise SystemExit(f"terminated by a signal; {'resume=true continues' if saved else 'nothing was saved yet'}") from error
    cli.after_fit()


def accelerator(wanted: Any) -> Any:
    """What the trainer runs on: what is wanted, or of "auto" a GPU of CUDA where there is one, else the CPU.

    Raises:
        ValueError: if this machine has no such GPU, or worldsim cannot use it.
    """
    cuda = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if cuda else "cpu"
    if wanted == "mps" or (wanted in ("gpu", "cuda") and not cuda):
        raise ValueError(
            f"trainer.accelerator={wanted} needs a GPU of CUDA, torch sees {'one' if cuda else 'none'} (Apple's has no double "
            "precision, which noise is made in); leave it out to take what there is, or ask worldsim doctor why there is no GPU"
        )
    return wanted


def to_class_path(node: Any) -> Any:
    """Hydra's ``_target_`` notation as LightningCLI's ``class_path`` and ``init_args``, recursively.

    ``_partial_`` is dropped: an argument annotated as a callable says it already.
    """
    if isinstance(node, list):
        return [to_class_path(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: to_class_path(value) for key, value in node.items() if key not in ("_target_", "_partial_")}
    return {"class_path": node["_target_"], "init_args": converted} if "_target_" in node else converted


def explain(message: str) -> str:
    """One line out of jsonargparse's account of every alternative that it tried, with a suggestion for a misspelt name."""
    key = re.search(r'Parser key "([^"]+)"', message)
    problem = re.search(r"(?s).*Problem with given class_path '([^']+)':\s*(.+)", message)  # greedy: the innermost
    refused = re.search(r"(?s).*Errors:\s*- (.+)", message)  # by a constructor whose argument may also be null
    if problem:
        class_path, rest = problem.groups()
        text = f"{key.group(1) + ': ' if key else ''}{class_path}: {_first(rest)}"
    elif refused:
        class_path, text = None, _first(refused.group(1))
    else:
        class_path = "lightning.Trainer" if "Group 'trainer'" in message else None
        text = " ".join(message.split())
    option = re.search(r"option '([^']+)'", text, flags=re.IGNORECASE)
    if class_path is None or option is None:
        return text
    close = get_close_matches(option.group(1), parameters(get_object(class_path)), n=1)
    return text + (f". Did you mean '{close[0]}'?" if close else "")


def _first(errors: str) -> str:
    """The first of jsonargparse's list, in one line."""
    return " ".join(re.split(r"\n\s*(?:- |Given value|Subtypes)", errors)[0].split())


def parameters(target: Callable[..., Any]) -> list[str]:
    """What a configuration may set: a function's parameters, or a constructor's with those that its ``**kwargs`` pass on."""
    parser = ArgumentParser(exit_on_error=False)
    add: Callable[..., list[str]] = parser.add_class_arguments if inspect.isclass(target) else parser.add_function_arguments
    return add(target, fail_untyped=False)


class SaveRunConfig(SaveConfigCallback):
    """Writes the resolved configuration to `config.yaml` in the run directory, whichever logger comes first."""

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Replace the file; a resumed run describes itself."""
        run_dir = Path(trainer.default_root_dir)
        run_dir.mkdir(parents=True, exist_ok=True)
        self.parser.save(self.config, str(run_dir / CONFIG_FILE), overwrite=True)


class FitCLI(LightningCLI):
    """LightningCLI for any module and data module by class path, with this project's progress bar and saved configuration."""

    def __init__(self, **kwargs: Any) -> None:
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # an offline run must send nothing, crash reports included
        super().__init__(
            LightningModule,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"save_to_log_dir": False},
            **kwargs,
        )

    def instantiate_classes(self) -> None:
        """Build everything; a folder that several parts name is read once."""
        with loading.once():
            super().instantiate_classes()

    def after_fit(self) -> None:
        """Leave the policy that a learner has improved in the run's folder; learners themselves write nothing."""
        if isinstance(self.model, PostTraining) and self.trainer.is_global_zero:
            checkpoint.save(self.model.policy, self.trainer.default_root_dir)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """The configured trainer plus a progress display; which one depends on the terminal, so it is not in the configuration."""
        trainer = self._get(self.config_init, "trainer")
        callbacks = trainer.callbacks if isinstance(trainer.callbacks, list) else [trainer.callbacks]
        if trainer.enable_progress_bar is not False and not any(isinstance(callback, ProgressBar) for callback in callbacks):
            self.trainer_defaults["callbacks"] = RichProgressBar() if sys.stdout.isatty() else PlainProgress()
        return super().instantiate_trainer(**kwargs)


class LastCheckpoint(Checkpoint):
    """Keeps `<dirpath>/last.ckpt`, from which a run resumes; saved every `every_n_steps` optimizer steps and at the end.

    Lightning's ModelCheckpoint tests ``global_step % n == 0``, which a module that steps its optimizer several times per batch
    may never meet, and does not save at the end of a run that stops between two triggers. The file is replaced whole, so a run
    that is killed, whenever that happens, resumes from what was saved last. The states of the global random generators are saved
    too, and validation leaves them as it found them: a resumed run repeats an uninterrupted one bit for bit on one device,
    provided that the training loader knows its place (`training.supervised.data.TableData` does; a shuffled loader starts a new
    order after a checkpoint within an epoch) and that a validation loader has a ``generator`` of its own (Lightning asks for its
    iterator in the middle of the resumed set-up). With several processes each starts from its own seed again.

    Args:
        dirpath: folder of the checkpoint.
        every_n_steps: optimizer steps between two saves.

    Raises:
        ValueError: if `every_n_steps` is not positive.
    """

    def __init__(self, dirpath: str, every_n_steps: int = 500) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.path = Path(dirpath) / "last.ckpt"
        self.every_n_steps = every_n_steps
        self._saved_step = 0
        self._random: dict[str, Any] | None = None  # after the latest batch, or from the checkpoint
        self._ended = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue the random streams: after the set-up's draws, before the loader draws the epoch's order."""
        self._ended = False
        if trainer.world_size > 1:
            self._random = None  # the first process's state
        elif self._random is not None:
            set_random_state(self._random)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count from where the run starts; within an epoch an uninterrupted run would not have opened the loader again."""
        self._saved_step = trainer.global_step
        if self._random is not None and not trainer.is_last_batch:
            set_random_state(self._random)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Undo what opening the loader for a new epoch drew: a resumed run may have opened it earlier."""
        if batch_idx == 0 and self._random is not None:
            set_random_state(self._random)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Save if it is time, or if this was the last batch: saved any later, Lightning would repeat it on resuming."""
        self._random = random_state()
        due = trainer.global_step - self._saved_step >= self.every_n_steps
        out_of_steps = 0 < trainer.max_steps <= trainer.global_step
        last_epoch = trainer.max_epochs is not None and 0 < trainer.max_epochs <= trainer.current_epoch + 1
        if due or out_of_steps or (last_epoch and trainer.is_last_batch):
            self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Undo validation's draws, so that training does not depend on how often it runs."""
        if self._random is not None and not trainer.sanity_checking:
            set_random_state(self._random)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if an early stop left something unsaved."""
        self._ended = True
        if trainer.global_step != self._saved_step or not self.path.is_file():
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let a run that was killed between its last save and its end ship its model: Lightning skips the end too."""
        if trainer.ckpt_path is not None and not self._ended:
            pl_module.on_train_end()

    def state_dict(self) -> dict[str, Any]:
        """The random generators at this moment."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the generators for `on_fit_start`."""
        self._random = state_dict

    def _save(self, trainer: Trainer) -> None:
        self._saved_step = trainer.global_step
        # Lightning writes to the system's temporary folder first; from another file system the move would be a copy, which a
        # kill could cut short.
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        trainer.save_checkpoint(temporary)
        if trainer.is_global_zero:
            os.replace(temporary, self.path)


def random_state() -> dict[str, Any]:
    """States of Python's, NumPy's and torch's global generators, as plain values that `torch.load(weights_only=True)` accepts."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": (name, [int(key) for key in keys], position, has_gauss, gauss),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Continue from `random_state()`; CUDA's generators only where their number is the same."""
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), position, has_gauss, gauss))
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


class PlainProgress(ProgressBar):
    """One plain line every few seconds, for logs and pipes, where a redrawn bar is unreadable.

    Args:
        every_s: seconds between two lines.
    """

    def __init__(self, every_s: float = 10.0) -> None:
        super().__init__()
        self.every_s = every_s
        self._enabled = True
        self._start_s = self._printed_s = 0.0
        self._start_step = 0

    def enable(self) -> None:
        """Print."""
        self._enabled = True

    def disable(self) -> None:
        """Print nothing; Lightning calls it in every process but the first."""
        self._enabled = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start_s = self._printed_s = time.monotonic()
        self._start_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Print if it is time."""
        if time.monotonic() - self._printed_s >= self.every_s:
            self._print(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the last state."""
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._printed_s = time.monotonic()
        if not self._enabled:
            return
        step, elapsed_s = trainer.global_step, self._printed_s - self._start_s
        rate = (step - self._start_step) / max(elapsed_s, 1e-9)
        line = f"step {step}" + (f"/{trainer.max_steps}" if trainer.max_steps > 0 else f"  epoch {trainer.current_epoch}")
        for name, value in self.get_metrics(trainer, pl_module).items():
            if isinstance(value, (int, float)) and name != "v_num":
                line += f"  {name} {value:.4g}"
        print(f"{line}  {rate:.2g} steps/s  {elapsed_s:.0f} s", flush=True)
