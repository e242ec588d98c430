"""Compositing on scenes whose picture is known: a wall, a table, and bodies in front of and behind them."""

import math

import pytest
import torch

from worldsim.geometry.cameras import Intrinsics
from worldsim.geometry.compositing import Backdrop, ColorFit, Footprints, composite, contact_shadow

SIZE = (8, 8)
RED, GREY = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0.5, 0.5, 0.5])


def backdrop(depth: float, accumulation: float = 1.0) -> Backdrop:
    return Backdrop(GREY.expand(1, *SIZE, 3), torch.full((1, *SIZE), depth), torch.full((1, *SIZE), accumulation))


def body(depth: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A red square in the middle of the picture."""
    planes = torch.full((1, *SIZE), math.inf)
    planes[:, 2:6, 2:6] = depth
    return RED.expand(1, *SIZE, 3), planes


def test_a_body_in_front_is_seen_and_one_behind_is_not():
    inside = torch.zeros(1, *SIZE, dtype=torch.bool)
    inside[:, 2:6, 2:6] = True
    picture, share = composite(backdrop(1.0), *body(0.8))
    assert torch.allclose(picture[inside], RED.expand(16, 3)) and torch.equal(picture[~inside], GREY.expand(48, 3))
    assert torch.allclose(share, inside.float())
    picture, share = composite(backdrop(1.0), *body(1.2))
    assert torch.allclose(picture, GREY.expand_as(picture)) and torch.allclose(share, torch.zeros(()), atol=1e-6)


def test_surfaces_at_one_depth_are_mixed_and_a_transparent_scene_hides_in_part():
    _, share = composite(backdrop(1.0), *body(1.0))
    assert share[0, 3, 3] == pytest.approx(0.5)
    _, share = composite(backdrop(1.0, accumulation=0.3), *body(1.2))
    assert share[0, 3, 3] == pytest.approx(0.7, abs=1e-6)
    _, share = composite(backdrop(1.0), *body(1.0 + 0.01 * math.log(3)), softness=0.01)
    assert share[0, 3, 3] == pytest.approx(0.25, abs=1e-5)  # 1 - sigmoid(log 3)


def test_what_lies_a_little_behind_an_uncertain_surface_is_seen_and_what_lies_far_behind_is_not():
    for depth, expected in ((1.01, 1.0), (1.02, 0.5), (1.04, 0.0)):
        _, share = composite(backdrop(1.0), *body(depth), softness=0.001, bias=0.02)
        assert share[0, 3, 3] == pytest.approx(expected, abs=1e-3)


def test_distances_along_rays_become_planar_depth():
    """A wall 2 m away is further along the rays to its corners; as planar depth it is flat again."""
    lens = Intrinsics.from_fov(90, width=8, height=8)
    cosine = torch.from_numpy(lens.planar_per_ray()).float()
    wall = Backdrop.from_rays(GREY.expand(1, *SIZE, 3), (2 / cosine)[None], torch.ones(1, *SIZE), cosine)
    assert torch.allclose(wall.depth, torch.full((1, *SIZE), 2.0))
    corner = 1 / math.sqrt(1 + 2 * (7 / 8) ** 2)
    assert cosine[0, 0] == pytest.approx(corner, abs=1e-5)


def test_pictures_of_different_sizes_and_no_softness_are_refused():
    color, depth = body(1.0)
    with pytest.raises(ValueError, match="of one size"):
        composite(backdrop(1.0), color[:, :4], depth)
    with pytest.raises(ValueError, match="softness must be positive"):
        composite(backdrop(1.0), color, depth, softness=0.0)


def test_a_colour_fit_finds_an_affine_map_and_knows_nothing_beyond():
    generator = torch.Generator().manual_seed(0)
    simulated = torch.rand(500, 3, generator=generator)
    matrix = torch.tensor([[0.8, 0.05, 0.0], [0.0, 0.7, 0.1], [0.1, 0.0, 0.6]])
    captured = simulated @ matrix + 0.05
    fit = ColorFit.fit(simulated, captured, ridge=1e-9)
    assert torch.allclose(fit.matrix, matrix, atol=1e-5) and torch.allclose(fit.offset, torch.full((3,), 0.05), atol=1e-5)
    assert torch.allclose(fit(simulated), captured, atol=1e-5)
    unchanged = ColorFit.fit(simulated[:1], simulated[:1])
    assert torch.allclose(unchanged.matrix, torch.eye(3), atol=1e-5) and torch.allclose(unchanged.offset, torch.zeros(3), atol=1e-5)
    assert fit(torch.full((3,), 9.0)).max() == 1
    with pytest.raises(ValueError, match="pairs of colours"):
        ColorFit.fit(simulated, captured[:10])


def test_contact_shadows_lie_around_the_footprint_and_fade_with_height():
    """A box of 4 x 2 cm, turned by 90 degrees: along y it reaches 2 cm, along x 1 cm."""
    points = torch.zeros(2, 1, 4, 3)
    points[:, 0, :, :2] = torch.tensor([[0.0, 0.0], [0.0, 0.02], [0.02, 0.0], [0.0, 0.05]])
    bodies = Footprints(
        center=torch.zeros(2, 1, 2),
        yaw=torch.full((2, 1), math.pi / 2),
        half=torch.tensor([0.02, 0.01]).expand(2, 1, 2),
        bottom=torch.tensor([[0.0], [0.03]]),
    )
    shade = contact_shadow(points, torch.ones(2, 1, 4, dtype=torch.bool), bodies, strength=0.4, reach=0.01)
    on_it = 1 - 0.4 * torch.exp(-torch.tensor([0.0, 0.0, 1.0, 3.0]))
    assert torch.allclose(shade[0, 0], on_it, atol=1e-5)
    assert torch.allclose(1 - shade[1, 0], (1 - on_it) * math.exp(-3), atol=1e-5)
    nowhere = contact_shadow(points, torch.zeros(2, 1, 4, dtype=torch.bool), bodies, strength=0.4, reach=0.01)
    assert torch.equal(nowhere, torch.ones(2, 1, 4))
