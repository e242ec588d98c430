"""Simulated bodies in front of, behind and within a captured scene: depth test, soft edges, colours and contact shadows.

A NeRF gives colour, opacity and distance *along the ray*; a simulator gives colour and *planar* depth of its bodies. All lengths
here are metres in the world (`alignment.py`), all colours floats 0..1, and both renderers use one camera (`cameras.py`).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldsim.core.files import write_json

COLORS = "colors.json"  # beside a field: from the simulator's colours to the capture's
Colors = Float[Tensor, "b h w 3"]
Depth = Float[Tensor, "b h w"]


@dataclass(frozen=True)
class Backdrop:
    """What a NeRF shows: colour, planar depth [m] and accumulated opacity 0..1."""

    color: Colors
    depth: Depth
    accumulation: Depth

    @classmethod
    def from_rays(cls, color: Colors, distance: Depth, accumulation: Depth, planar_per_ray: Float[Tensor, "h w"]) -> "Backdrop":
        """From distances along the rays, which nerfstudio returns; see `Intrinsics.planar_per_ray`."""
        return cls(color, distance * planar_per_ray, accumulation)


def composite(
    backdrop: Backdrop, color: Colors, depth: Depth, *, softness: float = 0.005, bias: float = 0.0
) -> tuple[Colors, Depth]:
    """Bodies over the backdrop by depth.

    What the scene hides of a body is its opacity times a soft step of how far it lies in front: a = accumulation *
    sigmoid((depth_body - depth_scene - bias) / softness); the body's share of the pixel is 1 - a.

    Args:
        backdrop: the captured scene.
        color: of the bodies; anything where there is none.
        depth: planar depth of the bodies [m], infinite where there is none.
        softness: [m]; two surfaces so close to each other are mixed.
        bias: [m]; bodies are hidden only where they lie deeper than this behind the scene's surface. The error of its depth, so
            that what lies flat on the surface does not sink into it.

    Returns:
        The picture, and the bodies' share of each pixel 0..1.

    Raises:
        ValueError: if shapes differ or softness is not positive.
    """
    if not backdrop.color.shape == color.shape == (*depth.shape, 3):
        raise ValueError(
            f"backdrop {tuple(backdrop.color.shape)}, bodies {tuple(color.shape)}, depth {tuple(depth.shape)} must be of one size; "
            "render both with the same camera"
        )
    if not softness > 0:
        raise ValueError(f"softness must be positive, got {softness} m; 0.005 is usual")
    present = depth.isfinite()
    behind = torch.where(present, depth - backdrop.depth - bias, 0.0)
    share = present * (1 - backdrop.accumulation * torch.sigmoid(behind / softness))
    return share[..., None] * color + (1 - share[..., None]) * backdrop.color, share


@dataclass(frozen=True)
class ColorFit:
    """Simulated colours to the capture's: color @ matrix + offset, clamped to 0..1."""

    matrix: Float[Tensor, "3 3"]
    offset: Float[Tensor, " 3"]

    @classmethod
    def fit(cls, simulated: Float[Tensor, "n 3"], captured: Float[Tensor, "n 3"], *, ridge: float = 1e-3) -> "ColorFit":
        """Least squares over pairs of colours of one surface each, drawn to the identity where the pairs say nothing.

        Raises:
            ValueError: if shapes differ or there is no pair.
        """
        if simulated.shape != captured.shape or simulated.ndim != 2 or simulated.shape[1] != 3 or len(simulated) == 0:
            raise ValueError(
                f"a colour fit needs pairs of colours [n, 3], got {tuple(simulated.shape)} and {tuple(captured.shape)}"
            )
        design = torch.cat([simulated.double(), torch.ones(len(simulated), 1, dtype=torch.double)], dim=1)
        identity = torch.eye(4, 3, dtype=torch.double)
        normal = design.T @ design / len(design) + ridge * torch.eye(4, dtype=torch.double)
        change = torch.linalg.solve(normal, design.T @ (captured.double() - design @ identity) / len(design))
        affine = (identity + change).float()
        return cls(affine[:3], affine[3])

    def __call__(self, color: Float[Tensor, "*b 3"]) -> Float[Tensor, "*b 3"]:
        return (color @ self.matrix + self.offset).clamp(0, 1)

    def save(self, path: Path) -> None:
        """Write as JSON; beside a field, under the name `COLORS`, it is what a `NerfWorld` draws its bodies with."""
        write_json(path, {"matrix": self.matrix.tolist(), "offset": self.offset.tolist()})

    @classmethod
    def load(cls, path: Path) -> "ColorFit":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged.
        """
        try:
            data = json.loads(path.read_text())
            matrix, offset = (torch.tensor(data[name], dtype=torch.float) for name in ("matrix", "offset"))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a colour fit: {error!r}; fit the scene's colours again") from error
        if matrix.shape != (3, 3) or offset.shape != (3,) or not (matrix.isfinite().all() and offset.isfinite().all()):
            raise ValueError(f"{path} needs a finite 3x3 matrix and 3 offsets; fit the scene's colours again")
        return cls(matrix, offset)


@dataclass(frozen=True)
class Footprints:
    """Upright boxes that stand on or hover over a horizontal surface: where their shadows of contact fall.

    Attributes:
        center: x, y [m], [b, n, 2].
        yaw: [rad], [b, n].
        half: half lengths along the box's own x and y [m], [b, n, 2].
        bottom: height of the lower face above the surface [m], [b, n].
    """

    center: Float[Tensor, "b n 2"]
    yaw: Float[Tensor, "b n"]
    half: Float[Tensor, "b n 2"]
    bottom: Float[Tensor, "b n"]


def contact_shadow(
    points: Float[Tensor, "b h w 3"], surface: Bool[Tensor, "b h w"], bodies: Footprints, *, strength: float, reach: float
) -> Depth:
    """By what the backdrop's colour is multiplied, in (0, 1]: dark beneath a body, fading over `reach` around it and above it.

    1 - strength * max over bodies of exp(-(distance to the footprint + height of its lower face) / reach).

    Args:
        points: of the backdrop in the world [m].
        surface: pixels that show the surface; shadows fall on nothing else.
        bodies: that throw them.
        strength: 0..1, at the contact itself.
        reach: [m].
    """
    offset = points[:, None, ..., :2] - bodies.center[:, :, None, None]
    cos, sin = (f(bodies.yaw)[:, :, None, None] for f in (torch.cos, torch.sin))
    x, y = cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]
    outside = (torch.stack([x, y], dim=-1).abs() - bodies.half[:, :, None, None]).clamp(min=0).norm(dim=-1)
    away = outside + bodies.bottom.clamp(min=0)[:, :, None, None]
    return 1 - strength * torch.where(surface, torch.exp(-away / reach).amax(dim=1), 0.0)
