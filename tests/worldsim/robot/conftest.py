"""A policy that never outlives its test."""

from collections.abc import Iterator

import pytest
from openpi import Doubling


@pytest.fixture
def policy() -> Iterator[Doubling]:
    policy = Doubling()
    yield policy
    policy.gate.set()
