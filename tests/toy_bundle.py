"""A robot bundle without torch, for the tests of `worldsim/robot`: a tiny ONNX graph, a tokenizer of three words, signed hashes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from toy_robot import LIMITS, SIZE, walk

from worldsim.robot.bundle import DESCRIPTION, FORMAT_VERSION, GRAPHS, GUIDED, TOKENIZER, description_sha256, load_bundle, sha256
from worldsim.robot.check import Recorded, write_recorded
from worldsim.robot.reliability import fit_reference, write_reference

HORIZON, WORDS = 8, 4
VIEWS = {"front": (SIZE, SIZE)}
RANGE = {"low": [-1.0, -1.0], "high": [1.0, 1.0], "scale": [1.0, 1.0]}


def make_bundle(folder: Path) -> Path:
    """It walks in circles: actions = clip(state @ turn + noise / 100 + tiny terms of image and tokens).

    Guided, without the tiny terms, they are w previous + (1 - w) actions.
    """
    folder.mkdir(parents=True)
    _write_graph(folder / GRAPHS["onnx"])
    _write_guided(folder / GUIDED["onnx"])
    tokenizer = Tokenizer(WordLevel({"[PAD]": 0, "go": 1, "stop": 2}, unk_token="[PAD]"))
    tokenizer.enable_padding(length=WORDS)
    tokenizer.enable_truncation(WORDS)
    tokenizer.save(str(folder / TOKENIZER))
    shapes = {"image": ([1, SIZE, SIZE, 3], "uint8"), "state": ([1, 2], "float32"), "tokens": ([1, WORDS], "int64")}
    shapes["noise"] = ([1, HORIZON, 2], "float32")
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "format": "onnx",
        "policy": "tests.toy_bundle",
        "inputs": [{"name": name, "shape": shape, "dtype": dtype} for name, (shape, dtype) in shapes.items()],
        "outputs": [{"name": "actions", "shape": [1, HORIZON, 2], "dtype": "float32", **RANGE}],
        "spec": None,
        "tokenizer": {"file": TOKENIZER, "length": WORDS, "pad_id": 0, "lowercase": True},
        "views": VIEWS,
        "fps": 20,
        "state_names": ["x", "y"],
        "action_names": ["dx", "dy"],
        "num_steps": 1,
        "limits": {name: LIMITS[name] for name in ("max_delta", "state_low", "state_high", "workspace")},
    }
    episodes = [walk(seed) for seed in range(30)]
    seen = [({"front": images}, states) for images, states in episodes]
    reference = fit_reference(seen[:20], seen[20:], VIEWS)
    files = [GRAPHS["onnx"], GUIDED["onnx"], TOKENIZER, *write_reference(reference, folder)]
    sign(folder, description, files)
    files += write_recorded(_recorded(folder, episodes), folder)
    sign(folder, description, files)
    return folder


def sign(folder: Path, description: dict[str, Any], files: list[str] | None = None) -> None:
    """Write the description with the hashes of `files`, or of those that it had."""
    description = {key: value for key, value in description.items() if key != "sha256_of_this_description"}
    description["sha256"] = {name: sha256(folder / name) for name in files or description["sha256"]}
    document = {**description, "sha256_of_this_description": description_sha256(description)}
    (folder / DESCRIPTION).write_text(json.dumps(document, indent=2) + "\n")


def _recorded(folder: Path, episodes: list[tuple[np.ndarray, np.ndarray]]) -> Recorded:
    images = np.stack([episode[0][i] for i, episode in enumerate(episodes[:8])])
    states = np.stack([episode[1][i] for i, episode in enumerate(episodes[:8])])
    noises = np.random.default_rng(0).standard_normal((len(images), HORIZON, 2), dtype=np.float32)
    bundle, sentences = load_bundle(folder, threads=1), ("go", "stop") * 4
    actions = np.stack([bundle(*case) for case in zip(images, states, sentences, noises, strict=True)])
    return Recorded(images, states, noises, actions, sentences)


def _write_graph(path: Path) -> None:
    turn = np.array([[-0.5, 20], [-20, -0.5]], np.float32)  # around, and a little inwards
    constants = {"turn": turn, "hundredth": np.float32(0.01), "millionth": np.float32(1e-6), "axes": np.array([1])}
    nodes = [
        helper.make_node("MatMul", ["state", "turn"], ["features"]),
        helper.make_node("Unsqueeze", ["features", "axes"], ["action"]),
        helper.make_node("Mul", ["noise", "hundredth"], ["shaken"]),
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["pixels"], ["brightness"], keepdims=0),
        helper.make_node("Cast", ["tokens"], ["words"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["words"], ["said"], keepdims=0),
        helper.make_node("Add", ["brightness", "said"], ["context"]),
        helper.make_node("Mul", ["context", "millionth"], ["little"]),
        helper.make_node("Add", ["action", "shaken"], ["moved"]),
        helper.make_node("Add", ["moved", "little"], ["free"]),
        helper.make_node("Clip", ["free", "low", "high"], ["actions"]),
    ]
    constants |= {"low": np.float32(-1), "high": np.float32(1)}
    kinds = {"image": (TensorProto.UINT8, [1, SIZE, SIZE, 3]), "state": (TensorProto.FLOAT, [1, 2])}
    kinds |= {"tokens": (TensorProto.INT64, [1, WORDS]), "noise": (TensorProto.FLOAT, [1, HORIZON, 2])}
    outputs = {"actions": (TensorProto.FLOAT, [1, HORIZON, 2]), "features": (TensorProto.FLOAT, [1, 2])}
    _save(path, nodes, constants, kinds, outputs)


def _write_guided(path: Path) -> None:
    constants = {"hundredth": np.float32(0.01), "one": np.array([1]), "two": np.array([2])}
    nodes = [
        helper.make_node("Unsqueeze", ["features", "one"], ["action"]),
        helper.make_node("Mul", ["noise", "hundredth"], ["shaken"]),
        helper.make_node("Add", ["action", "shaken"], ["free"]),
        helper.make_node("Clip", ["free", "low", "high"], ["own"]),
        helper.make_node("Unsqueeze", ["weights", "two"], ["share"]),
        helper.make_node("Sub", ["previous", "own"], ["apart"]),
        helper.make_node("Mul", ["share", "apart"], ["drawn"]),
        helper.make_node("Add", ["own", "drawn"], ["actions"]),
    ]
    constants |= {"low": np.float32(-1), "high": np.float32(1)}
    actions = (TensorProto.FLOAT, [1, HORIZON, 2])
    kinds = {"features": (TensorProto.FLOAT, [1, 2]), "noise": actions, "previous": actions}
    _save(path, nodes, constants, {**kinds, "weights": (TensorProto.FLOAT, [1, HORIZON])}, {"actions": actions})


def _save(path: Path, nodes: list[Any], constants: dict[str, Any], inputs: dict[str, Any], outputs: dict[str, Any]) -> None:
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, path)
