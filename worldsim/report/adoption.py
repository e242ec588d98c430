"""What `worldsim adopt` found in somebody's dataset, on the terminal and as one HTML page with its own pictures.

Read `worldsim/data/inspection.py` for where guesses come from, `training/app/adopt.py` for what is made of them.
"""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from matplotlib.figure import Figure

from worldsim.core.channels import UNKNOWN
from worldsim.core.views import resize, usual_view
from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import SPEC
from worldsim.data.contents import Fault
from worldsim.data.inspection import Guess, action_kinds, channels, paired
from worldsim.data.lerobot_reader import Dataset
from worldsim.report.video import png_bytes

SHOWN, STRIP, DRAWN = 6, 8, 32  # episodes of a contact sheet, frames of each, channels of a figure
HELD_OUT, FEWEST = 8, 4  # episodes that give a world model's figures an interval worth its name, or one at all


class Findings(NamedTuple):
    """A dataset, as far as it says what it is.

    Attributes:
        dataset: read by its own names.
        version: of its layout.
        robot: type.
        fps: frames per second.
        cameras: height and width as recorded.
        lengths: frames of each episode.
        tasks: sentences, and how many episodes are under each.
        state, action: what each number probably is.
        judged: share of the frames of which somebody said success and progress.
        outcomes: episodes that end in a recorded success, and in a recorded failure.
        label: the group `label` that suits.
        numbers: "state" and "action" of each frame, [n, d].
    """

    dataset: Dataset
    version: str
    robot: str
    fps: float
    cameras: dict[str, tuple[int, int]]
    lengths: list[int]
    tasks: dict[str, int]
    state: list[Guess]
    action: list[Guess]
    judged: dict[str, float]
    outcomes: tuple[int, int]
    label: str
    numbers: dict[str, np.ndarray]

    @property
    def longest(self) -> int:
        """Actions of an episode that nineteen of twenty do not exceed."""
        return int(np.quantile(self.lengths, 0.95)) - 1

    @property
    def held_out(self) -> float:
        """Share of the episodes to hold out: a tenth, or more for good intervals as long as two thirds are left to learn from."""
        n = len(self.lengths)
        some = max(0.1, min(HELD_OUT / n, 1 / 3))
        return round(max(some, FEWEST / n) if self.measurable else some, 3)

    @property
    def measurable(self) -> bool:
        """There are enough episodes to hold out what gives figures, and to learn from two."""
        return len(self.lengths) >= FEWEST + 2


def find(data: Dataset) -> Findings:
    """What a dataset says of itself; reads all numbers, and no picture.

    Raises:
        ValueError: if it is damaged.
    """
    if not data.num_episodes:
        raise ValueError(f"{data.root} has no episode to learn from; record some")
    episodes = [*Dataset(data.root, cameras=[]).episodes()]
    tasks = Counter(episode.instruction for episode in episodes)
    won, lost = (sum(float(episode.success[-1]) == end for episode in episodes) for end in (1, 0))
    state = np.concatenate([episode.state.numpy() for episode in episodes])
    action = np.concatenate([episode.action.numpy()[[*range(len(episode)), -1]] for episode in episodes])  # the last one twice
    number = np.repeat(np.arange(len(episodes)), data.lengths)
    kinds = action_kinds(action, state, number, paired(data.action_names, data.state_names))
    judged = data.judged_share()
    label = "outcome" if won else "demo_end" if judged["progress"] else "time_to_go"
    return Findings(
        dataset=data,
        version=data.info["codebase_version"],
        robot=str(data.info.get("robot_type") or "unknown"),
        fps=data.fps,
        cameras=data.cameras,
        lengths=data.lengths,
        tasks=dict(tasks),
        state=channels(data.state_names, state, {}),
        action=channels(data.action_names, action, kinds),
        judged=judged,
        outcomes=(won, lost),
        label=label,
        numbers={"state": state, "action": action},
    )


def lines(name: str, found: Findings, faults: Sequence[Fault], prices: Mapping[str, Any]) -> list[str]:
    """The report as a terminal shows it."""
    seconds = np.array(found.lengths) / found.fps
    told = [
        f"{name}: {found.robot}, LeRobot {found.version}, {found.fps:g} frames per second",
        f"  {len(found.lengths)} episodes, {sum(found.lengths)} frames, {seconds.min():.3g} to {seconds.max():.3g} s each (median "
        f"{np.median(seconds):.3g} s), {seconds.sum() / 60:.3g} min in all",
        *(
            f"  camera {camera}: {h} x {w} (height x width), seen at {_size(usual_view(h, w))}"
            for camera, (h, w) in found.cameras.items()
        ),
        *(f"  task, {number} episodes: {task}" for task, number in [*found.tasks.items()][:5]),
        *_channels("state", found.state),
        *_channels("action", found.action),
        f"  labels: {_labels(found)}",
    ]
    if odd := [guess.name for guess in found.action if guess.kind == UNKNOWN]:
        told.append(
            f"  of {len(odd)} actions nobody knows the kind: say in {SPEC} whether {', '.join(odd[:4])} are absolute or delta"
        )
    told += [f"  {fault.severity}: {fault.found}; {fault.remedy}" for fault in faults] or ["  faults: none"]
    return told + [f"  {line}" for line in _costs(found, prices)]


