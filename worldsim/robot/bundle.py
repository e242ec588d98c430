"""Robot bundles: load a folder that `worldsim export` wrote and act with it, without worldsim's training dependencies.

A robot needs numpy, tokenizers and onnxruntime (or torch, for the torch format); this file imports nothing else, not even the
rest of worldsim, so it may be copied beside a bundle. The picture that it takes is made by `worldsim.core.views.mosaic`. Read
`worldsim/deploy/export.py` next: it writes the folder and defines `bundle.json`.
"""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tokenizers import Tokenizer

FORMAT_VERSION = 4
DESCRIPTION, TOKENIZER = "bundle.json", "tokenizer.json"
GRAPHS = {"onnx": "policy.onnx", "torch": "policy.pt2"}
GUIDED = {"onnx": "guided.onnx", "torch": "guided.pt2"}  # the sampler alone, drawn towards a chunk that is being executed

Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


class Bundle:
    """An exported policy: ``actions = bundle(image, state, instruction, noise)``, one observation at a time, numpy throughout.

    Args:
        description: contents of `bundle.json`.
        tokenizer: padded and cut to the graph's number of tokens.
        run: the graph, arrays by input name -> arrays by output name.
        guided: the guided sampler: features, noise, previous and weights -> actions.
    """

    def __init__(self, description: dict[str, Any], tokenizer: Tokenizer, run: Run, guided: Run):
        self.description, self._tokenizer, self._run, self._guided = description, tokenizer, run, guided
        self.shapes = {entry["name"]: tuple(entry["shape"]) for entry in description["inputs"]}
        self._dtypes = {entry["name"]: np.dtype(entry["dtype"]) for entry in description["inputs"]}

    def noise(self, generator: np.random.Generator) -> np.ndarray:
        """Standard-normal noise for one decision, [ah, ad]; the policy's only randomness."""
        return generator.standard_normal(self.shapes["noise"][1:], dtype=np.float32)

    def tokens(self, instruction: str) -> np.ndarray:
        """Token ids of a sentence, [n]."""
        text = instruction.lower() if self.description["tokenizer"]["lowercase"] else instruction
        return np.asarray(self._tokenizer.encode(text).ids, dtype=np.int64)

    def __call__(self, image: np.ndarray, state: np.ndarray, instruction: str, noise: np.ndarray) -> np.ndarray:
        """A chunk of actions.

        Args:
            image: RGB uint8 [h, w, 3], what `worldsim.core.views.mosaic(images, description["views"])` makes of a picture of each
                camera; where there is one camera, and its pictures have its view's size, simply its picture.
            state: proprioception in native units, float32 [s], in the order of `description["state_names"]`.
            instruction: one sentence.
            noise: from `noise`, float32 [ah, ad].

        Returns:
            Actions in native units within their limits, float32 [ah, ad].

        Raises:
            ValueError: if an input has another shape or dtype, or a value or an action is not finite.
        """
        return _finite(self._run(self._feed(image, state, instruction, noise))["actions"])

    def guided(
        self,
        image: np.ndarray,
        state: np.ndarray,
        instruction: str,
        noise: np.ndarray,
        previous: np.ndarray,
        weights: np.ndarray,
    ) -> np.ndarray:
        """A chunk that goes on from one that is being executed (real-time chunking, `worldsim.core.flow.sample_guided`).

        Args:
            image: as for a call, like the next three.
            state: proprioception.
            instruction: one sentence.
            noise: from `noise`.
            previous: its actions for the same steps, float32 [ah, ad].
            weights: how much each counts, float32 [ah] in [0, 1].

        Raises:
            ValueError: as a call.
        """
        feed = self._feed(image, state, instruction, noise)
        # The graph's own sample is thrown away: its sampler is small beside the encoder, whose features are what counts here.
        features = self._run(feed)["features"]
        shape, dtype = self.shapes["noise"][1:], self._dtypes["noise"]
        guide = {"previous": _row("previous", previous, shape, dtype), "weights": _row("weights", weights, shape[:1], dtype)}
        return _finite(self._guided({"features": features, "noise": feed["noise"], **guide})["actions"])

    def _feed(self, image: np.ndarray, state: np.ndarray, instruction: str, noise: np.ndarray) -> dict[str, np.ndarray]:
        inputs = {"image": image, "state": state, "tokens": self.tokens(instruction), "noise": noise}
        return {name: _row(name, value, self.shapes[name][1:], self._dtypes[name]) for name, value in inputs.items()}


