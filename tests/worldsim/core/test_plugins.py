"""What installed distributions list: found without an import, built if it keeps its contract, and otherwise refused in one line."""

import sys

import pytest
import torch
import yaml

import worldsim
from training.app.cli import main
from worldsim.core import plugins
from worldsim.core.checkpoint import DESCRIPTION, load, save
from worldsim.core.interfaces import Policy, Reflector
from worldsim.nn.layers import VisualTrunk

JUDGE = """
import torch
from worldsim.core.interfaces import Policy, Reflector
from worldsim.core.types import Reflection

class Judge(Reflector):
    def __init__(self, size: int = 2):
        super().__init__()
        self.consecutive = self.window = 1
        self.register_buffer("threshold", torch.tensor(0.5))
        self.weight = torch.nn.Parameter(torch.arange(float(size)))

    def judge(self, images, instruction):
        return Reflection(*[self.weight.sum().expand(len(instruction))] * 3)

class Idle(Policy):
    def encode(self, obs):
        return obs.state
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs the distribution acme-robots 1.2: a module `acme` and its entry points, {group: "Name or module:Name"}."""

    def install(source: str, entries: dict[str, str]) -> None:
        (tmp_path / "acme.py").write_text(source)
        info = tmp_path / "acme_robots-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-robots\nVersion: 1.2\n")
        (info / "entry_points.txt").write_text("".join(f"[{group}]\nacme = {value}\n" for group, value in entries.items()))
        monkeypatch.syspath_prepend(tmp_path)

    yield install
    sys.modules.pop("acme", None)


def test_a_checkpoint_names_a_class_that_a_plugin_lists(install, tmp_path):
    install(JUDGE, {"worldsim.reflectors": "acme:Judge"})
    (plugin,) = [plugin for plugin in plugins.installed() if plugin.distribution == "acme-robots 1.2"]
    assert (plugin.entry.group, plugin.entry.name, plugin.target) == ("worldsim.reflectors", "acme", "acme.Judge")
    assert "acme" not in sys.modules, "looking costs no import"
    model = plugin.load()(size=3)
    folder = save(model, tmp_path / "model")
    for loaded in (load(folder, Reflector), worldsim.load(folder)):
        assert type(loaded) is type(model) and not loaded.training
        assert torch.equal(loaded.weight, torch.tensor([0.0, 1.0, 2.0]))
    with pytest.raises(ValueError, match="^Judge has no logit that frames could train"):
        model.raw({"front": torch.zeros(1, 1, 8, 8, 3)}, ["go"])
    with pytest.raises(ValueError, match="'acme.Judge', which no installed plug-in lists under worldsim.policies and") as error:
        load(folder, Policy)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("entries", [{}, {"worldsim.policies": "acme:Judge"}, {"worldsim.reflectors": "acme:Idle"}])
def test_what_no_plugin_lists_in_its_group_is_refused_before_any_import(install, tmp_path, entries):
    install(JUDGE, entries)
    save(any_model(), tmp_path / "model")
    (tmp_path / "model" / DESCRIPTION).write_text(yaml.safe_dump({"_target_": "acme.Judge", "size": 3}))
    with pytest.raises(
        ValueError, match="no installed plug-in lists under worldsim.reflectors and .* nothing was imported"
    ) as error:
        load(tmp_path / "model", Reflector)
    assert "\n" not in str(error.value) and "acme" not in sys.modules
    with pytest.raises(ValueError, match="under worldsim.policies or worldsim.world_models or worldsim.reflectors|is no subclass"):
        worldsim.load(tmp_path / "model")


def any_model() -> VisualTrunk:
    """A model of worldsim's, for a folder that may then claim to hold another one."""
    return VisualTrunk(features=4, channels=4, blocks=0, text=4)


@pytest.mark.parametrize(
    ("source", "value", "reason", "remedy"),
    [
        ("import no_such_library", "acme:Judge", "does not import .ModuleNotFoundError: No module named", "repair or uninstall"),
        ("raise RuntimeError('first line\\nsecond')", "acme:Judge", "RuntimeError: first line second", "repair or uninstall"),
        (JUDGE, "acme:Jury", "does not import .AttributeError: module 'acme' has no attribute 'Jury'", "repair or uninstall"),
        (JUDGE, "acme:Idle", "is no subclass of Reflector", "list it under another group"),
        (JUDGE, "acme:torch", "is no subclass of Reflector", "list it under another group"),
        (JUDGE + "class Lazy(Reflector):\n    pass\n", "acme:Lazy", "lacks judge of Reflector", "write them"),
        (
            JUDGE + "Judge.__module__ = 'acme.judges'\n",
            "acme:Judge",
            "is acme.judges.Judge, as its",
            "list it as acme.judges:Judge",
        ),
    ],
)
def test_a_plugin_that_does_not_work_is_one_line_and_a_finding(install, tmp_path, capsys, source, value, reason, remedy):
    install(source, {"worldsim.reflectors": value})
    target = value.replace(":", ".")
    save(any_model(), tmp_path / "model")
    (tmp_path / "model" / DESCRIPTION).write_text(yaml.safe_dump({"_target_": target}))
    line = f"plug-in acme-robots 1.2 lists {target} under worldsim.reflectors, which .*{reason}.*; {remedy}"
    with pytest.raises(ValueError, match=line) as error:
        load(tmp_path / "model", Reflector)
    assert "\n" not in str(error.value)
    assert main(["doctor", "check=plugins"]) == 0, "a plug-in that does not work is a finding, not a crash"
    report = " ".join(capsys.readouterr().out.split())
    assert f"worldsim.reflectors acme broken {target}, acme-robots 1.2" in report
    assert f"-> {remedy}" in report


def test_the_doctor_says_which_checks_there_are_and_when_there_is_no_plugin(capsys, monkeypatch):
    monkeypatch.setattr(plugins, "installed", list)
    assert main(["doctor", "check=plugins"]) == 0
    assert "no distribution lists a class under worldsim.worlds, worldsim.world_models" in " ".join(capsys.readouterr().out.split())
    for wrong in (["check=plugin"], ["check=[plugins]"], ["check=plugins", "data=data/demos"], ["check=plugins", "mend=true"]):
        assert main(["doctor", *wrong]) == 2
        assert "expected one of plugins" in capsys.readouterr().err


def test_the_door_is_for_policies_world_models_and_reflectors(tmp_path):
    with pytest.raises(ValueError, match="holds a VisualTrunk, expected a Policy or WorldModel or Reflector"):
        worldsim.load(save(any_model(), tmp_path))
    assert type(worldsim.load(tmp_path, VisualTrunk)) is VisualTrunk
