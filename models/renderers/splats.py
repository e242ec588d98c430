"""`Splats`: Gaussian splats of a captured scene (arXiv:2308.04079), followed along rays in torch alone, on a CPU too. Extra `nerf`.

A ray meets a splat where the splat is densest along it (arXiv:2407.07090, section 4.2). So they need neither CUDA nor a rasteriser,
take any lens, and stand wherever a radiance field may. `foreign.py` reads them from a run of `ns-train splatfacto`.
"""

import torch
import torch.nn.functional as F
from gsplat.cuda._torch_impl import _quat_to_rotmat, _spherical_harmonics  # its CUDA-free reference
from jaxtyping import Float
from torch import Tensor

from worldsim.core.renderer import Look, Renderer

FAINTEST, STRONGEST = 1 / 255, 0.999  # opacities in a pixel that count, and that are possible (arXiv:2308.04079, appendix C)
PAIRS_AT_ONCE = 2**24  # rays times splats
Meetings = tuple[Tensor, Tensor, Tensor, Tensor]
"""Ray, splat, opacity and distance of every meeting that counts, sorted by ray and distance."""


class Splats(Renderer):
    """n Gaussians with opacity and view-dependent colour.

    Unlike a rasteriser it does not widen splats that are smaller than a pixel, so such a scene shows a little more noise.

    Args:
        number: n.
        degree: of the spherical harmonics, 0 to 3.

    Raises:
        ValueError: if number or degree is impossible.
    """

    means: Tensor
    scales: Tensor
    quats: Tensor
    opacities: Tensor
    harmonics: Tensor
    background: Tensor

    def __init__(self, number: int, degree: int = 3):
        super().__init__()
        if number < 1 or not 0 <= degree <= 3:
            raise ValueError(f"splats need number >= 1 and degree 0 to 3, got {number} and {degree}")
        self.degree = degree
        self.register_buffer("means", torch.zeros(number, 3))
        self.register_buffer("scales", torch.ones(number, 3))  # standard deviations along a splat's own axes
        self.register_buffer("quats", torch.tensor([[1.0, 0, 0, 0]]).repeat(number, 1))  # w x y z, of any length
        self.register_buffer("opacities", torch.zeros(number))  # 0..1, in the middle
        self.register_buffer("harmonics", torch.zeros(number, (degree + 1) ** 2, 3))
        self.register_buffer("background", torch.zeros(3), persistent=False)

    @torch.no_grad()
    def render(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Look:
        """As `Renderer.render`."""
        color, distance, opacity = self.background.expand(len(origins), 3).clone(), origins[:, 0].clone(), origins[:, 0].clone()
        whiten = _quat_to_rotmat(self.quats).mT / self.scales[:, :, None]
        places, place_of = origins.unique(dim=0, return_inverse=True)
        for number, place in enumerate(places):
            offset = self.means - place
            shade = (_spherical_harmonics(self.degree, offset, self.harmonics) + 0.5).clamp(min=0)
            inside = (whiten @ offset[..., None])[..., 0]
            for rows in (place_of == number).nonzero().flatten().split(max(1, PAIRS_AT_ONCE // len(self.means))):
                meetings = self._meetings(directions[rows], offset, inside, whiten)
                color[rows], distance[rows], opacity[rows] = self._sum(len(rows), meetings, shade)
        return color.clamp(0, 1), distance, opacity

    def _sum(self, n: int, meetings: Meetings, shade: Float[Tensor, "s 3"]) -> Look:
        """What n rays show, by the quadrature of arXiv:2308.04079, equation 3."""
        ray, splat, alpha, t = meetings
        first = F.pad(torch.bincount(ray, minlength=n).cumsum(0)[:-1], (1, 0))

        def along(values: Tensor) -> Tensor:  # sums from the beginning of each ray to each meeting, that one included
            total = values.double().cumsum(0)
            return total - (total - values)[first[ray]]

        passed = torch.log1p(-alpha)
        weight = alpha * (along(passed) - passed).exp().float()
        opacity = weight.new_zeros(n).index_add(0, ray, weight)
        color = (1 - opacity)[:, None] * self.background
        color = color.index_add(0, ray, weight[:, None] * shade[splat])
        half = along(weight) >= opacity[ray] / 2
        distance = torch.full_like(opacity, torch.inf).scatter_reduce(0, ray[half], t[half], "amin")
        return color, torch.where(opacity > 1e-3, distance, torch.inf), opacity

    def _meetings(self, directions: Tensor, offset: Tensor, inside: Tensor, whiten: Tensor) -> Meetings:
        """Of rays from one place with splats `offset` from it; `whiten` leads into a splat's own axes, where it is a unit Gaussian,
        and there the offset is `inside`."""
        # Splats whose bounding sphere a ray passes through, a little enlarged for rounding; then exactly those.
        reach = (2 * (self.opacities / FAINTEST).clamp(min=1).log()).sqrt() * self.scales.amax(dim=1)
        along = directions @ offset.T
        aside = offset.square().sum(1) * (1 - 1e-6) - along.square()
        ray, splat = ((aside < 1.02 * reach.square()) & (along > -reach) & (self.opacities > FAINTEST)).nonzero(as_tuple=True)
        place = inside[splat]
        course = (whiten[splat] @ directions[ray, :, None])[..., 0]
        t = (place * course).sum(1) / course.square().sum(1)
        alpha = self.opacities[splat] * (-(place - t[:, None] * course).square().sum(1) / 2).exp()
        counts = ((alpha >= FAINTEST) & (t > 0)).nonzero().flatten()
        order = counts[t[counts].argsort()]
        order = order[ray[order].argsort(stable=True)]
        return ray[order], splat[order], alpha[order].clamp(max=STRONGEST), t[order]
