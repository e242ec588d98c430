"""What stands in a JSON or YAML file of anybody's, taken strictly: what is not as expected is one line that names file and key.

Read `spec.py` next, which is read by it.
"""

import math
import reprlib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Node:
    """A value and where it stands: the file, and the keys that lead to it (`state.gripper.unit`). All methods raise ValueError."""

    where: str
    key: str
    value: Any

    def wrong(self, expected: str) -> ValueError:
        """The error that says what came."""
        return ValueError(f"{self.where}: {self.key or 'it'} is {reprlib.repr(self.value)}, expected {expected}")

    def entries(self, known: Collection[str] | None = None, *, needed: Collection[str] = ()) -> "dict[str, Node]":
        """The entries of a mapping, which has no other keys than those `known`, and all `needed`; YAML's 0 is the name "0"."""
        if not isinstance(self.value, Mapping):
            raise self.wrong("a mapping")
        if odd := [key for key in self.value if isinstance(key, bool) or not isinstance(key, str | int)]:
            raise ValueError(f"{self.where}: {self._below(odd[0])} is no name; put it in quotes")
        nodes = {str(key): Node(self.where, self._below(key), value) for key, value in self.value.items()}
        if known is not None and (unknown := [node for key, node in nodes.items() if key not in known]):
            raise ValueError(f"{self.where}: {unknown[0].key} is unknown; there is {', '.join(known) or 'none'}")
        if missing := [key for key in needed if key not in nodes]:
            raise ValueError(f"{self.where}: {self._below(missing[0])} is missing, expected {', '.join(needed)}")
        return nodes

    def items(self) -> "list[Node]":
        """The values of a list."""
        if not isinstance(self.value, list | tuple):
            raise self.wrong("a list")
        return [Node(self.where, f"{self.key}[{i}]", value) for i, value in enumerate(self.value)]

    def text(self, among: Collection[str] | None = None) -> str:
        """Text that is not empty; one of `among`."""
        if not isinstance(self.value, str) or not self.value or (among is not None and self.value not in among):
            raise self.wrong("text" if among is None else f"one of {', '.join(among)}")
        return self.value

    def name(self) -> str:
        """A name, which in YAML may be a whole number."""
        return str(self.value) if isinstance(self.value, int) and not isinstance(self.value, bool) else self.text()

    def number(self) -> float:
        """A finite number."""
        number = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not number or not abs(self.value) <= sys.float_info.max:
            raise self.wrong("a finite number")
        return float(self.value)

    def limit(self, without: float) -> float:
        """A finite number; null is `without`, an infinity."""
        return without if self.value is None else self.number()

    def count(self) -> int:
        """A whole number above 0."""
        if not (number := self.number()) > 0 or math.floor(number) != number:
            raise self.wrong("a whole number above 0")
        return int(self.value)

    def make(self, of: Callable[..., T], *values: Any, **fields: Any) -> T:
        """`of(*values, **fields)`, whose ValueError names this place."""
        try:
            return of(*values, **fields)
        except ValueError as error:
            raise ValueError(f"{self.where}: {f'{self.key}: ' if self.key else ''}{error}") from error

    def _below(self, key: Any) -> str:
        return f"{self.key}.{key}" if self.key else str(key)
