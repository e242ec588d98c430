"""A reflector held to recorded episodes, and to dreams of them: whose fault is it if imagined success is wrong?

Three say whether an episode has succeeded by now: its labels, the reflector looking at what was recorded, and the reflector looking
at the dream of the same actions. The first two differ by what the reflector gets wrong, the last two by what the world model does.
Read `training/app/evaluate_models.py` next: it writes what is found here and in `trust.py`.
"""

import itertools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent
from worldsim.core.types import float_image
from worldsim.data.store import FrameStore
from worldsim.measure import recorded
from worldsim.measure.metrics import agreement, auc, calibration, confusion, paired_difference, success_rate
from worldsim.worlds.dream import check_reflector

MARGIN = 3.0  # percentage points within which imagined success is trusted
FEWEST = math.ceil(100 / MARGIN)  # episodes of which one counts no more than that


class Succeeded(NamedTuple):
    """Whether each of n episodes has succeeded by step k = 1 ... t, or by its end.

    Attributes:
        label: as recorded.
        judged: as the reflector says of the recording.
        dreamed: as it says of the dream.
    """

    label: Bool[Tensor, "n t"]
    judged: Bool[Tensor, "n t"]
    dreamed: Bool[Tensor, "n t"]


@torch.no_grad()
def frames_judged(reflector: Reflector, table: FrameStore, *, most: int = 4096, batch: int = 256) -> dict[str, Any]:
    """What a reflector says of single recorded frames against their labels.

    There are no intervals: neighbouring frames are almost equal, and nobody knows how many of them count as one.

    Returns:
        frames, episodes: how many were judged; auc, brier and curve (predicted, observed, frames) of its probabilities;
        against_labels: `confusion` and kappa of its decisions; always_success: the same of somebody who calls all a success.

    Raises:
        ValueError: if fewer than `recorded.FEWEST` episodes have a frame that was judged when it was recorded.
    """
    check_reflector(reflector)
    rows = recorded.evenly(~table.success.isnan(), most)
    if (episodes := len(table.episode[rows].unique())) < recorded.FEWEST:
        raise ValueError(
            f"{episodes} of these episodes say whether they succeeded (next.success), which a reflector is held to, "
            f"{recorded.FEWEST} are the fewest; label some, hold out more, or name other data"
        )
    p = torch.cat([_p_success(reflector, table, part) for part in rows.split(batch)])
    label, said = table.success[rows] == 1, p > float(reflector.threshold)
    found: dict[str, Any] = {
        "frames": len(rows),
        "episodes": episodes,
        "threshold": float(reflector.threshold),
        "auc": auc(p, label),
    }
    measured = calibration(p, label)
    curve = [
        {"predicted": part["predicted"], "observed": part["observed"], "frames": part["episodes"]} for part in measured["curve"]
    ]
    found |= {"brier": measured["brier"], "curve": curve}
    for name, decision in (("against_labels", said), ("always_success", torch.ones_like(label))):
        found[name] = {**confusion(decision, label), "kappa": agreement(decision, label, draws=1)["kappa"]}
    return found


def labelled(table: FrameStore, most: int) -> Int[Tensor, " n"]:
    """The first rows of episodes whose frames are labelled from the first action on, at most so many of them.

    Raises:
        ValueError: if there are fewer than `FEWEST`: a single one would count for more than `MARGIN`.
    """
    row = torch.arange(len(table.first))
    unknown = (table.success.isnan() & (row != table.first)).float()
    known = torch.zeros(len(table.instruction)).index_add(0, table.episode, unknown) == 0
    rows = recorded.evenly((row == table.first) & (table.first < table.last) & known[table.episode], most)
    if len(rows) < FEWEST:
        raise ValueError(
            f"{len(rows)} labelled episodes are too few for the horizon up to which imagined success holds within {MARGIN:g} "
            f"points, {FEWEST} are the fewest; raise dreams=, hold out more, name more data, or leave the reflector out"
        )
    return rows


@torch.no_grad()
def succeeded(
    model: WorldModel,
    reflector: Reflector,
    table: FrameStore,
    rows: Int[Tensor, " n"],
    *,
    steps: int,
    batch: int = 32,
    seed: int = 0,
) -> Succeeded:
    """Dream episodes from their first frames, `labelled`, along their actions, and ask the reflector by its own rule.

    What a recording has come to when it ends stays. One that ended with its first success leaves the dream, and a rule that asks
    for several frames, no time to come to it later.
    """
    check_reflector(reflector)
    noise = Noise.rows(seed, len(rows))
    parts = [_succeeded(model, reflector, table, rows[part], noise[part], steps) for part in torch.arange(len(rows)).split(batch)]
    return Succeeded(*(torch.cat(values) for values in zip(*parts, strict=True)))


