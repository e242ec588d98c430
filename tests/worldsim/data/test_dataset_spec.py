"""The Spec of a dataset: what LeRobot's meta says, what a user's YAML adds, and that writing it gives it back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_datasets import edit_info, foreign_dataset, random_episode, write

from worldsim.core.spec import Camera, Channel, Group, Spec, Statistics
from worldsim.data import lerobot_format as fmt
from worldsim.data.dataset_spec import read_spec, write_overlay
from worldsim.data.lerobot import Dataset


def test_what_lerobot_says(tmp_path: Path) -> None:
    """Our own dataset: names, cameras, and exact statistics of all its rows."""
    dataset = write(tmp_path, [random_episode(0), random_episode(1)])
    values = dataset.read_values()
    assert (
        read_spec(tmp_path)
        == dataset.spec
        == Spec(
            cameras={"top": Camera(16, 24, 10), "wrist": Camera(8, 8, 10)},
            fps=10,
            robot_type="pusher",
            state=tuple(Channel(name, normalisation="mean_std") for name in ("x", "y", "z")),
            action=tuple(Channel(name, normalisation="quantile") for name in ("dx", "dy")),
            state_statistics=Statistics.of(values["observation.state"]),
            action_statistics=Statistics.of(values["action"]),
        )
    )
    edit_info(tmp_path, robot_type=None)
    stats = fmt.read_json(tmp_path / fmt.STATS)
    stats["observation.state"].pop("q01")
    fmt.write_json(tmp_path / fmt.STATS, stats)
    spec = read_spec(tmp_path)
    assert spec.state_statistics is None and spec.action_statistics == dataset.spec.action_statistics
    assert spec.robot_type == "unknown"
    stats["action"]["mean"][0] = float("nan")
    fmt.write_json(tmp_path / fmt.STATS, stats)
    with pytest.raises(ValueError, match=r"stats.json: action.mean\[0\] is nan, expected a finite number"):
        read_spec(tmp_path)
    stats["action"]["count"] = [11]
    fmt.write_json(tmp_path / fmt.STATS, stats)
    assert read_spec(tmp_path).action_statistics is None, "they are of other frames"


@pytest.mark.parametrize("shape", [[6, 8, 1], [6, 8]])
def test_what_others_say(tmp_path: Path, shape: list[int]) -> None:
    """Nested names or none, channels first, a depth map, no statistics; names that YAML takes for numbers."""
    foreign_dataset(tmp_path, features={"observation.images.depth": {"dtype": "image", "shape": shape, "is_depth_map": True}})
    spec = Dataset(tmp_path, cameras=[]).spec
    assert spec.cameras == {"image": Camera(8, 8, 5), "depth": Camera(6, 8, 5, "depth")}
    assert spec.state_names == ("a", "b") and spec.action_names == ("0",)
    assert spec.state_statistics is None and spec.action_statistics is None
    overlay = tmp_path / "meta/spec.yaml"
    overlay.write_text("action: {0: {unit: degrees, limits: [-180, 180]}}\nnormalisation: {state: min_max}\n")
    spec = read_spec(tmp_path)
    assert spec.action == (Channel("0", "deg", low=-180, high=180, normalisation="quantile"),)
    assert [channel.normalisation for channel in spec.state] == ["min_max", "min_max"]
    overlay.write_text("")
    assert read_spec(tmp_path).action[0].unit == "unknown"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("state: {c: {unit: m}}", "state.c is unknown; there is a, b, \\*"),
        ("state: {a: {limits: [0, .inf]}}", r"state.a.limits\[1\] is inf, expected a finite number"),
        ("state: [", "is not valid YAML: while parsing"),
        ("- 1", r"it is \[1\], expected a mapping"),
        ("when: 2024-99-99", "is not valid YAML: month must be in 1..12"),
        ("a: &a [*a]", "a is unknown; there is robot_type"),
        ("[" * 500, "is not valid YAML"),
    ],
)
def test_a_wrong_overlay_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    foreign_dataset(tmp_path)
    (tmp_path / "meta/spec.yaml").write_text(text)
    with pytest.raises(ValueError, match=f"meta/spec.yaml:? {message}") as error:
        read_spec(tmp_path)
    assert "\n" not in str(error.value)


def test_names_that_are_there_twice_are_refused(tmp_path: Path) -> None:
    names = {"left": ["x"], "right": ["x"]}
    foreign_dataset(tmp_path, features={"observation.state": {"dtype": "float32", "shape": [2], "names": names}})
    with pytest.raises(ValueError, match="meta/info.json: state channel x is there twice; name each one apart"):
        read_spec(tmp_path)


def test_an_overlay_that_is_written_gives_the_spec_back(tmp_path: Path) -> None:
    dataset = write(tmp_path, [random_episode(0)])
    bare = dataset.spec
    spec = replace(
        bare,
        robot_type="other",
        cameras={**bare.cameras, "wrist": replace(bare.cameras["wrist"], kind="depth")},
        state=(Channel("x", "mm", "absolute", float(np.float32(1e-5)), 300), *(Channel(n, "mm") for n in "yz")),
        action=(Channel("dx", "rad/s", "velocity", high=3), Channel("dy", kind="binary", normalisation="quantile")),
        groups=(Group("tool", "state", ("z", "x", "y"), "axis_angle", "tool"),),
    )
    write_overlay(tmp_path, spec)
    assert read_spec(tmp_path) == spec
    text = (tmp_path / "meta/spec.yaml").read_text()
    assert "  z: {unit: mm, kind: unknown, normalisation: identity}\n" in text and "cameras:\n  wrist: {kind: depth}\n" in text
    other = replace(bare, state=(Channel("q"),), state_statistics=None)
    for odd, message in ((replace(spec, fps=11), "info.json has other fps than the spec"), (other, "state.q is unknown")):
        with pytest.raises(ValueError, match=message):
            write_overlay(tmp_path, odd)
    assert (tmp_path / "meta/spec.yaml").read_text() == text
