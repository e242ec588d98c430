"""What a bundle is compared on before it appears: random and recorded observations, against the policy itself.

Read `worldsim/deploy/export.py` for the bundle, and `worldsim/robot/check.py` for the comparison on the robot.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from worldsim.core.interfaces import FlowPolicy
from worldsim.core.sight import seen
from worldsim.core.types import Features, Observation
from worldsim.core.views import Views, mosaic
from worldsim.robot.bundle import load_bundle
from worldsim.robot.check import largest_difference, read_recorded, replay

# Of actions in network units. Float32 kernels of two runtimes differ by about 1e-6. In 8 bits single actions differ by a tenth;
# what that costs in success is measured (docs/robot.md).
TOLERANCE = {"float32": 1e-4, "int8": 0.25}


def sample(policy: FlowPolicy, features: Features, noise: Tensor) -> Tensor:
    """Actions in native units that the policy makes of noise."""
    return policy.action_units.native(policy.sample(features, noise))


def uint8(images: Tensor) -> Tensor:
    """Pictures on the CPU in 0..255; those of a dream are floats in 0..1."""
    images = images.detach().cpu()
    return images if images.dtype == torch.uint8 else (images * 255).round().clamp(0, 255).to(torch.uint8)


def pictures(observation: Observation, views: Views) -> UInt8[np.ndarray, "b h w 3"]:
    """What a robot gives a bundle: mosaics without torch."""
    return mosaic({name: uint8(observation.images[name]).numpy() for name in views}, views)


def random_cases(policy: FlowPolicy, observation: Observation, cases: int, seed: int) -> tuple[Observation, Tensor]:
    """Observations at the sizes of the views that vary around the given ones, and noises [cases, ah, ad].

    Every other image is noise, every third sentence random letters.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.arange(cases) % len(observation.state)
    given = {name: uint8(observation.images[name]) for name in policy.views}
    images = {name: frames[rows] for name, frames in seen(given, policy.views, "the policy").items()}
    for frames in images.values():
        frames[1::2] = torch.randint(0, 256, frames[1::2].shape, generator=generator, dtype=torch.uint8)
    state = observation.state.detach().cpu().float()
    spread = state.std(dim=0) if len(state) > 1 else 0.1 * state.abs()
    states = state[rows] + spread * torch.randn(cases, state.shape[-1], generator=generator)
    letters = "abcdefghijklmnopqrstuvwxyz 0123456789.,é"
    sentences = [observation.instruction[i] for i in rows.tolist()]
    for i in range(1, cases, 3):  # from the empty sentence to ones that are cut
        sentences[i] = "".join(letters[j] for j in torch.randint(len(letters), (4 * (i - 1),), generator=generator).tolist())
    noises = torch.randn(cases, policy.action_horizon, policy.action_dim, generator=generator)
    return Observation(images, states, tuple(sentences)), noises


def random_guides(policy: FlowPolicy, cases: int, seed: int) -> dict[str, Tensor]:
    """Actions to agree with and how much each counts, as real-time chunking has them."""
    generator = torch.Generator().manual_seed(seed + 1)
    previous = 2 * torch.rand(cases, policy.action_horizon, policy.action_dim, generator=generator) - 1
    previous = policy.action_units.native(previous)
    weights, _ = torch.rand(cases, policy.action_horizon, generator=generator).sort(dim=1, descending=True)
    return {"previous": previous, "weights": weights}


def compare(
    policy: FlowPolicy,
    draft: Path,
    observation: Observation,
    noises: Tensor,
    guides: dict[str, Tensor],
    tolerance: float,
) -> dict[str, Any]:
    """Run the written files as a robot would, against `FlowPolicy.encode`, `sample` and `guided` on sentences."""
    with torch.no_grad():
        features = policy.encode(observation)
        exact, drawn = sample(policy, features, noises), policy.guided(features, noises, **guides)
    if not (torch.isfinite(exact).all() and torch.isfinite(drawn).all()):
        raise ValueError(
            "the policy's actions on this observation are not finite; train it again or load another one, nothing was exported"
        )
    low, high = policy.action_units.low, policy.action_units.high
    inside = ((exact > low) & (exact < high)).float().mean().item()  # outside, clipping hides every difference
    if inside == 0:
        raise ValueError("every action of the policy lies beyond its limits; train it further, nothing was exported")
    bundle = load_bundle(draft, threads=torch.get_num_threads())
    images = pictures(observation, policy.views)
    arrays = list(zip(images, observation.state.numpy(), observation.instruction, noises.numpy(), strict=True))
    guided = zip(guides["previous"].numpy(), guides["weights"].numpy(), strict=True)
    actual = np.stack([bundle(*case) for case in arrays] + [bundle.guided(*a, *b) for a, b in zip(arrays, guided, strict=True)])
    difference = largest_difference(actual, torch.cat([exact, drawn]).numpy(), policy.action_units.scale.numpy())
    if (recorded := read_recorded(draft)) is not None:
        difference = float(np.maximum(difference, replay(bundle, recorded)))  # NaN stays NaN
    if not (math.isfinite(difference) and difference <= tolerance):
        raise ValueError(
            f"the exported policy differs from the original by {difference:.1e} in network units, at most {tolerance:.0e} is "
            f"allowed; nothing was exported"
        )
    return {"max_abs_difference": difference, "tolerance": tolerance, "cases": len(images), "share_not_clamped": inside}
