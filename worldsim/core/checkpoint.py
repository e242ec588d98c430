"""Exported models: a folder with `model.safetensors`, `model.yaml` (class and arguments) and `spec.json`. Nothing is unpickled.

Lightning's own checkpoints resume a run; these folders are what the rest of worldsim loads: policies, world models,
reflectors. They may come from a stranger, so whoever loads one says what it must be, and nothing else is built: only classes of
worldsim, or of a plug-in that is installed (`plugins.py`). Read `worldsim/deploy/export.py` for robot bundles.
"""

import hashlib
import inspect
import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from worldsim.core import plugins
from worldsim.core.spec import FILE as SPEC
from worldsim.core.spec import Spec

WEIGHTS, DESCRIPTION = "model.safetensors", "model.yaml"
BASE, BASE_HASH = "_base_", "base_sha256"  # in the description, and in the header of the weights
LONGEST_DESCRIPTION, DEEPEST = 2**16, 8  # bytes, and models within models
PACKAGES = ("worldsim", "models", "reflectors", "training")  # whose classes a folder may name
NAME = re.compile(rf"({'|'.join(PACKAGES)})(\.[A-Za-z]\w*)+", re.ASCII)  # of a public class; no part begins with _
PLAIN = (str, int, float, bool, type(None))

M = TypeVar("M", bound="Configured")


class PlainDumper(yaml.SafeDumper):
    """Writes what stands in two places twice, because `load` takes no references."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class Configured(nn.Module):
    """A module that records its constructor's arguments in `self.arguments`, so that `save` can describe it.

    They must be plain values, models of this kind, or lists and dictionaries of either.

    Attributes:
        spec: what the numbers and pictures mean that it learned from; None before it did.
    """

    arguments: dict[str, Any]
    spec: Spec | None = None

    def __new__(cls, *args: Any, **kwargs: Any):
        instance = super().__new__(cls)
        bound = inspect.signature(cls.__init__).bind(instance, *args, **kwargs)
        bound.apply_defaults()
        values = {name: value for name, value in bound.arguments.items() if name != "self"}
        for parameter in bound.signature.parameters.values():
            if parameter.kind is parameter.VAR_KEYWORD:
                values |= values.pop(parameter.name)
        object.__setattr__(instance, "arguments", {name: _as_written(value) for name, value in values.items()})
        return instance

    def __getnewargs_ex__(self) -> tuple[tuple[()], dict[str, Any]]:
        """What `copy.deepcopy` gives to `__new__`, which binds it to the constructor's signature."""
        return (), self.arguments


def save(model: Configured, folder: str | Path, base: str | Path | None = None) -> Path:
    """Write a model's weights, class, constructor arguments and `spec`, each file whole or not at all.

    An argument that is itself a `Configured` model is described in its place, as a class with arguments of its own; two arguments
    that are one module are two after loading. A base from a hub needs nothing here: its id is an argument of the class, whose
    constructor fetches it and whose `state_dict` leaves it out.

    Args:
        model: what to write.
        folder: where to.
        base: folder of another model, a whole one, of which most tensors are the same: only those that differ are written, and
            `load` takes the others from there. It is named by its path from `folder` and by the hash of its weights.

    Raises:
        FileNotFoundError: if `base` holds no exported model.
        ValueError: if `base` has a base itself, is `folder`, or has tensors that the model has not.
    """
    folder = Path(folder)
    description, metadata = _describe(model), None
    # Cloned, as safetensors refuses tensors that two modules share.
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in model.state_dict().items()}
    if base is not None:
        if BASE in _read(Path(base)) or Path(base).resolve() == folder.resolve():
            raise ValueError(f"{base} is no base for {folder}: it has one itself, or is the same folder; save the model whole")
        there = load_file(Path(base) / WEIGHTS)
        if unknown := sorted(there.keys() - weights.keys()):
            raise ValueError(f"{base} is no base of this {type(model).__name__}, which has no {unknown[0]}; save it whole")
        weights = {name: tensor for name, tensor in weights.items() if not _same(tensor, there.get(name))}
        description[BASE] = os.path.relpath(base, folder)
        metadata = {BASE_HASH: _sha256(Path(base) / WEIGHTS)}  # in this file, so that its own hash stands for all the weights
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / f"{WEIGHTS}.tmp", metadata)
    (folder / f"{DESCRIPTION}.tmp").write_text(yaml.dump(description, Dumper=PlainDumper, sort_keys=False))
    if model.spec is None:
        (folder / SPEC).unlink(missing_ok=True)  # of the model that is replaced
    else:
        model.spec.write(folder)
    for name in (WEIGHTS, DESCRIPTION):
        os.replace(folder / f"{name}.tmp", folder / name)
    return folder


def _as_written(argument: Any) -> Any:
    """As a description gives it back: tuples are lists, those of dictionaries too."""
    if isinstance(argument, dict):
        return {name: _as_written(value) for name, value in argument.items()}
    return list(argument) if isinstance(argument, tuple) else argument


