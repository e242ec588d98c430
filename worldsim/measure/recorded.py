"""A world model held to recorded episodes: no simulator, no labels, anybody's robot.

The recorded actions are dreamed open loop, and the dream is compared with what the cameras saw. Beside it go two rivals that
know nothing: a picture that stays as it was, and the same dream of another episode's actions. Whoever does not beat them has not
learned what moves, or not what actions do. Read `trust.py` next: it says what these figures mean.
"""

from collections.abc import Iterator
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

FEWEST = 4  # episodes without which an interval says nothing
MOVING = 0.08  # change of a pixel since a dream's start, of 1, from which on it counts as moving
STATE = ""  # stands for no camera
Window = dict[str, Any]


class Errors(NamedTuple):
    """Mean squares of n dreams after each of t steps; 0 where a recording has ended.

    Attributes:
        own: error of the dream.
        still: error of the start, as if nothing moved.
        other: error of the dream of another episode's actions.
        moved: change of the dream since its first step, so that what its codec cannot show is no motion.
        real_moved: the same of the recording.
        detail: edges of the dream where the recording moves, the sum of squared differences of neighbouring pixels; 0 of numbers.
        real_detail: the same of the recording.
    """

    own: Float[Tensor, "n t"]
    still: Float[Tensor, "n t"]
    other: Float[Tensor, "n t"]
    moved: Float[Tensor, "n t"]
    real_moved: Float[Tensor, "n t"]
    detail: Float[Tensor, "n t"]
    real_detail: Float[Tensor, "n t"]


class Held(NamedTuple):
    """What n dreams along recorded actions came to.

    Attributes:
        episode: number of each dream's episode, [n].
        valid: the recording has this step, [n, t].
        shared: ... and so has the episode whose actions were dreamed instead, [n, t].
        pictures: of each camera of the world model, in squares of 0..1.
        state: of proprioception, in squared standard deviations of the recording; None if there is none.
        exchanged: how much the exchanged actions differ where they are shared, in squared standard deviations, the median: 0 if
            everybody did the same.
    """

    episode: Int[Tensor, " n"]
    valid: Bool[Tensor, "n t"]
    shared: Bool[Tensor, "n t"]
    pictures: dict[str, Errors]
    state: Errors | None
    exchanged: float


def starts(table: FrameStore, steps: int, most: int) -> Int[Tensor, " n"]:
    """Rows at which dreams begin: every episode's first and each `steps` later, at most `most` of them, evenly chosen.

    Raises:
        ValueError: if a dream has no step, or they are of fewer than `FEWEST` episodes.
    """
    if steps < 1:
        raise ValueError(f"a dream needs 1 step or more, got horizon={steps}")
    row = torch.arange(len(table.first))
    rows = evenly(((row - table.first) % steps == 0) & (row < table.last), most)
    if (episodes := len(table.episode[rows].unique())) < FEWEST:
        raise ValueError(
            f"dreams of {episodes} episodes say little of a world model, {FEWEST} are the fewest; raise dreams=, hold out more, or "
            "name more data"
        )
    return rows


def evenly(chosen: Bool[Tensor, " r"], most: int) -> Int[Tensor, " n"]:
    """The chosen rows, or `most` of them at equal distances."""
    rows = chosen.nonzero().flatten()
    places = torch.linspace(0, len(rows) - 1, max(0, min(most, len(rows))), dtype=torch.float64)
    return rows[places.round().long()]


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
    other, noise, acting = rows[_elsewhere(table, rows, steps)], Noise.rows(seed, len(rows)), table.action[table.acting_rows]
    felt, asked = (torch.where((s := x.std(0, correction=0)) > 1e-6, s, torch.inf) for x in (table.state, acting))
    valid, shared, apart, parts = [], [], [], []
    for part in torch.arange(len(rows)).split(batch):
        window = filled(model, table.window(rows[part], context=model.context, horizon=steps))
        window["instruction"] = table.sentences(rows[part])
        swapped = filled(model, table.actions(other[part], steps))
        valid.append(window["valid"])
        shared.append(window["valid"] & swapped["valid"])
        apart.append((((window["action"] - swapped["action"]) / asked).square().mean(-1))[shared[-1]])
        parts.append(_compared(model, window, swapped["action"], felt, noise[part]))
    whole = torch.cat(valid)
    errors = {name: _masked(_cat([part[name] for part in parts], dim=0), whole) for name in parts[0]}
    state, pictures = errors.get(STATE), {name: errors[name] for name in model.views}
    return Held(table.episode[rows], whole, torch.cat(shared), pictures, state, float(torch.cat(apart).median()))


def filled(model: WorldModel, window: Window) -> Window:
    """A window of a `FrameStore` with the model's middle action where the recording has ended: it may see a chunk as a whole."""
    middle = model.action_units.shift.cpu()
    return window | {"action": torch.where(window["valid"][..., None], window["action"], middle)}