def horizon(found: Succeeded) -> dict[str, Any]:
    """Up to which step imagined success is true, and who errs.

    Returns:
        trusted_steps: the last one up to which the rates of dream and label differ by `MARGIN` points at most; of the whole length
        the rates of all three, judge_points (judged - label), world_model_points (dreamed - judged) and error_points (dreamed -
        label) with paired intervals, agreement of dream and label beside that of judgement and label; rates by step.
    """
    rates = {name: 100 * values.float().mean(0) for name, values in found._asdict().items()}
    off = ((rates["dreamed"] - rates["label"]).abs() > MARGIN + 1e-4).nonzero().flatten()
    last = {name: values[:, -1] for name, values in found._asdict().items()}
    pairs = {"judge_points": ("label", "judged"), "world_model_points": ("judged", "dreamed"), "error_points": ("label", "dreamed")}
    return {
        "episodes": len(found.label),
        "trusted_steps": int(off[0]) if len(off) else found.label.shape[1],
        "rates": {name: success_rate(values) for name, values in last.items()},
        **{name: paired_difference(last[before], last[after]) for name, (before, after) in pairs.items()},
        "against_labels": {
            name: {**confusion(last[name], last["label"]), **agreement(last[name], last["label"])} for name in ("judged", "dreamed")
        },
        "percent_by_step": {name: values.tolist() for name, values in rates.items()},
    }


def _succeeded(
    model: WorldModel, reflector: Reflector, table: FrameStore, rows: Int[Tensor, " b"], noise: Noise, steps: int
) -> Succeeded:
    past, sentences = max(model.context, reflector.context), table.sentences(rows)
    window = recorded.filled(model, table.window(rows, context=past, horizon=steps))
    begun = {name: recent(frames[:, :past], model.context) for name, frames in window["images"].items()}
    start = {"images": begun, "state": recent(window["state"][:, :past], model.context), "instruction": sentences}
    dream: dict[str, list[Tensor]] = {name: [float_image(window["images"][name][:, :past])] for name in reflector.views}
    for _, frames, _ in recorded.dreamed(model, start, window["action"], noise):
        for name, shown in dream.items():
            shown.append(frames[name])
    real = {name: window["images"][name] for name in reflector.views}
    imagined = {name: torch.cat(shown, dim=1) for name, shown in dream.items()}
    labels = table.success[table.at(rows, torch.arange(1, steps + 1) / table.spec.fps)] == 1
    judged, own = (_ended(reflector, videos, sentences, window["valid"]) for videos in (real, imagined))
    return Succeeded(labels.cummax(dim=1).values, judged, own)


def _ended(
    reflector: Reflector, videos: dict[str, Tensor], instruction: tuple[str, ...], valid: Bool[Tensor, "b t"]
) -> Bool[Tensor, "b t"]:
    """Whether k of the last n judged frames counted by each step; the reflector is asked as often as in a `DreamWorld`, and at the
    end."""
    b, steps = valid.shape
    shown = {name: clips(frames, reflector.context)[:, -steps:] for name, frames in videos.items()}
    hits, ended, by_step = torch.zeros(b, reflector.window, dtype=torch.bool), torch.zeros(b, dtype=torch.bool), []
    for k in range(steps):
        is_last = valid[:, k] & (~valid[:, k + 1] if k + 1 < steps else torch.ones(b, dtype=torch.bool))
        asked = (valid[:, k] & ((k + 1) % reflector.every == 0)) | is_last
        if asked.any():
            clip = {name: frames[asked, k].to(_device(reflector)) for name, frames in shown.items()}
            p = reflector.judge(clip, tuple(itertools.compress(instruction, asked.tolist()))).p_success.float()
            hits[asked] = torch.cat([hits[asked, 1:], (p > reflector.threshold).cpu()[:, None]], dim=1)
        ended = ended | (hits.sum(1) >= reflector.consecutive)
        by_step.append(ended)
    return torch.stack(by_step, dim=1)


def _p_success(reflector: Reflector, table: FrameStore, rows: Int[Tensor, " b"]) -> Tensor:
    window = table.window(rows, context=reflector.context, horizon=0)
    clip = {name: window["images"][name].to(_device(reflector)) for name in reflector.views}
    return reflector.judge(clip, table.sentences(rows)).p_success.float().cpu().clamp(0, 1)


def _device(reflector: Reflector) -> torch.device:
    return next((tensor.device for tensor in (*reflector.parameters(), *reflector.buffers())), torch.device("cpu"))
