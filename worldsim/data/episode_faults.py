"""Faults that name their episodes, for readers and for programs: what all checks of a dataset write their findings with.

Read `faults.py` next: it has the list of checks.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from worldsim.data.contents import Fault
from worldsim.data.lerobot_layout import EpisodeFiles

NAMED = 3  # episodes, or other things of which there are many, that a fault names
AGAIN = "record the episodes again, or leave them out (worldsim convert drop=[...])"


@dataclass(frozen=True)
class EpisodeFault(Fault):
    """A fault of single episodes.

    Attributes:
        episodes: their numbers, all of them.
    """

    episodes: tuple[int, ...] = ()


def fault(
    kind: str, severity: Literal["error", "warning"], episodes: Collection[EpisodeFiles], found: str, remedy: str
) -> EpisodeFault:
    """A fault of episodes; "{}" in `found` becomes what `named` says of them."""
    return EpisodeFault(kind, severity, found.format(named(episodes)), remedy, tuple(episode.index for episode in episodes))


def named(episodes: Collection[EpisodeFiles]) -> str:
    """ "3 episodes (0, 4, 7)", of many the first ones."""
    numbers = [episode.index for episode in episodes]
    return f"{len(numbers)} episode{'s' if len(numbers) > 1 else ''} ({some(numbers)})"


def some(things: Collection) -> str:
    """ "0, 4, 7, ...": the first few of many."""
    first = ", ".join(str(thing) for thing in [*things][:NAMED])
    return f"{first}, ..." if len(things) > NAMED else first


def fault_of(kind: str, error: Exception) -> Fault:
    """An error as a fault; what follows its last semicolon says what to do."""
    found, _, remedy = str(error).rpartition("; ")
    return Fault(kind, "error", found, remedy) if found else Fault(kind, "error", remedy, "copy the dataset again")
