"""What a recording is about to write, so that what a killed one left behind can be told from everything else.

Nothing in a dataset is moved, and nothing ever deleted, because it merely looks left over: an `info.json` that counts too few
episodes makes hours of good recordings look like that. Only files that this journal names, and that no committed flush holds, are
set aside in `ROOT/.orphans`. Read `counters.py` next: it says what else may disagree.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from worldsim.data import lerobot_format as fmt

JOURNAL, ORPHANS = Path("meta/journal.json"), Path(".orphans")
NEW_FILES = ("data/*/*.parquet", "meta/episodes/*/*.parquet", "videos/*/*/*.mp4")  # what a flush adds, as patterns
REPLACED = (fmt.TASKS, fmt.STATS, fmt.INFO)  # what a flush replaces: of these only temporary files are ever left over


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


def leftovers(root: Path) -> list[Path]:
    """Files, relative to `root`, that a killed flush left behind; none while `info.json` counts its episodes.

    Raises:
        ValueError: if the journal is damaged, names files that no flush writes, or is of a time when `info.json` counted more.
    """
    torn = JOURNAL.with_name(JOURNAL.name + ".tmp")  # the journal's own: nothing else was begun
    found = [torn] if (root / torn).is_file() else []
    if not (root / JOURNAL).is_file():
        return found
    journal, counted = fmt.read_json(root / JOURNAL), fmt.read_json(root / fmt.INFO)["total_episodes"]
    if not {"total_episodes", "files"} <= journal.keys():
        raise ValueError(f"{root / JOURNAL} is no journal of a recording; remove it")
    names = [PurePosixPath(name) for name in journal["files"]]
    strange = [name for name in names if Path(name) not in REPLACED and not any(_matches(name, p) for p in NEW_FILES)]
    if strange:
        raise ValueError(f"{root / JOURNAL} names {strange[0]}, which no recording writes; remove that journal")
    if counted < journal["total_episodes"]:
        raise ValueError(
            f"{root}: {fmt.INFO} counts {counted} episodes, {JOURNAL} {journal['total_episodes']}; worldsim doctor data={root} "
            "mend=true counts what the files hold"
        )
    if counted > journal["total_episodes"]:  # killed after the commit
        return found
    whole = [Path(name) for name in names if Path(name) not in REPLACED]
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


def _matches(name: PurePosixPath, pattern: str) -> bool:
    """Whether a relative path has the pattern's folders; ".." is none."""
    return len(name.parts) == pattern.count("/") + 1 and ".." not in name.parts and name.match(pattern)
