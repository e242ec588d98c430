"""The radiance field of nerfstudio's parts: trained by Lightning and by nerfstudio, saved, baked, and refused when damaged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

pytest.importorskip("nerfstudio", reason="needs the extra nerf")

from traced_scene import HIGH, LOW, photographed, rays, traced

from models.renderers.baked import BakedField
from models.renderers.nerfstudio import RadianceField
from training.app import cli
from training.supervised.nerf import NerfTraining
from worldsim.core import checkpoint
from worldsim.geometry.cameras import Intrinsics, look_at

pytestmark = pytest.mark.nerf

SMALL = [f"model.field.low={list(LOW)}", f"model.field.high={list(HIGH)}", "model.field.background=[0.0,0.0,1.0]"]
SMALL += [
    "model.field.proposal_samples=32",
    "model.field.samples=16",
    "model.field.levels=4",
    "model.field.max_resolution=64",
    "model.field.log2_table=12",
    "model.voxel=0.01",
    "model.depth_weight=1.0",
]


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photographed(tmp_path_factory.mktemp("capture") / "scene", number=24)


@pytest.fixture(scope="module")
def run(capture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished `worldsim fit experiment=nerf` of half a minute."""
    folder = tmp_path_factory.mktemp("nerf") / "run"
    overrides = [
        *SMALL,
        f"data.root={capture}",
        "data.every=8",
        "data.batch_size=256",
        "trainer.max_steps=400",
        f"run_dir={folder}",
    ]
    assert cli.main(["fit", "experiment=nerf", *overrides]) == 0
    return folder


def test_it_learns_the_scene_from_pictures(run: Path):
    quality = json.loads((run / "nerf.json").read_text())
    assert quality["held_out_views"] == 3
    assert quality["field"]["psnr_db"] > 21 and quality["field"]["depth_error_m"] < 0.008
    assert quality["baked"]["psnr_db"] > 17.5 and quality["baked"]["depth_error_m"] < 0.01
    assert cv2.imread(str(run / "views.png")).shape == (3 * 40, 3 * 40, 3), "truth, field and baked copy, three held-out views"


def test_where_rays_are_sampled_depends_on_the_batch_alone(run: Path):
    module = NerfTraining(checkpoint.load(run, RadianceField).train())
    origins, directions = rays(look_at((0.5, -0.4, 0.4), (0, 0, 0.05)), Intrinsics.from_fov(45, width=8, height=8))
    distance, _ = traced(origins, directions)
    batch = {"origins": origins, "directions": directions, "color": torch.zeros(64, 3), "distance": distance.nan_to_num(posinf=0)}
    losses = []
    for chance, seed in ((0, 7), (1, 7), (0, 8)):
        torch.manual_seed(chance)
        losses.append(module.training_step({**batch, "seed": seed}, 0))
        assert torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(chance).get_state())
    assert losses[0] == losses[1] != losses[2]


def test_what_was_saved_renders_a_view_that_nobody_took(run: Path):
    field, baked = checkpoint.load(run, RadianceField), checkpoint.load(run / "baked", BakedField)
    origins, directions = rays(look_at((0.5, -0.4, 0.4), (0, 0, 0.05)), Intrinsics.from_fov(45, width=32, height=32))
    distance, what = traced(origins, directions)
    for model, share in ((field, 0.85), (baked, 0.8)):
        color, seen, opacity = model.render(origins, directions)
        assert ((color - torch.eye(3)[what]).abs().amax(dim=1) < 0.25).float().mean() > share
        assert ((seen - distance)[what < 2].abs() < 0.03).float().mean() > share
        assert (opacity[what == 2] < 0.2).float().mean() > share


