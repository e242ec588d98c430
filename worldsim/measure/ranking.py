"""Whether dreams rank policies as physics does, which is what a simulator is for: policies are chosen in one and used in the other.

Read `metrics.py` for what is said of a single policy.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from worldsim.measure.metrics import tails

NARROW = 0.10  # span of physical success rates within which policies are hard to tell apart
FEWEST = 3  # policies that can be ranked


def ranking(
    physical: Mapping[str, Bool[Tensor, " n"]], imagined: Mapping[str, Bool[Tensor, " n"]], *, draws: int = 2000
) -> dict[str, Any]:
    """Correlation of success rates in dreams and in physics over p policies, all of them played from the same n starts.

    Intervals are a percentile bootstrap over starts, which says how sure these figures are of these policies; other policies would
    give others. NaN where one of both worlds tells no policies apart.

    Returns:
        pearson, spearman: of the rates; mmrv: mean over policies of the largest physical difference to a policy that the dream
        ranks the other way round, 0 at best (Li et al. 2024, arXiv:2405.05941); each [value, low, high]; policies: their rates
        [physical, imagined]; narrow: the same three of the largest set of policies within `NARROW` of each other in physics, and
        their names, if there are three.

    Raises:
        ValueError: if there are fewer than `FEWEST` policies, or their starts differ in number.
    """
    names = [*physical]
    if len(names) < FEWEST or {len(x) for x in (*physical.values(), *imagined.values())} != {len(physical[names[0]])}:
        raise ValueError(
            f"ranking takes {FEWEST} policies or more on the same starts, got {len(names)}; name more with +others.NAME="
        )
    real, dreamed = (torch.stack([outcomes[name] for name in names]).double() for outcomes in (physical, imagined))
    starts = torch.randint(real.shape[1], (draws, real.shape[1]), generator=torch.Generator().manual_seed(0))
    # Of all starts, then of each draw: [1 + draws, p].
    rates = [torch.cat([x.mean(1)[None], torch.stack([row[starts].mean(1) for row in x], dim=1)]) for x in (real, dreamed)]
    ordered = sorted(range(len(names)), key=lambda i: float(rates[0][0, i]))
    groups = [[i for i in ordered[k:] if rates[0][0, i] - rates[0][0, ordered[k]] <= NARROW + 1e-9] for k in range(len(names))]
    narrow = max(groups, key=len)
    found: dict[str, Any] = _figures(*rates) | {"policies": {name: [float(x[0, i]) for x in rates] for i, name in enumerate(names)}}
    if len(narrow) >= FEWEST:
        found["narrow"] = _figures(*(x[:, narrow] for x in rates)) | {"policies": [names[i] for i in narrow]}
    return found


def _figures(real: Float[Tensor, "draws p"], dreamed: Float[Tensor, "draws p"]) -> dict[str, Any]:
    values = {"pearson": _pearson(real, dreamed), "spearman": _pearson(_ranks(real), _ranks(dreamed)), "mmrv": mmrv(real, dreamed)}
    return {name: [float(x[0]), *x[1:].nanquantile(tails(0.95)).tolist()] for name, x in values.items()}


def mmrv(real: Float[Tensor, "*b p"], dreamed: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    """mean_i max_j |real_i - real_j| [(dreamed_i < dreamed_j) != (real_i < real_j)]."""
    apart = real[..., :, None] - real[..., None, :]
    violated = (dreamed[..., :, None] < dreamed[..., None, :]) != (apart < 0)
    return (apart.abs() * violated).amax(-1).mean(-1)


def _pearson(a: Float[Tensor, "*b p"], b: Float[Tensor, "*b p"]) -> Float[Tensor, "*b"]:
    alike = (a.amax(-1) == a.amin(-1)) | (b.amax(-1) == b.amin(-1))
    a, b = (x - x.mean(-1, keepdim=True) for x in (a, b))
    return torch.where(alike, torch.nan, (a * b).sum(-1) / (a.square().sum(-1) * b.square().sum(-1)).sqrt())


def _ranks(x: Float[Tensor, "*b p"]) -> Float[Tensor, "*b p"]:
    """Ranks, equal values sharing theirs."""
    below, equal = (x[..., None, :] < x[..., :, None]).double().sum(-1), (x[..., None, :] == x[..., :, None]).double().sum(-1)
    return below + (equal - 1) / 2
