"""The baked field against a scene that can be traced by hand: a ball over a floor."""

import math

import pytest
import torch
from traced_scene import CENTRE, FLOOR, HIGH, LOW, RADIUS, ball_and_floor, rays, traced

from models.renderers.baked import BakedField
from worldsim.geometry.cameras import Intrinsics, look_at


@pytest.fixture(scope="module")
def field() -> BakedField:
    return BakedField(LOW, HIGH, (160, 160, 64), background=(0.0, 0.0, 1.0)).bake(ball_and_floor)


@pytest.mark.parametrize("position", [(0.0, -0.7, 0.5), (0.5, 0.4, 0.3), (-0.3, -0.3, 0.25)])
def test_pictures_and_distances_are_those_of_the_scene(field: BakedField, position: tuple[float, float, float]):
    """Away from edges, where a voxel of 5 mm blurs: colours to 2 %, distances to a voxel where a ray grazes the floor."""
    origins, directions = rays(look_at(position, [0, 0, 0.05]), Intrinsics.from_fov(45, width=64, height=64))
    color, distance, opacity = field.render(origins, directions)
    exact, what = traced(origins, directions)
    expected = torch.eye(3)[what]
    assert ((color - expected).abs().amax(1) < 0.02).float().mean() > 0.91
    hit = what < 2
    assert ((opacity > 0.99) == hit).float().mean() > 0.97
    error = (distance - exact)[hit & distance.isfinite()].abs()
    assert error.median() < 0.0035 and error.quantile(0.95) < 0.0125
    assert {int(x) for x in what.unique()} >= {0, 1}


def test_baking_is_checked_against_the_field_it_came_from(field: BakedField):
    points = torch.rand(5000, 3) * field.size + field.low
    density, _ = ball_and_floor(points)
    far = (((points - CENTRE).norm(dim=1) - RADIUS).abs() > 0.02) & ((points[:, 2] - FLOOR).abs() > 0.02)
    where = ((points - field.low) / field.size * 2 - 1)[None, :, None, None]
    baked = torch.nn.functional.grid_sample(field.grid, where, padding_mode="border", align_corners=False)[0, 0, :, 0, 0]
    assert (baked - density)[far].abs().max() < 4


@pytest.mark.parametrize("block", [1, 2, 5])
def test_coarse_cells_of_any_size_hide_nothing(field: BakedField, block: int):
    other = BakedField(LOW, HIGH, (160, 160, 60), block, background=(0.0, 0.0, 1.0)).bake(ball_and_floor)
    origins, directions = rays(look_at((0.0, -0.7, 0.5), [0, 0, 0.05]), Intrinsics.from_fov(45, width=32, height=32))
    pictures = [model.render(origins, directions)[0] for model in (field, other)]
    assert ((pictures[0] - pictures[1]).abs().amax(dim=1) < 0.05).float().mean() > 0.94


def test_rays_that_miss_see_the_background_and_those_from_inside_what_is_there(field: BakedField):
    up = torch.tensor([[0.0, 0.0, 1.0]])
    color, distance, opacity = field.render(torch.tensor([[0.0, 0.0, 1.0]]), up)
    assert torch.equal(color, torch.tensor([[0.0, 0.0, 1.0]])) and distance.isinf().all() and opacity == 0
    inside = torch.tensor([[-0.3, 0.0, 0.15]])
    _, distance, _ = field.render(inside, torch.tensor([[1.0, 0.0, 0.0]]))
    drop = math.sqrt(RADIUS**2 - 0.05**2)
    assert distance.item() == pytest.approx(0.35 - drop, abs=0.005)


def test_impossible_boxes_and_fields_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        BakedField((0, 0, 0), (1, 0, 1))
    with pytest.raises(ValueError, match="multiples of block"):
        BakedField((0, 0, 0), (1, 1, 1), resolution=(10, 8, 8))
    small = BakedField((0, 0, 0), (1, 1, 1), resolution=(8, 8, 8))
    with pytest.raises(ValueError, match="negative density"):
        small.bake(lambda points: (-torch.ones(len(points)), points))
    with pytest.raises(ValueError, match="finite"):
        small.bake(lambda points: (torch.full((len(points),), torch.nan), points))
