"""What a recording is about to write, so that what a killed one left behind can be told from everything else.

Nothing in a dataset is moved, and nothing ever deleted, because it merely looks left over: an `info.json` that counts too few
episodes makes hours of good recordings look like that. Only files that this journal names, and that hold no committed episode, are
set aside in `ROOT/.orphans`; and only one process at a time writes into a dataset, so that the journal is its own.
Read `counters.py` next: it says what else may disagree.
"""

import fcntl
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from worldsim.data import lerobot_format as fmt

JOURNAL, LOCK, ORPHANS = Path("meta/journal.json"), Path("meta/.lock"), Path(".orphans")
NEW_FILES = ("data/*/*.parquet", "meta/episodes/*/*.parquet", "videos/*/*/*.mp4")  # what a flush adds, as patterns
REPLACED = (fmt.TASKS, fmt.STATS, fmt.INFO)  # what a flush replaces: of these only temporary files are ever left over


@contextmanager
def alone(root: Path) -> Iterator[None]:
    """Nobody else records into the dataset at `root` or mends it meanwhile. Readers need not ask; a killed process holds nothing.

    Raises:
        ValueError: if somebody does, be it in this process.
        OSError: if nothing can be written there, or nothing be locked.
    """
    path = root / LOCK
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(f"another process is recording into {root}; wait for it or choose another folder") from error
        except OSError as error:  # a network's file system may know no locks
            raise OSError(
                error.errno, f"{path} cannot be locked ({error.strerror}); record into a folder on another disk"
            ) from error
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open, too


def begin(root: Path, *, total_episodes: int, files: Sequence[Path]) -> None:
    """Name the files of the flush that comes next, before the first of them is written.

    Args:
        root: the dataset's folder.
        total_episodes: what `info.json` counts until the flush is committed.
        files: the files that it adds, relative to `root`.
    """
    names = [path.as_posix() for path in (*files, *REPLACED)]
    fmt.write_json(root / JOURNAL, {"total_episodes": total_episodes, "files": names})


def end(root: Path) -> None:
    """Forget the flush, which is committed or whose leftovers are set aside."""
    (root / JOURNAL).unlink(missing_ok=True)


def leftovers(root: Path, *, total_episodes: int, committed: Mapping[Path, int]) -> list[Path]:
    """Files, relative to `root`, that a killed flush left behind; none while `info.json` counts its episodes.

    Args:
        root: the dataset's folder.
        total_episodes: what `info.json` counts.
        committed: the files that hold those episodes, and the number of one in each.

    Raises:
        ValueError: if the journal is damaged, names files that no flush writes or that hold a committed episode, or is of a time
            when `info.json` counted more.
    """
    torn = JOURNAL.with_name(JOURNAL.name + ".tmp")  # the journal's own: nothing else was begun
    found = [torn] if (root / torn).is_file() else []
    if not (root / JOURNAL).is_file():
        return found
    before, names = _read(root)
    if total_episodes < before:
        mend = f"worldsim doctor data={root} mend=true counts what the files hold"
        fewer = f"if they hold fewer, copy the dataset again, or remove {JOURNAL} to go on without the others"
        raise ValueError(f"{root}: {fmt.INFO} counts {total_episodes} episodes, {JOURNAL} {before}; {mend}, and {fewer}")
    if total_episodes > before:  # killed after the commit
        return found
    whole = [Path(name) for name in names if Path(name) not in REPLACED]
    if held := [path for path in whole if root / path in committed]:
        raise ValueError(
            f"{root / JOURNAL} names {held[0]} as not committed, but it holds the committed episode {committed[root / held[0]]}; "
            f"remove that journal, and see what worldsim doctor data={root} says then"
        )
    candidates = [*whole, *(Path(name).with_name(f"{name.name}.tmp") for name in names)]
    return found + [path for path in candidates if (root / path).is_file()]


def set_aside(root: Path, files: Sequence[Path]) -> None:
    """Move files to the same place under `ROOT/.orphans`, beside what already lies there, and forget the flush."""
    for path in files:
        target, number = root / ORPHANS / path, 0
        target.parent.mkdir(parents=True, exist_ok=True)
        while target.exists():
            number += 1
            target = (root / ORPHANS / path).with_name(f"{path.name}.{number}")
        (root / path).rename(target)
    end(root)


def _read(root: Path) -> tuple[int, list[PurePosixPath]]:
    """What the journal says: the episodes that were committed, and the files of the flush. ValueError if it is damaged."""
    path = root / JOURNAL
    remedy = f"remove that journal, and see what worldsim doctor data={root} says then"
    try:
        content: Any = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); {remedy}") from error
    said: Any = content if isinstance(content, dict) else {}
    total, names = said.get("total_episodes"), said.get("files")
    if not fmt.is_count(total) or not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        expected = "expected a whole number total_episodes and a list of names files"
        raise ValueError(f"{path} is no journal of a recording, {expected}, got {str(content)[:100]}; {remedy}")
    paths = [PurePosixPath(name) for name in names]
    if strange := [path for path in paths if Path(path) not in REPLACED and not any(_matches(path, p) for p in NEW_FILES)]:
        raise ValueError(f"{path} names {strange[0]}, which no recording writes; {remedy}")
    return total, paths


def _matches(name: PurePosixPath, pattern: str) -> bool:
    """Whether a relative path has the pattern's folders; ".." is none."""
    return len(name.parts) == pattern.count("/") + 1 and ".." not in name.parts and name.match(pattern)
