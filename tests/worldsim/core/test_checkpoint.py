"""Exported models: the same output after a round trip, and one-line errors for what cannot be loaded. Nothing is unpickled."""

import copy
import pickle
import re
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toy_spec import toy_spec

from models import renderers
from models.policies.diffusion_vla import DiffusionVLA
from models.policies.flow_vla import FlowVLA
from models.renderers.baked import BakedField
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.rl.critics import Critic
from worldsim.core.checkpoint import DESCRIPTION, WEIGHTS, Configured, load, save
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.renderer import Renderer
from worldsim.core.spec import FILE as SPEC
from worldsim.core.types import Observation
from worldsim.nn import layers as blocks
from worldsim.nn.layers import VisualTrunk

FRAMES = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SENTENCES = ("push the red block onto the green disc", "move the red block to the blue disc")


def trunk():
    return VisualTrunk(features=12, channels=8, blocks=1, text=8)


def policy():
    model = FlowVLA(width=16, channels=8, blocks=1, action_horizon=3)
    model.fit_statistics(toy_spec(torch.stack([torch.arange(4.0) - 2, torch.arange(4.0) + 2])))
    return model


def world_model():
    model = LatentFlowWorldModel(latent_channels=3, channels=(8, 8), layers=(1, 1))
    model.fit_statistics({"front": FRAMES}, toy_spec(torch.randn(9, 4)))
    torch.nn.init.normal_(model.net.last.weight)
    return model


def reflector():
    model = InstantReflector(features=12, channels=8, blocks=1, consecutive=2, window=5)
    model.threshold.fill_(0.7)
    model.scale.fill_(3.0)
    return model


@torch.no_grad()
def output(model) -> torch.Tensor:
    if isinstance(model, VisualTrunk):
        return model({"front": FRAMES}, SENTENCES)
    if isinstance(model, FlowVLA):
        features = model.encode(Observation({"front": FRAMES}, torch.ones(2, 4), SENTENCES))
        return model.velocity(features, torch.ones(2, 3, 2), torch.tensor([1.0, 0.3]))
    if isinstance(model, InstantReflector):
        return model.judge({"front": FRAMES[:, None]}, SENTENCES).p_success
    state = model.init({"front": FRAMES[:, None].repeat(1, 2, 1, 1, 1)}, torch.ones(2, 2, 4), SENTENCES)
    return model.step(state, torch.ones(2, 4, 2), Noise.rows(1, 2))[1]["front"]


@pytest.mark.parametrize("build", [trunk, policy, world_model, reflector])
def test_same_output_after_a_round_trip(tmp_path, build):
    model = build().eval()
    save(model, tmp_path / "model")
    before = torch.get_rng_state()
    loaded = load(tmp_path / "model", type(model))
    assert torch.equal(torch.get_rng_state(), before)  # or what is learned would depend on how many models a run loads
    assert not loaded.training
    assert torch.equal(output(loaded), output(model))
    assert loaded.arguments == model.arguments
    said = [] if model.spec is None else [SPEC]
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [WEIGHTS, DESCRIPTION, *said]
    assert loaded.spec == model.spec
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


class Sized(Configured):
    """A model that cannot be built without being told its size."""

    def __init__(self, size: int):
        super().__init__()
        self.layer = torch.nn.Linear(size, 1)


def test_a_copy_of_a_model_is_another_one_of_the_same_description():
    model = Sized(3)
    other = copy.deepcopy(model)
    assert other.arguments == {"size": 3} and torch.equal(other.layer.weight, model.layer.weight)
    assert other.layer.weight is not model.layer.weight


def test_saving_again_replaces(tmp_path):
    save(trunk(), tmp_path)
    model = trunk().eval()
    save(model, tmp_path)
    assert torch.equal(output(load(tmp_path, VisualTrunk)), output(model))


def one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value), str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported model in") as error:
        load(tmp_path / "nowhere", VisualTrunk)
    one_line(error)


