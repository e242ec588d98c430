"""Exported models: the same output after a round trip, and one-line errors for what cannot be loaded. Nothing is unpickled."""

import pickle
import sys

import pytest
import torch
import yaml

from models import renderers
from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.blocks import VisualTrunk
from worldsim.checkpoint import DESCRIPTION, WEIGHTS, load, save
from worldsim.types import Observation

FRAMES = torch.randint(0, 256, (2, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
SENTENCES = ("push the red block onto the green disc", "move the red block to the blue disc")


def trunk():
    return VisualTrunk(features=12, channels=8, blocks=1, text=8)


def policy():
    model = FlowVLA(width=16, channels=8, blocks=1, action_horizon=3)
    model.fit_statistics(torch.arange(4.0), torch.full((4,), 2.0))
    return model


def world_model():
    model = LatentFlowWorldModel(latent_channels=3, channels=(8, 8), layers=(1, 1))
    model.fit_statistics(FRAMES, torch.randn(9, 4))
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
        return model(FRAMES, SENTENCES)
    if isinstance(model, FlowVLA):
        features = model.encode(Observation({"front": FRAMES}, torch.ones(2, 4), SENTENCES))
        return model.velocity(features, torch.ones(2, 3, 2), torch.tensor([1.0, 0.3]))
    if isinstance(model, InstantReflector):
        return model.judge(FRAMES, SENTENCES).p_success
    state = model.init(FRAMES[:, None].repeat(1, 2, 1, 1, 1), torch.ones(2, 2, 4))
    return model.step(state, torch.ones(2, 4, 2), model.noise(2, torch.Generator().manual_seed(1)))[1]


@pytest.mark.parametrize("build", [trunk, policy, world_model, reflector])
def test_same_output_after_a_round_trip(tmp_path, build):
    model = build().eval()
    save(model, tmp_path / "model")
    loaded = load(tmp_path / "model", type(model))
    assert not loaded.training
    assert torch.equal(output(loaded), output(model))
    assert loaded.arguments == model.arguments
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == [WEIGHTS, DESCRIPTION]
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_saving_again_replaces(tmp_path):
    save(trunk(), tmp_path)
    model = trunk().eval()
    save(model, tmp_path)
    assert torch.equal(output(load(tmp_path)), output(model))


def one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value), str(error.value)


def test_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="no exported model in") as error:
        load(tmp_path / "nowhere")
    one_line(error)


def test_missing_weights(tmp_path):
    save(trunk(), tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="no weights at") as error:
        load(tmp_path)
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
        load(tmp_path)
    one_line(error)


def test_weights_of_another_shape(tmp_path):
    save(trunk(), tmp_path)
    description = yaml.safe_load((tmp_path / DESCRIPTION).read_text())
    (tmp_path / DESCRIPTION).write_text(yaml.safe_dump({**description, "features": 13}))
    with pytest.raises(ValueError, match="does not fit VisualTrunk") as error:
        load(tmp_path)
    one_line(error)


@pytest.mark.parametrize("text", ["features: 12\n", "just words\n", "_target_: worldsim.blocks.NoSuchTrunk\n", ""])
def test_damaged_description(tmp_path, text):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_text(text)
    with pytest.raises(ValueError, match="is damaged|does not exist here"):
        load(tmp_path)


def test_a_class_from_elsewhere_is_refused(tmp_path):
    save(trunk(), tmp_path)
    (tmp_path / DESCRIPTION).write_text("_target_: torch.nn.Linear\nin_features: 1\nout_features: 1\n")
    with pytest.raises(ValueError, match="not a model of worldsim; nothing was imported") as error:
        load(tmp_path)
    one_line(error)


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
        load(tmp_path)
    torch.save({"state_dict": Bomb()}, tmp_path / WEIGHTS)
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)
    (tmp_path / DESCRIPTION).write_text("!!python/object/apply:builtins.exec ['raise SystemExit(1)']\n")
    with pytest.raises(ValueError, match="is damaged"):
        load(tmp_path)


def test_a_library_that_is_missing_is_named_and_not_the_model(tmp_path, monkeypatch):
    save(trunk(), tmp_path)
    for name in ("gsplat", "gsplat.cuda", "gsplat.cuda._torch_impl"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    monkeypatch.delitem(sys.modules, "models.renderers.splats", raising=False)
    monkeypatch.delattr(renderers, "splats", raising=False)
    (tmp_path / DESCRIPTION).write_text("_target_: models.renderers.splats.Splats\nnumber: 3\n")
    with pytest.raises(ModuleNotFoundError, match="gsplat"):
        load(tmp_path)
