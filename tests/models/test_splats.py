"""Splats along rays against what can be worked out by hand, and against gsplat's own projection."""

import json
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml

pytest.importorskip("nerfstudio", reason="needs the extra nerf")

from gsplat.cuda._torch_impl import _fully_fused_projection, _quat_scale_to_covar_preci, _spherical_harmonics
from nerfstudio.data.scene_box import SceneBox
from nerfstudio.models.splatfacto import SplatfactoModel, SplatfactoModelConfig
from torch import Tensor, nn

from models.renderers.foreign import convert
from models.renderers.splats import Splats
from worldsim.core import checkpoint
from worldsim.geometry.cameras import FLIP, Intrinsics, look_at
from worldsim.measure.metrics import psnr

pytestmark = pytest.mark.nerf
SH = 0.28209479177387814


def splats(places: list[list[float]], colors: list[list[float]], opacity: float, scale: float = 0.1) -> Splats:
    """Round splats of one colour from all sides."""
    model = Splats(len(places), degree=0)
    model.means.copy_(torch.tensor(places))
    model.scales.fill_(scale)
    model.opacities.fill_(opacity)
    model.harmonics.copy_((torch.tensor(colors)[:, None] - 0.5) / SH)
    return model


def test_a_ray_meets_a_splat_where_it_is_densest():
    model = splats([[2.0, 0.0, 0.0]], [[1.0, 0.5, 0.25]], opacity=0.8)
    origins, directions = torch.zeros(3, 3), torch.tensor([[1.0, 0.0, 0.0], [2.0, 0.1, 0.0], [-1.0, 0.0, 0.0]])
    color, distance, opacity = model.render(origins, torch.nn.functional.normalize(directions, dim=1))
    beside = 2 * 0.1 / (4 + 0.01) ** 0.5  # from the middle to the second ray
    expected = torch.tensor([0.8, 0.8 * float(np.exp(-(beside**2) / 0.02)), 0.0])
    torch.testing.assert_close(opacity, expected)
    torch.testing.assert_close(color, expected[:, None] * torch.tensor([1.0, 0.5, 0.25]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(distance, torch.tensor([2.0, 4 / (4 + 0.01) ** 0.5, torch.inf]))


def test_nearer_splats_cover_farther_ones_from_either_side():
    model = splats([[-1.0, 0.0, 0.0], [1.0, 0.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], opacity=0.6)
    origins, directions = torch.tensor([[-3.0, 0, 0], [3.0, 0, 0]]), torch.tensor([[1.0, 0, 0], [-1.0, 0, 0]])
    color, distance, opacity = model.render(origins, directions)
    torch.testing.assert_close(color, torch.tensor([[0.6, 0.24, 0.0], [0.24, 0.6, 0.0]]), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(opacity, torch.full((2,), 0.84))
    torch.testing.assert_close(distance, torch.full((2,), 2.0))


def scattered(n: int = 300) -> Splats:
    """Splats of all shapes around the origin, with colours that depend on where they are seen from."""
    torch.manual_seed(0)
    model = Splats(n, degree=3)
    model.means.copy_(0.3 * torch.randn(n, 3))
    model.scales.copy_(0.01 + 0.05 * torch.rand(n, 3))
    model.quats.copy_(torch.randn(n, 4))
    model.opacities.copy_(torch.rand(n))
    model.harmonics.copy_(0.3 * torch.randn(n, 16, 3))
    return model


def rasterised(model: Splats, pose: np.ndarray, lens: Intrinsics) -> tuple[Tensor, Tensor, Tensor]:
    """Colour, opacity and the planar depth where half of that is reached: by gsplat's projection, and the sum over splats sorted by
    depth (arXiv:2308.04079, equation 3)."""
    view = torch.from_numpy(np.linalg.inv(pose @ FLIP)).float()[None]
    k = torch.tensor([[[lens.fx, 0, lens.cx], [0, lens.fy, lens.cy], [0, 0, 1.0]]])
    covariances, _ = _quat_scale_to_covar_preci(model.quats, model.scales)
    _, middle, depth, conic, _ = _fully_fused_projection(model.means, covariances, view, k, lens.width, lens.height, eps2d=0.0)
    toward = model.means - torch.from_numpy(pose[:3, 3]).float()
    shade = (_spherical_harmonics(3, toward, model.harmonics) + 0.5).clamp(min=0)
    rows, columns = torch.meshgrid(torch.arange(lens.height) + 0.5, torch.arange(lens.width) + 0.5, indexing="ij")
    left, picture = torch.ones(lens.height, lens.width), torch.zeros(lens.height, lens.width, 3)
    passed, order = [], depth[0].argsort()
    for i in order.tolist():
        x, y = columns - middle[0, i, 0], rows - middle[0, i, 1]
        a, b, c = conic[0, i]
        alpha = model.opacities[i] * torch.exp(-(a * x * x + c * y * y) / 2 - b * x * y)
        alpha = torch.where(alpha < 1 / 255, 0.0, alpha.clamp(max=0.999))
        picture += (left * alpha)[..., None] * shade[i]
        left = left * (1 - alpha)
        passed.append(left)
    half = (torch.stack(passed) > (1 + left) / 2).sum(dim=0).clamp(max=len(order) - 1)
    return picture.clamp(0, 1), 1 - left, depth[0][order][half]


@pytest.mark.parametrize("position", [(3.0, 0.0, 1.0), (-1.0, 2.5, 0.5)])
def test_pictures_are_those_of_a_rasteriser_but_for_its_linear_perspective(position: tuple[float, float, float]):
    model, lens, pose = scattered(), Intrinsics.from_fov(40, width=48, height=48), look_at(position, [0, 0, 0])
    directions = torch.from_numpy(lens.directions().reshape(-1, 3) @ pose[:3, :3].T).float()
    color, distance, opacity = model.render(torch.from_numpy(pose[:3, 3]).float().expand_as(directions), directions)
    picture, share, depth = rasterised(model, pose, lens)
    planar = distance.reshape(48, 48) * torch.from_numpy(lens.planar_per_ray())
    off = (planar - depth)[share > 0.5].abs()  # splats are 0.01 to 0.06 wide
    assert psnr(color.reshape(1, 48, 48, 3), picture[None]) > 36
    assert (opacity.reshape(48, 48) - share).abs().max() < 0.03
    assert off.median() < 0.01 and off.quantile(0.95) < 0.05


def trained(run: Path, degree: int) -> SplatfactoModel:
    """A folder as `ns-train splatfacto` leaves it, and the model in it."""
    config = SplatfactoModelConfig(num_random=40, sh_degree=degree)
    with patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", nn.Identity):  # it would download a network
        model = SplatfactoModel(config, SceneBox(torch.tensor([[-1.0] * 3, [1.0] * 3])), 5)
    with torch.no_grad():
        for value in model.gauss_params.values():
            value.add_(0.1 * torch.randn_like(value))
    (run / "nerfstudio_models").mkdir(parents=True)
    weights = {f"_model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"step": 9, "pipeline": weights}, run / "nerfstudio_models" / "step-000000009.ckpt")
    (run / "config.yml").write_text(yaml.dump({"method_name": "splatfacto", "pipeline": {"model": config}}))
    transform = np.eye(3, 4).tolist()
    (run / "dataparser_transforms.json").write_text(json.dumps({"transform": transform, "scale": 0.5}))
    return model


@pytest.mark.parametrize("degree", [0, 2])
def test_a_run_of_splatfacto_is_read_as_nerfstudio_means_it(tmp_path: Path, degree: int):
    torch.manual_seed(0)
    model = trained(tmp_path / "run", degree)
    scene = checkpoint.load(convert(tmp_path / "run", tmp_path / "scene"), Splats)
    torch.testing.assert_close(scene.scales, model.scales.exp())
    torch.testing.assert_close(scene.opacities, model.opacities.sigmoid()[:, 0])
    shade = model.features_dc.sigmoid() if degree == 0 else 0.5 + SH * model.features_dc
    torch.testing.assert_close(0.5 + SH * scene.harmonics[:, 0], shade)
    assert scene.harmonics.shape == (40, (degree + 1) ** 2, 3)


def test_runs_without_splats_and_impossible_numbers_are_refused(tmp_path: Path):
    trained(tmp_path / "run", 2)
    file = tmp_path / "run" / "nerfstudio_models" / "step-000000009.ckpt"
    state = torch.load(file, weights_only=True)
    del state["pipeline"]["_model.gauss_params.quats"]
    torch.save(state, file)
    with pytest.raises(ValueError, match="lacks parameters of splats: .*quats"):
        convert(tmp_path / "run", tmp_path / "scene")
    with pytest.raises(ValueError, match="number >= 1"):
        Splats(0)
