"""Decoded frames on disk: of each dataset, camera and size one file, decoded once and mapped into the memory of every process.

A cache is a folder with `frames.rgb`, the bytes of whole episodes one after the other, and `index.json`, which names what each was
decoded from. The index commits: it is replaced after the frames lie on the disk, and frames beyond what it counts are of a build
that goes on or was killed. Episodes are only ever appended; where those in front have changed, another file takes the place of the
old one. So what an index counts never changes under a process that has mapped it, a killed build goes on where it stopped, and new
episodes are all that is decoded when a dataset has grown.

A source counts as the same by its file's name, size and time of change, as `make` has it: hashing terabytes of video would take as
long as decoding them. A cache itself is trusted by its size and time of change; where these differ, its checksums decide.
Read `store.py` next, which indexes the frames.
"""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from jaxtyping import UInt8
from rich.console import Console
from rich.progress import Progress

from worldsim.core.files import write_json
from worldsim.core.views import resize
from worldsim.data.lerobot_reader import Dataset

FRAMES, INDEX, LOCK = "frames.rgb", "index.json", ".lock"
COMMIT = 2**28  # bytes: what a killed build loses at most


@dataclass(frozen=True)
class FrameFile:
    """The first frames of a file of raw RGB. Copies of this, in other processes too, share the pages of the disk's cache.

    Attributes:
        path: the file.
        number: of frames.
        size: height and width.
    """

    path: Path
    number: int
    size: tuple[int, int]

    @cached_property
    def mapped(self) -> memoryview:
        """The bytes of the frames; none is read before it is asked for."""
        with self.path.open("rb") as file:
            return memoryview(mmap(file.fileno(), self.number * self.size[0] * self.size[1] * 3, access=ACCESS_READ))

    def __getstate__(self) -> dict:
        return {name: value for name, value in vars(self).items() if name != "mapped"}  # or a copy would read all of it


class Episodes(NamedTuple):
    """What a cache's index counts.

    Attributes:
        sources: what each was decoded from.
        frames: of each.
        checksums: CRC-32 of the bytes of each.
        modified_ns: when the file was changed last.
    """

    sources: list[str]
    frames: list[int]
    checksums: list[int]
    modified_ns: int


