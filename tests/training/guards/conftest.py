"""Reflectors and recorded episodes for the guards' tests."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from guarding import EPISODES, SENTENCES, starts

from reflectors.instant import InstantReflector
from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter


@pytest.fixture
def models(models: dict[str, Any]) -> dict[str, Any]:
    """Reflectors that judge single frames: some are a success, and `second_reflector` thinks so of all the others."""
    reflector = InstantReflector(features=32, channels=8, blocks=1, window=1)
    frames = starts(EPISODES)["images"]["front"].flatten(0, 1)
    reflector.threshold.fill_(reflector.judge({"front": frames[:, None]}, SENTENCES * EPISODES).p_success.detach().quantile(0.6))
    second = copy.deepcopy(reflector)
    second.scale.fill_(-1)  # p becomes 1 - p
    second.threshold.fill_(1 - second.threshold)
    return {**models, "reflector": reflector.eval(), "second_reflector": second.eval()}


@pytest.fixture
def data(tmp_path: Path) -> list[str]:
    """Recorded episodes that begin with the frames of `starts`."""
    batch = starts(EPISODES)
    names = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"]}
    with DatasetWriter(tmp_path / "data", fps=10, robot_type="test", cameras={"front": (64, 64)}, **names) as writer:
        writer.add(
            [
                Episode(
                    images={"front": batch["images"]["front"][i]},
                    state=batch["state"][i],
                    action=torch.zeros(1, 2),
                    reward=torch.zeros(1),
                    success=torch.zeros(2, dtype=torch.bool),
                    progress=torch.zeros(2),
                    instruction=batch["instruction"][i],
                    source="expert",
                )
                for i in range(EPISODES)
            ]
        )
    return [str(tmp_path / "data")]
