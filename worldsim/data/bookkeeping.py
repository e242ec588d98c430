"""What a dataset says of itself against what it holds: features, numbers of rows, splits, sentences, clocks and windows of videos.

Nothing here stops worldsim from reading, which trusts none of it; other readers do trust it, and where it is wrong the recording
often is, too. Read `statistics_check.py` next, which does the same for `stats.json`, and `suspicions.py` for the numbers.
"""

import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from worldsim.data import lerobot_format as fmt
from worldsim.data.columns import WRONG
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import AGAIN, fault, some
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.timing import nearest, timing
from worldsim.data.video import frame_times

# Columns that LeRobot's own tools add and no `info.json` lists.
UNLISTED = {"episode_index", "frame_index", "timestamp", "index", "task_index", "__index_level_0__"}
# What examples and forms say where a task should stand, in lower case and without a full stop.
PLACEHOLDERS = {"dataset task description", "task description", "your task description", "my task description", "describe the task"}
PLACEHOLDERS |= {
    "task",
    "test",
    "todo",
    "tbd",
    "none",
    "null",
    "n/a",
    "unknown",
    "default",
    "default task",
    "my task",
    "dummy task",
}
PLACEHOLDERS |= {"describe your task here", "enter task description", "insert task description here", "placeholder", "example task"}
OFF_GRID = 0.1  # of a step: more than what rounding of time stamps explains
LEFT_ALONE = "worldsim does not read it, other readers do: convert the dataset again"


def feature_columns(contents: Contents) -> Iterator[Fault]:
    """Columns without a feature, features without a column, and features of another shape or type than their column.

    State, action, cameras and labels have checks of their own; what is adopted from other features are those.
    """
    for path in contents.data_files:
        schema, name = fmt.open_parquet(path).schema_arrow, contents.name(path)
        if unknown := sorted({*schema.names} - contents.features.keys() - UNLISTED):
            found = f"{name} has columns that {fmt.INFO} does not list: {some(unknown)}"
            yield Fault("features", "warning", found, f"list them in features of {fmt.INFO}; nobody reads them until then")
        for key, feature in contents.features.items():
            if key in WRONG or feature["dtype"] in ("video", "image") or "columns" in feature:
                continue
            if key not in schema.names:
                if key not in fmt.number_features(contents.features):  # those are an error of the files
                    found = f"{name} lacks the column {key}, which {fmt.INFO} lists with dtype {feature['dtype']}"
                    yield Fault("features", "warning", found, f"take it out of features of {fmt.INFO}, or copy the file again")
            elif feature["dtype"] in fmt.NUMBERS and (other := _differs(contents, path, key)):
                found = f"{name} holds {other} in column {key}, {fmt.INFO} says {feature['dtype']} {feature['shape']}"
                yield Fault("features", "warning", found, f"correct dtype and shape in {fmt.INFO}, or convert the dataset again")


def undeclared_cameras(contents: Contents) -> Iterator[Fault]:
    """Pictures that are described as plain numbers, so that no reader shows them."""
    for key, feature in contents.features.items():
        if feature["dtype"] in fmt.NUMBERS and len(feature["shape"]) == 3 and 3 in (feature["shape"][0], feature["shape"][2]):
            found = f"{key} has the shape of pictures, {feature['shape']}, but dtype {feature['dtype']}: it is no camera"
            yield Fault("cameras", "warning", found, "convert the dataset with dtype image or video for that feature")


def unread_values(contents: Contents) -> Iterator[Fault]:
    """NaN and infinity in numbers that worldsim reads for statistics only."""
    for key in (key for key in fmt.number_features(contents.features) if key not in WRONG):
        floats = contents.features[key]["dtype"].startswith("float")
        if floats and not any(_differs(contents, path, key) for path in contents.data_files):
            broken = [episode for episode, values in contents.values(key) if not np.isfinite(values).all()]
            if broken:
                yield fault("values", "warning", broken, f"{key} is not finite everywhere in {{}}", f"leave it out, or {AGAIN}")