def test_missing_weights(tmp_path):
    save(trunk(), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no weights at") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


def test_wrong_class(tmp_path):
    save(reflector(), tmp_path)
    with pytest.raises(ValueError, match="holds a InstantReflector, expected a FlowVLA") as error:
        load(tmp_path, FlowVLA)
    one_line(error)


@pytest.mark.parametrize("size", [0, 4, 100, -10])
def test_damaged_weights(tmp_path, size):
    save(trunk(), tmp_path)
    data = (tmp_path / WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(data[:size])
    with pytest.raises(ValueError, match="is damaged") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


def test_weights_of_another_shape(tmp_path):
    save(trunk(), tmp_path)
    description = yaml.safe_load((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(yaml.safe_dump({**description, "features": 13}))
    with pytest.raises(ValueError, match="does not fit VisualTrunk") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


@pytest.mark.parametrize(
    "text",
    [
        *(b"features: 12\n", b"just words\n", b"", b"\xff\xfe\xfa", b"[" * 1000, b"day: 2024-99-99\n"),
        *(b"_target_: worldsim.nn.layers.NoSuchTrunk\n", b"_target_: worldsim.no_such_module.Trunk\n"),
    ],
)
def test_damaged_description(tmp_path, text):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_bytes(text)
    with pytest.raises(ValueError, match=f"{DESCRIPTION} is damaged|does not exist here") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


# What a stranger may write into a description -----------------------------------------------------------------------------------


def describe(folder: Path, target: Any, **arguments: Any) -> Path:
    """A folder with the weights of a trunk that claims to be something else."""
    save(trunk(), folder)
    (folder / DESCRIPTION).write_text(yaml.safe_dump({"_target_": target, **arguments}))
    return folder


@pytest.mark.parametrize(
    ("build", "contract"),
    [
        (policy, Policy),
        (lambda: DiffusionVLA(width=16, channels=8, blocks=1), Policy),
        (world_model, WorldModel),
        (reflector, Reflector),
        (lambda: BakedField((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (8, 8, 8)), Renderer),
        (lambda: Critic(features=8, channels=8, blocks=1), Critic),
    ],
)
def test_every_kind_of_model_is_loaded_by_its_contract(tmp_path, build, contract):
    model = build()
    save(model, tmp_path)
    assert type(load(tmp_path, contract)) is type(model)
    for other in {Policy, WorldModel, Reflector, Renderer} - {contract}:
        with pytest.raises(ValueError, match=f"holds a {type(model).__name__}, expected a {other.__name__}"):
            load(tmp_path, other)


@pytest.mark.parametrize(
    "target",
    [
        *("torch.nn.Linear", "os.system", "worldsimilar.Trunk", "worldsim", "worldsim.", ".worldsim.blocks.VisualTrunk"),
        *("worldsim..blocks.VisualTrunk", "worldsim.nn.layers.VisualTrunk.__init__", "training.__main__.main", "worldsim._x.Y"),
        *("worldsim.nn.layers.VisualTrunk\n", "worldsim/blocks.VisualTrunk", ["worldsim.nn.layers.VisualTrunk"], {"a": 1}, 7, None),
    ],
)
def test_a_name_that_cannot_be_a_models_is_refused_before_any_import(tmp_path, target, monkeypatch):
    describe(tmp_path, target)
    monkeypatch.setattr("worldsim.core.checkpoint.import_module", lambda name: pytest.fail(f"{name} was imported"))
    with pytest.raises(ValueError, match="not a model of worldsim; nothing was imported") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        ("worldsim.core.checkpoint.nn.Linear", {"in_features": 1, "out_features": 1}),
        ("worldsim.nn.layers.Tensor", {}),
        ("worldsim.nn.layers.ResidualBlock", {"channels": 8, "condition": 8}),
        ("worldsim.nn.layers.tokenizer", {}),
        ("worldsim.core.checkpoint", {}),
        ("worldsim.core.files.write_json", {"path": "x", "value": 1}),
        ("worldsim.data.store.FrameStore", {}),
    ],
)
def test_what_is_no_model_is_never_called(tmp_path, target, arguments):
    with pytest.raises(ValueError, match="is not a model of worldsim; nothing was built|does not exist here") as error:
        load(describe(tmp_path, target, **arguments), Configured)
    one_line(error)


def test_no_connection_is_opened_for_a_stranger(tmp_path):
    pytest.importorskip("websockets")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        url = f"ws://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(ValueError, match="worldsim.measure.remote.RemotePolicies, which is not a model of worldsim") as error:
            load(describe(tmp_path, "worldsim.measure.remote.RemotePolicies", url=url, timeout_s=0.2), Policy)
        one_line(error)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_no_file_is_touched_for_a_stranger(tmp_path):
    arguments = {"fps": 10, "robot_type": "x", "state_names": ["x"], "action_names": ["x"], "cameras": {"front": [8, 8]}}
    folder = describe(tmp_path / "model", "worldsim.data.lerobot.DatasetWriter", root=str(tmp_path / "data"), **arguments)
    with pytest.raises(ValueError, match="worldsim.data.lerobot.DatasetWriter, which is not a model of worldsim") as error:
        load(folder, Policy)
    one_line(error)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("base", [object, Configured])
def test_a_constructor_that_writes_a_file_does_not_run(tmp_path, monkeypatch, base):
    """Neither a class that is no model nor a model that is not the one expected."""

    class Writes(base):
        def __init__(self, where: str):
            super().__init__()
            Path(where).touch()

    Writes.__module__ = "worldsim.nn.layers"
    monkeypatch.setattr(blocks, "Writes", Writes, raising=False)
    describe(tmp_path / "model", "worldsim.nn.layers.Writes", where=str(tmp_path / "written"))
    with pytest.raises(ValueError, match="is not a model of worldsim|holds a Writes, expected a Policy") as error:
        load(tmp_path / "model", Policy)
    one_line(error)
    assert not (tmp_path / "written").exists()


def test_a_contract_itself_is_no_model(tmp_path):
    with pytest.raises(ValueError, match="does not fit worldsim.core.interfaces.Policy") as error:
        load(describe(tmp_path, "worldsim.core.interfaces.Policy"), Policy)
    one_line(error)


@pytest.mark.parametrize(
    "value", ["2024-01-01", "!!binary aGk=", "!!set {a}", "[1, {a: [2024-01-01 10:00:00]}]", "{2024-01-01: 1}"]
)
def test_arguments_are_plain_values(tmp_path, value):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_text(f"_target_: worldsim.nn.layers.VisualTrunk\nfeatures: {value}\n")
    with pytest.raises(ValueError, match="holds a .*, expected numbers, text, lists and dictionaries") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


@pytest.mark.parametrize(
    "lines",
    [
        ["a0: &a0 [1]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 19))],  # 10^18 leaves, if followed
        ["b: &b [*b]"],
        ["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 10)}]}}" for i in range(1, 9))],
    ],
)
def test_references_cannot_keep_it_busy(tmp_path, lines):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_text("\n".join(["_target_: worldsim.nn.layers.VisualTrunk", *lines]))
    with pytest.raises(ValueError, match="is damaged: it refers to other parts of itself") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


def test_a_description_is_short(tmp_path):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_text(f"_target_: worldsim.nn.layers.VisualTrunk\n# {'x' * 2**16}\n")
    with pytest.raises(ValueError, match="is damaged: expected at most 65536 bytes, got 65") as error:
        load(tmp_path, VisualTrunk)
    one_line(error)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"features": 10**6, "text": 10**6}, "does not fit VisualTrunk"),  # terabytes, if it were built
        ({"features": -1}, "does not fit worldsim.nn.layers.VisualTrunk: "),
        ({"channels": 0}, "does not fit VisualTrunk: text.query is "),
        ({"patch": 0}, "does not fit worldsim.nn.layers.VisualTrunk: "),
        ({"features": "many"}, "does not fit worldsim.nn.layers.VisualTrunk: "),
        ({"views": {"front": [60, 64]}}, "the view of camera front must be .* in multiples of 8 pixels"),
    ],
)
def test_sizes_that_cannot_be_take_no_memory(tmp_path, sizes, message):
    with pytest.raises(ValueError, match=message) as error:
        load(describe(tmp_path, "worldsim.nn.layers.VisualTrunk", **sizes), VisualTrunk)
    one_line(error)


