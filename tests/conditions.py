"""Which worlds are played under randomised conditions."""

from typing import Any

import pytest

from worldsim.core.world import World
from worldsim.worlds.randomized import RandomizedWorld


def watched(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """The world inside, one entry for every reset of a `RandomizedWorld` from here on."""
    seen: list[World] = []
    reset = RandomizedWorld.reset

    def watching(world: RandomizedWorld, **options: Any) -> Any:
        seen.append(world.unwrapped)
        return reset(world, **options)

    monkeypatch.setattr(RandomizedWorld, "reset", watching)
    return seen