def broken_numbering(contents: Contents) -> Iterator[Fault]:
    """Frames that are missing between two others, rows whose `index` jumps, and ranges in `meta/episodes` that are others."""
    if "frame_index" in contents.features:
        gaps = [episode for episode, v in contents.values("frame_index") if len(v) > 1 and np.diff(v[:, 0]).max() > 1]
        if gaps:
            found = "frame_index leaves out frames within {}, so some steps may last longer than they say"
            yield fault("order", "warning", gaps, found, AGAIN)
    if "index" in contents.features:
        held = sorted(contents.values("index"), key=lambda pair: pair[0].index)
        jumps = [episode for episode, values in held if (np.diff(values[:, 0]) != 1).any()]
        neighbours = [(one, other) for one, other in pairwise(held) if other[0].index == one[0].index + 1]  # others were deleted
        jumps += [other[0] for one, other in neighbours if other[1][0, 0] != one[1][-1, 0] + 1]
        if jumps:
            found = "index does not count the rows one by one, in or before {}"
            yield fault("index", "warning", dict.fromkeys(jumps), found, LEFT_ALONE)
    if wrong := [*_wrong_ranges(contents)]:
        found = "dataset_from_index and dataset_to_index in meta/episodes are not the ranges of the rows of {}"
        yield fault("index", "warning", wrong, found, LEFT_ALONE)


def unknown_splits(contents: Contents) -> Iterator[Fault]:
    """Splits that are no range, lie beyond the episodes or overlap."""
    splits, total = contents.info.get("splits") or {}, contents.counted
    said = f"say FIRST:END in splits of {fmt.INFO}, of {total} episodes"
    spans: dict[str, tuple[int, int]] = {}
    for name, span in splits.items() if isinstance(splits, dict) else {"splits": splits}.items():
        match = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", span) if isinstance(span, str) else None
        if match is None:
            yield Fault("splits", "warning", f"split {name} is {span!r}, which is no range of episodes", said)
        elif int(match[1]) > int(match[2]) or int(match[2]) > max(total, max((e.index for e in contents.held), default=-1) + 1):
            yield Fault("splits", "warning", f"split {name} is {span}, but there are {total} episodes", said)
        else:
            spans[name] = int(match[1]), int(match[2])
    for (one, (_, end)), (other, (start, _)) in pairwise(sorted(spans.items(), key=lambda item: item[1])):
        if start < end:
            found = f"splits {one} and {other} share episodes {start}:{end}, so what is tested was trained on"
            yield Fault("splits", "warning", found, said)


def odd_sentences(contents: Contents) -> Iterator[Fault]:
    """Tasks without words, two of one sentence, and episodes whose metadata name another task than their rows."""
    sentences = [*contents.tasks.values()]
    if empty := [number for number, sentence in contents.tasks.items() if not sentence.strip()]:
        found = f"task {some(empty)} has an empty sentence"
        yield Fault("tasks", "warning", found, "write what is to be done: policies and reflectors read it")
    if twice := sorted({sentence for sentence in sentences if sentence.strip() and sentences.count(sentence) > 1}):
        numbers = [number for number, sentence in contents.tasks.items() if sentence == twice[0]]
        found = f"tasks {some(numbers)} have one sentence, {twice[0]!r}"
        yield Fault("tasks", "warning", found, "merge them, or say what tells them apart")
    alike: dict[str, list[str]] = {}
    for sentence in dict.fromkeys(sentences):
        alike.setdefault(" ".join(sentence.casefold().split()).rstrip(" .!"), []).append(sentence)
    for spellings in (spellings for said, spellings in alike.items() if said and len(spellings) > 1):
        found = f"one sentence is spelled in {len(spellings)} ways: {some([repr(spelling) for spelling in spellings])}"
        yield Fault("tasks", "warning", found, "say it in one way (worldsim convert relabel=...): they count as several tasks")
    if empty_words := [sentence for sentence in alike if sentence in PLACEHOLDERS]:
        found = f"the sentence of a task is that of an example, {alike[empty_words[0]][0]!r}"
        yield Fault("tasks", "warning", found, "write what is to be done (worldsim convert relabel=...): policies read it")
    said = {row["episode_index"]: row.get("tasks") for row in episode_rows(contents, ["tasks"])}
    other = []
    for episode in contents.held:
        held = {contents.tasks.get(number) for number in contents.task_numbers.get(episode.index, ())}
        names = said.get(episode.index)
        if names and len(held) == 1 and held != {*names}:  # several are the check of the tasks
            other.append(episode)
    if other:
        found = "meta/episodes names other tasks than the rows of {}, whose task_index is what counts"
        yield fault("tasks", "warning", other, found, "correct whichever is wrong, or convert the dataset again")


