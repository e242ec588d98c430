"""Exported models: a folder with `model.safetensors` and `model.yaml` (class and arguments). Nothing is unpickled.

Lightning's own checkpoints resume a run; these folders are what the rest of worldsim loads: policies, world models,
reflectors. They may come from a stranger, so whoever loads one says what it must be, and nothing else is built. Read
`worldsim/export.py` for robot bundles.
"""

import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
PACKAGES = ("worldsim", "models", "reflectors", "training")  # whose classes a folder may name
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.[A-Za-z]\w*)+", re.ASCII)  # of a public class; no part begins with _
PLAIN = (str, int, float, bool, type(None))

M = TypeVar("M", bound="Configured")


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
    (folder / f"{DESCRIPTION}.tmp").write_text(yaml.safe_dump(description, sort_keys=False))
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
        description = yaml.safe_load(path.read_text())
        target = description.pop("_target_")
    except (yaml.YAMLError, AttributeError, TypeError, KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; export the model again") from error
    cls = _class(path, target)
    if not issubclass(cls, expected):
        raise ValueError(f"{folder} holds a {cls.__name__}, expected a {expected.__name__}; pass another folder")
    if odd := _odd_type(description):
        raise ValueError(f"{path} holds a {odd}, expected numbers, text, lists and dictionaries; export the model again")
    try:
        model = cls(**description)
    except TypeError as error:
        raise ValueError(f"{path} does not fit {target}: {error}") from error
    load_weights(model, folder)
    return model.eval()


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


def _odd_type(description: dict[Any, Any]) -> str | None:
    """Type of a value, however deep, that is no text, number, truth value, list or dictionary."""
    seen: set[int] = set()  # an alias of YAML may lead back to what holds it
    left: list[Any] = [description]
    while left:
        value = left.pop()
        if isinstance(value, (dict, list)):
            if id(value) not in seen:
                seen.add(id(value))
                left += [*value, *value.values()] if isinstance(value, dict) else value
        elif not isinstance(value, PLAIN):
            return type(value).__name__
    return None


def load_weights(model: nn.Module, folder: str | Path) -> None:
    """Load the weights of an exported model of the same shape.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if the file is damaged or a tensor is missing, unknown or of another shape.
    """
    path = Path(folder) / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}; train the model first with worldsim fit")
    try:
        model.load_state_dict(load_file(path))
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or train the model again") from error
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        raise ValueError(f"{path} does not fit {type(model).__name__}: {detail}") from error
