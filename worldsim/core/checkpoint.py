"""Exported models: a folder with `model.safetensors` and `model.yaml` (class and arguments). Nothing is unpickled.

Lightning's own checkpoints resume a run; these folders are what the rest of worldsim loads: policies, world models,
reflectors. They may come from a stranger, so whoever loads one says what it must be, and nothing else is built. Read
`worldsim/deploy/export.py` for robot bundles.
"""

import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
LONGEST_DESCRIPTION = 2**16  # bytes
PACKAGES = ("worldsim", "models", "reflectors", "training")  # whose classes a folder may name
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.[A-Za-z]\w*)+", re.ASCII)  # of a public class; no part begins with _
PLAIN = (str, int, float, bool, type(None))

M = TypeVar("M", bound="Configured")


class PlainDumper(yaml.SafeDumper):
    """Writes what stands in two places twice, because `load` takes no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Configured(nn.Module):
    """A module that records its constructor's arguments as plain values in `self.arguments`, so that `save` can describe it."""

    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any):
        instance = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        bound.apply_defaults()
        values = {name: value for name, value in bound.arguments.items() if name != "self"}
        object.__setattr__(instance, "arguments", {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()})
        return instance


def save(model: Configured, folder: str | Path) -> Path:
    """Write a model's weights, class and constructor arguments, each file whole or not at all."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # Cloned, as safetensors refuses tensors that two modules share.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / f"{WEIGHTS}.tmp")
    description = {"_target_": f"{type(model).__module__}.{type(model).__qualname__}", **model.arguments}
    (folder / f"{DESCRIPTION}.tmp").write_text(yaml.dump(description, Dumper=PlainDumper, sort_keys=False))
    for name in (WEIGHTS, DESCRIPTION):
        os.replace(folder / f"{name}.tmp", folder / name)
    return folder


def load(folder: str | Path, expected: type[M]) -> M:
    """Build the model that `save` described and load its weights, in evaluation mode.

    Args:
        folder: written by `save`, or by anyone: at most modules of worldsim's are imported before its class is known to be right.
        expected: contract that the model must fulfil, such as `Policy`.

    Raises:
        FileNotFoundError: if the folder holds no exported model.
        ValueError: if the description or the weights are damaged or do not fit each other, or the class is not `expected`.
        ModuleNotFoundError: if the model needs a library that is not installed.
    """
    path = Path(folder) / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no exported model in {Path(folder)} ({DESCRIPTION} is missing); train one with worldsim fit")
    try:
        description = _read(path)
        target = description.pop("_target_")
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; export the model again") from error
    cls = _class(path, target)
    if not issubclass(cls, expected):
        raise ValueError(f"{folder} holds a {cls.__name__}, expected a {expected.__name__}; pass another folder")
    if odd := _odd_type(description):
        raise ValueError(f"{path} holds a {odd}, expected numbers, text, lists and dictionaries; export the model again")
    try:
        with torch.device("meta"):  # takes no memory, however large the numbers of a stranger are
            model = cls(**description)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError) as error:
        raise ValueError(f"{path} does not fit {target}: {' '.join(str(error).split())[:300]}; export the model again") from error
    _check_weights(model, Path(folder) / WEIGHTS)
    model = cls(**description)
    load_weights(model, folder)
    return model.eval()


def _read(path: Path) -> dict[str, Any]:
    """The description, if it is small and says everything itself: references could make a few bytes into any number of values."""
    if path.stat().st_size > LONGEST_DESCRIPTION:
        raise ValueError(f"expected at most {LONGEST_DESCRIPTION} bytes, got {path.stat().st_size}")
    text = path.read_text()
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise ValueError("it refers to other parts of itself, expected every value where it belongs")
    return yaml.safe_load(text)


def _class(path: Path, target: Any) -> type[Configured]:
    """The class that a description names, once it is known to be a model of worldsim's. Imports its module and calls nothing."""
    if not isinstance(target, str) or not NAME.fullmatch(target):
        raise ValueError(f"{path} names {target!r:.200}, which is not a model of worldsim; nothing was imported")
    where, _, name = target.rpartition(".")
    try:
        module = import_module(where)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise  # an optional dependency, whose extra the command line names
        raise ValueError(f"{path} names {target}, which does not exist here; export the model again") from error
    if not hasattr(module, name):
        raise ValueError(f"{path} names {target}, which does not exist here; export the model again")
    cls = getattr(module, name)
    is_ours = isinstance(cls, type) and cls.__module__.partition(".")[0] in PACKAGES
    if not is_ours or not issubclass(cls, Configured):
        raise ValueError(f"{path} names {target}, which is not a model of worldsim; nothing was built")
    return cls


def _odd_type(value: Any) -> str | None:
    """Type of a value, however deep, that is no text, number, truth value, list or dictionary."""
    if isinstance(value, (dict, list)):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((odd for odd in map(_odd_type, parts) if odd), None)
    return None if isinstance(value, PLAIN) else type(value).__name__


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights of an exported model of the same shape.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is damaged or a tensor is missing, unknown or of another shape.
    """
    _check_weights(model, Path(folder) / WEIGHTS)
    model.load_state_dict(load_file(Path(folder) / WEIGHTS))


def _check_weights(model: nn.Module, path: Path) -> None:
    """What `load_weights` raises, from the header of the file alone; the model need not have memory."""
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; train the model first with worldsim fit")
    try:
        with safe_open(path, "pt") as file:
            there = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or train the model again") from error
    built = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if different := [name for name in (built | there) if built.get(name) != there.get(name)]:
        name, more = different[0], f" and {len(different) - 1} others differ" if len(different) > 1 else ""
        raise ValueError(
            f"{path} does not fit {type(model).__name__}: {name} is {there.get(name, 'missing')}, expected "
            f"{built.get(name, 'no such tensor')}{more}; use the weights of this description, or train the model again"
        )
