"""Which run a training continues, and whether it still is the same one.

A checkpoint holds weights and optimiser states, not the learning rate that a new command line brings: what would go on under other
hyperparameters is refused, because its curve and its `config.yaml` would tell of a run that never was. Read `fit.py` next.
"""

import inspect
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from lightning_utilities.core.rank_zero import rank_zero_warn
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

CONFIG_FILE = "config.yaml"
# What a trainer is told beyond how long to run, where, how often to look and what to call: this changes what is learned.
TRAINER = (
    "precision",
    "devices",
    "num_nodes",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "overfit_batches",
)


def find_checkpoint(run_dir: Path, *, ckpt_path: str | None, resume: bool) -> Path | None:
    """The checkpoint to continue from, or None to start afresh.

    Raises:
        FileNotFoundError: if `ckpt_path` names no file.
    """
    last = run_dir / "checkpoints" / "last.ckpt"
    if ckpt_path is not None:
        path = last if ckpt_path == "last" else Path(ckpt_path)
        if not path.is_file():
            raise FileNotFoundError(f"ckpt_path {str(path)!r} does not exist; leave it out to start afresh")
        return path
    if not last.is_file():
        return None
    if not resume:
        rank_zero_warn(f"{run_dir} holds an earlier run, whose last.ckpt will be replaced; resume=true would continue it")
        return None
    return last


def check_same_run(run_dir: Path, config: str) -> None:
    """ValueError if a run would be resumed with another model, other data, another seed or a trainer that learns otherwise,
    or if nobody can tell because its configuration is damaged.

    It may be made longer or shorter, log and validate at other times, and call other callbacks. A parameter that the saved
    configuration does not know, because it is newer than that, is taken to have had its default.

    Args:
        run_dir: of the run, with its `config.yaml`.
        config: the present configuration, as LightningCLI saves it.
    """
    if not (run_dir / CONFIG_FILE).is_file():
        rank_zero_warn(f"{run_dir / CONFIG_FILE} is missing: nobody can tell whether this run had the same hyperparameters")
        return
    now = _learned(OmegaConf.create(config))  # PyYAML alone would read 1e-05 as a word
    try:
        then = _learned(OmegaConf.load(run_dir / CONFIG_FILE))
    except (YAMLError, OmegaConfBaseException, ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{run_dir / CONFIG_FILE} is damaged ({' '.join(str(error).split())[:200]}); resume=false starts afresh, "
            f"ckpt_path=last goes on without comparing hyperparameters"
        ) from error
    different = [f"{name} is {a} there, {z} here" for name, a, z in differences(then, now)]
    if different:
        raise ValueError(
            f"resume=true would continue {run_dir} with other hyperparameters: {'; '.join(different)}; use the same ones, another "
            f"run_dir, or resume=false to start afresh"
        )


def differences(then: Any, now: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """Where two configurations differ: the key as a command line names it, and both values; null where there is none."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return [] if then == now else [(name, _shown(then), _shown(now))]
    target = now.get("class_path")
    if then.get("class_path") != target:
        return [(f"{name}._target_", _shown(then), _shown(now))]
    if target is not None:
        defaults = {p.name: p.default for p in inspect.signature(get_object(target)).parameters.values()}
        then, now = then.get("init_args", {}), now.get("init_args", {})
        now = {key: value for key, value in now.items() if key in then or value != _plain(defaults.get(key))}
    keys = dict.fromkeys([*then, *now])
    parts = [differences(then.get(key), now.get(key), f"{name}.{key}" if name else key) for key in keys]
    return [difference for part in parts for difference in part]


def _learned(saved: Any) -> dict[str, Any]:
    """The part of a configuration that determines what is learned."""
    config: Any = OmegaConf.to_container(saved)
    trainer = {key: config.get("trainer", {}).get(key) for key in TRAINER}
    return {"seed_everything": config.get("seed_everything"), "trainer": trainer} | {key: config[key] for key in ("model", "data")}


def _shown(value: Any) -> str:
    """A value in few words: an object by its class."""
    if isinstance(value, dict):
        return str(value.get("class_path", value))
    return "null" if value is None else str(value)


def _plain(default: Any) -> Any:
    return list(default) if isinstance(default, tuple) else default
