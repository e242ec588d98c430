"""What `info.json` counts against what the files hold, and how to mend the one without touching the other.

A counter that is too low makes good recordings invisible, one that is too high makes readers stumble, and a writer that goes on
from either would write over what is there. Read `faults.py` next: it looks at the values too.
"""

import shlex
from collections.abc import Iterator
from pathlib import Path

from worldsim.data import journal
from worldsim.data import lerobot_format as fmt
from worldsim.data.contents import Contents, Fault, counter_faults
from worldsim.data.lerobot_layout import EpisodeFiles, tasks_file
from worldsim.data.lerobot_reader import Dataset
from worldsim.data.statistics_check import mended_statistics
from worldsim.data.stats import NAMES, Stats

NAMED = 3  # of many alike, so many are named


def count_faults(contents: Contents) -> Iterator[Fault]:
    """Where files and `info.json` disagree.

    Raises:
        FileNotFoundError: if a file is missing without which nothing can be said.
        ValueError: if one is damaged.
    """
    root = contents.root
    mend = f"worldsim doctor data={root} mend=true"
    counted = contents.held[: contents.counted]
    yield from counter_faults(contents)
    yield from _task_faults(contents, counted, mend)
    if broken := {episode.index: why for episode in contents.held if (why := contents.what_lacks(episode))}:
        some = "; ".join(f"episode {index}: {why}" for index, why in [*broken.items()][:NAMED])
        again = f"copy those files again{', if they are not among those that are counted nowhere' if contents.strays else ''}"
        yield Fault("files", "error", f"{len(broken)} episodes are not whole: {some}{_more(broken)}", again)
    numbers = {episode.index for episode in contents.episodes}
    for path, rows in contents.frames.items():
        if unknown := sorted(rows.keys() - numbers):
            found = f"{contents.name(path)} holds rows of episode {_some(unknown)}, of which meta/episodes knows nothing"
            yield Fault("files", "error", found, "copy meta/episodes again")
    if contents.strays:
        found = f"{len(contents.strays)} files are counted nowhere and no journal names them: {_some(contents.strays)}"
        yield Fault("files", "error", found, _misplaced(contents, counted) or _as_leftovers(contents))
    if contents.leftovers:
        whole = [e for e in contents.episodes if contents.is_leftover(e) and not contents.what_lacks(e)]
        found = f"a killed recording left {len(contents.leftovers)} files, {len(whole)} whole episodes: {_some(contents.leftovers)}"
        count = f"{mend} counts those episodes; " if whole else ""
        yield Fault("leftovers", "warning", found, f"{count}the next recording into {root} moves them to {root / journal.ORPHANS}")


def check_counters(root: Path) -> None:
    """ValueError in one line if a dataset cannot be continued, because its files and its `info.json` disagree."""
    for fault in count_faults(Contents(root)):
        if fault.severity == "error":
            raise ValueError(f"{root}: {fault.found}; worldsim doctor data={root} says how to mend it")


def mend_counters(root: Path) -> str:
    """Make `info.json` count the whole episodes that the files hold, and `stats.json` not contradict them; says what was changed.

    What is replaced stays beside it as `<name>.bak-<n>`. Data, videos and `meta/episodes` are not touched, and nothing is if the
    dataset could not be read afterwards.

    Raises:
        FileNotFoundError: if there is no dataset, or a file is missing without which nothing can be said.
        ValueError: if a file is damaged, if an episode is not whole that no counter can leave out, or if somebody is recording.
    """
    if (contents := Contents(root)).root != root:
        raise ValueError(f"{root} adopts another dataset; worldsim doctor data={contents.root} mend=true mends that one")
    with journal.alone(root):
        contents = Contents(root)
        lacking = {episode.index: contents.what_lacks(episode) or _unknown_task(contents, episode) for episode in contents.episodes}
        if contents.damages:
            raise contents.damages[0]
        total = next((i for i, why in enumerate(lacking.values()) if why), len(lacking))
        frames = sum(episode.length for episode in contents.episodes[:total])
        counts = {"total_episodes": total, "total_frames": frames, "total_tasks": len(contents.tasks)}
        old = contents.info
        if all(old.get(key) == value for key, value in counts.items()):
            if (stats := mended_statistics(contents)) is None:
                return f"{root}: {fmt.INFO} counts what the files hold, {total} episodes; nothing to mend"
            return f"{root}: {_replace_statistics(root, stats)}"
        whole = f"0:{old['total_episodes']}"
        splits = {name: f"0:{total}" if span == whole else span for name, span in (old.get("splits") or {}).items()}
        mended = {**old, **counts, "splits": splits}
        if len(Contents(root, info=mended).held) > total:
            index, why = [*lacking.items()][total]
            left_out = f"{fmt.INFO} cannot leave it out; copy its files again, or delete it with LeRobot (lerobot-edit-dataset)"
            raise ValueError(f"{root}: episode {index} is not whole ({why}), and {left_out}")
        stats = _new_statistics(Dataset(root, info=mended)) or mended_statistics(Contents(root, info=mended))
        said = f"; {_replace_statistics(root, stats)}" if stats is not None else ""
        kept = _keep(root / fmt.INFO)
        fmt.write_json(root / fmt.INFO, mended)  # last: until then the dataset is what it was
        changed = ", ".join(f"{key} {old.get(key)} -> {value}" for key, value in counts.items() if old.get(key) != value)
        return f"{root}: {changed}; the old {fmt.INFO} is {kept.name}{said}"


