"""Where dream and physics part: the first frame of each recorded episode that a world model gets wrong.

What is worth recording next lies around there: up to that frame the model knows how it goes on, from there on it makes things up.
`RevisitActor` brings a world back to shortly before it, by the actions that were recorded, and lets a policy go on from there, so
that fresh episodes are of what the model does not know (keyframe starts: WoVR, arXiv:2602.13977). Read `doubt.py` for what wrong
means, and `training/studies/coevolution.py` for what it brings.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from matplotlib.figure import Figure
from torch import Tensor

from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Policy, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.seeds import check_training
from worldsim.core.types import Observation
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore, training_episodes
from worldsim.measure import recorded
from worldsim.measure.collect import PolicyActor
from worldsim.measure.doubt import TOLERATED, relative
from worldsim.measure.recorded import Held

STARTS = Path("meta", "starts.json")  # of a dataset: the seed of each episode's start, from `worldsim collect`


class Parting(NamedTuple):
    """The frame at which a dream leaves what was recorded.

    Attributes:
        root: of the dataset.
        episode: its number there.
        step: of the first wrong frame, counted in actions from the episode's start.
        error: of that frame, see `worldsim.measure.doubt.relative`.
    """

    root: str
    episode: int
    step: int
    error: float


def partings(held: Held, table: FrameStore, rows: Int[Tensor, " n"], episodes: list[tuple[str, int]]) -> list[Parting]:
    """The first frame with an error above `TOLERATED` of each episode that has one.

    Args:
        held: dreams along recorded actions.
        table: of these episodes.
        rows: where the dreams begin, in order.
        episodes: dataset and number of each of the table's episodes (`named`).

    Raises:
        ValueError: if nothing moves in the recordings.
    """
    error = relative({name: (errors.own, errors.still) for name, errors in held.pictures.items()}, held.valid)
    wrong, result = held.valid & (error > TOLERATED), {}
    for dream in wrong.any(dim=1).nonzero().flatten().tolist():
        row, episode, place = int(rows[dream]), int(held.episode[dream]), int(wrong[dream].long().argmax())
        found = Parting(*episodes[episode], row - int(table.first[row]) + place + 1, float(error[dream, place]))
        result.setdefault(episode, found)
    return list(result.values())


def named(roots: list[str], held_out: float) -> list[tuple[str, int]]:
    """Dataset and number of each episode, in the order of `FrameStore.read_held_out(roots)`, or of `read` if all are held out."""
    found = []
    for root in roots:
        indices = Dataset(root, cameras=[]).episode_indices
        first = 0 if held_out == 1 else training_episodes(indices, held_out)
        found += [(root, i) for i in range(first, len(indices))]
    return found


@torch.no_grad()
def show(
    model: WorldModel, table: FrameStore, found: list[Parting], names: list[tuple[str, int]], path: Path, *, seed: int
) -> None:
    """Of up to six episodes, evenly chosen: what was recorded at the frame of the parting, and below it what was dreamed."""
    chosen = [found[i] for i in torch.linspace(0, len(found) - 1, min(6, len(found))).round().long().tolist()]
    camera, pairs = next(iter(model.views)), []
    for parting in chosen:
        row = (table.episode == names.index((parting.root, parting.episode))).nonzero()[0]
        window = recorded.filled(model, table.window(row, context=model.context, horizon=parting.step))
        window["instruction"] = table.sentences(row)
        *_, last = recorded.dreamed(model, window, window["action"], Noise.rows(seed, 1))
        pairs.append((window["images"][camera][0, -1], last[1][camera][0, -1]))
    figure = Figure(figsize=(1.7 * len(chosen), 3.6))
    panels = figure.subplots(2, len(chosen), squeeze=False)
    for column, (parting, pair) in enumerate(zip(chosen, pairs, strict=True)):
        for axes, picture, what in zip(panels[:, column], pair, ("recorded", "dreamed"), strict=True):
            axes.imshow(picture.numpy())
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{Path(parting.root).name} {parting.episode}, {parting.step}: {what}", fontsize=6)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def write(found: list[Parting], path: Path) -> None:
    """For `worldsim collect actor=revisit`."""
    write_json(path, {"tolerated": TOLERATED, "partings": [parting._asdict() for parting in found]})


class RevisitActor(PolicyActor):
    """Goes back to shortly before a frame at which a dream parted, as it came there before, and lets a policy go on, with noise of
    its own. Start k of a recording is the k-th parting, in the same world as then.

    Args:
        policy, noise: as for `PolicyActor`.
        file: partings that `worldsim evaluate world_model=M data=X` wrote.
        before: control steps before the parting at which the policy takes over.

    Raises:
        FileNotFoundError: if the file or a dataset is gone.
        ValueError: if the file names no parting, its datasets have other actions than one another, or one does not say from which
            seeds it was recorded.
    """

    def __init__(self, policy: Policy, file: str, before: int = 4, noise: float = 0.0):
        super().__init__(policy, noise)
        found = read(Path(file))
        data = {root: Dataset(root, cameras=[]) for root in dict.fromkeys(parting.root for parting in found)}
        seeds = {root: seeds_of(Path(root)) for root in data}
        visits = {seeds[p.root][p.episode]: p for p in reversed(found)}  # of a start that was recorded twice the first
        self.file, self.visits = file, dict(reversed(visits.items()))
        self.actions = [next(data[p.root].episodes([p.episode])).action[: max(0, p.step - before)] for p in self.visits.values()]
        self.place = {start: place for place, start in enumerate(self.visits)}
        names = {root: tuple(one.action_names) for root, one in data.items()}
        if len(set(names.values())) > 1:
            raise ValueError(f"{file} is of datasets with different actions, {names}; look for partings in one of them at a time")
        self.action_names = names[found[0].root]

    @classmethod
    def from_folders(cls, folder: str, file: str, before: int = 4, noise: float = 0.0) -> "RevisitActor":
        """The actor of an exported policy."""
        return cls(checkpoint.load(folder, Policy), file, before, noise)

    def check_starts(self, seed: int, episodes: int) -> None:
        if not 0 <= seed <= len(self.visits) - episodes:
            raise ValueError(
                f"{self.file} has {len(self.visits)} partings, got {episodes} episodes from the one of number seed={seed}; record "
                "fewer, or look for partings in more episodes"
            )
        for start in self.visits:
            check_training(start, 1)

    def seeds(self, seed: int, start: Int[Tensor, " b"]) -> Int[Tensor, " b"]:
        return torch.tensor([*self.visits], device=start.device)[(seed + start) % len(self.visits)]

    def act(self, world: Any, obs: Observation, noise: Noise) -> Float[Tensor, "b ah ad"]:
        if self.action_names != world.action_names:
            names = [", ".join(names) for names in (self.action_names, world.action_names)]
            raise ValueError(
                f"{self.file} is of recordings with the actions {names[0]}, the world has {names[1]}; revisit that world"
            )
        chunk = super().act(world, obs, replace(noise, stream=noise.stream + 1))
        for i, (start, step) in enumerate(zip(noise.seed.tolist(), noise.step.tolist(), strict=True)):
            again = self.actions[self.place[start]][step : step + chunk.shape[1]]
            chunk[i, : len(again)] = again.to(chunk)
        return chunk


def read(file: Path) -> list[Parting]:
    """What `write` wrote.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is another file, or names none.
    """
    try:
        found = [Parting(**one) for one in json.loads(file.read_text())["partings"]]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{file} is no partings.json of worldsim evaluate world_model=M data=X; name one with file=") from error
    if not found:
        raise ValueError(f"{file} has no parting to go back to; record starts as they come: actor=policy")
    return found


def seeds_of(root: Path) -> list[int]:
    """The seed of each episode's start, of what `worldsim collect` recorded.

    Raises:
        ValueError: if the dataset does not say.
    """
    if not (root / STARTS).is_file():
        raise ValueError(
            f"{root} does not say from which starts it was recorded ({STARTS}); what `worldsim collect` recorded can be revisited"
        )
    seeds, total = json.loads((root / STARTS).read_text())["seeds"], Dataset(root, cameras=[]).num_episodes
    if len(seeds) != total:
        raise ValueError(
            f"{root} has {total} episodes, and {STARTS} says from which starts {len(seeds)} of them were recorded; revisit what "
            "one `worldsim collect` recorded"
        )
    return seeds
