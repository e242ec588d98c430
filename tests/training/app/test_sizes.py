"""A run whose data do not have the model's sizes, or whose windows do not fit it, does not start."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import LightningModule, Trainer
from toy_datasets import random_episode, write
from toy_spec import toy_spec

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.app import cli
from training.supervised.augmentation import Augmentation
from training.supervised.bc import BehaviourCloning
from training.supervised.data import DemonstrationData, ReflectorData, TableData, WorldModelData
from training.supervised.reflector import ReflectorTraining
from training.supervised.world_model import WorldModelTraining
from worldsim.core import checkpoint
from worldsim.core.sizes import check_names, check_sizes
from worldsim.core.views import resize
from worldsim.data.store import FrameStore
from worldsim.data.windows import Mirror
from worldsim.worlds.dream import DreamWorld


def fit(module: LightningModule, data: TableData, run: Path | None = None) -> None:
    """As `worldsim fit` does, into the folder `run` if it ends well."""
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    Trainer(max_steps=1, accelerator="cpu", default_root_dir=run, **quiet).fit(module, datamodule=data)


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
        (lambda: LatentFlowWorldModel(views={"wrist": (8, 8)}), "has no camera wrist; choose among front"),
    ],
)
def test_data_of_other_sizes(model: Any, message: str, recorded: str) -> None:
    built = model()
    is_policy = isinstance(built, FlowVLA)
    module = BehaviourCloning(built) if is_policy else WorldModelTraining(built)
    with pytest.raises(ValueError, match=message) as error:
        fit(module, DemonstrationData([recorded]) if is_policy else WorldModelData([recorded]))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("size", [(16, 24), (8, 8), (32, 40)])
def test_pictures_are_read_at_the_size_at_which_a_model_sees_them(size: tuple[int, int], tmp_path: Path) -> None:
    """Those of the dataset are of 16 x 24 pixels."""
    write(tmp_path, [random_episode(i) for i in range(3)])
    small: dict[str, Any] = {"channels": 8, "blocks": 1, "views": {"top": size}}
    policy, frames = DemonstrationData([str(tmp_path)], batch_size=3), ReflectorData([str(tmp_path)], batch_size=3)
    fit(BehaviourCloning(FlowVLA(state_dim=3, width=16, **small)), policy, tmp_path / "run")
    fit(ReflectorTraining(InstantReflector(features=8, **small)), frames, tmp_path / "run")
    native = FrameStore.read(tmp_path, {"top": None})
    for data in (policy, frames):
        assert data.table.images["top"].shape[1:] == (*size, 3)
        rows = slice(len(data.table.frames))  # the last episode may be held out
        assert np.array_equal(data.table.frames[:].numpy(), resize(native.frames[rows].numpy(), size))


def test_datasets_that_are_not_alike(tmp_path: Path, recorded: str) -> None:
    episode = replace(random_episode(0), images={"front": torch.zeros(6, 64, 64, 3, dtype=torch.uint8)})
    write(tmp_path, [episode], cameras={"front": (64, 64)})
    with pytest.raises(ValueError, match=r"state vx, vy are missing in .*, which has x, y, z; .*state z is nothing that"):
        FrameStore.read([recorded, tmp_path], {"front": None})


def test_a_mirror_has_a_factor_for_each_dimension(recorded: str) -> None:
    for mirror in (Mirror((1.0,), (1.0, -1.0)), Mirror((1.0, -1.0, 1.0, -1.0), (1.0,))):  # one factor would fit all of them
        with pytest.raises(ValueError, match=r"mirror\.\w+ has 1 factors, the data have \d numbers"):
            fit(WorldModelTraining(LatentFlowWorldModel()), WorldModelData([recorded], augmentation=Augmentation(mirror)))


def test_a_dream_from_data_of_other_sizes(recorded: str, tmp_path: Path) -> None:
    world_model = checkpoint.save(
        LatentFlowWorldModel(action_dim=3, latent_channels=3, channels=(8, 8), layers=(1, 1)), tmp_path / "w"
    )
    reflector = checkpoint.save(InstantReflector(features=8, channels=8, blocks=1), tmp_path / "r")
    with pytest.raises(ValueError, match="the data have 2 numbers of an action, LatentFlowWorldModel was built with action_dim=3"):
        DreamWorld.from_folders(str(world_model), str(reflector), [recorded])


@pytest.mark.parametrize(
    ("verb", "sizes", "message"),
    [
        ("rollout", {"state_dim": 3}, "the world has 4 numbers of state, FlowVLA was built with state_dim=3"),
        (
            "evaluate",
            {"views": {"front": (64, 64), "wrist": (48, 64)}},
            r"FlowVLA looks through camera 'wrist', the world has front; rename one",
        ),
        ("collect", {"action_dim": 3}, "the world has 2 numbers of an action, FlowVLA was built with action_dim=3"),
    ],
)
def test_a_policy_in_a_world_of_other_sizes(
    verb: str, sizes: dict[str, Any], message: str, recorded: str, folders: dict[str, str], tmp_path: Path, capsys
) -> None:
    policy = checkpoint.save(FlowVLA(width=16, channels=8, blocks=1, **sizes), tmp_path / "policy")
    dream = [f"world.world_model={folders['world_model']}", f"world.reflector={folders['reflector']}", f"world.data=[{recorded}]"]
    own = {"collect": ["actor=policy", f"actor.folder={policy}", f"root={tmp_path / 'out'}"]}
    who = own.get(verb, [f"policy={policy}", f"out={tmp_path / 'out'}"])
    assert cli.main([verb, *who, "world=dream", *dream, "world.num_envs=2", "episodes=2"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count("\n") == 1


def test_a_bundle_of_a_policy_with_other_pictures(tmp_path: Path) -> None:
    """Without data the export makes up pictures of the policy's own cameras."""
    pytest.importorskip("onnxruntime")
    policy = checkpoint.save(FlowVLA(width=16, channels=8, blocks=1, views={"top": (16, 24), "wrist": (8, 8)}), tmp_path / "policy")
    assert cli.main(["export", f"policy={policy}", f"out={tmp_path / 'bundle'}"]) == 0


