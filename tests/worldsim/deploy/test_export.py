"""Robot bundles of a tiny policy: what is written acts like the policy, and what does not pass is never written."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_policy import FORMATS, INSTRUCTIONS, WRIST, make_observation, recorded_observation, write_policy

from worldsim.core.flow import sample_guided, sample_ode
from worldsim.core.types import Observation
from worldsim.deploy import export as export_module
from worldsim.deploy.export import export_policy, load_bundle
from worldsim.nn.text import tokenize
from worldsim.robot import check
from worldsim.robot.check import read_recorded, replay
from worldsim.robot.limits import limits_of
from worldsim.robot.reliability import fit_reference, read_reference


@pytest.fixture(scope="module", params=FORMATS)
def exported(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    policy = write_policy(root / "policy")
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["ax", "ay"]}
    description = export_policy(
        policy, root / "out" / "bundle", format=request.param, observation=make_observation(), fps=10, **names
    )
    return policy, root / "out" / "bundle", description


@pytest.fixture
def policy(tmp_path):
    return write_policy(tmp_path / "policy")


def test_bundle_acts_like_the_policy(exported):
    policy, folder, _ = exported
    bundle, obs = load_bundle(folder, threads=1), make_observation()
    generator = np.random.default_rng(2)
    noise = np.stack([bundle.noise(generator) for _ in range(3)])
    with torch.no_grad():
        features = policy.encode(obs)
        expected = sample_ode(lambda x, t: policy.velocity(features, x, t), torch.from_numpy(noise), num_steps=3).clamp(-1, 1)
    arrays = zip(obs.images["wrist"].numpy(), obs.state.numpy(), INSTRUCTIONS, noise, strict=True)
    actual = np.stack([bundle(*case) for case in arrays])
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)  # sums of some hundred float32 products of order 1


def test_guided_actions_are_those_of_the_guided_sampler(exported):
    policy, folder, _ = exported
    bundle, obs = load_bundle(folder, threads=1), make_observation()
    random = np.random.default_rng(4)
    noise = np.stack([bundle.noise(random) for _ in range(3)])
    previous, weights = random.uniform(-1, 1, (3, 4, 2)).astype(np.float32), np.tile(np.float32([1, 0.5, 0.2, 0]), (3, 1))
    with torch.no_grad():
        features = policy.encode(obs)
        expected = sample_guided(
            lambda x, t: policy.velocity(features, x, t),
            torch.from_numpy(noise),
            previous=torch.from_numpy(previous),
            weights=torch.from_numpy(weights),
            num_steps=3,
        ).clamp(-1, 1)
    arrays = list(zip(obs.images["wrist"].numpy(), obs.state.numpy(), INSTRUCTIONS, noise, strict=True))
    actual = np.stack([bundle.guided(*case, previous[i], weights[i]) for i, case in enumerate(arrays)])
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-4)  # derivatives of the network amplify rounding
    unguided = np.stack([bundle.guided(*case, previous[i], 0 * weights[i]) for i, case in enumerate(arrays)])
    np.testing.assert_allclose(unguided, np.stack([bundle(*case) for case in arrays]), rtol=0, atol=1e-5)
    assert np.abs(actual - unguided).max() > 0.1
    with pytest.raises(ValueError, match=r"weights must be float32 of shape \(4,\), got float32 \(3,\)"):
        bundle.guided(*arrays[0], previous[0], weights[0, :3])


def test_every_input_matters(exported):
    _, folder, _ = exported
    bundle, obs = load_bundle(folder, threads=1), make_observation()
    noise = 0.1 * bundle.noise(np.random.default_rng(3))
    image, state = obs.images["wrist"].numpy(), obs.state.numpy()
    base = bundle(image[0], state[0], INSTRUCTIONS[0], noise)
    others = (
        bundle(image[1], state[0], INSTRUCTIONS[0], noise),
        bundle(image[0], state[1], INSTRUCTIONS[0], noise),
        bundle(image[0], state[0], INSTRUCTIONS[1], noise),
        bundle(image[0], state[0], INSTRUCTIONS[0], -noise),
    )
    for other in others:
        assert np.abs(other - base).max() > 1e-3
    assert np.array_equal(bundle(image[0], state[0], INSTRUCTIONS[0].upper(), noise), base)  # sentences are lower-cased


def test_actions_are_clamped(exported):
    _, folder, _ = exported
    bundle, obs = load_bundle(folder, threads=1), make_observation()
    noise = np.full((4, 2), 50, dtype=np.float32)
    actions = bundle(obs.images["wrist"][0].numpy(), obs.state[0].numpy(), "stop", noise)
    assert np.abs(actions).max() == 1


def test_tokens_are_those_of_training(exported):
    _, folder, _ = exported
    bundle = load_bundle(folder)
    sentences = ["", "Push the GREEN block", "café " * 40]
    assert np.array_equal(np.stack([bundle.tokens(s) for s in sentences]), tokenize(sentences).numpy())


def test_description(exported):
    _, folder, description = exported
    assert sorted(os.listdir(folder)) == sorted(["bundle.json", *description["sha256"]])
    assert len(description["sha256"]) == 4
    assert os.listdir(folder.parent) == ["bundle"]  # no scratch folder
    written = json.loads((folder / "bundle.json").read_text())
    assert {key: written[key] for key in description} == description
    assert {entry["name"]: (entry["shape"], entry["dtype"]) for entry in written["inputs"]} == {
        "image": ([1, 64, 64, 3], "uint8"),
        "state": ([1, 4], "float32"),
        "tokens": ([1, 32], "int64"),
        "noise": ([1, 4, 2], "float32"),
    }
    ends = {"low": [-1.0, -1.0], "high": [1.0, 1.0], "scale": [1.0, 1.0]}
    assert written["outputs"] == [{"name": "actions", "shape": [1, 4, 2], "dtype": "float32", **ends}]
    assert [channel["name"] for channel in written["spec"]["state"]] == ["x", "y", "vx", "vy"]
    assert (written["format_version"], written["views"]) == (4, {"wrist": [64, 64]})
    assert (written["fps"], written["num_steps"]) == (10, 3)
    assert (written["state_names"], written["action_names"]) == (["x", "y", "vx", "vy"], ["ax", "ay"])
    parity = written["parity"]
    assert parity["max_abs_difference"] <= 1e-4
    assert parity["cases"] >= 32
    assert parity["share_not_clamped"] > 0.2  # else the comparison says little


@pytest.mark.parametrize("format", FORMATS)
def test_what_a_robot_needs_is_in_the_bundle_and_under_its_hashes(policy, tmp_path, format):
    folder, observation = tmp_path / "bundle", recorded_observation()
    episodes = [({"wrist": observation.images["wrist"].repeat(4, 1, 1, 1).numpy()}, observation.state.repeat(4, 1).numpy())]
    reference = fit_reference(episodes, episodes, WRIST)
    limits = {"max_delta": [0.5, 0.25]}
    more = {"recorded": observation, "reference": reference, "limits": limits}
    description = export_policy(policy, folder, format=format, observation=make_observation(), **more)
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    assert files == {"bundle.json", *description["sha256"]} and len(files) == 12
    bundle, recorded = load_bundle(folder, threads=1), read_recorded(folder)
    assert limits_of(bundle.description).max_delta.tolist() == [0.5, 0.25]
    assert read_reference(folder).near == reference.near
    assert recorded is not None
    np.testing.assert_array_equal(recorded.images, observation.images["wrist"].numpy())
    with torch.no_grad():
        features, noise = policy.encode(observation), torch.from_numpy(recorded.noises)
        expected = sample_ode(lambda x, t: policy.velocity(features, x, t), noise, num_steps=3).clamp(-1, 1)
    np.testing.assert_allclose(recorded.actions, expected.numpy(), rtol=0, atol=1e-6)  # the policy's own, not the graph's
    assert replay(bundle, recorded) <= 1e-5
    assert check.main([str(folder), "--seconds", "0.01", "--threads", "1"]) == 0
    (folder / "observations" / "actions.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"actions.npy was altered"):
        load_bundle(folder)


def test_eight_bits_make_a_smaller_file_that_acts_almost_the_same(policy, tmp_path):
    pytest.importorskip("onnx")
    plain, small = tmp_path / "plain", tmp_path / "small"
    export_policy(policy, plain, observation=make_observation())
    description = export_policy(policy, small, observation=make_observation(), precision="int8")
    assert (small / "policy.onnx").stat().st_size < 0.6 * (plain / "policy.onnx").stat().st_size
    assert 1e-4 < description["parity"]["max_abs_difference"] <= description["parity"]["tolerance"] == 0.25
    assert load_bundle(small).description["precision"] == "int8"


def test_the_card_says_what_was_measured_and_for_whom(policy, tmp_path):
    evaluation = {"rate": 0.75, "ci95": [0.7, 0.8], "episodes": 512, "seed": 9, "world": "GenesisWorld(scene=push_block)"}
    more = {"state_names": ["x", "y", "vx", "vy"], "fps": 10, "evaluation": evaluation}
    description = export_policy(policy, tmp_path / "bundle", format="torch", observation=make_observation(), **more)
    assert description["evaluation"] == evaluation
    card = (tmp_path / "bundle" / "README.md").read_text()
    for said in (
        "# FlowVLA",
        "75.0 % [70.0, 80.0] of 512 episodes",
        "x, y, vx, vy",
        "10 Hz",
        "uint8 [1, 64, 64, 3]",
        "wrist 64 x 64",
    ):
        assert said in card
    (tmp_path / "bundle" / "README.md").write_text(card.replace("75.0", "99.0"))
    with pytest.raises(ValueError, match=r"README.md was altered"):
        load_bundle(tmp_path / "bundle")


def test_onnx_file_says_what_the_description_says(policy, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder = tmp_path / "bundle"
    export_policy(policy, folder, observation=make_observation()[:1])
    model = onnx.load(folder / "policy.onnx", load_external_data=False)
    onnx.checker.check_model(model)
    assert next(entry.version for entry in model.opset_import if entry.domain == "") >= 18
    assert {entry.domain for entry in model.opset_import} <= {""}  # no operator of a vendor
    shapes = {entry.name: [d.dim_value for d in entry.type.tensor_type.shape.dim] for entry in model.graph.input}
    assert shapes == {"image": [1, 64, 64, 3], "state": [1, 4], "tokens": [1, 32], "noise": [1, 4, 2]}
    assert [entry.name for entry in model.graph.output] == ["actions", "features"]


def test_robot_needs_only_numpy_tokenizers_and_onnxruntime(policy, tmp_path):
    folder = tmp_path / "bundle"
    export_policy(policy, folder, observation=make_observation()[:1])
    code = (
        "import sys, numpy as np\n"
        "from worldsim.robot.bundle import load_bundle\n"
        "bundle = load_bundle(sys.argv[1], threads=1)\n"
        "noise = bundle.noise(np.random.default_rng(0))\n"
        "print(bundle(np.zeros((64, 64, 3), np.uint8), np.zeros(4, np.float32), 'stop', noise).shape)\n"
        "print([name for name in ('torch', 'onnx', 'lightning', 'hydra', 'yaml', 'worldsim.core.types') if name in sys.modules])\n"
    )
    root = Path(export_module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, cwd=root)
    assert done.stdout.splitlines() == ["(4, 2)", "[]"], done.stderr


@pytest.mark.parametrize("file", ["graph", "tokenizer.json", "bundle.json"])
def test_altered_file_is_refused(exported, tmp_path, file):
    _, folder, description = exported
    name = export_module.GRAPHS[description["format"]] if file == "graph" else file
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    load_bundle(copy)
    content = (copy / name).read_bytes()
    altered = content.replace(b'"fps": 10', b'"fps": 50') if file == "bundle.json" else content[:-9] + b"\x00" + content[-8:]
    assert altered != content
    (copy / name).write_bytes(altered)
    with pytest.raises(ValueError, match=f"{name} was altered"):
        load_bundle(copy)
    (copy / name).unlink()
    with pytest.raises((ValueError, FileNotFoundError), match="missing"):
        load_bundle(copy)


def test_wrong_inputs_are_refused(exported):
    _, folder, _ = exported
    bundle = load_bundle(folder, threads=1)
    image, state, noise = np.zeros((64, 64, 3), np.uint8), np.zeros(4, np.float32), np.zeros((4, 2), np.float32)
    with pytest.raises(ValueError, match=r"image must be uint8 of shape \(64, 64, 3\), got float32"):
        bundle(image.astype(np.float32), state, "stop", noise)
    with pytest.raises(ValueError, match=r"state must be float32 of shape \(4,\), got float32 \(5,\)"):
        bundle(image, np.zeros(5, np.float32), "stop", noise)
    with pytest.raises(ValueError, match="state must be finite"):
        bundle(image, np.full(4, np.nan, np.float32), "stop", noise)


def test_export_leaves_the_policy_alone(policy, tmp_path):
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    policy.train().bfloat16()
    export_policy(policy, tmp_path / "bundle", format="torch", observation=make_observation())
    assert policy.training
    assert policy.expert_in.weight.dtype == torch.bfloat16
    assert all(parameter.requires_grad for parameter in policy.parameters())
    assert before.keys() == policy.state_dict().keys()


def test_a_good_bundle_survives_a_failed_export_and_gives_way_to_a_good_one(policy, tmp_path):
    folder = tmp_path / "out" / "bundle"
    export_policy(policy, folder, format="torch", observation=make_observation(), fps=10)
    bad = write_policy(tmp_path / "bad")
    with torch.no_grad():
        bad.expert[-1].bias[0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        export_policy(bad, folder, format="torch", observation=make_observation())
    assert load_bundle(folder).description["fps"] == 10
    export_policy(policy, folder, format="torch", observation=make_observation(), fps=20)
    assert load_bundle(folder).description["fps"] == 20
    assert os.listdir(folder.parent) == ["bundle"]


def test_a_rename_that_fails_brings_the_earlier_bundle_back(tmp_path):
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "bundle.json").write_text("earlier")
    with pytest.raises(FileNotFoundError):
        export_module._replace(tmp_path / "no_draft", folder, tmp_path / "replaced")
    assert (folder / "bundle.json").read_text() == "earlier"


def test_other_files_are_never_replaced(policy, tmp_path):
    before = sorted((tmp_path / "policy").iterdir())
    with pytest.raises(ValueError, match="exists and is not a robot bundle"):
        export_policy(policy, tmp_path / "policy", observation=make_observation())
    assert sorted((tmp_path / "policy").iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"format": "tensorrt"}, "format must be one of onnx, torch"),
        ({"precision": "int4"}, "precision must be float32, or int8"),
        ({"precision": "int8", "format": "torch"}, "precision must be float32, or int8 with format=onnx"),
        ({"state_names": ["x"]}, "state_names must have 4 names, got 1"),
        ({"action_names": ["x"]}, "action_names must have 2 names, got 1"),
        ({"cases": 8}, "cases must be at least 32"),
        (
            {"observation": Observation({"front": torch.zeros(1, 64, 64, 3)}, torch.zeros(1, 4), ("",))},
            "the policy looks through camera 'wrist', the observation has front",
        ),
        ({"observation": make_observation()[0:0]}, "batch of at least one"),
        ({"observation": Observation({"wrist": torch.zeros(64, 64, 3)}, torch.zeros(1, 4), ("",))}, "batch of at least one"),
        ({"recorded": recorded_observation()[:7]}, "recorded must hold 8 to 32 observations, got 7"),
        (
            {"recorded": Observation({"front": torch.zeros(8, 64, 64, 3)}, torch.zeros(8, 4), ("",) * 8)},
            "the policy looks through camera 'wrist', recorded has front",
        ),
        (
            {"recorded": Observation({"wrist": torch.zeros(8, 64, 64, 3)}, torch.zeros(8, 5), ("",) * 8)},
            r"recorded has states of shape \(5,\), observation \(4,\)",
        ),
        ({"limits": {"max_dleta": [1, 1]}}, "limits has the unknown name 'max_dleta'"),
        ({"limits": {"max_delta": [1]}}, "max_delta must have 2 numbers"),
    ],
)
def test_wrong_arguments(policy, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        export_policy(policy, tmp_path / "bundle", **{"observation": make_observation(), **arguments})


def test_a_policy_without_tokens_is_refused(tmp_path):
    with pytest.raises(ValueError, match="Linear cannot be exported"):
        export_policy(torch.nn.Linear(1, 1), tmp_path / "bundle", observation=make_observation())  # type: ignore[arg-type]


def test_no_bundle_and_unknown_version(tmp_path):
    with pytest.raises(FileNotFoundError, match="no robot bundle"):
        load_bundle(tmp_path)
    for text, words in (('{"format_version": 99}', "format version 99"), ("{", "damaged")):
        (tmp_path / "bundle.json").write_text(text)
        with pytest.raises(ValueError, match=words):
            load_bundle(tmp_path)
