"""What to do about a file that cannot be read: copy it again, unless its bytes say why it is what it is.

Apart, because videos, tables and JSON are read in different places and are damaged in the same ways. Read `lerobot_format.py` next.
"""

from pathlib import Path

POINTER = b"version https://git-lfs"
BOM = b"\xef\xbb\xbf"


def remedy(path: Path) -> str:
    """For an unreadable file, in a few words."""
    with path.open("rb") as file:
        first = file.read(len(POINTER))
    if first == POINTER:
        return "it is a pointer of git-lfs, not the file itself: run git lfs pull in the folder that was cloned"
    if first.startswith(BOM):
        return "it begins with a byte order mark: save it without a BOM (UTF-8)"
    return "copy it again"