def dreamed(
    model: WorldModel, window: Window, actions: Float[Tensor, "b t ad"], noise: Noise
) -> Iterator[tuple[slice, dict[str, Float[Tensor, "b _ _ _ 3"]], Float[Tensor, "b _ s"]]]:
    """The steps of a dream with frames and states on the CPU, a chunk at a time, from a `FrameStore.window` and its sentences."""
    device, context, noise = model.device, model.context, noise.to(model.device)
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
    for feature, numbers, channels, known in (
        ("state", table.state, spec.state, spec.state_statistics),
        ("action", table.action, spec.action, spec.action_statistics),
    ):
        low, high = (torch.tensor(bound) for bound in (known.min, known.max))
        slack = 1e-5 * (high - low)  # statistics are written in decimals
        within = (numbers[acting] >= low - slack) & (numbers[acting] <= high + slack)
        inside &= within.all(dim=1)
        shares = zip(channels, within.float().mean(0).tolist(), strict=True)
        outside |= {f"{feature} {channel.name}": 1 - share for channel, share in shares}
    worst = max(outside, key=lambda name: outside[name])
    return {"share": float(inside.float().mean()), "worst": {worst: outside[worst]} if outside[worst] else {}}


def _elsewhere(table: FrameStore, rows: Tensor, steps: int) -> Tensor:
    """For each dream the number of one of another episode that lasts about as long: the next by length, or a later one."""
    by_length = (table.last[rows] - rows).clamp(max=steps).argsort(stable=True)
    n, episode = len(rows), table.episode[rows[by_length]]
    place = (torch.arange(n) + 1) % n
    while (same := episode[place] == episode).any():
        place = torch.where(same, (place + 1) % n, place)
    return by_length[place][by_length.argsort()]


def _compared(model: WorldModel, window: Window, swapped: Tensor, scale: Tensor, noise: Noise) -> dict[str, Errors]:
    """Errors by camera, those of proprioception under `STATE`."""
    begun = slice(model.context - 1, model.context)
    found: dict[str, list[Errors]] = {}
    firsts: dict[str, tuple[Tensor, Tensor]] = {}  # dreamed and recorded at the first step
    pairs = zip(dreamed(model, window, window["action"], noise), dreamed(model, window, swapped, noise), strict=True)
    for (span, own, own_state), (_, other, other_state) in pairs:
        future = slice(model.context + span.start, model.context + span.stop)
        for name, frames in own.items():
            real, start = (float_image(window["images"][name][:, part]) for part in (future, begun))
            first = firsts.setdefault(name, (frames[:, :1], real[:, :1]))
            found.setdefault(name, []).append(_pictures(frames, other[name], real, start, first))
        if scale.numel():
            state, start = window["state"][:, future], window["state"][:, begun]
            first = firsts.setdefault(STATE, (own_state[:, :1], state[:, :1]))
            found.setdefault(STATE, []).append(_numbers(*(x / scale for x in (own_state, other_state, state, start, *first))))
    return {name: _cat(parts, dim=1) for name, parts in found.items()}


def _pictures(own: Tensor, other: Tensor, real: Tensor, start: Tensor, first: tuple[Tensor, Tensor]) -> Errors:
    changed = (real - start).abs().amax(-1) > MOVING
    pairs = ((own, real), (start, real), (other, real), (own, first[0]), (real, first[1]))
    squares = [(a - b).square().mean(dim=(-3, -2, -1)) for a, b in pairs]
    return Errors(*squares, *(_edges(frames, changed) for frames in (own, real)))


def _numbers(own: Tensor, other: Tensor, real: Tensor, start: Tensor, own_first: Tensor, real_first: Tensor) -> Errors:
    pairs = ((own, real), (start, real), (other, real), (own, own_first), (real, real_first))
    squares = [(a - b).square().mean(-1) for a, b in pairs]
    return Errors(*squares, *(torch.zeros_like(squares[0]) for _ in range(2)))


def _edges(frames: Shaped[Tensor, "b t h w 3"], where: Bool[Tensor, "b t h w"]) -> Float[Tensor, "b t"]:
    across, down = frames.diff(dim=-2)[..., :-1, :, :], frames.diff(dim=-3)[..., :-1, :]
    return ((across.square() + down.square()).sum(-1) * where[..., :-1, :-1]).sum(dim=(-2, -1))


def _cat(parts: list[Errors], dim: int) -> Errors:
    return Errors(*(torch.cat(values, dim=dim) for values in zip(*parts, strict=True)))


def _masked(errors: Errors, valid: Tensor) -> Errors:
    return Errors(*(torch.where(valid, value, 0) for value in errors))
