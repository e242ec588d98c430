"""Robot bundles: a folder with a policy as one graph of tensors, its tokenizer and a description, checked before it appears.

The graph takes token ids and noise as inputs and has fixed shapes and an unrolled Euler loop, so that a robot needs neither
worldsim's models nor a random generator of torch. A bundle exists only if its file, loaded back, gives the policy's actions.
Read `worldsim/robot/bundle.py` next: it runs the folder with numpy, tokenizers and onnxruntime alone.
"""

import copy
import json
import logging
import math
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn
from torch._decomp import core_aten_decompositions
from torch.fx.experimental.proxy_tensor import make_fx

from worldsim.core.interfaces import FlowPolicy, Policy
from worldsim.core.spec import Spec
from worldsim.core.types import Features, Observation
from worldsim.core.views import Views, check_cameras
from worldsim.deploy.model_card import model_card
from worldsim.deploy.parity import TOLERANCE, compare, pictures, random_cases, random_guides, sample, uint8
from worldsim.deploy.quantization import quantize
from worldsim.nn.text import MAX_TOKENS, tokenizer
from worldsim.robot.bundle import (
    DESCRIPTION,
    FORMAT_VERSION,
    GRAPHS,
    GUIDED,
    TOKENIZER,
    Bundle,
    description_sha256,
    load_bundle,
    sha256,
)
from worldsim.robot.check import Recorded, write_recorded
from worldsim.robot.limits import limits_of
from worldsim.robot.reliability import Reference, write_reference

__all__ = ["Bundle", "TokenPolicy", "export_policy", "load_bundle"]

OPSET = 18
CARD = "README.md"
_PROTOBUF_LIMIT = 2**31


@runtime_checkable
class TokenPolicy(Protocol):
    """What a `FlowPolicy` needs beyond `velocity` to be exported: its views, and an `encode` of tensors alone."""

    views: Views

    def encode_tokens(
        self, picture: Shaped[Tensor, "b h w 3"], state: Float[Tensor, "b s"], tokens: Int[Tensor, "b n"]
    ) -> Features:
        """`FlowPolicy.encode` of mosaics of the `views`, the state and `worldsim.nn.text.tokenize(instruction)`."""
        ...


class _Graph(nn.Module):
    """The whole decision as one function of tensors."""

    def __init__(self, policy: FlowPolicy):
        super().__init__()
        self.policy = policy

    def forward(self, image: Tensor, state: Tensor, tokens: Tensor, noise: Tensor) -> dict[str, Tensor]:
        features = self.policy.encode_tokens(image, state, tokens)  # type: ignore[operator]
        return {"actions": sample(self.policy, features, noise), "features": features.vector}


class _GuidedGraph(nn.Module):
    """The sampler of real-time chunking with its derivatives written out as operators, which `torch.export` cannot do itself."""

    def __init__(self, policy: FlowPolicy, inputs: dict[str, Tensor]):
        super().__init__()
        operators: Any = core_aten_decompositions()

        def guided(features: Tensor, *others: Tensor) -> Tensor:
            return policy.guided(Features(features), *others)

        with torch.no_grad():  # otherwise derivatives keep operators that ONNX does not have
            self.sampler = make_fx(guided, decomposition_table=operators)(*inputs.values())

    def forward(self, features: Tensor, noise: Tensor, previous: Tensor, weights: Tensor) -> dict[str, Tensor]:
        return {"actions": self.sampler(features, noise, previous, weights)}