def test_what_stands_twice_is_written_twice(tmp_path):
    views = {"front": [64, 64]}
    model = VisualTrunk(8, 8, 1, views=views)
    model.arguments["patch_of"] = model.arguments["views"]
    save(model, tmp_path)
    assert "&" not in (tmp_path / DESCRIPTION).read_text()


class Bomb:
    """Unpickling it would raise."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


def test_never_unpickles(tmp_path):
    save(trunk(), tmp_path)
    bomb = pickle.dumps(Bomb())
    with pytest.raises(SystemExit, match="unpickled"):
        pickle.loads(bomb)
    (tmp_path / WEIGHTS).write_bytes(bomb)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path, VisualTrunk)
    torch.save({"state_dict": Bomb()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path, VisualTrunk)
    (tmp_path / DESCRIPTION).write_text("!!python/object/apply:builtins.exec ['raise SystemExit(1)']\n")
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path, VisualTrunk)


def test_a_library_that_is_missing_is_named_and_not_the_model(tmp_path, monkeypatch):
    save(trunk(), tmp_path)
    for name in ("gsplat", "gsplat.cuda", "gsplat.cuda._torch_impl"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "models.renderers.splats", raising=False)
    monkeypatch.delattr(renderers, "splats", raising=False)
    (tmp_path / DESCRIPTION).write_text("_target_: models.renderers.splats.Splats\nnumber: 3\n")
    with pytest.raises(ModuleNotFoundError, match="gsplat"):
        load(tmp_path, Renderer)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "spec.json has 3 channels of state, the weights have 4; export it again"),
        ("{", "spec.json is not valid JSON"),
        ("[]", "spec.json"),
    ],
)
def test_a_spec_that_is_not_the_models_is_one_line(tmp_path: Path, text: str | None, words: str) -> None:
    save(policy(), tmp_path)
    toy_spec(torch.randn(9, 3)).write(tmp_path) if text is None else (tmp_path / SPEC).write_text(text)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        load(tmp_path, FlowVLA)
    assert "\n" not in str(error.value)
