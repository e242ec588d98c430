"""Exported models of parts, and weights on top of a base: described in one file, and nothing is built that nobody asked for."""

import copy
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from models.policies.flow_vla import FlowVLA
from worldsim.core.checkpoint import BASE, DESCRIPTION, WEIGHTS, Configured, PlainDumper, load, load_weights, save
from worldsim.core.interfaces import Policy
from worldsim.nn import layers
from worldsim.nn.layers import VisualTrunk


def trunk():
    return VisualTrunk(features=12, channels=8, blocks=1, text=8)


def policy():
    return FlowVLA(width=16, channels=8, blocks=1, action_horizon=3)


def one_line(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value), str(error.value)


class Pair(Configured):
    """A model of models: one, perhaps another, and some in a dictionary of lists."""

    def __init__(
        self, trunk: VisualTrunk, other: "Pair | None" = None, more: dict[str, list[VisualTrunk]] | None = None, **sizes: int
    ):
        super().__init__()
        self.trunk, self.other, self.sizes = trunk, other, sizes
        self.more = nn.ModuleList(part for parts in (more or {}).values() for part in parts)


@pytest.fixture
def pairs(monkeypatch):
    """As if `Pair` were one of worldsim's models."""
    monkeypatch.setattr(Pair, "__module__", "worldsim.nn.layers")
    monkeypatch.setattr(layers, "Pair", Pair, raising=False)


def test_models_within_models_are_described_in_their_place(tmp_path, pairs):
    model = Pair(trunk(), Pair(trunk(), scale=2), more={"a": [trunk(), trunk()]}, size=3).eval()
    save(model, tmp_path)
    description = yaml.safe_load((tmp_path / DESCRIPTION).read_text())
    assert description["other"]["trunk"] == {"_target_": "worldsim.nn.layers.VisualTrunk", **trunk().arguments}
    assert (description["other"]["scale"], description["size"]) == (2, 3)
    loaded = load(tmp_path, Pair)
    assert (loaded.other.sizes, loaded.sizes) == ({"scale": 2}, {"size": 3})
    for built, original in zip(loaded.modules(), model.modules(), strict=True):
        assert type(built) is type(original)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


SMALL = {"_target_": "worldsim.nn.layers.VisualTrunk", "features": 12, "channels": 8, "blocks": 1, "text": 8}


def nested(depth: int) -> dict[str, Any]:
    """A `Pair` of `Pair`s, `depth` of them within the first."""
    inner = {"other": nested(depth - 1)} if depth else {}
    return {"_target_": "worldsim.nn.layers.Pair", "trunk": SMALL, **inner}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"trunk": SMALL, "size": SMALL}, "holds a model as size, which Pair does not annotate as one; annotate it there"),
        ({"trunk": {"a": [{"_target_": "worldsim.nn.layers.Writes"}]}}, "trunk, holds a Writes, expected a VisualTrunk"),
        ({"trunk": SMALL, "more": {"a": [nested(0)]}}, "more, holds a Pair, expected a VisualTrunk"),
        ({"trunk": {"_target_": "os.system"}}, "trunk, names 'os.system', which no installed plug-in lists under worldsim.parts"),
        ({"trunk": {"_target_": "worldsim.nn.layers.ResidualBlock"}}, "Block, which is not a model of worldsim; nothing was built"),
        ({"trunk": SMALL, "other": nested(8)}, "models within models more than 8 deep"),
        ({"trunk": {**SMALL, "features": 10**6, "text": 10**6}}, "does not fit Pair: trunk"),  # terabytes, if it were built
        ({"trunk": {**SMALL, "views": {"front": [60, 64]}}}, "does not fit worldsim.nn.layers.Pair: the view of camera"),
    ],
)
def test_a_part_is_what_the_constructor_asks_for_in_its_place(tmp_path, pairs, monkeypatch, arguments, message):
    class Writes(Configured):
        def __init__(self):
            (tmp_path / "written").touch()

    Writes.__module__ = "worldsim.nn.layers"
    monkeypatch.setattr(layers, "Writes", Writes, raising=False)
    save(trunk(), tmp_path)
    description = {"_target_": "worldsim.nn.layers.Pair", **arguments}
    (tmp_path / DESCRIPTION).write_text(yaml.dump(description, Dumper=PlainDumper))
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, Pair)
    one_line(error)
    assert not (tmp_path / "written").exists()


@pytest.fixture
def adapted(tmp_path):
    """A policy saved on a base: of all its tensors, one weight and one statistic differ."""
    base = policy()
    save(base, tmp_path / "runs" / "base")
    model = copy.deepcopy(base).eval()
    with torch.no_grad():
        model.expert_in.bias.add_(1)
    model.state_units.scale.mul_(2)
    save(model, tmp_path / "runs" / "adapter", base=tmp_path / "runs" / "base")
    return model, tmp_path / "runs"


def test_only_what_differs_from_a_base_is_saved(adapted, tmp_path):
    model, runs = adapted
    assert sorted(load_file(runs / "adapter" / WEIGHTS)) == ["expert_in.bias", "state_units.scale"]
    assert yaml.safe_load((runs / "adapter" / DESCRIPTION).read_text())[BASE] == "../base"
    other = policy()
    load_weights(other, runs / "adapter")
    runs.rename(tmp_path / "moved")  # both together
    for loaded in (load(tmp_path / "moved" / "adapter", Policy), other):
        for name, tensor in model.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor), name
    # Nothing differs from the base here or there, and yet the files differ: who compares weights by their hash is not misled.
    for name in ("adapter", "base"):
        save(load(tmp_path / "moved" / name, Policy), tmp_path / f"whole_{name}")
        save(load(tmp_path / "moved" / name, Policy), tmp_path / f"equal_{name}", base=tmp_path / f"whole_{name}")
    assert load_file(tmp_path / "equal_base" / WEIGHTS) == {}
    assert (tmp_path / "equal_base" / WEIGHTS).read_bytes() != (tmp_path / "equal_adapter" / WEIGHTS).read_bytes()


def test_a_base_that_is_missing_or_has_changed_is_refused(adapted):
    model, runs = adapted
    description = (runs / "adapter" / DESCRIPTION).read_text()
    for path in (str(runs / "base"), 7):
        (runs / "adapter" / DESCRIPTION).write_text(yaml.safe_dump({**yaml.safe_load(description), BASE: path}))
        with pytest.raises(ValueError, match="expected a path that begins at its folder") as error:
            load(runs / "adapter", Policy)
        one_line(error)
    (runs / "adapter" / DESCRIPTION).write_text(description)
    save(policy(), runs / "base")  # other random weights
    for attempt in (lambda: load(runs / "adapter", Policy), lambda: load_weights(policy(), runs / "adapter")):
        with pytest.raises(ValueError, match="is not what .*adapter was saved on, its weights have changed") as error:
            attempt()
        one_line(error)
    (runs / "base" / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match="what differs from .*base/model.safetensors, which is missing") as error:
        load(runs / "adapter", Policy)
    one_line(error)


def test_what_is_no_base_is_refused_before_anything_is_written(adapted, tmp_path):
    model, runs = adapted
    save(trunk(), tmp_path / "trunk")
    for base, message in (
        (runs / "adapter", "it has one itself"),
        (tmp_path / "trunk", "is no base of this FlowVLA, which has no"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            save(model, tmp_path / "out", base=base)
        one_line(error)
    with pytest.raises(ValueError, match="or is the same folder"):
        save(model, runs / "base", base=runs / "adapter" / ".." / "base")
    assert not (tmp_path / "out").exists()
