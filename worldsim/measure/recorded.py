"""A world model held to recorded episodes: no simulator, no labels, anybody's robot.

The recorded actions are dreamed open loop, and the dream is compared with what the cameras saw. Beside it go two rivals that
know nothing: a picture that stays as it was, and the same dream of another episode's actions. Whoever does not beat them has not
learned what moves, or not what actions do. Read `trust.py` next: it says what these figures mean.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import seen
from worldsim.core.spec import Spec
from worldsim.core.types import float_image
from worldsim.data.store import FrameStore

MOVING = 0.08  # change of a pixel since a dream's start, of 1, from which on it counts as moving
STILL = 1e-5  # mean squared change of a camera's pixels below which it shows nothing to judge by (50 dB)
STATE = ""  # stands for no camera
Window = Mapping[str, Any]


class Errors(NamedTuple):
    """Mean squared errors of n dreams after each of t steps; 0 where a recording has ended.

    Attributes:
        own: of the dream.
        still: of the start, as if nothing moved.
        other: of the dream of another episode's actions.
        moved: how far the dream is from its start; right if it is as `still`.
        detail: edges of the dream where the recording moves, the sum of squared differences of neighbouring pixels; 0 of numbers.
        real_detail: the same of the recording.
    """

    own: Float[Tensor, "n t"]
    still: Float[Tensor, "n t"]
    other: Float[Tensor, "n t"]
    moved: Float[Tensor, "n t"]
    detail: Float[Tensor, "n t"]
    real_detail: Float[Tensor, "n t"]


class Held(NamedTuple):
    """What n dreams along recorded actions came to.

    Attributes:
        episode: number of each dream's episode, [n].
        valid: the recording has this step, [n, t].
        shared: ... and so has the episode whose actions were dreamed instead, [n, t].
        pictures: of each camera of the world model, in squares of 0..1.
        state: of proprioception, in squared standard deviations of the recording.
    """

    episode: Int[Tensor, " n"]
    valid: Bool[Tensor, "n t"]
    shared: Bool[Tensor, "n t"]
    pictures: dict[str, Errors]
    state: Errors


def starts(table: FrameStore, steps: int, most: int) -> Int[Tensor, " n"]:
    """Rows at which dreams begin: every episode's first and each `steps` later, at most `most` of them, evenly chosen.

    Raises:
        ValueError: if there are fewer than two episodes, whose actions could be exchanged.
    """
    every = ((torch.arange(len(table.first)) - table.first) % steps == 0) & (torch.arange(len(table.first)) < table.last)
    rows = every.nonzero().flatten()
    if len(table.episode[rows].unique()) < 2:
        raise ValueError("comparing takes two episodes or more, whose actions are exchanged; hold out more, or name more data")
    return rows[torch.linspace(0, len(rows) - 1, min(most, len(rows))).round().long()]


@torch.no_grad()
def hold(model: WorldModel, table: FrameStore, rows: Int[Tensor, " n"], *, steps: int, batch: int = 32, seed: int = 0) -> Held:
    """Dream `steps` steps from each row along what was done there, and along what was done in another episode.

    Args:
        model: in evaluation mode.
        table: recorded episodes, with the channels in the model's order and the cameras of its views.
        rows: where dreams begin, see `starts`.
        steps: longest dream.
        batch: dreams at a time.
        seed: of the model's noise, the same for both dreams.
    """
    other, valid, shared, parts = _elsewhere(table, rows), [], [], []
    scale = table.state.std(0, correction=0)
    scale = torch.where(scale > 1e-6, scale, torch.inf)  # a motionless channel has no error
    for part in torch.arange(len(rows)).split(batch):
        window = table.window(rows[part], context=model.context, horizon=steps)
        swapped = table.actions(rows[other[part]], steps)
        valid.append(window["valid"])
        shared.append(window["valid"] & swapped["valid"])
        window |= {"instruction": table.sentences(rows[part])}
        parts.append(_compared(model, window, swapped["action"], scale, Noise.rows(seed, len(part))))
    valid, shared = torch.cat(valid), torch.cat(shared)
    errors = {name: _masked(_cat([part[name] for part in parts], dim=0), valid) for name in parts[0]}
    return Held(table.episode[rows], valid, shared, {name: errors[name] for name in model.views}, errors[STATE])


def dreamed(
    model: WorldModel, window: Window, actions: Float[Tensor, "b t ad"], noise: Noise
) -> Iterator[tuple[slice, dict[str, Float[Tensor, "b _ _ _ 3"]], Float[Tensor, "b _ s"]]]:
    """The steps, frames and states of a dream, a chunk at a time, from a `FrameStore.window` and its sentences."""
    device, context = model.device, model.context
    first = {name: frames[:, :context].to(device) for name, frames in window["images"].items()}
    state = model.init(seen(first, model.views, "the world model"), window["state"][:, :context].to(device), window["instruction"])
    place = 0
    for piece in actions.to(device).split(model.action_horizon, dim=1):
        state, frames, states = model.step(state, piece, noise.at(place))
        span = slice(place, place + piece.shape[1])
        yield span, {name: shown.float().clamp(0, 1).cpu() for name, shown in frames.items()}, states.float().cpu()
        place = span.stop


def coverage(table: FrameStore, spec: Spec | None) -> dict[str, Any]:
    """Which share of the recorded frames lies within what the model learned from, and the channel that leaves it most often.

    Returns:
        share, of frames with every state and action between the least and the largest that training saw; worst, of the channel
        outside most often, by name; empty if the model does not say what it learned from.
    """
    if spec is None or spec.state_statistics is None or spec.action_statistics is None:
        return {}
    acting = table.acting_rows
    inside, outside = torch.ones(len(acting), dtype=torch.bool), {}
    for numbers, channels, seen_of in (
        (table.state, spec.state, spec.state_statistics),
        (table.action, spec.action, spec.action_statistics),
    ):
        low, high = (torch.tensor(bound) for bound in (seen_of.min, seen_of.max))
        slack = 1e-5 * (high - low)  # statistics are written in decimals
        within = (numbers[acting] >= low - slack) & (numbers[acting] <= high + slack)
        inside &= within.all(dim=1)
        outside |= {channel.name: 1 - float(share) for channel, share in zip(channels, within.float().mean(0), strict=True)}
    worst = max(outside, key=lambda name: outside[name])
    return {"share": float(inside.float().mean()), "worst": {worst: outside[worst]} if outside[worst] else {}}


def _elsewhere(table: FrameStore, rows: Tensor) -> Tensor:
    """For each dream the number of one of another episode: half of the way round, or further if that is the same one."""
    n, episode = len(rows), table.episode[rows]
    place = (torch.arange(n) + n // 2) % n
    while (same := episode[place] == episode).any():
        place = torch.where(same, (place + 1) % n, place)
    return place


def _compared(model: WorldModel, window: Window, swapped: Tensor, scale: Tensor, noise: Noise) -> dict[str, Errors]:
    """Errors by camera, those of proprioception under `STATE`."""
    begun = model.context - 1
    found: dict[str, list[Errors]] = {}
    pairs = zip(dreamed(model, window, window["action"], noise), dreamed(model, window, swapped, noise), strict=True)
    for (span, own, own_state), (_, other, other_state) in pairs:
        future = slice(model.context + span.start, model.context + span.stop)
        for name, frames in own.items():
            real = float_image(window["images"][name])
            found.setdefault(name, []).append(_pictures(frames, other[name], real[:, future], real[:, begun : begun + 1]))
        state, start = window["state"][:, future], window["state"][:, begun : begun + 1]
        own_error, other_error, still, moved = (
            ((a - b) / scale).square().mean(-1)
            for a, b in ((own_state, state), (other_state, state), (start, state), (own_state, start))
        )
        none = torch.zeros_like(still)
        found.setdefault(STATE, []).append(Errors(own_error, still, other_error, moved, none, none))
    return {name: _cat(parts, dim=1) for name, parts in found.items()}


def _pictures(own: Tensor, other: Tensor, real: Tensor, start: Tensor) -> Errors:
    changed = (real - start).abs().amax(-1) > MOVING

    def error(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(dim=(-3, -2, -1))

    return Errors(
        error(own, real), error(start, real), error(other, real), error(own, start), _edges(own, changed), _edges(real, changed)
    )


def _edges(frames: Shaped[Tensor, "b t h w 3"], where: Bool[Tensor, "b t h w"]) -> Float[Tensor, "b t"]:
    across, down = frames.diff(dim=-2)[..., :-1, :, :], frames.diff(dim=-3)[..., :-1, :]
    return ((across.square() + down.square()).sum(-1) * where[..., :-1, :-1]).sum(dim=(-2, -1))


def _cat(parts: list[Errors], dim: int) -> Errors:
    return Errors(*(torch.cat(values, dim=dim) for values in zip(*parts, strict=True)))


def _masked(errors: Errors, valid: Tensor) -> Errors:
    return Errors(*(value * valid for value in errors))
