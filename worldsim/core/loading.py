"""Exported models as configuration names them: a folder becomes the policy, world model or reflector that it holds.

Constructors take built models, so that one made in a notebook serves as well as one on disk. In a configuration these functions
stand where a model is wanted (``_target_: worldsim.core.loading.policy``); their annotations tell the parser what they give. Read
`checkpoint.py` for the folders.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from worldsim.core import checkpoint
from worldsim.core.checkpoint import Configured, M
from worldsim.core.interfaces import Policy, Reflector, WorldModel

_seen: ContextVar[dict[Path, Configured] | None] = ContextVar("seen", default=None)  # what `once` has read


def policy(folder: str) -> Policy:
    """The policy of a folder; raises what `checkpoint.load` does, like its neighbours."""
    return _load(folder, Policy)


def world_model(folder: str) -> WorldModel:
    """The world model of a folder."""
    return _load(folder, WorldModel)


def reflector(folder: str) -> Reflector:
    """The reflector of a folder."""
    return _load(folder, Reflector)


@contextmanager
def once() -> Iterator[None]:
    """Within it each folder is read once: whoever names it again is given the same model, and copies it before changing it."""
    token = _seen.set({})
    try:
        yield
    finally:
        _seen.reset(token)


def _load(folder: str, expected: type[M]) -> M:
    seen, path = _seen.get(), Path(folder).resolve()
    known = None if seen is None else seen.get(path)
    if isinstance(known, expected):
        return known
    model = checkpoint.load(folder, expected)
    if seen is not None:
        seen[path] = model
    return model
