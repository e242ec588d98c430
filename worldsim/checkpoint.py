"""Exported models: a folder with `model.safetensors` and `model.yaml` (class and arguments). Nothing is unpickled.

Lightning's own checkpoints resume a run; these folders are what the rest of worldsim loads: policies, world models,
reflectors. Read `worldsim/export.py` for robot bundles.
"""

import inspect
import os
from pathlib import Path
from typing import Any

import yaml
from hydra.utils import get_class
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
PACKAGES = ("worldsim", "models", "reflectors", "training")  # whose classes a folder may name


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


def load(folder: str | Path, expected: type | None = None) -> Any:
    """Build the model that `save` described and load its weights, in evaluation mode.

    Args:
        folder: written by `save`.
        expected: class that the model must be an instance of.

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
    except (yaml.YAMLError, AttributeError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; export the model again") from error
    if str(target).partition(".")[0] not in PACKAGES:
        raise ValueError(f"{path} names {target}, which is not a model of worldsim; nothing was imported")
    try:
        cls = get_class(target)
    except (ImportError, AttributeError, ValueError) as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and (missing.name or "").partition(".")[0] not in PACKAGES:
            raise missing from error  # an optional dependency, whose extra the command line names
        raise ValueError(f"{path} names {target}, which does not exist here; export the model again") from error
    if expected is not None and not issubclass(cls, expected):
        raise ValueError(f"{folder} holds a {cls.__name__}, expected a {expected.__name__}; pass another folder")
    try:
        model = cls(**description)
    except TypeError as error:
        raise ValueError(f"{path} does not fit {target}: {error}") from error
    load_weights(model, folder)
    return model.eval()


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