def _describe(value: Any) -> Any:
    """An argument, however deep, with each model in it as the name of its class and its arguments."""
    if isinstance(value, Configured):
        return {"_target_": f"{type(value).__module__}.{type(value).__qualname__}", **_describe(value.arguments)}
    if isinstance(value, dict):
        return {key: _describe(item) for key, item in value.items()}
    return [_describe(item) for item in value] if isinstance(value, (list, tuple)) else value


def _same(tensor: Tensor, other: Tensor | None) -> bool:
    return other is not None and tensor.dtype == other.dtype and torch.equal(tensor, other)


def load(folder: str | Path, expected: type[M] | tuple[type[M], ...]) -> M:
    """Build the model that `save` described and load its weights, in evaluation mode.

    The global generator stays as it is: how many models a run loads changes nothing that it draws.

    Args:
        folder: written by `save`, or by anyone: at most modules of worldsim's and of installed plug-ins are imported before its
            class is known to be right, and a model within it must be one that the constructor's annotation asks for.
        expected: contract that the model must fulfil, such as `Policy`, or several of which it must fulfil one.

    Raises:
        FileNotFoundError: if the folder holds no exported model, or its base is not there.
        ValueError: if the description or the weights are damaged or do not fit each other, the class is not `expected` or one of a
            plug-in that does not work, or the base has changed.
        ModuleNotFoundError: if the model needs a library that is not installed.
    """
    folder, description = Path(folder), _read(Path(folder))
    base = description.pop(BASE, None)
    part = _part(str(folder / DESCRIPTION), description, expected if isinstance(expected, tuple) else (expected,))
    try:
        with torch.device("meta"):  # takes no memory, however large the numbers of a stranger are
            model = _build(part)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, AttributeError) as error:
        reason, target = " ".join(str(error).split())[:300], f"{part.cls.__module__}.{part.cls.__qualname__}"
        raise ValueError(f"{folder / DESCRIPTION} does not fit {target}: {reason}; export the model again") from error
    files = _weights_files(folder, base)
    _check_weights(model, files)
    with torch.random.fork_rng(devices=[]):  # constructors draw weights, of which none stays
        model = _build(part)
    _fill(model, files)
    model.spec = _spec(folder, model)
    return model.eval()


def _read(folder: Path) -> dict[str, Any]:
    """The description, if it is small and says everything itself: references could make a few bytes into any number of values."""
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no exported model in {folder} ({DESCRIPTION} is missing); train one with worldsim fit")
    try:
        if path.stat().st_size > LONGEST_DESCRIPTION:
            raise ValueError(f"expected at most {LONGEST_DESCRIPTION} bytes, got {path.stat().st_size}")
        text = path.read_text()
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
            raise ValueError("it refers to other parts of itself, expected every value where it belongs")
        description = yaml.safe_load(text)
        if not isinstance(description, dict) or "_target_" not in description:
            raise ValueError("it names no class, expected a _target_")
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}; export the model again") from error
    if odd := _odd_type(description):
        raise ValueError(f"{path} holds a {odd}, expected numbers, text, lists and dictionaries; export the model again")
    return description


class Part(NamedTuple):
    """A model that a description names, not built yet; parts of its own stand within the arguments."""

    cls: type[Configured]
    arguments: dict[str, Any]


