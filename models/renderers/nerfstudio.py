"""`RadianceField`: a NeRF of a captured scene inside a box, built from nerfstudio's fields, samplers and losses. Extra `nerf`.

It is built from its arguments alone, so that rendering needs neither training images nor a downloaded network, and
`worldsim.core.checkpoint` loads it without unpickling. Read `baked.py` next: it makes a copy that is fast on a CPU;
`training/supervised/nerf.py` trains it.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from nerfstudio.cameras.rays import Frustums, RayBundle, RaySamples
from nerfstudio.field_components.field_heads import FieldHeadNames
from nerfstudio.fields.density_fields import HashMLPDensityField
from nerfstudio.fields.nerfacto_field import NerfactoField
from nerfstudio.model_components.losses import distortion_loss, interlevel_loss
from nerfstudio.model_components.ray_samplers import ProposalNetworkSampler, UniformSampler
from nerfstudio.model_components.renderers import DepthRenderer
from torch import Tensor

from models.renderers.baked import box_distances
from worldsim.core.renderer import Look, Renderer

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class Traced:
    """What a bundle of n rays met.

    Attributes:
        color: 0..1, the background included, [n, 3].
        distance: along the ray to where half of its light is stopped [m], [n]; not differentiable.
        expected: mean distance of what stops the light [m], [n].
        opacity: accumulated, 0..1, [n].
        regularizer: interlevel loss (arXiv:2111.12077, equation 13) plus the weighted distortion loss (equation 15).
    """

    color: Float[Tensor, "n 3"]
    distance: Float[Tensor, " n"]
    expected: Float[Tensor, " n"]
    opacity: Float[Tensor, " n"]
    regularizer: Float[Tensor, ""]


class RadianceField(Renderer):
    """Density and colour by a multiresolution hash grid (arXiv:2201.05989), with a proposal network that says where to look.

    Args:
        low, high: corners of the box that holds the scene [m]; rays see the background beyond it.
        levels, max_resolution, log2_table, hidden: size of the hash grid and of its network.
        proposal_samples, samples: per ray, of the proposal network and of the field.
        distortion: weight of the loss that gathers a ray's density in one place.
        background: colour 0..1 behind the box.
        implementation: "torch", or "tcnn" where tiny-cuda-nn is installed; their weights do not fit each other.

    Raises:
        ValueError: if the box is empty or the implementation unknown.
    """

    bounds: Tensor
    background: Tensor

    def __init__(
        self,
        low: Triple,
        high: Triple,
        levels: int = 8,
        max_resolution: int = 256,
        log2_table: int = 15,
        hidden: int = 32,
        proposal_samples: int = 48,
        samples: int = 24,
        distortion: float = 0.002,
        background: Triple = (0.0, 0.0, 0.0),
        implementation: str = "torch",
    ):
        super().__init__()
        if not all(a < b for a, b in zip(low, high, strict=True)):
            raise ValueError(f"the box of a radiance field needs low < high, got {tuple(low)} and {tuple(high)}")
        if implementation not in ("torch", "tcnn"):
            raise ValueError(f"implementation must be torch or tcnn, got {implementation!r}")
        box = torch.tensor([list(low), list(high)], dtype=torch.float)
        # Opaque enough [1/m] to begin with: thin fog before a dark background turns white, saturates and learns no more.
        common = {"log2_hashmap_size": log2_table, "hidden_dim": hidden, "average_init_density": 10.0}
        self.field = NerfactoField(
            box.clone(),
            num_images=1,
            num_levels=levels,
            max_res=max_resolution,
            hidden_dim_color=hidden,
            appearance_embedding_dim=0,
            implementation=implementation,  # type: ignore[arg-type]
            **common,
        )
        self.proposal = HashMLPDensityField(
            box.clone(),
            num_levels=5,
            max_res=max_resolution // 2,
            implementation=implementation,  # type: ignore[arg-type]
            **common,
        )
        self.sampler = ProposalNetworkSampler(
            num_proposal_samples_per_ray=(proposal_samples,),
            num_nerf_samples_per_ray=samples,
            num_proposal_network_iterations=1,
            single_jitter=True,
            initial_sampler=UniformSampler(single_jitter=True),
        )
        self.median, self.mean = DepthRenderer("median"), DepthRenderer("expected")
        self.distortion = distortion
        self.register_buffer("bounds", box, persistent=False)
        self.register_buffer("background", torch.tensor(list(background), dtype=torch.float), persistent=False)

    def forward(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Traced:
        """Follow rays through the box, by the quadrature of arXiv:2003.08934, equation 3. Directions are unit vectors."""
        low, high = self.bounds
        enter, leave = box_distances(origins, directions, low, high - low)
        one = torch.ones_like(enter)[:, None]
        rays = RayBundle(origins, directions, one, torch.zeros_like(one, dtype=torch.long), enter[:, None], leave[:, None])
        samples, weights, rounds = self.sampler(rays, density_fns=[self.proposal.density_fn])
        outputs = self.field(samples)
        last = samples.get_weights(outputs[FieldHeadNames.DENSITY])
        weights, rounds = [*weights, last], [*rounds, samples]
        opacity = last.sum(dim=-2)
        color = (last * outputs[FieldHeadNames.RGB]).sum(dim=-2) + (1 - opacity) * self.background
        with torch.no_grad():
            distance = self.median(last, samples)[:, 0]
        regularizer = interlevel_loss(weights, rounds) + self.distortion * distortion_loss(weights, rounds)
        return Traced(color, distance, self.mean(last, samples)[:, 0], opacity[:, 0], regularizer)

    @torch.no_grad()
    def render(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"], rays_at_once: int = 4096) -> Look:
        """Colour 0..1, distance along the ray [m] and accumulated opacity; meant for evaluation mode."""
        parts = [self(*part) for part in zip(origins.split(rays_at_once), directions.split(rays_at_once), strict=True)]
        color, distance, opacity = (torch.cat([getattr(part, key) for part in parts]) for key in ("color", "distance", "opacity"))
        return color.clamp(0, 1), distance, opacity

    @torch.no_grad()
    def query(self, points: Float[Tensor, "n 3"]) -> tuple[Float[Tensor, " n"], Float[Tensor, "n 3"]]:
        """Density [1/m] and colour at points [m]: what `BakedField.bake` asks for.

        The colour is a mean over four sides, 45 degrees above, each counted by how much it faces the surface: by the slope of the
        density. From behind no picture has ever seen a wall.
        """
        step = float(self.bounds.diff(dim=0).amax()) / 100
        shifts = step * torch.eye(3, device=points.device)
        slope = torch.cat([self.field.density_fn(points + by) - self.field.density_fn(points - by) for by in shifts], dim=1)
        inward, zero = F.normalize(slope, dim=1), torch.zeros_like(points[:, :1])
        color, weight = torch.zeros_like(points), zero
        for x, y in ((1, 0), (0, 1), (-1, 0), (0, -1)):
            toward = torch.tensor([x, y, -1.0], device=points.device) / math.sqrt(2)
            frustums = Frustums(points, toward.expand_as(points), zero, zero, torch.ones_like(zero))
            outputs = self.field(RaySamples(frustums, camera_indices=zero.long()))
            faces = (inward @ toward)[:, None].clamp(min=1e-3)
            color, weight = color + faces * outputs[FieldHeadNames.RGB], weight + faces
        return outputs[FieldHeadNames.DENSITY][:, 0], color / weight