def test_a_state_is_used_that_is_there() -> None:
    for used in ((4,), (0, -1)):
        with pytest.raises(ValueError, match=r"state_used must lie in 0\.\.3, as the state has 4 numbers, got"):
            FlowVLA(state_used=used)


def test_what_fits_passes(recorded: str) -> None:
    spec = FrameStore.read([recorded], {}).spec
    for module in (BehaviourCloning(FlowVLA()), WorldModelTraining(LatentFlowWorldModel()), ReflectorTraining(InstantReflector())):
        check_sizes(module, spec)


@pytest.mark.parametrize(("context", "unroll", "chunk"), [(2, 2, 4), (3, 1, 2)])
def test_windows_and_chunks_are_as_long_as_the_models_say(
    context: int, unroll: int, chunk: int, recorded: str, tmp_path: Path
) -> None:
    model = LatentFlowWorldModel(
        context=context, unroll=unroll, action_horizon=chunk, latent_channels=3, channels=(8, 8), layers=(1, 1)
    )
    windows = WorldModelData([recorded], batch_size=3)
    fit(WorldModelTraining(model), windows, tmp_path / "world_model")
    batch = next(iter(windows.train_dataloader()))
    assert batch["action"].shape == (3, unroll * chunk, 2)
    assert batch["images"]["front"].shape == (3, context + unroll * chunk, 64, 64, 3)
    chunks = DemonstrationData([recorded], batch_size=3)
    fit(BehaviourCloning(FlowVLA(width=16, channels=8, blocks=1, action_horizon=chunk)), chunks, tmp_path / "policy")
    assert next(iter(chunks.train_dataloader()))["action"].shape == (3, chunk, 2)
    with pytest.raises(ValueError, match="WorldModelData asks the module that learns for its sizes; use Trainer.fit"):
        WorldModelData([recorded]).setup("fit")


def test_channels_of_another_order_unit_or_name_are_one_line(models: dict[str, Any]) -> None:
    policy = models["policy"]
    policy.fit_statistics(toy_spec(torch.randn(9, 4)))
    turned = replace(policy.spec, action=policy.spec.action[::-1])
    check_names(policy, policy.spec)
    check_names(policy, turned)  # whoever plays it joins it by name
    with pytest.raises(
        ValueError, match="LatentFlowWorldModel has action channels in the order dx, dy, the world in the order dy, dx"
    ):
        check_names(models["world_model"], turned)
    deg, mm = (tuple(replace(channel, unit=unit) for channel in policy.spec.action) for unit in ("deg", "mm"))
    check_names(policy, replace(policy.spec, action=deg))  # nobody knows the policy's unit
    policy.spec = replace(policy.spec, action=mm)
    with pytest.raises(ValueError, match="FlowVLA's action dx is in mm, the world's in deg"):
        check_names(policy, replace(policy.spec, action=deg))