class FrameCache:
    """The frames of one camera of a dataset at one size, in one folder.

    Args:
        folder: of the cache.
        size: height and width of its frames.
    """

    def __init__(self, folder: Path, size: tuple[int, int]):
        self.folder, self.size, self.file = folder, size, folder / FRAMES
        self._row = size[0] * size[1] * 3

    def index(self) -> Episodes:
        """What the index counts; no episodes if it is missing or damaged."""
        try:
            episodes = Episodes(**json.loads((self.folder / INDEX).read_text())["episodes"])
            lists = (episodes.sources, episodes.frames, episodes.checksums)
            if all(isinstance(x, list) for x in lists) and len({len(x) for x in lists}) == 1:
                return episodes if all(type(n) is int and n > 0 for n in episodes.frames) else _NOTHING
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return _NOTHING

    def holds(self, sources: Sequence[str]) -> bool:
        """Whether these episodes are its first ones, and its file is as it was committed."""
        episodes = self.index()
        return len(sources) <= len(episodes.sources) and self._begins(episodes, sources) and self._untouched(episodes)

    def stale(self, dataset: Path, camera: str) -> str:
        """Why nothing can use it, or "" if something may."""
        try:
            sources = Dataset(dataset, cameras=[camera]).sources(camera)
        except FileNotFoundError:
            return "its dataset is gone"
        except ValueError as error:
            return f"its dataset cannot be read: {error}"
        return "" if self._begins(self.index(), sources) else "its dataset has changed"

    def build(self, data: Dataset, camera: str, sources: Sequence[str]) -> None:
        """Decode what of these episodes it lacks; another process that does so is waited for.

        Raises:
            ValueError: if the disk has no room, or a frame cannot be decoded; what was decoded before is kept.
        """
        with self._alone():
            if self.holds(sources):
                return
            episodes, index = self.index(), self.folder / INDEX
            if complaint := self._complaint(episodes, sources) if index.exists() else "":
                _say(f"{self.folder} {complaint}: {data.root} is decoded again")
            if complaint or not index.exists():
                index.unlink(missing_ok=True)
                self.file.unlink(missing_ok=True)  # whoever has mapped it keeps it
                episodes = _NOTHING
            self._append(data, camera, sources, episodes)

    def _append(self, data: Dataset, camera: str, sources: Sequence[str], held: Episodes) -> None:
        """Decode the episodes of `sources` that `held` does not count, and commit them."""
        console, new = Console(stderr=True), range(len(held.sources), len(sources))
        self._announce(data, camera, new)
        done = Episodes([*held.sources], [*held.frames], [*held.checksums], 0)
        with (
            Progress(console=console, transient=True, disable=not console.is_terminal) as progress,
            FileIO(self.file, "ab") as file,
        ):
            task, committed = progress.add_task(f"{data.root} {camera}", total=sum(data.lengths[i] for i in new)), sum(done.frames)
            file.truncate(committed * self._row)
            try:
                for index in new:
                    checksum = 0
                    for clip in data.clips(camera, index):
                        checksum = _write(file, resize(clip, self.size), checksum)
                        progress.advance(task, len(clip))
                    done.sources.append(sources[index])
                    done.frames.append(data.lengths[index])
                    done.checksums.append(checksum)
                    if (sum(done.frames) - committed) * self._row > COMMIT:
                        self._commit(file, data, camera, done)
                        committed = sum(done.frames)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise ValueError(self._no_room(data, "the disk is full")) from error
            finally:
                file.truncate(sum(done.frames) * self._row)
                self._commit(file, data, camera, done)

    def _commit(self, file: FileIO, data: Dataset, camera: str, done: Episodes) -> None:
        os.fsync(file.fileno())
        episodes = done._replace(modified_ns=os.fstat(file.fileno()).st_mtime_ns)
        about = {"dataset": str(data.root.resolve()), "camera": camera, "size": self.size}
        write_json(self.folder / INDEX, {**about, "episodes": episodes._asdict()})

    def _announce(self, data: Dataset, camera: str, new: range) -> None:
        """Say what comes and how large it is; ValueError if the disk has no room for it."""
        if not new:
            return
        number, height, width = sum(data.lengths[i] for i in new) * self._row, *self.size
        if number > (free := shutil.disk_usage(self.folder).free):
            raise ValueError(self._no_room(data, f"{readable(number)} are needed and {readable(free)} are free"))
        what = f"{len(new)} episodes of {data.root}, camera {camera} at {height}x{width}"
        _say(f"decoding {what}: {readable(number)} in {self.folder}")

    def _no_room(self, data: Dataset, found: str) -> str:
        remedy = "set WORLDSIM_CACHE to a folder on a larger disk, or see worldsim doctor check=cache for what may go"
        return f"the frames of {data.root} do not fit in {self.folder}: {found}; {remedy}"

    def _complaint(self, episodes: Episodes, sources: Sequence[str]) -> str:
        """Why what is there cannot be kept, or "" if it can: all of it, or all but frames that no index counts."""
        if not episodes.sources or self.file.is_symlink() or not self.file.is_file():
            return "is damaged"
        if not self._untouched(episodes) and self._checksums(episodes.frames) != episodes.checksums:
            return "is damaged"
        return "" if self._begins(episodes, sources) else "is of other episodes"

    def _begins(self, episodes: Episodes, sources: Sequence[str]) -> bool:
        """Whether one of the two lists begins with the other."""
        return all(one == other for one, other in zip(episodes.sources, sources, strict=False))

    def _untouched(self, episodes: Episodes) -> bool:
        """Whether the file has the size and the time of change with which it was committed."""
        try:
            there = self.file.lstat()  # no link: a stranger's could lead anywhere
        except FileNotFoundError:
            return False
        return (there.st_size, there.st_mtime_ns) == (sum(episodes.frames) * self._row, episodes.modified_ns)

    def _checksums(self, frames: Sequence[int]) -> list[int]:
        """Of the bytes of each episode, as they are now."""
        found = []
        with self.file.open("rb") as file:
            for number in frames:
                checksum = 0
                for _ in range(number):
                    checksum = zlib.crc32(file.read(self._row), checksum)
                found.append(checksum)
        return found

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other process builds this cache meanwhile; it is waited for. A killed process holds nothing."""
        with (self.folder / LOCK).open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _say(f"another process decodes into {self.folder}; waiting for it")
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(file, fcntl.LOCK_UN)  # a process that was forked meanwhile has the file open, too


_NOTHING = Episodes([], [], [], 0)


def open_frames(data: Dataset, camera: str, size: tuple[int, int]) -> FrameFile:
    """All frames of a camera at a size; decoded now, if nobody did before.

    Raises:
        ValueError: if no folder can be written, the disk has no room, or a frame cannot be decoded.
    """
    sources, places = data.sources(camera), [place / _name(camera, size) for place in _places(data.root)]
    caches = [FrameCache(place, size) for place in places]
    ready = next((cache for cache in caches if cache.holds(sources)), None)
    cache = ready or next(filter(_writable, caches), None)
    if cache is None:
        where = " or ".join(str(place) for place in places)
        raise ValueError(f"{where} cannot be written for the frames of {data.root}; set WORLDSIM_CACHE to a folder that can")
    if ready is None:
        cache.build(data, camera, sources)
    frames = FrameFile(cache.file, data.num_frames, size)
    _ = frames.mapped  # now, as long as it is what was looked at
    return frames


class Cached(NamedTuple):
    """A cache, as `worldsim doctor check=cache` lists it.

    Attributes:
        folder: of the cache.
        dataset: whose frames it has.
        view: camera and size.
        episodes, size: how many, and bytes.
        age_s: since it was written last.
        stale: why nothing can use it; "" if something may.
    """

    folder: Path
    dataset: Path
    view: str
    episodes: int
    size: int
    age_s: float
    stale: str


def caches(around: Path) -> list[Cached]:
    """Those of datasets anywhere below a folder, hidden folders left out, and those in the folders for all datasets."""
    beside = [Path(f) / ".cache" / "frames" for f, folders, _ in _walk(around) if ".cache" in folders]
    indices = [index for folder in beside for index in sorted(folder.glob(f"*/{INDEX}"))]
    indices += [index for folder in _shared() for index in sorted(folder.glob(f"*/*/{INDEX}"))]
    return [_cached(index) for index in indices]


def _cached(index: Path) -> Cached:
    folder, file = index.parent, index.with_name(FRAMES)
    size = file.stat().st_size if file.is_file() else 0
    age_s = time.time() - index.stat().st_mtime
    try:
        about = json.loads(index.read_text())
        camera, (height, width) = str(about["camera"]), map(int, about["size"])
        beside = folder.parent.name == "frames" and folder.parents[1].name == ".cache"
        dataset = folder.parents[2] if beside else Path(about["dataset"])
    except (ValueError, KeyError, TypeError):
        return Cached(folder, Path("?"), "?", 0, size, age_s, "its index is damaged")
    cache, view = FrameCache(folder, (height, width)), f"{camera} at {height}x{width}"
    return Cached(folder, dataset, view, len(cache.index().sources), size, age_s, cache.stale(dataset, camera))


def readable(number: float) -> str:
    """Bytes as people say them."""
    power = min(4, max(0, math.floor(math.log10(max(number, 1)) / 3)))
    return f"{number / 1000**power:.3g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


def _write(file: FileIO, frames: UInt8[np.ndarray, "n h w 3"], checksum: int) -> int:
    """The checksum that goes on."""
    view = np.ascontiguousarray(frames).data.cast("B")
    checksum = zlib.crc32(view, checksum)
    while view:
        view = view[file.write(view) :]
    return checksum


def _name(camera: str, size: tuple[int, int]) -> str:
    return f"{quote(camera, safe='')}-{size[0]}x{size[1]}"


def _places(root: Path) -> list[Path]:
    """Where the caches of a dataset may lie, the best first."""
    path = root.resolve()
    own = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    beside = [] if os.environ.get("WORLDSIM_CACHE") else [root / ".cache" / "frames"]
    return [*beside, *(folder / own for folder in _shared())]


def _shared() -> list[Path]:
    """The folder for caches of all datasets: that of WORLDSIM_CACHE, or where a dataset cannot be written the user's own."""
    own = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "worldsim"
    return [Path(os.environ.get("WORLDSIM_CACHE") or own)]


def _writable(cache: FrameCache) -> bool:
    try:
        cache.folder.mkdir(parents=True, exist_ok=True)
        (cache.folder / LOCK).touch()
    except OSError:
        return False
    return True


def _walk(around: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for folder, folders, files in os.walk(around):
        yield folder, [*folders], files
        folders[:] = [name for name in folders if not name.startswith(".")]


def _say(line: str) -> None:
    Console(stderr=True).print(line, markup=False, highlight=False, soft_wrap=True)