def wandering_clocks(contents: Contents) -> Iterator[Fault]:
    """Time stamps that begin late, or that run slower or faster than `fps`, each step by less than anybody would notice."""
    if "timestamp" not in contents.features:
        return
    fps = contents.info["fps"]
    stamps = {e: v[:, 0].astype(float) for e, v in contents.values("timestamp") if np.isfinite(v).all()}
    if late := [episode for episode, times in stamps.items() if abs(times[0]) > 0.5 / fps]:
        found = f"time stamps do not begin at 0 but at up to {max(abs(stamps[e][0]) for e in late):.3g} s in {{}}"
        yield fault("time", "warning", late, found, "subtract the first one of each episode: LeRobot looks for frames by them")
    drift = {e: float(times[-1] - times[0] - (len(times) - 1) / fps) for e, times in stamps.items() if timing(times, fps).even}
    if fast := [episode for episode, seconds in drift.items() if abs(seconds) > 0.5 / fps]:
        worst = max((drift[e] for e in fast), key=abs)
        found = f"the clock of the time stamps drifts against {fps} frames per second, by {1000 * worst:.0f} ms at the end of {{}}"
        yield fault("time", "warning", fast, found, f"correct fps in {fmt.INFO}; frames of videos are picked by it")


def video_clocks(contents: Contents) -> Iterator[Fault]:
    """Videos that run at nearly the right rate, windows off the frames, and windows of another length than their episode.

    Nothing is decoded. What lacks frames altogether, or is at another rate, is an error of the videos.
    """
    fps = contents.info["fps"]
    for key in (key for key, f in contents.features.items() if f["dtype"] == "video" and fmt.is_rgb(f)):
        drift: dict[EpisodeFiles, float] = {}
        beside: dict[EpisodeFiles, float] = {}
        for path in dict.fromkeys(episode.videos[key][0] for episode in contents.held):
            try:
                shown = frame_times(path, fps)
            except (ValueError, FileNotFoundError):  # the check of the videos says so
                continue
            for episode in (e for e in contents.of_file[path] if not contents.is_leftover(e)):
                wanted = episode.videos[key][1] + np.arange(episode.length) / fps
                chosen = nearest(shown, wanted, fps)
                if (chosen < 0).any():  # the same
                    continue
                off = shown[chosen] - wanted
                if (np.diff(chosen) != 1).any():
                    drift[episode] = float(np.abs(off).max())
                elif abs(off[0]) > OFF_GRID / fps:
                    beside[episode] = float(abs(off[0]))
        if drift:
            found = f"{key} shows frames twice or leaves some out, as its clock is up to {1000 * max(drift.values()):.0f} ms from"
            yield fault("videos", "warning", drift, f"{found} that of {{}}", f"encode the video again at {fps} frames per second")
        if beside:
            found = f"{key} begins up to {1000 * max(beside.values()):.0f} ms beside a frame of the video in {{}}"
            remedy = "correct from_timestamp in meta/episodes, or convert the dataset again: a frame earlier or later is as near"
            yield fault("videos", "warning", beside, found, remedy)
        if other := [*_other_windows(contents, key)]:
            found = f"from_timestamp and to_timestamp of {key} are not as far apart as the frames of {{}} last"
            yield fault(
                "videos", "warning", other, found, "convert the dataset again: a conversion cut videos elsewhere than tables"
            )


