"""What a case of the museum is: a small dataset, what is wrong with it, and what worldsim should say.

A case is a function that builds one into a folder; its name is the case's, its docstring says what is wrong. Rooms: `healthy.py`
(must be read), `broken.py` and `broken_values.py`, `doubtful.py` (can be read, is hardly meant), `strangers*.py` (all of these, by
somebody who had not read the doctor). Read `visit.py` next.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from museum.recorder import Take

Build = Callable[[Path], list[Take] | None]


@dataclass(frozen=True)
class Case:
    """One dataset of the museum.

    Attributes:
        name: of the case.
        wrong: what is wrong, or unusual.
        expected: "fine"; "warning KIND" or "error KIND" of a fault that the doctor must find; "refused WORD" if neither doctor nor
            reader can begin, and say so in one line with that word.
        source: where it comes from: B.. is a public fault report, NAME-1.. a check of robovet, stranger the rooms `strangers*.py`.
        build: writes it into a folder; gives back the episodes that must be read, or None where nobody can say.
    """

    name: str
    wrong: str
    expected: str
    source: str
    build: Build


def case(expected: str, source: str = "") -> Callable[[Build], Build]:
    """Add the function below to the museum."""

    def add(build: Build) -> Build:
        name, wrong = getattr(build, "__name__"), (build.__doc__ or "").rstrip(".")  # noqa: B009 - a Callable need not have one
        _CASES.append(Case(name, wrong, expected, source, build))
        return build

    return add


def cases() -> list[Case]:
    """All cases, room by room."""
    if not _CASES:
        for room in ("healthy", "broken", "broken_values", "doubtful", "strangers", "strangers_numbers", "strangers_pictures"):
            import_module(f"museum.{room}")
    return _CASES


_CASES: list[Case] = []
