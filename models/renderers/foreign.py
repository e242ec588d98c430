"""A scene that somebody trained with `ns-train` as a folder that worldsim loads: nothing in it is executed, no image is needed.

nerfstudio's own loader runs whatever objects `config.yml` names, unpickles the checkpoint and opens the training images. Here the
configuration is read as plain data, the checkpoint as tensors, and the model is built alone. Read `nerfstudio.py` for our field.
"""

import json
import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from torch import Tensor, nn
from torchmetrics.image import lpip

from models.renderers.nerfstudio import RadianceField
from models.renderers.splats import Splats
from worldsim.core import checkpoint
from worldsim.core.renderer import Look, Renderer
from worldsim.geometry.alignment import ALIGNMENT, Similarity

SPLATFACTO = ("means", "scales", "quats", "opacities", "features_dc", "features_rest")
SH_CONSTANT = 0.28209479177387814  # the spherical harmonic of degree 0
NOT_RENDERED = ("lpips.", "camera_optimizer.", "device_indicator_param")


class Nerfacto(Renderer):
    """nerfstudio's nerfacto, for rendering in its own coordinates.

    Args:
        low, high: its scene box.
        images: number of its training images, each of which has an appearance.
        settings: of `NerfactoModelConfig` that differ from its defaults.
    """

    background: Tensor

    def __init__(self, low: list[float], high: list[float], images: int, settings: dict[str, Any]):
        super().__init__()
        config = NerfactoModelConfig(**settings, camera_optimizer=CameraOptimizerConfig(mode="off"))
        with _no_download():
            self.model = NerfactoModel(config, SceneBox(torch.tensor([low, high])), images)
        self.register_buffer("background", torch.zeros(3), persistent=False)

    @torch.no_grad()
    def render(self, origins: Tensor, directions: Tensor, rays_at_once: int = 4096) -> Look:
        """As `Renderer.render`, in nerfstudio's units."""
        parts = [self._render(*part) for part in zip(origins.split(rays_at_once), directions.split(rays_at_once), strict=True)]
        color, distance, opacity = (torch.cat(values) for values in zip(*parts, strict=True))
        return color, distance, opacity

    def _render(self, origins: Tensor, directions: Tensor) -> Look:
        one = torch.ones_like(origins[:, :1])
        outputs = self.model(RayBundle(origins, directions, one, camera_indices=torch.zeros_like(one, dtype=torch.long)))
        return outputs["rgb"].clamp(0, 1), outputs["depth"][:, 0], outputs["accumulation"][:, 0]


@contextmanager
def _no_download() -> Iterator[None]:
    """While it lasts, nerfacto is built without LPIPS, whose network it would download and no rendering needs."""
    metric = lpip.LearnedPerceptualImagePatchSimilarity
    lpip.LearnedPerceptualImagePatchSimilarity = nn.Identity
    try:
        yield
    finally:
        lpip.LearnedPerceptualImagePatchSimilarity = metric


def convert(run: Path, out: Path) -> Path:
    """Write a run of `ns-train` nerfacto, splatfacto or worldsim-nerf as a folder that `worldsim.core.checkpoint.load` reads.

    `alignment.json` in it leads from nerfstudio's units to the coordinates of the capture.

    Args:
        run: folder with `config.yml`, `dataparser_transforms.json` and `nerfstudio_models/`.
        out: new folder.

    Raises:
        FileExistsError: if `out` holds a model already.
        FileNotFoundError: if one of these is missing.
        ValueError: if one is damaged, the method is another, or the weights are those of tiny-cuda-nn.
    """
    if (out / checkpoint.DESCRIPTION).exists():
        raise FileExistsError(f"{out} holds a model already; choose another out or delete it")
    config = read_config(run / "config.yml")
    try:
        method, settings = config["method_name"], dict(config["pipeline"]["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{run / 'config.yml'} is not a configuration of ns-train: {error!r}; pass the run's own folder"
        ) from error
    weights, to_capture = read_weights(run), read_transform(run / "dataparser_transforms.json")
    if method not in BUILDERS:
        raise ValueError(
            f"{run} is of method {method}, which worldsim cannot render; train one of {', '.join(BUILDERS)} on the same data"
        )
    try:
        model = BUILDERS[method](settings, weights)
    except RuntimeError as error:
        detail = " ".join(str(error).split())[:300]
        remedy = "copy the run again; those of tiny-cuda-nn need training again with --pipeline.model.implementation torch"
        raise ValueError(f"the weights of {run} do not fit its configuration; {remedy}: {detail}") from error
    checkpoint.save(model, out)
    to_capture.save(out / ALIGNMENT)
    return out


def read_config(path: Path) -> dict[str, Any]:
    """nerfstudio's `config.yml` as plain data: an object becomes the dictionary of its fields, a function its name.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no YAML, or no dictionary.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; pass the folder of a run of ns-train")
    try:
        config = yaml.load(path.read_text(), Loader=_PlainLoader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} holds a {type(config).__name__}, expected the fields of a configuration")
    return config


def read_weights(run: Path) -> dict[str, Tensor]:
    """The model's tensors in the newest checkpoint of a run.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it holds anything else than tensors and plain values, or no model.
    """
    steps = sorted((run / "nerfstudio_models").glob("step-*.ckpt"), key=lambda path: int(re.sub(r"\D", "", path.stem)))
    if not steps:
        raise FileNotFoundError(f"{run / 'nerfstudio_models'} holds no checkpoint step-*.ckpt; train first with ns-train")
    if not zipfile.is_zipfile(steps[-1]):
        raise ValueError(f"{steps[-1]} is not a checkpoint of ns-train: it is no archive; copy it again, or train again")
    try:
        state = torch.load(steps[-1], map_location="cpu", weights_only=True)["pipeline"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{steps[-1]} is not a checkpoint of ns-train: {str(error).splitlines()[0][:200]}") from error
    tensors = {name.removeprefix("_model."): value for name, value in state.items() if name.startswith("_model.")}
    if not tensors:
        raise ValueError(f"{steps[-1]} holds no model; train again with ns-train")
    return tensors


def read_transform(path: Path) -> Similarity:
    """From nerfstudio's units to the capture's coordinates: `dataparser_transforms.json` says nerf = scale * (R capture + t).

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; it lies beside config.yml in a run of ns-train")
    try:
        data = json.loads(path.read_text())
        matrix, scale = np.array(data["transform"], dtype=float), float(data["scale"])
        rotation, translation = matrix[:3, :3], matrix[:3, 3]
        if not (scale > 0 and np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-4)):
            raise ValueError("no rotation, or no positive scale")
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"{path} is damaged: {error!r}; copy it again from the run of ns-train") from error
    return Similarity(1 / scale, rotation.T, -rotation.T @ translation)


