"""A dataset by reference: its features by their own names, what its numbers mean, and where nothing may be written."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_datasets import edit_info, files, foreign_dataset

from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import SPEC, views_said
from worldsim.data.dataset_spec import read_spec
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.store import FrameStore

VECTOR = {"dtype": "float32", "shape": [1], "names": None}


def adopt(root: Path, dataset: Path, **said: Any) -> Path:
    root.mkdir(exist_ok=True)
    (root / SPEC).write_text(yaml.safe_dump({"dataset": str(dataset), **said}))
    return root


def renamed(root: Path, **names: str) -> Path:
    """A dataset whose features are called otherwise, in its data files, too."""
    foreign_dataset(root, **{name: [10.0 * k + i for i in range(7)] for k, name in enumerate(names.values())})
    info = fmt.read_json(root / fmt.INFO)
    features = {key: feature for key, feature in info["features"].items() if key not in names}
    edit_info(root, features=features | {name: VECTOR for name in names.values()})
    return root


def test_an_adopted_dataset_is_the_dataset(tmp_path: Path) -> None:
    frames = foreign_dataset(tmp_path / "theirs")
    before = files(tmp_path / "theirs")
    root = adopt(tmp_path / "ours", tmp_path / "theirs", robot_type="so101", action={"0": {"unit": "deg", "limits": [0, 90]}})
    data = Dataset(root)
    assert [len(episode) for episode in data.episodes()] == [2, 3] and data.spec.robot_type == "so101"
    assert (data.spec.action[0].unit, data.spec.action[0].high) == ("deg", 90)
    store = FrameStore.read([root], {"image": (8, 8)})
    assert np.array_equal(store.images["image"][torch.arange(7)].numpy(), frames)
    assert (root / ".cache/frames/image-8x8/frames.rgb").is_file() and files(tmp_path / "theirs") == before
    assert not [fault for fault in dataset_faults(root) if fault.severity == "error"]


def test_a_path_may_be_relative_to_the_file(tmp_path: Path) -> None:
    foreign_dataset(tmp_path / "theirs")
    assert Dataset(adopt(tmp_path / "ours", Path("../theirs"))).num_episodes == 2


def test_features_by_their_own_names(tmp_path: Path) -> None:
    """Two features make up the state, in this order; the third is the action; the fourth says success."""
    theirs = renamed(tmp_path / "theirs", **{"observation.state": "qpos", "action": "actions", "x": "hand", "y": "is_success"})
    with pytest.raises(ValueError, match=r"lacks the feature action and observation.state, it has .*; worldsim adopt .* proposes"):
        Dataset(theirs)
    names = {"state": ["hand", "qpos"], "action": "actions"}
    data = Dataset(adopt(tmp_path / "ours", theirs, features=names))
    first, second = data.episodes()
    assert second.state.tolist() == [[23, 3], [24, 4], [25, 5], [26, 6]] and second.action[:, 0].tolist() == [13, 14, 15]
    assert data.state_names == ("hand.0", "qpos.0") and data.action_names == ("0",)
    assert data.read_values()["observation.state"].shape == (7, 2) and first.success.isnan().all()


def test_success_by_its_own_name(tmp_path: Path) -> None:
    foreign_dataset(tmp_path / "theirs", done_well=[0.0, 0, 1, 0, 0, 0, 0])
    data = Dataset(adopt(tmp_path / "ours", tmp_path / "theirs", features={"success": "done_well"}))
    assert [episode.success.tolist() for episode in data.episodes()] == [[0, 0, 1], [0, 0, 0, 0]]
    assert data.judged_share() == {"success": 1.0, "progress": 0.0}


def test_a_state_that_there_is_not_is_nothing(tmp_path: Path) -> None:
    theirs = renamed(tmp_path / "theirs", **{"observation.state": "x"})
    data = Dataset(adopt(tmp_path / "ours", theirs, features={"state": []}))
    assert data.state_names == ("nothing",) and next(data.episodes()).state.tolist() == [[0], [0], [0]]
    shift, scale = FrameStore.read([data.root], {"image": (8, 8)}).spec.affine("state")
    assert (shift.tolist(), scale.tolist()) == ([0], [1])


def test_views_are_those_that_it_says(tmp_path: Path) -> None:
    foreign_dataset(tmp_path / "theirs")
    assert views_said(adopt(tmp_path / "ours", tmp_path / "theirs", views={"image": [16, 24]})) == {"image": [16, 24]}
    assert views_said(tmp_path / "theirs") is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"features": {"state": "velocity"}}, "has no feature velocity, it has .*; correct what observation.state is called"),
        ({"features": {"action": []}}, "action has no feature; name one, only a state may be missing"),
        ({"features": {"state": "observation.image"}}, r"feature observation.image is image .*, observation.state needs a vector"),
        ({"features": {"hand": "x"}}, "features.hand is unknown; there is state, action"),
        ({"features": {"success": "next.success"}}, "success is next.success, expected one feature that is of the frame itself"),
        ({"features": {"reward": ["action", "action"]}}, "next.reward is action, action, expected one feature"),
        ({"features": {"progress": "observation.state"}}, "observation.state has 2 numbers, progress needs one"),
        ({"views": {"image": [0, 8]}}, r"views.image\[0\] is 0, expected a whole number above 0"),
        ({"colour": 1}, "colour is unknown; there is dataset, features, views, robot_type"),
        ({"action": {"0": {"unit": "deg", "kind": "sideways"}}}, "action.0.kind is 'sideways', expected one of"),
    ],
)
def test_what_it_says_wrong_is_one_line(tmp_path: Path, said: dict[str, Any], expected: str) -> None:
    foreign_dataset(tmp_path / "theirs")
    root = adopt(tmp_path / "ours", tmp_path / "theirs", **said)
    with pytest.raises(ValueError, match=expected) as raised:
        read_spec(root)
    assert "\n" not in str(raised.value)


def test_nothing_is_recorded_into_it(tmp_path: Path) -> None:
    foreign_dataset(tmp_path / "theirs")
    root = adopt(tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(ValueError, match="ours adopts another dataset, .*; record into another folder"):
        DatasetWriter(root, fps=5, robot_type="x", state_names=["a"], action_names=["b"], cameras={})
    assert {path.name for path in root.iterdir()} <= {SPEC.name, "meta"}
