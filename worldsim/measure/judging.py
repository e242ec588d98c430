"""A reflector held to recorded episodes, and to dreams of them: whose fault is it if imagined success is wrong?

Three say whether an episode has succeeded by now: its labels, the reflector looking at what was recorded, and the reflector looking
at the dream of the same actions. The first two differ by what the reflector gets wrong, the last two by what the world model does.
Read `training/app/evaluate_models.py` next: it writes what is found here and in `trust.py`.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent
from worldsim.core.types import float_image
from worldsim.data.store import FrameStore
from worldsim.measure.metrics import Confusion, agreement, auc, calibration, confusion, paired_difference, success_rate
from worldsim.measure.recorded import dreamed

FEWEST = 32  # episodes of which one counts no more than the margin
MARGIN = 3.0  # percentage points within which imagined success is trusted


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
    """What a reflector says of single recorded frames against their labels, and of whole episodes.

    Returns:
        frames, episodes: how many were judged; auc, brier and curve of its probabilities; against_labels: `confusion` and
        `agreement` of its decisions by frame; always_success: the same of somebody who calls everything a success.

    Raises:
        ValueError: if no frame was judged when it was recorded.
    """
    known = (~table.success.isnan()).nonzero().flatten()
    if not len(known):
        raise ValueError(
            "nobody said of these episodes whether they succeeded (next.success), which a reflector is held to; label "
            "some, or name other data"
        )
    rows = known[torch.linspace(0, len(known) - 1, min(most, len(known))).round().long()]
    p = torch.cat([_p_success(reflector, table, part) for part in rows.split(batch)])
    label, said = table.success[rows] == 1, p > float(reflector.threshold)
    found: dict[str, Any] = {"frames": len(rows), "episodes": len(table.episode[rows].unique()), "auc": auc(p, label)}
    found |= calibration(p, label) | {"threshold": float(reflector.threshold)}
    return found | {"against_labels": _against(said, label), "always_success": _against(torch.ones_like(label), label)}


@torch.no_grad()
def succeeded(
    model: WorldModel, reflector: Reflector, table: FrameStore, *, steps: int, batch: int = 32, seed: int = 0
) -> Succeeded:
    """Dream every labelled episode from its first frame along its actions, and ask the reflector by its own rule.

    Raises:
        ValueError: if there are fewer than `FEWEST` such episodes: a single one would count for more than `MARGIN`.
    """
    rows, unknown = table.first.unique(), torch.zeros(len(table.instruction))
    rows = rows[unknown.index_add(0, table.episode, table.success.isnan().float()) == 0]
    if len(rows) < FEWEST:
        raise ValueError(
            f"{len(rows)} labelled episodes are too few for the horizon up to which imagined success holds within {MARGIN:g} "
            f"points, {FEWEST} are the fewest; hold out more, name more data, or leave the reflector out"
        )
    parts = [_succeeded(model, reflector, table, part, steps, seed) for part in rows.split(batch)]
    return Succeeded(*(torch.cat(values) for values in zip(*parts, strict=True)))


def horizon(found: Succeeded) -> dict[str, Any]:
    """Up to which step imagined success is true, and who errs.

    Returns:
        trusted_steps: the last one up to which the rates of dream and label differ by `MARGIN` points at most; of the whole length
        the rates of all three, judge_points (judged - label) and world_model_points (dreamed - judged) with paired intervals,
        agreement of dream and label beside that of judgement and label; rates by step.
    """
    rates = {name: 100 * values.float().mean(0) for name, values in found._asdict().items()}
    off = ((rates["dreamed"] - rates["label"]).abs() > MARGIN + 1e-4).nonzero().flatten()
    last = {name: values[:, -1] for name, values in found._asdict().items()}
    return {
        "episodes": len(found.label),
        "trusted_steps": int(off[0]) if len(off) else found.label.shape[1],
        "rates": {name: success_rate(values) for name, values in last.items()},
        "judge_points": paired_difference(last["label"], last["judged"]),
        "world_model_points": paired_difference(last["judged"], last["dreamed"]),
        "against_labels": {name: _against(last[name], last["label"]) for name in ("judged", "dreamed")},
        "percent_by_step": {name: values.tolist() for name, values in rates.items()},
    }


def stopped(p: Float[Tensor, "n m"], reflector: Reflector) -> Bool[Tensor, "n m"]:
    """Whether the reflector's rule, k of the last n judged frames, has ended an episode by each of m frames that it judged."""
    hits = (p > float(reflector.threshold)).float()
    recent_hits = torch.nn.functional.pad(hits, (reflector.window - 1, 0)).unfold(1, reflector.window, 1).sum(-1)
    return (recent_hits >= reflector.consecutive).cummax(dim=1).values


def _succeeded(
    model: WorldModel, reflector: Reflector, table: FrameStore, rows: Int[Tensor, " b"], steps: int, seed: int
) -> Succeeded:
    past, sentences = max(model.context, reflector.context), table.sentences(rows)
    window: dict[str, Any] = table.window(rows, context=past, horizon=steps)
    begun = {name: recent(frames[:, :past], model.context) for name, frames in window["images"].items()}
    start = {"images": begun, "state": recent(window["state"][:, :past], model.context), "instruction": sentences}
    dream: dict[str, list[Tensor]] = {name: [] for name in reflector.views}
    for _, frames, _ in dreamed(model, start, window["action"], Noise.rows(seed, len(rows))):
        for name, shown in dream.items():
            shown.append(frames[name])
    real = {name: float_image(window["images"][name]) for name in reflector.views}
    imagined = {name: torch.cat([real[name][:, :past], *dream[name]], dim=1) for name in reflector.views}
    labels = table.success[table.at(rows, torch.arange(1, steps + 1) / table.spec.fps)] == 1
    last = window["valid"].sum(1).clamp(min=1) - 1  # what an ended episode has come to stays
    places = torch.arange(steps).minimum(last[:, None])
    judged, own = (_judged(reflector, videos, sentences, steps).gather(1, places) for videos in (real, imagined))
    return Succeeded(labels.cummax(dim=1).values, judged, own)


def _judged(reflector: Reflector, videos: dict[str, Tensor], instruction: tuple[str, ...], steps: int) -> Bool[Tensor, "b t"]:
    """Whether each of the last `steps` frames comes after success; a slow judge is asked as often as dreams would ask it."""
    looked = [k for k in range(steps) if (k + 1) % reflector.every == 0 or k == steps - 1]
    shown = {name: clips(frames, reflector.context)[:, -steps:] for name, frames in videos.items()}
    device = reflector.threshold.device
    asked = (reflector.judge({name: clip[:, k].to(device) for name, clip in shown.items()}, instruction) for k in looked)
    ended = stopped(torch.stack([said.p_success.float().cpu() for said in asked], dim=1), reflector)
    latest = torch.bucketize(torch.arange(steps), torch.tensor(looked), right=True)  # frames judged by then
    return torch.cat([torch.zeros_like(ended[:, :1]), ended], dim=1)[:, latest]


def _p_success(reflector: Reflector, table: FrameStore, rows: Int[Tensor, " b"]) -> Float[Tensor, " b"]:
    window = table.window(rows, context=reflector.context, horizon=0)
    clip = {name: frames.to(reflector.threshold.device) for name, frames in window["images"].items() if name in reflector.views}
    return reflector.judge(clip, table.sentences(rows)).p_success.float().cpu().clamp(0, 1)


def _against(said: Bool[Tensor, " n"], label: Bool[Tensor, " n"]) -> Confusion:
    return confusion(said, label) | agreement(said, label)  # type: ignore[return-value]
