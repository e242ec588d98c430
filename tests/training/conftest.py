"""Models to which the dreams of one start are not all alike."""

from typing import Any

import pytest
import torch


@pytest.fixture
def models(models: dict[str, Any]) -> dict[str, Any]:
    """As everywhere, but the progress that the reflector sees differs enough for groups of dreams to differ in their returns."""
    with torch.no_grad():
        models["reflector"].head[-1].weight[1] *= 1000  # progress
    return models
