"""`worldsim doctor data=ROOT`: what is wrong with a dataset, in numbers, and what to do about it.

Reading stops at the first fault that would teach something wrong; this looks at everything, counted or not, and lists all of it. A
check is a function from what the files hold to faults: write one, and add it to `CHECKS`. Here are those of what worldsim reads;
`stored_pictures.py` has that of encoded pictures, `bookkeeping.py` and `statistics_check.py` have those of what a dataset says of
itself, `suspicions.py`, `row_suspicions.py`, `session_suspicions.py`, `picture_suspicions.py` and `picture_sessions.py` what can be
read and is hardly meant. `tests/museum/` has a dataset for each. Read `worldsim/report/doctor.py` next.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import av
import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worldsim.data import (
    bookkeeping,
    picture_suspicions,
    row_suspicions,
    session_suspicions,
    statistics_check,
    stored_pictures,
    suspicions,
)
from worldsim.data import lerobot_format as fmt
from worldsim.data.columns import WRONG, wrong_rows
from worldsim.data.contents import Contents, Fault
from worldsim.data.counters import count_faults, mend_counters
from worldsim.data.dataset_spec import OVERLAY, read_spec
from worldsim.data.episode_faults import AGAIN, NAMED, fault, fault_of
from worldsim.data.lerobot_layout import EpisodeFiles
from worldsim.data.timing import in_order, nearest, timing
from worldsim.data.video import frame_times, rotation


def dataset_faults(root: Path) -> list[Fault]:
    """Everything that is wrong with the dataset at `root`, errors first.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if its `info.json` is so wrong that nothing else can be read.
    """
    contents, faults = Contents(root), []
    for check in CHECKS:
        try:
            faults += check(contents)
        except (ValueError, FileNotFoundError) as error:  # a file that is damaged or missing, in words that name it
            faults.append(fault_of("files", error))
    faults += [fault_of("files", error) for error in contents.damages]
    first = {(fault.found, fault.remedy): fault for fault in reversed(faults)}  # several checks stumble over the same file
    return sorted(reversed(first.values()), key=lambda fault: fault.severity)


def print_faults(root: Path, *, mend: bool = False, out: Path | None = None, console: Console | None = None) -> list[Fault]:
    """Print `dataset_faults` as a table, after mending what counters can mend if that is wanted.

    Args:
        root: the dataset's folder.
        mend: whether to make `meta/info.json` and `meta/stats.json` say what the data are.
        out: a new file for the same as JSON, as `findings` gives it.
        console: where to print; the terminal by default.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if there is an error among the faults, after the table; if `mend` is asked for what it cannot do; or if `out`
            is there already.
    """
    console = console or Console()
    if out is not None and out.exists():
        raise ValueError(f"out={out} is there already; name another file, or remove that one")
    if mend:
        console.print(escape(mend_counters(root)), soft_wrap=True)
    try:
        faults, info = dataset_faults(root), Contents(root).info
    except (ValueError, FileNotFoundError) as error:
        if out is not None:
            fmt.write_json(out, findings(root, [fault_of("files", error)]))
        raise
    if out is not None:
        fmt.write_json(out, findings(root, faults))
    title = f"{root}: {info['total_episodes']} episodes, {info['total_frames']} frames at {info['fps']} frames per second"
    console.print(escape(title), style="italic", soft_wrap=True)
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for said in faults:
        colour = {"error": "red", "warning": "yellow"}[said.severity]
        remedy = f"\n[dim]-> {escape(said.remedy)}[/]"
        table.add_row(escape(said.kind), f"[{colour}]{said.severity}[/]", escape(said.found) + remedy)
    if not faults:
        table.add_row("everything", "[green]ok[/]", "nothing is wrong")
    console.print(table)
    if errors := [fault for fault in faults if fault.severity == "error"]:
        kinds = ", ".join(dict.fromkeys(fault.kind for fault in errors))
        raise ValueError(f"{root} has {len(errors)} errors ({kinds}); see the table above for what to do")
    return faults


def findings(root: Path, faults: list[Fault]) -> dict[str, Any]:
    """Faults for programs: counts and a list, each with kind, severity, found, remedy and, if it names some, all its episodes."""
    counts = {f"{severity}s": sum(fault.severity == severity for fault in faults) for severity in ("error", "warning")}
    return {"dataset": str(root), **counts, "findings": [asdict(fault) for fault in faults]}


def camera_faults(contents: Contents) -> Iterator[Fault]:
    """Shapes that are not pictures."""
    cameras = {key: feature for key, feature in contents.features.items() if fmt.is_rgb(feature)}
    for key, feature in cameras.items():
        try:
            fmt.resolution(key, feature)
        except ValueError as error:
            yield fault_of("cameras", error)
    if not cameras:
        yield Fault("cameras", "warning", "there is no camera", "record with one: every learner looks at pictures")


def short_episodes(contents: Contents) -> Iterator[Fault]:
    """Episodes of one frame."""
    if short := [episode for episode in contents.episodes if episode.length < 2]:
        found = "{} have a single frame and thus no action; they are left out"
        yield fault("episodes", "warning", short, found, f"nothing, or {AGAIN}")


def missing_columns(contents: Contents) -> Iterator[Fault]:
    """Columns that data files lack of what `info.json` says and worldsim reads."""
    images = [key for key, feature in contents.features.items() if feature["dtype"] == "image" and fmt.is_rgb(feature)]
    source = [key for key in ("source",) if key in contents.features]
    numbers = [column for key in fmt.number_features(contents.features) for column in fmt.columns(contents.features, key)]
    wanted = [*dict.fromkeys([*numbers, *source, *images, "episode_index", "task_index"])]
    for path in contents.data_files:
        try:
            fmt.open_parquet(path, wanted)
        except ValueError as error:
            yield fault_of("files", error)


def wrong_values(contents: Contents) -> Iterator[Fault]:
    """NaN and infinity, and labels that are none, by column."""
    for key in (key for key in WRONG if key in contents.features):
        rows = {episode: int(wrong_rows(key, values).sum()) for episode, values in contents.values(key)}
        if broken := [episode for episode, number in rows.items() if number]:
            where = ", ".join(f"{rows[e]} in episode {e.index} ({contents.name(e.data)})" for e in broken[:NAMED])
            more = f" and {len(broken) - NAMED} more episodes" if len(broken) > NAMED else ""
            total = sum(rows.values())
            yield fault("values", "error", broken, f"{total} rows of {key} {WRONG[key]}: {where}{more}", AGAIN)


def disorder(contents: Contents) -> Iterator[Fault]:
    """Episodes whose rows are not in the order of their frames."""
    if "frame_index" not in contents.features:
        return
    if mixed := [episode for episode, values in contents.values("frame_index") if not in_order(values[:, 0])]:
        yield fault("order", "error", mixed, "frame_index does not rise in the rows of {}", f"sort the rows, or {AGAIN}")


def actions_beyond(contents: Contents) -> Iterator[Fault]:
    """Actions beyond their limits, or a file of limits that says nothing."""
    actions = [values for _, values in contents.values("action")]
    try:
        found = read_spec(contents.given, contents.info).clipped(np.concatenate(actions)) if actions else ""
    except ValueError as error:
        yield fault_of("actions", error)
        return
    if found:
        yield Fault("actions", "warning", found, f"correct the limits in {OVERLAY}, unless that is meant")


def uneven_time(contents: Contents) -> Iterator[Fault]:
    """Time stamps that are not 1/fps apart."""
    if "timestamp" not in contents.features:
        return
    fps = contents.info["fps"]
    finite = {e: v[:, 0] for e, v in contents.values("timestamp") if np.isfinite(v).all()}
    times = {episode: timing(stamps, fps) for episode, stamps in finite.items()}
    for broken in (True, False):
        if uneven := [e for e, time in times.items() if not time.even and time.broken == broken]:
            worst = 1000 * max(times[e].worst_s for e in uneven)
            where = f"by up to {worst:.1f} ms at {fps} frames per second: {{}}"
            if broken:
                yield fault("time", "error", uneven, f"time stamps are half a frame or more from their place, {where}", AGAIN)
            else:
                remedy = "record with steps of equal length; every step is taken to last 1/fps"
                yield fault("time", "warning", uneven, f"time stamps are uneven, {where}", remedy)


def video_faults(contents: Contents) -> Iterator[Fault]:
    """Videos that are missing, damaged, at another rate or of another size, or that lack frames. Nothing is decoded."""
    fps = contents.info["fps"]
    for key in (key for key, f in contents.features.items() if f["dtype"] == "video" and fmt.is_rgb(f)):
        lost: dict[EpisodeFiles, int] = {}
        for path in dict.fromkeys(episode.videos[key][0] for episode in contents.episodes):
            try:
                shown = frame_times(path, fps)
                yield from _size_fault(contents, key, path)
            except (ValueError, FileNotFoundError) as error:
                yield fault_of("videos", error)
                continue
            for episode in contents.of_file[path]:
                wanted = episode.videos[key][1] + np.arange(episode.length) / fps
                if gaps := int((nearest(shown, wanted, fps) < 0).sum()):
                    lost[episode] = gaps
        if lost:
            found = f"{key} shows no frame at {sum(lost.values())} moments, nor within half a step of them: {{}}"
            yield fault("videos", "error", lost, found, "copy those videos again, or encode them again")


def turned_videos(contents: Contents) -> Iterator[Fault]:
    """Videos that ask to be shown turned, as phones write them: players obey, readers of pixels do not."""
    for key in (key for key, f in contents.features.items() if f["dtype"] == "video" and fmt.is_rgb(f)):
        turned: dict[EpisodeFiles, int] = {}
        for path in dict.fromkeys(episode.videos[key][0] for episode in contents.episodes):
            try:
                angle = rotation(path)
            except (ValueError, FileNotFoundError) as error:
                yield fault_of("videos", error)
                continue
            if angle:
                turned |= dict.fromkeys(contents.of_file[path], angle)
        if turned:
            angles = ", ".join(str(angle) for angle in sorted({*turned.values()}))
            found = f"{key} asks to be shown turned by {angles} degrees in {{}}, and is read as it is stored"
            yield fault("videos", "warning", turned, found, "encode those videos again with the pictures turned, as ffmpeg does")


def task_changes(contents: Contents) -> Iterator[Fault]:
    """Episodes under several tasks, which is an error where `meta/` gives them one."""
    changing = [episode for episode in contents.episodes if len(contents.task_numbers.get(episode.index, ())) > 1]
    if other := [episode for episode in changing if episode.tasks == 1]:
        found = f"{contents.name(other[0].metadata)} gives {{}} one task, their rows have several"
        yield fault("tasks", "error", other, found, "correct whichever is wrong, or convert the dataset again")
    if several := [episode for episode in changing if episode.tasks != 1]:
        found = (
            "{} change their task; each is read as one episode per task, as an episode has one instruction for all of its frames"
        )
        yield fault("tasks", "warning", several, found, "nothing, unless task_index is wrong there")


def unjudged_frames(contents: Contents) -> Iterator[Fault]:
    """Frames of which nobody said success or progress."""
    for name, keys in {"success": ("success", "next.success"), "progress": ("progress",)}.items():
        key = next((key for key in keys if key in contents.features), None)
        judged = [] if key is None else [np.isfinite(values) for _, values in contents.values(key)]
        known = sum(int(some.sum()) for some in judged)
        frames = sum(map(len, judged)) if key else sum(episode.length for episode in contents.episodes)
        if known < frames:
            found = f"{name} is known of {known} of {frames} frames"
            yield Fault("labels", "warning", found, "a reflector learns from those only; policies and world models need none")


def no_episodes(contents: Contents) -> Iterator[Fault]:
    """A dataset that counts none."""
    if not contents.info["total_episodes"]:
        yield Fault("episodes", "warning", "there is none, as after a recording that was refused or killed", "record some")


CHECKS: list[Callable[[Contents], Iterator[Fault]]] = [
    no_episodes,
    count_faults,
    camera_faults,
    short_episodes,
    missing_columns,
    wrong_values,
    disorder,
    stored_pictures.picture_faults,
    actions_beyond,
    uneven_time,
    video_faults,
    turned_videos,
    task_changes,
    unjudged_frames,
    bookkeeping.feature_columns,
    bookkeeping.undeclared_cameras,
    bookkeeping.unread_values,
    bookkeeping.broken_numbering,
    bookkeeping.unknown_splits,
    bookkeeping.odd_sentences,
    bookkeeping.wandering_clocks,
    bookkeeping.video_clocks,
    bookkeeping.overlapping_windows,
    statistics_check.wrong_statistics,
    statistics_check.uncounted_statistics,
    statistics_check.bytes_for_colours,
    statistics_check.wrong_episode_statistics,
    suspicions.dead_channels,
    suspicions.saturated_actions,
    suspicions.duplicated_episodes,
    suspicions.impossible_units,
    suspicions.contradictory_labels,
    suspicions.careless_labels,
    row_suspicions.odd_rows,
    session_suspicions.odd_sessions,
    picture_suspicions.odd_pictures,
]


def _size_fault(contents: Contents, key: str, path: Path) -> Iterator[Fault]:
    with av.open(str(path)) as container:
        size = container.streams.video[0].height, container.streams.video[0].width
    try:
        expected = fmt.resolution(key, contents.features[key])
    except ValueError:  # the cameras' own check says so
        return
    if size != expected:
        sizes = " x ".join(map(str, size)), " x ".join(map(str, expected))
        found = f"{contents.name(path)} has {sizes[0]} pixels (height x width), {fmt.INFO} says {sizes[1]} of {key}"
        yield Fault("videos", "warning", found, f"correct the shape in {fmt.INFO}, or encode the video again")
