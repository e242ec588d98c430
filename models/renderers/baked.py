"""`BakedField`: a radiance field as a dense grid of density and colour, fast enough to render moving cameras on a CPU.

A NeRF's network costs milliseconds per thousand rays; a grid costs one `grid_sample`. Bake once, render from anywhere inside; what
is lost is view-dependent colour and detail below a voxel. Read `worldsim/geometry/compositing.py` next: it puts bodies into the
picture.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldsim.core.renderer import Look, Renderer

OPAQUE = 7.0  # optical depth at which a thousandth of the light is left
Query = Callable[[Float[Tensor, "n 3"]], tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]]


class BakedField(Renderer):
    """Density [1/m] and colour 0..1 on a grid inside a box; outside of it there is nothing but the background.

    Colours are stored times density, so that interpolation at a surface does not mix in the colour of the air beside it.
    Rays are sampled in two rounds: coarsely, to find the stretches where there may be something and light may still come through,
    then finely and evenly over those stretches alone.

    Args:
        low, high: corners of the box [m].
        resolution: voxels along x, y and z.
        block: side of a coarse cell in voxels.
        coarse, fine: samples per ray of the two rounds.
        background: colour where a ray meets nothing.
    """

    grid: Tensor
    bounds: Tensor
    low: Tensor
    size: Tensor
    background: Tensor

    def __init__(
        self,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        resolution: tuple[int, int, int] = (128, 128, 128),
        block: int = 4,
        coarse: int = 48,
        fine: int = 16,
        background: tuple[float, float, float] = (0.0, 0.0, 0.0),
    ):
        super().__init__()
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"the box of a baked field needs low < high, got {tuple(low)} and {tuple(high)}")
        if any(n < block or n % block for n in resolution):
            raise ValueError(f"resolution must be multiples of block={block}, got {tuple(resolution)}")
        self.coarse, self.fine = coarse, fine
        x, y, z = resolution
        self.register_buffer("grid", torch.zeros(1, 4, z, y, x))
        self.register_buffer("bounds", torch.zeros(1, 2, z // block, y // block, x // block))  # least, largest density
        self.register_buffer("low", torch.tensor(low, dtype=torch.float), persistent=False)
        self.register_buffer("size", torch.tensor(high) - torch.tensor(low), persistent=False)
        self.register_buffer("background", torch.tensor(background, dtype=torch.float), persistent=False)

    @torch.no_grad()
    def bake(self, query: Query, *, rows: int = 65536) -> "BakedField":
        """Fill the grid.

        Args:
            query: density [1/m] and colour at points [m] of the world; ask a NeRF in its own coordinates and divide its density by
                the alignment's scale.
            rows: points per call.

        Raises:
            ValueError: if a value is not finite or a density is negative.
        """
        z, y, x = self.grid.shape[2:]
        axes = [(torch.arange(n, device=self.low.device) + 0.5) / n for n in (z, y, x)]
        points = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flip(-1).reshape(-1, 3) * self.size + self.low
        densities, colors = zip(*(query(part) for part in points.split(rows)), strict=True)
        density = torch.cat(densities)[:, None]
        values = torch.cat([density, density * torch.cat(colors)], dim=1)
        if not torch.isfinite(values).all() or (values[:, 0] < 0).any():
            raise ValueError("a field must have finite values and no negative density; check the NeRF's training")
        self.grid.copy_(values.T.reshape(1, 4, z, y, x))
        block = z // self.bounds.shape[2]
        around = max(1, block // 2)  # interpolation reaches across a cell's faces, and so does a stretch of a ray

        def largest(values: Tensor) -> Tensor:
            return F.max_pool3d(values, kernel_size=block + 2 * around, stride=block, padding=around)

        density = self.grid[:, :1]
        self.bounds.copy_(torch.cat([-largest(-density), largest(density)], dim=1))
        return self

    @torch.no_grad()
    def render(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Look:
        """Colour, distance along the ray [m] (of the middle of what stops it) and accumulated opacity, by the quadrature of
        arXiv:2003.08934, equation 3. Directions are unit vectors; distance is infinite where there is nothing."""
        enter, leave = box_distances(origins, directions, self.low, self.size)
        pace = (leave - enter) / self.coarse
        t = enter[:, None] + pace[:, None] * (torch.arange(self.coarse, device=origins.device) + 0.5)
        least, largest = self._bounds_at(origins, directions, t)
        certain = least * pace[:, None]
        worth = (largest * pace[:, None] > 1e-3) & (certain.cumsum(dim=1) - certain < OPAQUE)

        rows = worth.any(dim=1).nonzero().flatten()
        passed = worth[rows].float().cumsum(dim=1)  # stretches worth a look, up to each one
        wanted = passed[:, -1:] * ((torch.arange(self.fine, device=origins.device) + 0.5) / self.fine)
        stretch = torch.searchsorted(passed, wanted, right=True)
        depth = enter[rows, None] + pace[rows, None] * (stretch + 1 + wanted - passed.gather(1, stretch))
        span = pace[rows] * passed[:, -1] / self.fine
        points = origins[rows, None] + depth[..., None] * directions[rows, None]
        optical = self._look(points, channels=1)[..., 0] * span[:, None]
        before = optical.cumsum(dim=1) - optical
        weight = torch.exp(-before) * (1 - torch.exp(-optical))
        opacity = weight.sum(dim=1)
        stopped = weight.cumsum(dim=1)
        middle = (stopped < opacity[:, None] / 2).sum(dim=1, keepdim=True).clamp(max=self.fine - 1)
        there = weight.gather(1, middle)[:, 0].clamp(min=1e-6)
        share = 0.5 - (stopped.gather(1, middle)[:, 0] - opacity / 2) / there  # of the sample's stretch, from its middle

        color = self.background.expand(len(origins), 3).clone()
        ray, sample = (weight > 1e-4).nonzero(as_tuple=True)  # few samples are seen, so colours are looked up for those alone
        seen = self._look(points[ray, sample][:, None], channels=4)[:, 0]
        rgb = seen[:, 1:] / seen[:, :1].clamp(min=1e-6)
        color[rows] = ((1 - opacity)[:, None] * self.background).index_add(0, ray, weight[ray, sample, None] * rgb)
        distance = torch.full_like(enter, torch.inf)
        distance[rows] = torch.where(opacity > 1e-3, depth.gather(1, middle)[:, 0] + share * span, torch.inf)
        accumulation = torch.zeros_like(enter)
        accumulation[rows] = opacity
        return color, distance, accumulation

    def _bounds_at(
        self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], t: Float[Tensor, "n s"]
    ) -> tuple[Float[Tensor, "n s"], Float[Tensor, "n s"]]:
        """Least and largest density in the coarse cells at distances t along the rays."""
        cells = self.bounds.shape[:1:-1]
        per_metre = torch.tensor(cells, device=t.device) / self.size
        start, move = (origins - self.low) * per_metre, directions * per_metre
        index = torch.zeros_like(t, dtype=torch.long)
        for axis in (2, 1, 0):
            along = torch.addcmul(start[:, axis, None], t, move[:, axis, None])
            index = index.mul_(cells[axis]).add_(along.long().clamp_(0, cells[axis] - 1))
        least, largest = self.bounds.flatten(2)[0]
        return least[index], largest[index]

    def _look(self, points: Float[Tensor, "n s 3"], channels: int) -> Float[Tensor, "n s c"]:
        where = (points - self.low) / self.size * 2 - 1
        grid = self.grid[:, :channels].expand(len(points), -1, -1, -1, -1)  # torch spreads nothing but a batch over its threads
        return F.grid_sample(grid, where[:, :, None, None], padding_mode="border", align_corners=False)[..., 0, 0].mT


def box_distances(
    origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], low: Float[Tensor, " 3"], size: Float[Tensor, " 3"]
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Distances at which rays enter and leave a box; equal where they miss it."""
    inverse = 1 / torch.where(directions.abs() < 1e-9, 1e-9, directions)
    a, b = (low - origins) * inverse, (low + size - origins) * inverse
    enter = torch.minimum(a, b).amax(dim=1).clamp(min=0)
    return enter, torch.maximum(a, b).amin(dim=1).maximum(enter)
