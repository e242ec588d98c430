"""A run whose data do not have the model's sizes, or whose windows do not fit it, does not start."""

from pathlib import Path
from typing import Any

import pytest
from lightning import LightningModule, Trainer
from toy_datasets import random_episode, write

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.bc import BehaviourCloning
from training.data import DemonstrationData, ReflectorData, TableData, WorldModelData
from training.reflector import ReflectorTraining
from training.sizes import check_sizes, check_window
from training.world_model import WorldModelTraining


def fit(module: LightningModule, data: TableData) -> None:
    """As `worldsim fit` does."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    Trainer(max_steps=1, accelerator="cpu", **quiet).fit(module, datamodule=data)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            lambda: FlowVLA(state_dim=3),
            "the data have 4 numbers of state, FlowVLA was built with state_dim=3; set its state_dim to 4",
        ),
        (lambda: FlowVLA(action_dim=7), "the data have 2 numbers of an action, FlowVLA was built with action_dim=7"),
        (lambda: LatentFlowWorldModel(state_dim=3), "the data have 4 numbers of state, LatentFlowWorldModel was built with"),
        (lambda: LatentFlowWorldModel(action_dim=1), "the data have 2 numbers of an action, LatentFlowWorldModel was built"),
        (
            lambda: LatentFlowWorldModel(image=(48, 64)),
            r"the data have \[64, 64\] pixels \(height, width\), LatentFlowWorldModel was built with image=\[48, 64\]",
        ),
        (lambda: LatentFlowWorldModel(context=4), "data.context is 2, LatentFlowWorldModel has context 4: .*; set data.context=4"),
        (
            lambda: LatentFlowWorldModel(unroll=3),
            "data.horizon is 8, LatentFlowWorldModel takes unroll 3 x action_horizon 4; set data.horizon=12",
        ),
        (lambda: LatentFlowWorldModel(unroll=1), "takes unroll 1 x action_horizon 4; set data.horizon=4"),
    ],
)
def test_data_of_other_sizes(model: Any, message: str, recorded: str) -> None:
    built = model()
    is_policy = isinstance(built, FlowVLA)
    module = BehaviourCloning(built) if is_policy else WorldModelTraining(built)
    with pytest.raises(ValueError, match=message) as error:
        fit(module, DemonstrationData([recorded]) if is_policy else WorldModelData([recorded]))
    assert "\n" not in str(error.value)


def test_pictures_of_another_size(tmp_path: Path) -> None:
    write(tmp_path, [random_episode(i) for i in range(3)])
    message = r"the data have \[16, 24\] pixels .*, VisualTrunk was built with image=\[64, 64\]"
    with pytest.raises(ValueError, match=message):
        fit(BehaviourCloning(FlowVLA(camera="top", state_dim=3)), DemonstrationData([str(tmp_path)], "top"))
    with pytest.raises(ValueError, match=message):
        fit(ReflectorTraining(InstantReflector()), ReflectorData([str(tmp_path)], "top"))


def test_what_fits_passes(recorded: str) -> None:
    data = WorldModelData([recorded])
    data.setup("fit")
    for module in (BehaviourCloning(FlowVLA()), WorldModelTraining(LatentFlowWorldModel()), ReflectorTraining(InstantReflector())):
        check_sizes(module, data.table)
    check_window(WorldModelTraining(LatentFlowWorldModel(context=3, unroll=1)), 3, 4)
    check_window(BehaviourCloning(FlowVLA()), 9, 9)


def test_a_world_model_that_does_not_unroll_takes_whole_chunks() -> None:
    class Chunked(LatentFlowWorldModel):
        """One whose windows may be of any length."""

        def __init__(self) -> None:
            super().__init__()

    check_window(Chunked(), 2, 12)
    with pytest.raises(ValueError, match="takes a multiple of action_horizon 4; set data.horizon=8"):
        check_window(Chunked(), 2, 9)