def export_policy(
    policy: Policy,
    folder: str | Path,
    *,
    format: Literal["onnx", "torch"] = "onnx",
    precision: Literal["float32", "int8"] = "float32",
    observation: Observation,
    fps: int | None = None,
    state_names: Sequence[str] | None = None,
    action_names: Sequence[str] | None = None,
    cases: int = 32,
    seed: int = 0,
    recorded: Observation | None = None,
    reference: Reference | None = None,
    limits: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Write a robot bundle and compare it with the policy on `cases` random inputs, in float32 on the CPU.

    Args:
        policy: a flow policy that is also a `TokenPolicy`; it is copied, not changed.
        folder: the bundle; an earlier bundle there is replaced, but only by one that passed the comparison.
        format: "onnx" for onnxruntime and other runtimes, "torch" for `torch.export.load`.
        precision: "int8" keeps linear layers and embeddings in 8 bits (`quantization.py`); onnx only.
        observation: real observations [b, ...] with pictures of any size; all of them take part in the comparison.
        fps: control frequency in Hz, written down for the robot; by default that of the policy's `spec`.
        state_names: names of the state's elements, in order; likewise.
        action_names: names of the action's elements, in order; likewise.
        cases: number of random observations, instructions and noises, at least 32.
        seed: of those.
        recorded: 8 to 32 real observations [b, ...] that the bundle keeps with noise and the policy's actions, so that
            `python -m worldsim.robot.check` can compare on the robot.
        reference: what training looked like, from `worldsim.robot.reliability.fit_reference`, for adaptive autonomy.
        limits: of the robot, entries of `worldsim.robot.limits.Limits` as JSON values. `measured` is known of a policy whose
            actions are positions that its state has under the same names.
        evaluation: of this policy, in physics: rate, ci95, episodes, seed, world; n_action_steps if chunks were executed in part.

    Returns:
        The description in `bundle.json`, with `max_abs_difference` under "parity".

    Raises:
        ValueError: if an argument does not fit the policy, `folder` holds something else, the policy's actions are not finite, or
            the file differs from the policy by more than `TOLERANCE`. Nothing is left behind then.
    """
    folder = Path(folder)
    if not (isinstance(policy, FlowPolicy) and isinstance(policy, TokenPolicy)):
        raise ValueError(
            f"{type(policy).__name__} cannot be exported: it needs to be a FlowPolicy with `encode_tokens` "
            f"(worldsim/deploy/export.py); serve it with worldsim serve policy=FOLDER"
        )
    if policy.spec is not None:
        fps = round(policy.spec.fps) if fps is None else fps
        state_names = policy.spec.state_names if state_names is None else state_names
        action_names = policy.spec.action_names if action_names is None else action_names
    _check_arguments(policy, folder, format, precision, observation, state_names, action_names, cases)
    if recorded is not None:
        _check_recorded(recorded, policy, observation)
    # Float32 on the CPU is what a robot runs, and the reference for it.
    policy = copy.deepcopy(policy).cpu().float().eval().requires_grad_(False)
    size = sum(tensor.nbytes for tensor in policy.state_dict().values())
    if format == "onnx" and size >= _PROTOBUF_LIMIT:
        raise ValueError(f"the policy has {size / 2**30:.1f} GiB of weights, one ONNX file holds at most 2; use format=torch")
    random, noises = random_cases(policy, observation, cases, seed)

    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        draft = Path(scratch) / "draft"
        draft.mkdir()
        inputs = {
            "image": torch.from_numpy(pictures(random[:1], policy.views)),
            "state": random.state[:1],
            "tokens": torch.ones(1, MAX_TOKENS, dtype=torch.long),
            "noise": noises[:1],
        }
        graph = _Graph(policy)
        with torch.no_grad():
            made = policy.encode_tokens(inputs["image"], inputs["state"], inputs["tokens"])
        if type(made) is not Features:
            raise ValueError(
                f"{type(policy).__name__} keeps more of an observation than a vector ({type(made).__name__}), which a bundle "
                f"cannot hold; serve it with worldsim serve policy=FOLDER"
            )
        _write_graph(graph, inputs, draft / GRAPHS[format], format)
        guides = random_guides(policy, 1, seed)
        with torch.no_grad():
            guided_inputs = {"features": graph(**inputs)["features"], "noise": noises[:1], **guides}
        _write_graph(_GuidedGraph(policy, guided_inputs), guided_inputs, draft / GUIDED[format], format)
        if precision == "int8":
            quantize(draft / GRAPHS[format])  # the guided sampler stays as it is: it is small, and derivatives lose more
        tokenizer().save(str(draft / TOKENIZER))
        files = [GRAPHS[format], GUIDED[format], TOKENIZER]
        if recorded is not None:
            files += write_recorded(_record(policy, recorded, seed), draft)
        if reference is not None:
            files += write_reference(reference, draft)
        description = {
            "format_version": FORMAT_VERSION,
            "format": format,
            "precision": precision,
            "policy": f"{type(policy).__module__}.{type(policy).__qualname__}",
            "inputs": [_entry(name, tensor) for name, tensor in inputs.items()],
            "outputs": [{**_entry("actions", noises[:1]), **_range(policy)}],
            "spec": None if policy.spec is None else policy.spec.to_json(),
            "tokenizer": {"file": TOKENIZER, "length": MAX_TOKENS, "pad_id": 0, "lowercase": True},
            "views": {name: list(size) for name, size in policy.views.items()},
            "fps": fps,
            "state_names": None if state_names is None else list(state_names),
            "action_names": None if action_names is None else list(action_names),
            "num_steps": policy.num_steps,
            "limits": {**_measured(policy.spec), **(limits or {})} or None,
            "evaluation": None if evaluation is None else dict(evaluation),
            "versions": {"worldsim": _worldsim_version(), "torch": torch.__version__},
            "sha256": {name: sha256(draft / name) for name in files},
        }
        limits_of(description)
        _write_description(draft, description)
        guides = random_guides(policy, cases, seed)
        description["parity"] = compare(policy, draft, random, noises, guides, TOLERANCE[precision])
        (draft / CARD).write_text(model_card(description))
        description["sha256"][CARD] = sha256(draft / CARD)
        _write_description(draft, description)
        _replace(draft, folder, Path(scratch) / "replaced")
    return description


def _check_arguments(
    policy: FlowPolicy,
    folder: Path,
    format: str,
    precision: str,
    observation: Observation,
    state_names: Sequence[str] | None,
    action_names: Sequence[str] | None,
    cases: int,
) -> None:
    if format not in GRAPHS:
        raise ValueError(f"format must be one of {', '.join(GRAPHS)}, got {format!r}")
    if precision not in TOLERANCE or (precision == "int8" and format != "onnx"):
        raise ValueError(f"precision must be float32, or int8 with format=onnx, got {precision!r} with format={format}")
    check_cameras(policy.views, observation.images, "the policy", "the observation has")
    shown = {observation.images[name].ndim for name in policy.views}
    if observation.state.ndim != 2 or shown != {4} or not len(observation.state):
        raise ValueError("observation must be a batch of at least one; index it with a slice, observation[:1]")
    for what, names, expected in (
        ("state_names", state_names, observation.state.shape[-1]),
        ("action_names", action_names, policy.action_dim),
    ):
        if names is not None and len(names) != expected:
            raise ValueError(f"{what} must have {expected} names, got {len(names)}: {list(names)}")
    if cases < 32:
        raise ValueError(f"cases must be at least 32, got {cases}; fewer say little about parity")
    if folder.exists() and not (folder / DESCRIPTION).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not a robot bundle; pass a new folder")


def _check_recorded(recorded: Observation, policy: FlowPolicy, observation: Observation) -> None:
    if not 8 <= len(recorded.state) <= 32:
        raise ValueError(f"recorded must hold 8 to 32 observations, got {len(recorded.state)}; choose some of several episodes")
    check_cameras(policy.views, recorded.images, "the policy", "recorded has")
    if recorded.state.shape[1:] != observation.state.shape[1:]:
        shapes = [tuple(one.state.shape[1:]) for one in (recorded, observation)]
        raise ValueError(f"recorded has states of shape {shapes[0]}, observation {shapes[1]}")


def _record(policy: FlowPolicy, observation: Observation, seed: int) -> Recorded:
    """Observations as a robot sees them, with noise and the actions of the policy itself, which sees them at their own size."""
    images = {name: uint8(observation.images[name]) for name in policy.views}
    states = observation.state.detach().cpu().float()
    generator = torch.Generator().manual_seed(seed)
    noises = torch.randn(len(states), policy.action_horizon, policy.action_dim, generator=generator)
    with torch.no_grad():
        features = policy.encode(Observation(images, states, observation.instruction))
        actions = sample(policy, features, noises)
    return Recorded(pictures(observation, policy.views), states.numpy(), noises.numpy(), actions.numpy(), observation.instruction)


def _write_graph(graph: nn.Module, inputs: dict[str, Tensor], path: Path, format: str) -> None:
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)  # it warns about torchvision's absence
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # deprecations inside torch, nothing a user can act on
            program = torch.export.export(graph, (), kwargs=inputs, strict=False)
            outputs = list(graph(**inputs))
            if format == "torch":
                torch.export.save(program, path)
                return
            torch.onnx.export(
                program,
                kwargs=inputs,
                f=path,
                input_names=list(inputs),
                output_names=outputs,
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    finally:
        exporter.setLevel(level)


def _replace(draft: Path, folder: Path, replaced: Path) -> None:
    if not (folder / DESCRIPTION).is_file():
        os.rename(draft, folder)
        return
    os.rename(folder, replaced)
    try:
        os.rename(draft, folder)
    except OSError:
        os.rename(replaced, folder)
        raise


def _range(policy: FlowPolicy) -> dict[str, list[float]]:
    """Limits of each action, or the range in training where it has none, and how many native units are one of the network's."""
    units, spec = policy.action_units, policy.spec
    seen = None if spec is None else spec.action_statistics
    low, high = units.low.tolist(), units.high.tolist()
    if seen is not None:
        low = [limit if math.isfinite(limit) else least for limit, least in zip(low, seen.min, strict=True)]
        high = [limit if math.isfinite(limit) else most for limit, most in zip(high, seen.max, strict=True)]
    high = [most if most > least else least + scale for least, most, scale in zip(low, high, units.scale.tolist(), strict=True)]
    return {"low": low, "high": high, "scale": units.scale.tolist()}


def _measured(spec: Spec | None) -> dict[str, list[int]]:
    """For a robot that is told positions, the numbers of the state that measure them: where it is, and not 0, stands still."""
    if spec is None:
        return {}
    known = [channel.name in spec.state_names and channel.kind in ("absolute", "angle") for channel in spec.action]
    if not all(known):
        return {}
    return {"measured": [spec.state_names.index(name) for name in spec.action_names]}


def _entry(name: str, tensor: Tensor) -> dict[str, Any]:
    return {"name": name, "shape": list(tensor.shape), "dtype": str(tensor.dtype).removeprefix("torch.")}


def _write_description(draft: Path, description: dict[str, Any]) -> None:
    document = {**description, "sha256_of_this_description": description_sha256(description)}
    (draft / DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n")


def _worldsim_version() -> str:
    try:
        return version("worldsim")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
