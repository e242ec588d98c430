"""Datasets made of datasets: merged, without some episodes, cut in two, under other sentences, or only in today's format.

Recordings need mending, and one that is changed where it lies is lost if the change was wrong. So a new one is written, episode by
episode, from all that `Dataset` reads, and those that it is made of stay as they are. Read `lerobot.py` next: its writer goes on
where a killed conversion stopped.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from rich.progress import track

from worldsim.core.channels import Feature
from worldsim.core.spec import match
from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.dataset_spec import write_overlay
from worldsim.data.lerobot import Dataset, DatasetWriter

RECORD = Path("meta/conversion.json")  # what a dataset was made of, and how
FLUSH_BYTES = 2**26  # of decoded pictures that are written as one set of files, which one long episode may exceed


@dataclass(frozen=True)
class Edits:
    """What becomes of the episodes, which are numbered from 0 as `Dataset` reads them, on through all datasets.

    Attributes:
        drop: episodes to leave out.
        keep: or the only ones to take; None for all.
        split: by episode, the frames at which another one begins. No frame is lost, but the action that led there is.
        relabel: other sentences, by the old sentence, or by episode: for one that is split one for each part, or one for all.
    """

    drop: Sequence[int] = ()
    keep: Sequence[int] | None = None
    split: Mapping[int, Sequence[int]] = field(default_factory=dict)
    relabel: Mapping[int | str, str | Sequence[str]] = field(default_factory=dict)

    def pieces(self, sources: Sequence[Dataset]) -> list["Piece"]:
        """What is taken, in order.

        Raises:
            ValueError: if they name an episode, frame or sentence that is not there.
        """
        kinds = {"drop": (self.drop, list | tuple, "[3, 5]"), "split": (self.split, Mapping, "{7: [120]}")}
        kinds |= {
            "keep": (() if self.keep is None else self.keep, list | tuple, "[3, 5]"),
            "relabel": (self.relabel, Mapping, "{old sentence: new one}"),
        }
        for what, (value, kind, example) in kinds.items():
            if not isinstance(value, kind):
                raise ValueError(f"{what} is {value!r}, expected the form {example}")
        if self.drop and self.keep is not None:
            raise ValueError("drop and keep are both said; leave one of them out")
        places = [(data, i) for data in sources for i in range(data.num_episodes)]
        by_number = {key: value for key, value in self.relabel.items() if not isinstance(key, str)}
        named = {"drop": self.drop, "keep": self.keep or (), "split": self.split, "relabel": by_number}
        for what, number in ((what, number) for what, numbers in named.items() for number in numbers):
            if not fmt.is_count(number) or number >= len(places):
                raise ValueError(f"{what} names episode {number!r}; there are {len(places)}, counted from 0 through all datasets")
        dropped, kept = {*self.drop}, range(len(places)) if self.keep is None else {*self.keep}
        taken = [i for i in range(len(places)) if i not in dropped and i in kept]
        if lost := sorted({*self.split, *by_number}.difference(taken)):
            raise ValueError(f"split or relabel names episode {lost[0]}, which is not taken; correct drop or keep")
        by_sentence = {key: value for key, value in self.relabel.items() if isinstance(key, str)}
        tasks = {*chain.from_iterable(data.tasks for data in sources)}
        for old, new in by_sentence.items():
            if old not in tasks or not isinstance(new, str):
                raise ValueError(f"relabel says {old!r}: {new!r}, expected one of the sentences {sorted(tasks)} and another one")
        return [piece for i in taken for piece in self._parts(i, *places[i], by_number.get(i), by_sentence)]

    def _parts(self, number: int, data: Dataset, index: int, said: Any, by_sentence: Mapping[str, Any]) -> Iterator["Piece"]:
        length = data.lengths[index]
        cuts = self.split.get(number, [])
        whole = isinstance(cuts, list | tuple) and all(map(fmt.is_count, cuts))
        parts = [*pairwise([0, *cuts, length])] if whole else []
        if not parts or any(stop - first < 2 for first, stop in parts):
            found = f"split cuts episode {number}, of {length} frames, at {cuts}"
            raise ValueError(f"{found}, expected a list of rising frames that leaves 2 or more to each part")
        sentences = said if isinstance(said, list | tuple) else [said] * len(parts)
        if len(sentences) != len(parts) or not all(isinstance(sentence, str) for sentence in sentences if said is not None):
            raise ValueError(
                f"relabel says {said!r} of episode {number}, expected a sentence, or one for each of its {len(parts)} parts"
            )
        for part, sentence in zip(parts, sentences, strict=True):
            yield Piece(data, index, slice(*part), sentence, by_sentence)


class Piece(NamedTuple):
    """Consecutive frames of an episode.

    Attributes:
        data: the dataset.
        index: the episode's position there.
        frames: which of its frames.
        sentence: its instruction; None for what `renamed` makes of its own.
        renamed: sentences by the old ones.
    """

    data: Dataset
    index: int
    frames: slice
    sentence: str | None
    renamed: Mapping[str, str]

    def of(self, episode: Episode) -> Episode:
        """It as an episode."""
        acted = slice(self.frames.start, self.frames.stop - 1)
        return replace(
            episode,
            images={camera: frames[self.frames] for camera, frames in episode.images.items()},
            **{name: getattr(episode, name)[self.frames] for name in ("state", "success", "progress")},
            **{name: getattr(episode, name)[acted] for name in ("action", "reward")},
            instruction=self.renamed.get(episode.instruction, episode.instruction) if self.sentence is None else self.sentence,
        )


def convert_datasets(
    roots: Sequence[str | Path], out: str | Path, *, edits: Edits | None = None, storage: Literal["image", "video"] | None = None
) -> tuple[Dataset, int]:
    """Write the episodes of datasets into a new one; an interrupted conversion goes on.

    Kept are all that an `Episode` holds, labels that nobody gave included, and `meta/spec.yaml`: units, kinds and order of channels
    are those of the first dataset. Further features, such as depth maps, are not kept, and steps last 1/fps.

    Args:
        roots: the datasets.
        out: the new dataset's folder.
        edits: what becomes of the episodes; nothing by default.
        storage: of pictures; by default as the first dataset has them. A video is encoded again, which loses a little each time.

    Returns:
        The new dataset, and how many of its episodes were written now.

    Raises:
        FileNotFoundError: if a dataset, or a part of it, is missing.
        ValueError: if the datasets differ, an edit does not fit them, `Dataset` refuses an episode that is taken, or `out` holds
            something else.
        OSError: if the disk is full or may not be written.
    """
    if not roots:
        raise ValueError("there is no dataset to convert; name one or several")
    out, edits, sources = Path(out), edits or Edits(), [Dataset(str(root)) for root in roots]
    first = sources[0]
    _check_apart(out, sources)
    _check_alike(sources)
    pieces = edits.pieces(sources)
    if not pieces:
        raise ValueError("no episode is left to write; drop fewer of them")
    labels = _labels(pieces)
    videos = any(feature["dtype"] == "video" for feature in first.features.values())
    made_of = [{"root": str(data.root), "episodes": data.num_episodes, "frames": data.num_frames} for data in sources]
    settings = {"storage": storage or ("video" if videos else "image"), "judged": labels}
    record = json.loads(json.dumps({"datasets": made_of, **asdict(edits), **settings}))
    _check_place(out, record)
    spec = replace(first.spec, cameras={camera: first.spec.cameras[camera] for camera in first.cameras})
    with DatasetWriter(
        out,
        fps=int(first.fps) if first.fps == int(first.fps) else first.fps,  # type: ignore[arg-type] - the writer says what it takes
        robot_type=spec.robot_type,
        state_names=first.state_names,
        action_names=first.action_names,
        cameras=first.cameras,
        **settings,
    ) as writer:
        if not (had := writer.num_episodes):
            fmt.write_json(out / RECORD, record)
            write_overlay(out, spec)
        episodes = track(
            _ordered(pieces[had:], first), total=len(pieces) - had, description=f"convert {out.name}", disable=had == len(pieces)
        )
        for flush in _flushes(episodes):
            writer.add(flush)
    return Dataset(out), len(pieces) - had


def _check_apart(out: Path, sources: Iterable[Dataset]) -> None:
    """ValueError if the new dataset would lie in one that it is made of, or around it."""
    new = out.resolve()
    for old in (place.resolve() for data in sources for place in (data.root, data.place)):
        if new == old or new in old.parents or old in new.parents:
            raise ValueError(f"{out} is not apart from {old}, which it is made of; write into another folder")


def _check_place(out: Path, record: Mapping[str, Any]) -> None:
    """ValueError if a folder holds anything but this conversion, or the beginning of it."""
    if (out / RECORD).is_file():
        there = fmt.read_json(out / RECORD)
        other = [key for key in {**there, **record} if there.get(key) != record.get(key)]
    elif (out / fmt.INFO).is_file():
        other = ["episodes"] if fmt.read_info(out)["total_episodes"] else []  # without them a kill came before the record
    else:
        other = [path.name for path in out.iterdir() if path.name != fmt.INFO.parts[0]] if out.exists() else []
    if other:
        raise ValueError(f"{out} holds something else than this conversion ({', '.join(sorted(other))}); choose another folder")


def _check_alike(sources: Sequence[Dataset]) -> None:
    """ValueError naming what differs, if datasets do not go together."""
    first = sources[0]
    for data in sources[1:]:
        for name, one, other in (("fps", data.fps, first.fps), ("cameras", data.cameras, first.cameras)):
            if one != other:
                raise ValueError(f"{data.root} has {name} {one}, {first.root} has {other}; convert datasets that are alike")
        _orders(data, first)


def _orders(data: Dataset, first: Dataset) -> dict[Feature, list[int]]:
    """Where a dataset has the channels of the first; ValueError if it has others."""
    pairs: dict[Feature, Any] = {"state": (first.spec.state, data.spec.state), "action": (first.spec.action, data.spec.action)}
    names = {"who": str(first.root), "where": str(data.root)}
    return {feature: [*match(*pair, what=feature, **names, exact=True)] for feature, pair in pairs.items()}


def _ordered(pieces: Sequence[Piece], first: Dataset) -> Iterator[Episode]:
    """The pieces as episodes, with channels in the order of the first dataset."""
    for data, of_data in groupby(pieces, key=lambda piece: piece.data):
        orders = _orders(data, first)
        for episode in _read(data, [*of_data]):
            yield replace(episode, state=episode.state[:, orders["state"]], action=episode.action[:, orders["action"]])


def _read(data: Dataset, pieces: Sequence[Piece]) -> Iterator[Episode]:
    """The pieces of a dataset as episodes. One recorded episode is decoded at a time, while the last one may still be written."""
    parts = [[*of_episode] for _, of_episode in groupby(pieces, key=lambda piece: piece.index)]
    for part, episode in zip(parts, data.episodes([part[0].index for part in parts]), strict=True):
        yield from (piece.of(episode) for piece in part)


def _flushes(episodes: Iterable[Episode]) -> Iterator[list[Episode]]:
    """Episodes in order, as many together as `FLUSH_BYTES` hold, but one at least."""
    flush: list[Episode] = []
    for episode in episodes:
        flush.append(episode)
        if sum(frames.nbytes for e in flush for frames in e.images.values()) >= FLUSH_BYTES:
            yield flush
            flush = []
    if flush:
        yield flush


def _labels(pieces: Sequence[Piece]) -> dict[str, bool]:
    """Which of `LABELS` somebody gave, and whether of every frame, as `DatasetWriter` takes it.

    Raises:
        ValueError: if it is not the same in all datasets, or `Dataset` refuses an episode.
    """
    by_data = groupby(pieces, key=lambda piece: piece.data)
    found = {data.root: _given([*_read(Dataset(data.root, cameras=[]), [*of_data])]) for data, of_data in by_data}
    (first, expected), *others = found.items()
    for root, labels in others:
        if labels != expected:
            raise ValueError(f"{root} has {_said(labels)}, {first} has {_said(expected)}; convert each into a dataset of its own")
    return expected


def _given(episodes: Sequence[Episode]) -> dict[str, bool]:
    first, rest = (torch.cat([e.success[part] for e in episodes]).isfinite() for part in (slice(1), slice(1, None)))
    progress, labels = torch.cat([e.progress for e in episodes]).isfinite(), {}
    if first.any() or rest.any():
        labels["next.success"] = bool(rest.all() and (first.all() or not first.any()))
        if first.any() or not rest.all():
            labels["success"] = labels["next.success"]
    if progress.any():
        labels["progress"] = bool(progress.all())
    return labels


def _said(labels: Mapping[str, bool]) -> str:
    return " and ".join(f"{key} of {'all' if whole else 'some'} frames" for key, whole in labels.items()) or "no labels"