def _part(where: str, description: dict[str, Any], contracts: tuple[type, ...], depth: int = 0) -> Part:
    """The classes that a description names, once each is known to be what is asked for in its place. Builds nothing."""
    if depth > DEEPEST:
        raise ValueError(f"{where} holds models within models more than {DEEPEST} deep; export the model again")
    cls = _class(where, description["_target_"], contracts)
    if not issubclass(cls, contracts):
        wanted = " or ".join(contract.__name__ for contract in contracts)
        raise ValueError(f"{where} holds a {cls.__name__}, expected a {wanted}; pass another folder")

    def resolve(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [resolve(name, item) for item in value]
        if not isinstance(value, dict):
            return value
        if "_target_" not in value:
            return {key: resolve(name, item) for key, item in value.items()}
        if not (asked := _models_in(_annotation(cls, name))):
            raise ValueError(f"{where} holds a model as {name}, which {cls.__name__} does not annotate as one; annotate it there")
        return _part(f"{where}, {name},", value, asked, depth + 1)

    return Part(cls, {name: resolve(name, value) for name, value in description.items() if name != "_target_"})


def _build(value: Any) -> Any:
    """A part, or an argument with parts in it, as the models themselves."""
    if isinstance(value, Part):
        return value.cls(**_build(value.arguments))
    if isinstance(value, dict):
        return {key: _build(item) for key, item in value.items()}
    return [_build(item) for item in value] if isinstance(value, list) else value


def _annotation(cls: type, name: str) -> Any:
    try:
        return get_type_hints(cls.__init__).get(name)
    except (NameError, AttributeError):  # a name that is imported for type checkers alone
        return None


def _models_in(annotation: Any) -> tuple[type[Configured], ...]:
    """Classes of models in an annotation such as `Trunk`, `Trunk | None` or `list[Trunk]`."""
    if isinstance(annotation, type) and not get_args(annotation):
        return (annotation,) if issubclass(annotation, Configured) else ()
    return tuple(cls for part in get_args(annotation) for cls in _models_in(part))


def _class(where: str, target: Any, contracts: tuple[type, ...]) -> type[Configured]:
    """The class that a description names, once it is known to be a model of worldsim's or of a plug-in. Imports its module and
    calls nothing."""
    if not isinstance(target, str) or not NAME.fullmatch(target):
        groups = list(dict.fromkeys(group for contract in contracts for group in plugins.groups_of(contract)))
        listed = next((plugin for plugin in plugins.installed(groups) if plugin.target == target), None)
        if listed is None:
            raise ValueError(
                f"{where} names {target!r:.200}, which no installed plug-in lists under {' or '.join(groups)} and which is not a "
                "model of worldsim; nothing was imported"
            )
        return listed.load()
    module_name, _, name = target.rpartition(".")
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in PACKAGES:
            raise  # an optional dependency, whose extra the command line names
        raise ValueError(f"{where} names {target}, which does not exist here; export the model again") from error
    if not hasattr(module, name):
        raise ValueError(f"{where} names {target}, which does not exist here; export the model again")
    cls = getattr(module, name)
    is_ours = isinstance(cls, type) and cls.__module__.partition(".")[0] in PACKAGES
    if not is_ours or not issubclass(cls, Configured):
        raise ValueError(f"{where} names {target}, which is not a model of worldsim; nothing was built")
    return cls


def _odd_type(value: Any) -> str | None:
    """Type of a value, however deep, that is no text, number, truth value, list or dictionary."""
    if isinstance(value, (dict, list)):
        parts = [*value, *value.values()] if isinstance(value, dict) else value
        return next((odd for odd in map(_odd_type, parts) if odd), None)
    return None if isinstance(value, PLAIN) else type(value).__name__


def _spec(folder: Path, model: Configured) -> Spec | None:
    """What a folder says of the numbers of its model, if it does; ValueError if that is of another number of them."""
    if not (folder / SPEC).is_file():
        return None
    spec = Spec.read(folder)
    for feature in ("state", "action"):
        units, channels = getattr(model, f"{feature}_units", None), getattr(spec, feature)
        if units is not None and len(units.scale) != len(channels):
            raise ValueError(
                f"{folder / SPEC} has {len(channels)} channels of {feature}, the weights have {len(units.scale)}; export it again"
            )
    return spec


def load_weights(model: Configured, folder: str | Path) -> None:
    """Load the weights and the `spec` of an exported model of the same shape.

    Raises:
        FileNotFoundError: if there are none, or the base that they were saved on is not there.
        ValueError: if a file is damaged, a tensor is missing, unknown or of another shape, or the base has changed.
    """
    files = _weights_files(Path(folder), _read(Path(folder)).get(BASE))
    _check_weights(model, files)
    _fill(model, files)
    model.spec = _spec(Path(folder), model)


def _weights_files(folder: Path, base: Any) -> list[Path]:
    """Files with the weights of a folder, its base's first, once that is known to be the one that it was saved on."""
    own = folder / WEIGHTS
    if not own.is_file():
        raise FileNotFoundError(f"no weights at {own}; train the model first with worldsim fit")
    if base is None:
        return [own]
    if not isinstance(base, str) or Path(base).is_absolute():
        raise ValueError(f"{folder / DESCRIPTION} has {BASE} {base!r:.200}, expected a path that begins at its folder")
    file = folder / base / WEIGHTS
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds what differs from {file}, which is missing; bring it back, or correct {BASE}")
    if _sha256(file) != _header(own)[0].get(BASE_HASH):
        raise ValueError(f"{file} is not what {folder} was saved on, its weights have changed; restore it, or train {folder} again")
    return [file, own]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _header(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """Metadata and shapes of the tensors of a file, without reading them."""
    try:
        with safe_open(path, "pt") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
            return file.metadata() or {}, shapes
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}); restore it or train the model again") from error


def _check_weights(model: nn.Module, files: list[Path]) -> None:
    """What `load_weights` raises of tensors, from the headers of the files alone; the model need not have memory."""
    there = {name: shape for path in files for name, shape in _header(path)[1].items()}
    built = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    if different := [name for name in (built | there) if built.get(name) != there.get(name)]:
        name, more = different[0], f" and {len(different) - 1} others differ" if len(different) > 1 else ""
        raise ValueError(
            f"{files[-1]} does not fit {type(model).__name__}: {name} is {there.get(name, 'missing')}, expected "
            f"{built.get(name, 'no such tensor')}{more}; use the weights of this description, or train the model again"
        )


def _fill(model: nn.Module, files: list[Path]) -> None:
    model.load_state_dict({name: tensor for path in files for name, tensor in load_file(path).items()})
