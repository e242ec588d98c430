"""Importing Genesis faster.

Genesis decorates about a thousand kernels, and for each of them `inspect` looks through all loaded modules for the one that a stack
frame belongs to. A frame knows that itself. `building.py` and its neighbours get `gs` from here."""

import inspect
import sys
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

_search = inspect.getmodule


def _module(thing: Any, _filename: str | None = None) -> Any:
    if inspect.isframe(thing):
        return sys.modules.get(thing.f_globals.get("__name__", ""))
    return _search(thing, _filename)


def quick_frames() -> AbstractContextManager[Any]:
    """While it lasts, `inspect.getmodule` asks frames themselves."""
    return patch.object(inspect, "getmodule", _module)


with quick_frames():
    import genesis as gs

__all__ = ["gs", "quick_frames"]