def _row(name: str, value: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    value = np.asarray(value)
    if value.shape != shape or value.dtype != dtype:
        raise ValueError(f"{name} must be {dtype} of shape {shape}, got {value.dtype} {value.shape}; convert it before the call")
    if not np.isfinite(value).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity; check the sensor")
    return np.ascontiguousarray(value[None])


def _finite(actions: np.ndarray) -> np.ndarray:
    if not np.isfinite(actions).all():
        raise ValueError("the policy's actions are not finite; do not execute them, check the observation")
    return actions[0]


def load_bundle(folder: str | Path, *, threads: int = 0) -> Bundle:
    """Load a robot bundle after checking the hash of every file in it.

    The hashes find damage, not malice. An ONNX file holds no code; `torch.export.load` unpickles, so load the torch format only
    from people you trust.

    Args:
        folder: written by `worldsim export`.
        threads: of onnxruntime within one operator; 0 lets it decide. The torch format follows `torch.set_num_threads`.

    Raises:
        FileNotFoundError: if the folder holds no bundle.
        ValueError: if a file is missing, damaged or altered, or the format is unknown.
    """
    folder = Path(folder)
    description = _read_description(folder)
    for name, expected in description["sha256"].items():
        if not _is_inside(name) or not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing from the bundle; export the policy again")
        if sha256(folder / name) != expected:
            raise ValueError(f"{folder / name} was altered after the export (its sha256 differs); export the policy again")
    read = partial(_onnx, threads=threads) if description["format"] == "onnx" else _torch
    tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
    graph, guided = (read(folder / names[description["format"]]) for names in (GRAPHS, GUIDED))
    return Bundle(description, tokenizer, graph, guided)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / DESCRIPTION
    if not path.is_file():
        raise FileNotFoundError(f"no robot bundle in {folder} ({DESCRIPTION} is missing); write one with worldsim export")
    try:
        description = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); export the policy again") from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(f"{path} has format version {version}, this worldsim reads {FORMAT_VERSION}; export the policy again")
    if description.pop("sha256_of_this_description", None) != description_sha256(description):
        raise ValueError(f"{path} was altered after the export (its sha256 differs); export the policy again")
    missing = {"format", "inputs", "outputs", "spec", "views", "fps", "tokenizer", "sha256"} - description.keys()
    if missing or description["format"] not in GRAPHS:
        what = f"lacks {sorted(missing)}" if missing else f"has the unknown format {description['format']!r}"
        raise ValueError(f"{path} {what}; export the policy again")
    _check_views(path, description["views"], description["inputs"])
    files = {GRAPHS[description["format"]], GUIDED[description["format"]], TOKENIZER}
    if unchecked := files - description["sha256"].keys():
        raise ValueError(f"{path} has no hash of {sorted(unchecked)[0]}; export the policy again")
    return description


def _check_views(path: Path, views: Any, inputs: list[dict[str, Any]]) -> None:
    """ValueError if views are no heights and widths by camera, or their mosaic is not the picture that the graph takes."""
    sizes = list(views.values()) if isinstance(views, dict) else []
    known = all(
        isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size) for size in sizes
    )
    if not (sizes and known and all(views)):
        raise ValueError(f"{path} has views {views!r:.80}, expected camera: [height, width] in pixels; export the policy again")
    mosaic = [1, max(height for height, _ in sizes), sum(width for _, width in sizes), 3]
    if mosaic not in (taken := [entry["shape"] for entry in inputs if entry["name"] == "image"]):
        raise ValueError(f"{path} has views that make a picture {mosaic}, its graph takes {taken}; export the policy again")


def _is_inside(name: str) -> bool:
    """Whether a name in a description stays in the bundle's folder, on every system."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and "\\" not in name


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def description_sha256(description: dict[str, Any]) -> str:
    """Hexadecimal SHA-256 of a description, independent of spacing. The order of keys counts: views lie side by side in theirs."""
    return hashlib.sha256(json.dumps(description).encode()).hexdigest()


# The two runtimes are imported here, not at the top: a robot has one of them.


def _onnx(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda feed: {name: np.asarray(value) for name, value in zip(names, session.run(names, feed), strict=True)}


def _torch(path: Path) -> Run:
    import torch

    module = torch.export.load(path).module()

    def run(feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            outputs = module(**{name: torch.from_numpy(value) for name, value in feed.items()})
        return {name: value.numpy() for name, value in outputs.items()}

    return run