def test_the_sum_of_what_a_ray_meets_is_the_quadrature(run: Path):
    """Density 2/m everywhere in the box: opacity 1 - exp(-2 * length). 16 samples leave half a stretch out at both ends."""
    field: RadianceField = checkpoint.load(run, RadianceField)
    field.field.get_density = lambda samples: (torch.full((*samples.shape, 1), 2.0), torch.zeros(*samples.shape, 15))  # type: ignore
    field.proposal.density_fn = lambda positions: torch.full((*positions.shape[:-1], 1), 2.0)  # type: ignore[method-assign]
    origins, directions = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, -1.0]])
    traced_ray = field(origins, directions)
    length = (HIGH[2] - LOW[2]) * 16 / 17
    opacity = 1 - torch.exp(torch.tensor(-2.0 * length))
    assert traced_ray.opacity.item() == pytest.approx(opacity.item(), abs=1e-3)
    assert traced_ray.color[0, 2].item() >= (1 - opacity).item() - 0.01, "the blue background shines through"
    assert 1 - HIGH[2] < traced_ray.expected.item() < 1 - LOW[2]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nonsense"), "damaged"),
        (lambda folder: (folder / "model.yaml").write_text("!!python/object/apply:os.system ['touch pwned']"), "damaged"),
        (lambda folder: (folder / "model.yaml").write_text("_target_: os.system\ncommand: touch pwned"), "nothing was imported"),
        (
            lambda folder: (folder / "model.yaml").write_text(
                (folder / "model.yaml").read_text().replace("levels: 4", "levels: 5")
            ),
            "does not fit",
        ),
        (lambda folder: (folder / "model.yaml").write_text((folder / "model.yaml").read_text() + "colour: red\n"), "does not fit"),
    ],
    ids=["no weights", "broken weights", "yaml object", "foreign class", "wrong shapes", "unknown argument"],
)
def test_a_damaged_or_malicious_folder_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage, words: str):
    monkeypatch.chdir(tmp_path)
    folder = checkpoint.save(checkpoint.load(run, RadianceField), tmp_path / "field")
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        checkpoint.load(folder, RadianceField)
    assert not (tmp_path / "pwned").exists()


def test_a_capture_that_cannot_be_learned_is_refused(capture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    few = photographed(tmp_path / "few", number=3)
    command = ["fit", "experiment=nerf", *SMALL, "trainer.max_steps=2", f"run_dir={tmp_path / 'run'}"]
    assert cli.main([*command, f"data.root={few}"]) == 2
    assert "has 3 views, so none is held out" in capsys.readouterr().err
    cv2.imwrite(str(few / "images" / "001.png"), cv2.imread(str(few / "images" / "001.png"))[:8])
    assert cli.main([*command, f"data.root={few}", "data.every=2"]) == 2
    assert "should be a picture of 40x40 pixels, found 40x8" in capsys.readouterr().err


def nerfstudio(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """nerfstudio's own command in a process of its own, as docs/worlds.md says where torchvision is of another build than torch."""
    code = "import worldsim.core.torchvision_remedy; from nerfstudio.scripts.train import entrypoint; entrypoint()"
    command = [sys.executable, "-c", code, *arguments]
    env = {**os.environ, "COLUMNS": "200", "MPLCONFIGDIR": str(folder)}
    return subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_nerfstudios_trainer_knows_the_method(capture: Path, tmp_path: Path):
    told = nerfstudio("worldsim-nerf", "--help", folder=tmp_path)
    assert told.returncode == 0, told.stderr
    assert "--pipeline.model.log2-table" in told.stdout
    options = ["--data", str(capture), "--vis", "tensorboard", "--max-num-iterations", "3", "--output-dir", str(tmp_path / "out")]
    smaller = ["--pipeline.model.levels", "2", "--pipeline.model.max-resolution", "32", "--pipeline.model.log2-table", "10"]
    trained = nerfstudio("worldsim-nerf", *options, "--machine.device-type", "cpu", *smaller, folder=tmp_path)
    assert trained.returncode == 0, trained.stderr[-2000:]
    assert list((tmp_path / "out").rglob("*.ckpt"))
