"""The surface of a radiance field as a mesh, so that what a capture shows can also be bumped into.

Marching cubes (Lorensen and Cline 1987) on the density of a baked field; `NerfWorld` takes the file as a fixed body of the physics.
"""

import numpy as np
import trimesh
from skimage.measure import marching_cubes

from models.renderers.baked import BakedField


def surface(field: BakedField, *, density: float = 50.0, least_area: float = 0.002) -> trimesh.Trimesh:
    """Where the density crosses a level, closed at the box's faces.

    Args:
        field: in metres.
        density: the level [1/m]; at 50 a layer of 2 cm stops 63 % of the light.
        least_area: connected pieces with less surface [m2] are floaters, and dropped.

    Raises:
        ValueError: if nothing is that dense, or only floaters are.
    """
    values = np.pad(field.grid[0, 0].cpu().numpy(), 1)  # z, y, x
    if not values.max() > density:
        raise ValueError(f"no density of the field reaches {density} / m (most: {values.max():.1f}); lower it, or train longer")
    size = field.size.cpu().numpy()
    voxel = size / np.array(field.grid.shape[:1:-1])
    corners, faces, _, _ = marching_cubes(values, level=density, spacing=tuple(voxel[::-1]))
    # A voxel's value is that of its centre, and padding moved the first one by a voxel.
    mesh = trimesh.Trimesh(corners[:, ::-1] - 0.5 * voxel + field.low.cpu().numpy(), faces)
    pieces = [piece for piece in mesh.split(only_watertight=False) if piece.area >= least_area]
    if not pieces:
        raise ValueError(f"the field holds nothing but floaters below {least_area} m2 of surface; train longer")
    return trimesh.util.concatenate(pieces)  # type: ignore[return-value]
