"""Models to which the dreams of one start are not all alike."""

import pytest
import torch

from reflectors.instant import InstantReflector
from worldsim.core import checkpoint


@pytest.fixture
def folders(folders: dict[str, str]) -> dict[str, str]:
    """As everywhere, but the progress that the reflector sees differs enough for groups of dreams to differ in their returns."""
    with torch.random.fork_rng(devices=[]):  # a constructor draws weights before these are loaded
        reflector = checkpoint.load(folders["reflector"], InstantReflector)
    with torch.no_grad():
        reflector.head[-1].weight[1] *= 1000  # progress
    checkpoint.save(reflector, folders["reflector"])
    return folders
