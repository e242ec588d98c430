"""For how long each dream is to be believed: until an ensemble has disagreed too much about it.

World models that learned from the same recordings, from other seeds or of other sizes, err differently where data were few. Chunk
by chunk each of them says what follows the same latest frames of a dream, and how far their pictures differ, summed from the
dream's start on, is its *doubt* (an ensemble's variance: Lakshminarayanan et al. 2017, arXiv:1612.01474; dreams that end by it:
MOReL, arXiv:2005.05951). Recordings say how much is too much. Read `training/rl/imagine.py` next: it ends dreams there.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import recent, seen
from worldsim.core.types import float_image
from worldsim.data.store import FrameStore
from worldsim.measure.metrics import ratio_of_sums
from worldsim.measure.recorded import FEWEST, filled
from worldsim.measure.trust import STILL

TOLERATED = 0.25  # error of a step that is still right, of how far the recordings get from where they began
SURE = 0.9  # share of the believed steps that are to be right
Frames = Mapping[str, Float[Tensor, "b t _ _ 3"]]


class Doubted(NamedTuple):
    """Dreams along recorded actions.

    Attributes:
        episode: number of each dream's episode, [n].
        valid: the recording has this step, [n, t].
        error: mean square of the pixels' error, of the camera with the largest, in units of how far its recordings get from where
            they began, [n, t].
        doubt: disagreement summed up to and with this step, [n, t].
    """

    episode: Int[Tensor, " n"]
    valid: Tensor
    error: Float[Tensor, "n t"]
    doubt: Float[Tensor, "n t"]


def check_rivals(model: WorldModel, rivals: Sequence[WorldModel]) -> None:
    """Rivals answer the same question: same cameras, sizes and chunks.

    Raises:
        ValueError: if one does not.
    """
    for number, rival in enumerate(rivals, start=1):
        for what, of in (("sees", lambda m: dict(m.views)), ("takes chunks of", lambda m: (m.action_horizon, m.action_dim))):
            if of(rival) != of(model):
                raise ValueError(
                    f"rival {number} {what} {of(rival)}, the world model {of(model)}; rivals are models of the same recordings, "
                    "from other seeds or of other sizes"
                )


def opinions(
    rivals: Sequence[WorldModel],
    past: Frames,
    felt: Float[Tensor, "b context s"],
    instruction: tuple[str, ...],
    actions: Float[Tensor, "b ah ad"],
    noise: Noise,
) -> list[dict[str, Tensor]]:
    """What each rival says follows the latest frames and proprioception of dreams."""
    said = []
    for number, rival in enumerate(rivals, start=1):
        latest = {name: recent(frames, rival.context) for name, frames in past.items()}
        begun = rival.init(latest, recent(felt, rival.context), instruction)
        said.append(rival.step(begun, actions, replace(noise, stream=number))[1])
    return said


def disagreement(said: Sequence[Frames]) -> Float[Tensor, "b t"]:
    """Variance over models, mean over pixels, of the camera about which they differ most; without gradient."""
    cameras = (torch.stack([frames[name].detach().float().clamp(0, 1) for frames in said]) for name in said[0])
    return torch.stack([frames.var(dim=0).mean(dim=(-3, -2, -1)) for frames in cameras]).amax(dim=0)


@torch.no_grad()
def doubted(
    model: WorldModel,
    rivals: Sequence[WorldModel],
    table: FrameStore,
    rows: Int[Tensor, " n"],
    *,
    steps: int,
    batch: int = 32,
    seed: int = 0,
) -> Doubted:
    """Dream `steps` steps from each row along what was done there, and ask the rivals at every chunk; arguments as for
    `worldsim.measure.recorded.hold`.

    Raises:
        ValueError: if a rival is of another kind, or nothing moves in the recordings.
    """
    check_rivals(model, rivals)
    parts = [_dreamed(model, rivals, table, part, steps, Noise.rows(seed, len(rows))[i]) for i, part in _batches(rows, batch)]
    valid, doubt = (torch.cat(column) for column in list(zip(*parts, strict=True))[:2])
    errors = {name: tuple(torch.cat([part[2][name][i] for part in parts]) for i in (0, 1)) for name in model.views}
    return Doubted(table.episode[rows], valid, relative(errors, valid), doubt.cumsum(dim=1))


def relative(errors: Mapping[str, Sequence[Float[Tensor, "n t"]]], valid: Bool[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Errors of dreams in units of how far recordings get from where they began, of the camera that is worst.

    Args:
        errors: by camera mean squares of the dream and of a picture that stays.
        valid: the recordings have this step.

    Raises:
        ValueError: if nothing moves.
    """
    told, found = valid.sum(0) >= FEWEST, []
    for own, still in errors.values():
        reached = torch.where(valid, still, 0).sum(0)[told] / valid.sum(0)[told]
        if len(reached) and (unit := float(reached.max())) > STILL:
            found.append(own / unit)
    if not found:
        raise ValueError(
            f"nothing moves in {', '.join(errors)} of the recordings, so no dream is right or wrong; record what moves"
        )
    return torch.stack(found).amax(dim=0)