def _replace_statistics(root: Path, stats: dict[str, Stats]) -> str:
    """Write `stats.json`, keep the old one, and say so."""
    kept = f"; the old one is {_keep(root / fmt.STATS).name}" if (root / fmt.STATS).is_file() else ""
    fmt.write_json(root / fmt.STATS, stats)
    return f"{fmt.STATS} was computed again{kept}"


def _new_statistics(data: Dataset) -> dict[str, Stats] | None:
    """What `stats.json` should say; None if it does, or if the episodes do not carry what that takes."""
    columns = {f"stats/{fmt.camera_key(camera)}/{name}" for camera in data.cameras for name in NAMES}
    files = [path for path in data.files() if path.is_relative_to(data.root / "meta") and path.suffix == ".parquet"]
    if data.stored_stats() is None and files and all(columns <= {*fmt.open_parquet(path).schema_arrow.names} for path in files):
        return data.stats
    return None


def _keep(path: Path) -> Path:
    """A copy of a file beside it, under the first free name."""
    number = 1
    while (copy := path.with_name(f"{path.name}.bak-{number}")).exists():
        number += 1
    copy.write_bytes(path.read_bytes())
    return copy


def _task_faults(contents: Contents, counted: list[EpisodeFiles], mend: str) -> Iterator[Fault]:
    total, tasks, file = contents.info["total_tasks"], contents.tasks, tasks_file(contents.info)
    if total > len(tasks):
        found = f"{fmt.INFO} counts {total} tasks, {file} holds {len(tasks)}"
        yield Fault("counters", "error", found, f"copy {file} again if some are missing; {mend} counts what is there")
    known = [*tasks][:total]
    used = set[int]().union(*(contents.task_numbers.get(episode.index, set()) for episode in counted))
    if uncounted := used & (tasks.keys() - set(known)):
        found = f"{fmt.INFO} counts {total} tasks, but episodes have task {_some(sorted(uncounted))} of {file}, too"
        yield Fault("counters", "error", found, f"{mend} counts it")
    if nameless := used - tasks.keys():
        found = f"episodes have task {_some(sorted(nameless))}, which {file} does not name"
        yield Fault("tasks", "error", found, f"add its sentence to {file}, or copy that file again")


def _unknown_task(contents: Contents, episode: EpisodeFiles) -> str:
    nameless = contents.task_numbers.get(episode.index, set()) - contents.tasks.keys()
    return f"{tasks_file(contents.info)} does not name its task {min(nameless)}" if nameless else ""


def _misplaced(contents: Contents, counted: list[EpisodeFiles]) -> str:
    """What to do about strays while files of counted episodes are missing, as these are likely to be them; "" if none is."""
    lost = next((path for episode in counted for path in episode.files if not path.is_file()), None)
    if lost is None:
        return ""
    keep = f"keep them: {contents.name(lost)} is missing, and they may be what is looked for there"
    for key in ("data_path", "video_path"):
        if "\\" in (contents.info.get(key) or ""):
            return f"{keep}; {key} in {fmt.INFO} has backslashes, write it with / and look again"
    if fmt.major(contents.info) == 2 and lost.name in {path.name for path in contents.strays}:
        size = contents.info.get("chunks_size", 1000)
        return f"{keep}; {fmt.INFO} says chunks_size {size}, correct it to the number of episodes in data/chunk-000 and look again"
    return f"{keep}; correct the paths in {fmt.INFO}, or copy the missing files and meta/ again"


def _as_leftovers(contents: Contents) -> str:
    """What to do about strays that no episode lacks."""
    source, target = (contents.root / path for path in (contents.strays[0], journal.ORPHANS / contents.strays[0]))
    source, target = shlex.quote(str(source)), shlex.quote(str(target.parent))
    return f"copy meta/episodes again; if they are leftovers, move each away: mkdir -p {target} && mv -n {source} {target}/"


def _some(things: list) -> str:
    return ", ".join(str(thing) for thing in things[:NAMED]) + _more(things)


def _more(things: list | dict) -> str:
    return f" and {len(things) - NAMED} more" if len(things) > NAMED else ""