def overlapping_windows(contents: Contents) -> Iterator[Fault]:
    """Episodes that begin in a video before the one before them is over, so that pictures belong to both."""
    fps = contents.info["fps"]
    for key in (key for key, f in contents.features.items() if f["dtype"] == "video" and fmt.is_rgb(f)):
        ordered = sorted(contents.held, key=lambda episode: (episode.videos[key][0], episode.videos[key][1]))
        pairs = [(one, other) for one, other in pairwise(ordered) if one.videos[key][0] == other.videos[key][0]]
        early = {other: one.videos[key][1] + one.length / fps - other.videos[key][1] for one, other in pairs}
        if shared := [episode for episode, seconds in early.items() if seconds > 0.5 / fps]:
            worst = round(max(early[episode] for episode in shared) * fps)
            found = f"{key} begins up to {worst} frames before the episode before is over in {{}}, so pictures may be of other rows"
            remedy = (
                "correct from_timestamp in meta/episodes (the frames before it in that video, divided by fps), or convert again"
            )
            yield fault("videos", "warning", shared, found, remedy)


def episode_rows(contents: Contents, columns: list[str]) -> Iterator[dict[str, Any]]:
    """Rows of `meta/episodes` with `episode_index` and those of `columns` that are there; none in a version without these files."""
    for path in sorted({episode.metadata for episode in contents.held if episode.metadata.suffix == ".parquet"}):
        there = [column for column in columns if column in fmt.open_parquet(path).schema_arrow.names]
        yield from fmt.read_parquet(path, ["episode_index", *there]).to_pylist()


def _wrong_ranges(contents: Contents) -> Iterator[EpisodeFiles]:
    names = ("dataset_from_index", "dataset_to_index")
    ranges = {row["episode_index"]: [row.get(name) for name in names] for row in episode_rows(contents, [*names])}
    first = {e.index: int(v[0, 0]) for e, v in contents.values("index")} if "index" in contents.features else {}
    for episode in contents.held:
        start, end = ranges.get(episode.index, (None, None))
        if start is not None and end is not None and (start, end - start) != (first.get(episode.index, start), episode.length):
            yield episode


def _other_windows(contents: Contents, key: str) -> Iterator[EpisodeFiles]:
    names, fps = [f"videos/{key}/from_timestamp", f"videos/{key}/to_timestamp"], contents.info["fps"]
    windows = {row["episode_index"]: [row.get(name) for name in names] for row in episode_rows(contents, names)}
    for episode in contents.held:
        first, last = windows.get(episode.index, [None, None])
        if first is not None and last is not None and abs(last - first - episode.length / fps) > 1.5 / fps:
            yield episode


def _differs(contents: Contents, path: Path, key: str) -> str:
    """What column `key` holds, if that is not what its feature says; "" too if there is no such column."""
    if key not in fmt.open_parquet(path).schema_arrow.names:
        return ""
    field, feature = fmt.open_parquet(path).schema_arrow.field(key), contents.features[key]
    kind = field.type
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    whole = pa.types.is_integer(kind) or pa.types.is_boolean(kind)
    if pa.types.is_null(kind):  # lists of nothing
        return ""
    if not (whole or pa.types.is_floating(kind)) or (not whole and not feature["dtype"].startswith("float")):
        return str(field.type)
    if len(feature["shape"]) != 1 or kind == field.type:
        return ""
    lengths = pc.call_function("list_value_length", [fmt.read_parquet(path, [key])[key]])
    other = {*pc.call_function("unique", [lengths]).to_pylist()} - {feature["shape"][0], None}
    return f"{min(other)} numbers in a row" if other else ""