def trusted(found: Doubted) -> dict[str, Any]:
    """How much doubt is too much, calibrated on every second episode and tried on the others.

    A dream is believed up to the first step whose doubt is above the threshold, the largest with which a share `SURE` of the
    believed steps is right (error of `TOLERATED` at most). Beside it a horizon that is the same for all dreams, chosen likewise.

    Returns:
        threshold, None if no step can be believed; believed, share of steps; right, of those; right_doubted, of the others;
        believed_fixed and right_fixed of the common horizon fixed_steps; ratios are [value, low, high], NaN where there are no
        such steps; believed_steps, the median over dreams; rank_by_step, Spearman's correlation of doubt and error at each step;
        tolerated, sure, episodes.

    Raises:
        ValueError: if a half has fewer than `FEWEST` episodes.
    """
    _, place = found.episode.unique(return_inverse=True)
    if (episodes := int(place.max()) + 1) < 2 * FEWEST:
        raise ValueError(
            f"doubt is calibrated on half of the episodes and tried on the other, {2 * FEWEST} are the fewest, got {episodes}; "
            "hold out more, or name more data"
        )
    right, tried = found.error <= TOLERATED, found.valid & (place % 2 == 1)[:, None]
    calibrating = found.valid & (place % 2 == 0)[:, None]
    step = torch.arange(1, found.doubt.shape[1] + 1).expand_as(found.doubt).double()
    result: dict[str, Any] = {"tolerated": TOLERATED, "sure": SURE, "episodes": episodes}
    for name, score in (("", found.doubt), ("_fixed", step)):
        limit = _threshold(score[calibrating], right[calibrating])
        believed = tried & (score <= (-1 if limit is None else limit))
        result |= {f"believed{name}": _share(believed, tried, place), f"right{name}": _share(believed & right, believed, place)}
        if name:
            result["fixed_steps"] = 0 if limit is None else int(limit)
        else:
            doubtful = tried & ~believed
            result |= {"threshold": limit, "right_doubted": _share(doubtful & right, doubtful, place)}
            result["believed_steps"] = float(believed.sum(1)[place % 2 == 1].double().median())
    ranks = [_rank(d[v], e[v]) for v, d, e in zip(found.valid.T, found.doubt.T, found.error.T, strict=True)]
    return result | {"rank_by_step": ranks}


def _batches(rows: Tensor, batch: int) -> list[tuple[Tensor, Tensor]]:
    return [(places, rows[places]) for places in torch.arange(len(rows)).split(batch)]


def _dreamed(
    model: WorldModel, rivals: Sequence[WorldModel], table: FrameStore, rows: Tensor, steps: int, noise: Noise
) -> tuple[Tensor, Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """Valid steps, disagreement, and by camera the errors of the dream and of a picture that stays, each [b, t], on the CPU."""
    context, instruction = max(m.context for m in (model, *rivals)), table.sentences(rows)
    window, noise = filled(model, table.window(rows, context=context, horizon=steps)), noise.to(model.device)
    images = {n: float_image(f) for n, f in seen(window["images"], model.views, "the world model").items()}
    past = {name: frames[:, :context].to(model.device) for name, frames in images.items()}
    felt, actions, doubts = window["state"][:, :context].to(model.device), window["action"].to(model.device), []
    state = model.init({n: recent(f, model.context) for n, f in past.items()}, recent(felt, model.context), instruction)
    shown: dict[str, list[Tensor]] = {name: [] for name in past}
    for place in range(0, steps, model.action_horizon):
        now, piece = noise.at(place), actions[:, place : place + model.action_horizon]
        others = opinions(rivals, past, felt, instruction, piece, now)
        state, frames, states = model.step(state, piece, now)
        doubts.append(disagreement([frames, *others]).cpu())
        for name, pictures in frames.items():
            shown[name].append(pictures.float().clamp(0, 1).cpu())
        past = {name: torch.cat([kept, frames[name].float()], dim=1)[:, -context:] for name, kept in past.items()}
        felt = torch.cat([felt, states.float()], dim=1)[:, -context:]
    errors = {}
    for name, pictures in shown.items():
        real, start = images[name][:, context:], images[name][:, context - 1 : context]
        errors[name] = tuple((x - real).square().mean(dim=(-3, -2, -1)) for x in (torch.cat(pictures, dim=1), start))
    return window["valid"], torch.cat(doubts, dim=1), errors


def _threshold(score: Float[Tensor, " m"], right: Tensor) -> float | None:
    """The largest score up to which a share `SURE` is right; None if there is none."""
    order = score.argsort()
    score, share = score[order], right[order].double().cumsum(0) / torch.arange(1, len(score) + 1)
    last_of_equals = torch.cat([score[1:] != score[:-1], torch.ones(1, dtype=torch.bool)])
    good = (last_of_equals & (share >= SURE)).nonzero()
    return float(score[good[-1]]) if len(good) else None


def _rank(doubt: Tensor, error: Tensor) -> float:
    """Spearman's correlation; NaN of few, or where one of the two is always the same."""
    told = len(doubt) >= FEWEST and len(doubt.unique()) > 1 and len(error.unique()) > 1
    return float(spearmanr(doubt, error)[0]) if told else float("nan")  # pyright: ignore[reportArgumentType]


def _share(some: Tensor, of: Tensor, place: Tensor) -> list[float]:
    """Over all steps of `of`, with an interval over the episodes that have one."""
    sums = torch.zeros(2, int(place.max()) + 1, dtype=torch.float64)
    for total, values in zip(sums, (some, of), strict=True):
        total.index_add_(0, place, values.sum(1).double())
    there = sums[1] > 0
    return [float(x) for x in ratio_of_sums(sums[0, there], sums[1, there])] if there.sum() > 1 else [float("nan")] * 3
