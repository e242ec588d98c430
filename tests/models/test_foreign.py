"""Scenes that others trained with nerfstudio: converted without running what they contain, refused when damaged."""

import json
import shutil
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("nerfstudio", reason="needs the extra nerf")

from nerfstudio.models.nerfacto import NerfactoModelConfig

from models.renderers.foreign import Nerfacto, convert, read_config
from training.app.cli import main
from worldsim.core import checkpoint
from worldsim.core.renderer import Renderer
from worldsim.geometry.alignment import Similarity

pytestmark = pytest.mark.nerf

SMALL = {
    "num_levels": 2,
    "max_res": 16,
    "log2_hashmap_size": 8,
    "hidden_dim": 8,
    "hidden_dim_color": 8,
    "num_proposal_samples_per_ray": [8],
    "num_nerf_samples_per_ray": 4,
    "num_proposal_iterations": 1,
    "proposal_net_args_list": [{"hidden_dim": 8, "log2_hashmap_size": 8, "num_levels": 2, "max_res": 16, "use_linear": False}],
    "implementation": "torch",
    "average_init_density": 1.0,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Nerfacto]:
    """A folder as `ns-train nerfacto` leaves it, its configuration written by PyYAML as nerfstudio does, and the model in it."""
    torch.manual_seed(0)
    run = tmp_path_factory.mktemp("outputs") / "run"
    (run / "nerfstudio_models").mkdir(parents=True)
    model = Nerfacto([-1.0] * 3, [1.0] * 3, images=5, settings=SMALL).eval()
    weights = {f"_model.{name}": value for name, value in model.model.state_dict().items()}
    weights["_model.lpips.net.weight"] = torch.zeros(3)
    torch.save({"step": 9, "pipeline": weights, "optimizers": {}}, run / "nerfstudio_models" / "step-000000009.ckpt")
    config = NerfactoModelConfig(**{**SMALL, "num_proposal_samples_per_ray": (8,)})  # a tuple is a Python object to YAML
    text = yaml.dump({"method_name": "nerfacto", "pipeline": {"model": config}})
    assert "!!python/object" in text and "!!python/tuple" in text and "!!python/name" in text
    (run / "config.yml").write_text(text)
    transform = np.concatenate([np.eye(3)[[1, 2, 0]], [[1.0], [2.0], [3.0]]], axis=1)
    (run / "dataparser_transforms.json").write_text(json.dumps({"transform": transform.tolist(), "scale": 0.25}))
    return run, model


@pytest.fixture
def run(trained: tuple[Path, Nerfacto], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(trained[0], tmp_path / "run")


def test_a_converted_scene_renders_what_the_model_rendered(trained: tuple[Path, Nerfacto], run: Path, tmp_path: Path):
    out = convert(run, tmp_path / "scene")
    again = checkpoint.load(out, Renderer)
    origins, directions = torch.randn(50, 3), torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    for mine, theirs in zip(again.render(origins, directions), trained[1].render(origins, directions), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_command_converts_a_run_and_refuses_what_is_none(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["convert", f"run={run}", f"out={tmp_path / 'scene'}"]) == 0
    checkpoint.load(tmp_path / "scene", Nerfacto)
    assert main(["convert", f"run={tmp_path / 'nothing'}"]) == 2
    assert "pass the folder of a run of ns-train" in capsys.readouterr().err
    kept = (tmp_path / "scene" / "model.safetensors").read_bytes()
    assert main(["convert", f"run={run}", f"out={tmp_path / 'scene'}"]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert (tmp_path / "scene" / "model.safetensors").read_bytes() == kept


def test_the_alignment_leads_back_to_the_captures_coordinates(run: Path, tmp_path: Path):
    convert(run, tmp_path / "scene")
    captured = np.array([[0.5, -1.0, 2.0]])
    in_nerf = 0.25 * (captured @ np.eye(3)[[1, 2, 0]].T + [1.0, 2.0, 3.0])
    np.testing.assert_allclose(Similarity.load(tmp_path / "scene" / "alignment.json").points(in_nerf), captured)


def test_a_configuration_is_read_and_never_run(tmp_path: Path):
    evil = tmp_path / "config.yml"
    evil.write_text(f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{tmp_path / 'pwned'}']]\n")
    assert isinstance(read_config(evil)["a"], list)
    assert not (tmp_path / "pwned").exists()


class Opens:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def poison(run: Path) -> None:
    torch.save({"pipeline": Opens(run / "pwned")}, run / "nerfstudio_models" / "step-000000010.ckpt")


def other_method(run: Path) -> None:
    (run / "config.yml").write_text((run / "config.yml").read_text().replace("method_name: nerfacto", "method_name: instant-ngp"))


def other_size(run: Path) -> None:
    (run / "config.yml").write_text((run / "config.yml").read_text().replace("hidden_dim_color: 8", "hidden_dim_color: 16"))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: (run / "config.yml").unlink(), "config.yml is missing"),
        (lambda run: (run / "config.yml").write_text("a: [1"), "is damaged"),
        (lambda run: (run / "config.yml").write_text("a: 1"), "is not a configuration of ns-train"),
        (lambda run: shutil.rmtree(run / "nerfstudio_models"), "holds no checkpoint"),
        (lambda run: (run / "nerfstudio_models" / "step-000000009.ckpt").write_bytes(b"junk"), "is not a checkpoint"),
        (lambda run: (run / "dataparser_transforms.json").write_text('{"transform": [[1]], "scale": 1}'), "is damaged"),
        (poison, "is not a checkpoint"),
        (other_method, "is of method instant-ngp"),
        (other_size, "do not fit its configuration"),
    ],
    ids=["no config", "broken yaml", "other yaml", "no checkpoint", "junk", "no rotation", "pickle", "method", "shapes"],
)
def test_a_damaged_or_malicious_run_is_refused(run: Path, tmp_path: Path, damage, words: str):
    damage(run)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        convert(run, tmp_path / "scene")
    assert not (run / "pwned").exists()
    assert not (tmp_path / "scene").exists()


def test_weights_of_another_implementation_are_refused(run: Path, tmp_path: Path):
    """tiny-cuda-nn keeps all of a network in one vector."""
    file = run / "nerfstudio_models" / "step-000000009.ckpt"
    state = torch.load(file, weights_only=True)
    flat = {name: value for name, value in state["pipeline"].items() if "mlp_head" not in name}
    torch.save({"pipeline": {**flat, "_model.field.mlp_head.tcnn_encoding.params": torch.zeros(9)}}, file)
    with pytest.raises(ValueError, match="implementation torch"):
        convert(run, tmp_path / "scene")


def test_every_setting_of_the_small_model_is_one_of_nerfstudios():
    assert set(SMALL) <= {field.name for field in fields(NerfactoModelConfig)}