def write_page(path: Path, name: str, found: Findings, faults: Sequence[Fault], prices: Mapping[str, Any]) -> Path:
    """The report as one page, with contact sheets, histograms and timelines; returns its path."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True)
    page = environment.get_template("adoption.html.j2").render(
        name=name,
        facts=[line.strip() for line in lines(name, found, (), {})[1:] if "faults: none" not in line],
        faults=faults,
        costs=_costs(found, prices),
        guesses={"State": found.state, "Action": found.action},
        sheets={camera: _inline(contact_sheet(found.dataset, camera)) for camera in found.cameras},
        figures={
            "Actions, over all frames": _inline(_histograms(found.action, found.numbers["action"])),
            "States, over all frames": _inline(_histograms(found.state, found.numbers["state"])),
            "Episodes": _inline(_timelines(found)),
        },
    )
    with fmt.replacing(path) as temporary:
        temporary.write_text(page)
    return path


def contact_sheet(data: Dataset, camera: str) -> bytes:
    """A PNG with a row of frames, evenly chosen, of each of some episodes, the first and the last among them."""
    rows = []
    for index in np.unique(np.linspace(0, data.num_episodes - 1, SHOWN).round().astype(int)).tolist():
        wanted = {*np.linspace(0, data.lengths[index] - 1, STRIP).round().astype(int).tolist()}
        seen, kept = 0, []
        for clip in data.clips(camera, index):
            kept += [clip[i - seen] for i in sorted(wanted) if seen <= i < seen + len(clip)]
            seen += len(clip)
        strip = resize(np.stack(kept), usual_view(*data.cameras[camera]))
        pad = np.zeros((STRIP - len(strip), *strip.shape[1:]), np.uint8)
        rows.append(np.concatenate([*strip, *pad], axis=1))
    return png_bytes(np.concatenate(rows))


def _channels(feature: str, guesses: Sequence[Guess]) -> list[str]:
    groups: dict[tuple[str, str], list[str]] = {}
    for guess in guesses:
        groups.setdefault((guess.unit, guess.kind), []).append(guess.name)
    said = []
    for (unit, kind), names in groups.items():
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        said.append(f"  {feature}, {len(names)} of {len(guesses)}: unit {unit}, kind {kind} (guessed): {some}")
    return said


def _labels(found: Findings) -> str:
    won, lost = found.outcomes
    if found.label == "outcome":
        return f"{won} episodes end in a recorded success, {lost} in a failure; label=outcome"
    known = "success is recorded, and never true" if lost else "nobody recorded success"
    return (
        f"{known}; label={found.label} takes every episode for a demonstration that ends when the task is done. Look whether that "
        "is true, or write labels.csv and choose label=human"
    )


def _costs(found: Findings, prices: Mapping[str, Any]) -> list[str]:
    pixels = sum(3 * h * w for h, w in (usual_view(*size) for size in found.cameras.values()))
    told = [f"cost of frames, decoded once: {sum(found.lengths) * pixels / 1e9:.3g} GB of disk"] if prices else []
    for name, price in prices.items():
        size = f"{price.parameters / 1e6:.2g} M parameters, {price.bytes / 2**30:.2g} GiB of tensors at least"
        told.append(f"cost of {name}: {price.steps} steps, about {price.minutes:.2g} min on this machine's CPU, {size}")
    return told


def _size(size: tuple[int, int]) -> str:
    return " x ".join(map(str, size))


def _histograms(guesses: Sequence[Guess], values: np.ndarray) -> Figure:
    shown = min(len(guesses), DRAWN)
    columns = min(shown, 6)
    rows = -(-shown // columns)
    figure = Figure(figsize=(2.1 * columns, 1.6 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, guess, column in zip(axes, guesses, values.T, strict=False):
        axis.hist(column, bins=40)
        axis.set_title(guess.name, fontsize=7)
        axis.set_yticks([])
        axis.tick_params(labelsize=6)
    for axis in axes[shown:]:
        axis.axis("off")
    return figure


def _timelines(found: Findings) -> Figure:
    figure = Figure(figsize=(9, 4), layout="constrained")
    top, bottom = figure.subplots(2, 1)
    top.bar(range(len(found.lengths)), np.array(found.lengths) / found.fps)
    top.set(xlabel="episode", ylabel="length, s")
    action, begin = found.numbers["action"], np.cumsum([0, *found.lengths])
    scale = action.std(axis=0)
    steps = np.linalg.norm(np.diff(action, axis=0) / np.where(scale > 1e-9, scale, np.inf), axis=1)
    for episode in range(min(SHOWN, len(found.lengths))):
        part = steps[begin[episode] : begin[episode + 1] - 1]
        bottom.plot(np.arange(len(part)) / found.fps, part, label=str(episode), linewidth=0.8)
    bottom.set(xlabel="time, s", ylabel="change of action, sd per step")
    bottom.legend(title="episode", fontsize=7)
    return figure


def _inline(picture: bytes | Figure) -> str:
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=110)
        picture = buffer.getvalue()
    return "data:image/png;base64," + base64.b64encode(picture).decode()