class _PlainLoader(yaml.SafeLoader):
    """Reads Python objects as data and never builds one."""


def _plain(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    return loader.construct_sequence(node, deep=True) if isinstance(node, yaml.SequenceNode) else node.value


_PlainLoader.add_multi_constructor("tag:yaml.org,2002:python/", _plain)


def _radiance_field(settings: dict[str, Any], weights: dict[str, Tensor]) -> RadianceField:
    names = ("levels", "max_resolution", "log2_table", "hidden", "proposal_samples", "samples", "implementation")
    low, high = _box(weights, "radiance.field.aabb")
    field = RadianceField(low, high, **{name: settings[name] for name in names if name in settings})  # type: ignore[arg-type]
    _fill(field, {name.removeprefix("radiance."): tensor for name, tensor in weights.items()})
    return field


def _nerfacto(settings: dict[str, Any], weights: dict[str, Tensor]) -> Nerfacto:
    appearances = weights.get("field.embedding_appearance.embedding.weight")
    known = {field.name for field in fields(NerfactoModelConfig)} - {"_target", "camera_optimizer"}
    low, high = _box(weights, "field.aabb")
    field = Nerfacto(
        low,
        high,
        images=1 if appearances is None else len(appearances),
        settings={name: value for name, value in settings.items() if name in known},
    )
    _fill(field.model, weights)
    return field


def _splats(settings: dict[str, Any], weights: dict[str, Tensor]) -> Splats:
    try:
        means, scales, quats, opacities, first, rest = (weights[f"gauss_params.{name}"] for name in SPLATFACTO)
        degree = math.isqrt(1 + rest.shape[1]) - 1
    except (KeyError, IndexError) as error:
        raise ValueError(f"the checkpoint lacks parameters of splats: {error!r}; train splatfacto again") from error
    if degree == 0:  # then splatfacto learns the colour itself, through a sigmoid
        first = (first.sigmoid() - 0.5) / SH_CONSTANT
    splats = Splats(len(means), degree)
    harmonics = torch.cat([first[:, None], rest], dim=1)
    values = {"means": means, "scales": scales.exp(), "quats": quats, "opacities": opacities.sigmoid().flatten()}
    splats.load_state_dict(values | {"harmonics": harmonics})
    return splats


BUILDERS = {"nerfacto": _nerfacto, "splatfacto": _splats, "worldsim-nerf": _radiance_field}


def _fill(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load weights; those of parts that no rendering needs may be missing or more."""
    rest = {name: value for name, value in model.state_dict().items() if name.startswith(NOT_RENDERED)}
    model.load_state_dict({**{name: value for name, value in weights.items() if not name.startswith(NOT_RENDERED)}, **rest})


def _box(weights: dict[str, Tensor], name: str) -> tuple[list[float], list[float]]:
    if name not in weights or weights[name].shape != (2, 3):
        raise ValueError(
            f"the checkpoint lacks {name}, the corners of the scene box; was it trained by another version of nerfstudio?"
        )
    low, high = weights[name].tolist()
    return low, high
