"""Pictures in data files: every row's size and wholeness, by their headers and checksums, as decoding all of them would take hours.

Reading decodes what it needs and stops at the first picture that is none, which may be after a day of training. Read
`picture_suspicions.py` next, which looks at what pictures show.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from worldsim.data import lerobot_format as fmt
from worldsim.data.columns import pictures
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import AGAIN, fault, fault_of
from worldsim.data.video import decode_images

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8"
BATCH = 256  # rows


def picture_faults(contents: Contents) -> Iterator[Fault]:
    """Pictures in data files that cannot be decoded or have another size, in any row."""
    for key in (key for key, f in contents.features.items() if f["dtype"] == "image" and fmt.is_rgb(f)):
        try:
            size = fmt.resolution(key, contents.features[key])
        except ValueError:  # the cameras' own check says so
            continue
        for path in contents.data_files:
            try:
                broken, why = _broken(path, key, size)
            except ValueError as error:
                yield fault_of("files", error)
                continue
            episodes = [episode for episode in contents.of_file[path] if broken.get(episode.index)]
            everywhere = len(episodes) == len(contents.of_file[path])
            if everywhere and why:
                yield fault_of("files", ValueError(why))
            elif episodes:
                found = f"{why.rpartition('; ')[0]}: {sum(broken.values())} pictures of {{}}"
                numbers = ", ".join(str(episode.index) for episode in episodes)
                remedy = f"worldsim convert data={contents.given} out=NEW 'drop=[{numbers}]' leaves them out; or {AGAIN}"
                yield fault("files", "error", episodes, found, remedy)


def size_of(data: bytes) -> tuple[int, int] | None:
    """(height, width) of a PNG or JPEG that is whole, by its header and, of a PNG, its checksums; None of anything else."""
    if data.startswith(PNG):
        at, size = len(PNG), None
        while at + 12 <= len(data):
            (length,) = struct.unpack_from(">I", data, at)
            end = at + 8 + length
            if end + 4 > len(data) or struct.unpack_from(">I", data, end)[0] != zlib.crc32(data[at + 4 : end]):
                return None
            if data[at + 4 : at + 8] == b"IHDR":
                width, height = struct.unpack_from(">II", data, at + 8)
                size = height, width
            elif data[at + 4 : at + 8] == b"IEND":
                return size
            at = end + 4
    elif data.startswith(JPEG) and data.rstrip(b"\0").endswith(b"\xff\xd9"):
        at = len(JPEG)
        while at + 9 <= len(data) and data[at] == 0xFF:
            if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):  # a frame, and no table
                return struct.unpack_from(">HH", data, at + 5)
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return None


def _broken(path: Path, key: str, size: tuple[int, int]) -> tuple[dict[int, int], str]:
    """How many pictures of each episode in a data file are none of that size, and what is wrong with the first."""
    file, broken, why = fmt.open_parquet(path), dict[int, int](), ""
    if not {key, "episode_index"} <= {*file.schema_arrow.names}:  # the check of the columns says so
        return broken, why
    try:
        for batch in file.iter_batches(BATCH, columns=["episode_index", key]):
            table = pa.table(batch)
            for episode, data in zip(table["episode_index"].to_pylist(), pictures(path, table, key), strict=True):
                if data is None or size_of(data) != size:
                    try:
                        decode_images(path, key, size, [data])
                    except ValueError as error:
                        broken[episode], why = broken.get(episode, 0) + 1, why or str(error)
    except (pa.ArrowInvalid, OSError) as error:
        raise fmt.unreadable(path, error) from error
    return broken, why
