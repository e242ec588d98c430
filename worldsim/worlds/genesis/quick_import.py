"""Importing Genesis faster.

Genesis decorates about a thousand kernels, and for each of them `inspect` looks through all loaded modules for the one that a stack
frame belongs to. A frame knows that itself. `building.py` and its neighbours get `gs` from here."""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_search = inspect.getmodule


def _module(thing: Any, _filename: str | None = None) -> Any:
    if inspect.isframe(thing):
        return sys.modules.get(thing.f_globals.get("__name__", ""))
    return _search(thing, _filename)


@contextmanager
def quick_frames() -> Iterator[None]:
    """While it lasts, `inspect.getmodule` asks frames themselves."""
    inspect.getmodule = _module
    try:
        yield
    finally:
        inspect.getmodule = _search


with quick_frames():
    import genesis as gs

__all__ = ["gs", "quick_frames"]
