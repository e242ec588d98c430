"""The mesh of a baked field has the place, size and orientation of what the field shows."""

import numpy as np
import pytest
import torch

from models.renderers.baked import BakedField
from models.renderers.mesh import surface

CENTRE, RADIUS = torch.tensor([0.1, -0.05, 0.2]), 0.1


def ball(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """A ball, and a speck in a corner of the box."""
    speck = torch.sigmoid((0.011 - (points - torch.tensor([-0.25, 0.25, 0.05])).norm(dim=1)) / 0.005)
    return 100 * torch.maximum(torch.sigmoid((RADIUS - (points - CENTRE).norm(dim=1)) / 0.005), speck), torch.ones_like(points)


@pytest.fixture(scope="module")
def field() -> BakedField:
    return BakedField((-0.3, -0.4, 0.0), (0.3, 0.4, 0.4), (60, 80, 40)).bake(ball)


def test_a_ball_is_where_it_was_and_its_faces_look_outwards(field: BakedField):
    mesh = surface(field)
    distance = np.linalg.norm(mesh.vertices - CENTRE.numpy(), axis=1)
    assert np.abs(distance - RADIUS).max() < 0.003, "and the speck is gone"
    assert mesh.is_watertight
    assert mesh.volume == pytest.approx(4 / 3 * np.pi * RADIUS**3, rel=0.03), "inside out it would be negative"


def test_what_the_box_cuts_is_closed(field: BakedField):
    cut = BakedField((0.1, -0.4, 0.0), (0.3, 0.4, 0.4), (20, 80, 40)).bake(ball)
    half = surface(cut)
    assert half.is_watertight
    assert half.volume == pytest.approx(2 / 3 * np.pi * RADIUS**3, rel=0.06)


def test_emptiness_and_floaters_are_refused(field: BakedField):
    with pytest.raises(ValueError, match="no density of the field reaches 500"):
        surface(field, density=500.0)
    with pytest.raises(ValueError, match="nothing but floaters"):
        surface(field, least_area=1.0)
