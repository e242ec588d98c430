"""What numbers mean: normalisation worked out by hand, joins by name, and files of which nothing is believed."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from worldsim.core.spec import Camera, Channel, Group, Spec, Statistics, match

STATE = (Channel("x", "m"), Channel("qx"), Channel("qy"), Channel("qz"), Channel("qw"))
ACTION = (Channel("shoulder", "degrees", low=-90, high=90, normalisation="quantile"), Channel("gripper", "%", "delta", 0, 100))
TURN = Group("turn", "state", ("qx", "qy", "qz", "qw"), "quaternion")
SPEC = Spec(
    cameras={"front": Camera(48, 80, 30), "depth": Camera(48, 80, 30, "depth")},
    fps=30,
    robot_type="arm",
    state=STATE,
    action=ACTION,
    groups=(TURN,),
)
ROWS = np.arange(101.0)[:, None]  # 0, 1 ... 100: q01 is 1, q99 is 99


def one(normalisation: str, values: np.ndarray) -> tuple[float, float]:
    """Shift and scale of one channel with these values, [n]."""
    spec = replace(SPEC, state=(), groups=(), action=(Channel("a", normalisation=normalisation),))  # type: ignore[arg-type]
    shift, scale = replace(spec, action_statistics=Statistics.of(values[:, None])).affine("action")
    assert shift.dtype == scale.dtype == np.float64
    return shift[0], scale[0]


def test_statistics_and_normalisation_by_hand():
    """The mean of 0..100 is 50, its variance (101^2 - 1) / 12 = 850."""
    values = ROWS[:, 0]
    std = math.sqrt(850)
    (mean,), (deviation,) = Statistics.of(ROWS.astype(np.float32)).mean, Statistics.of(ROWS).std
    assert mean == 50 and deviation == pytest.approx(std, rel=1e-14)
    assert Statistics.of(ROWS) == Statistics((50.0,), (deviation,), (0.0,), (100.0,), (1.0,), (99.0,), 101)
    assert one("quantile", values) == (50, 49)
    assert one("min_max", values + 10) == (60, 50)
    assert one("mean_std", values) == (50, pytest.approx(std, rel=1e-14))
    assert one("identity", values) == (0, 1)


@pytest.mark.parametrize("normalisation", ["quantile", "min_max", "mean_std"])
@pytest.mark.parametrize("rest", [7.0, 0.0, -1e6])
def test_what_rests_is_centred_and_not_divided(normalisation: str, rest: float):
    """Also where rounding moves it: by half a millionth of what it is, or by 1e-9 of nothing."""
    jitter = np.linspace(-1, 1, 101) * max(5e-7 * abs(rest), 1e-9)
    shift, scale = one(normalisation, rest + jitter)
    assert shift == pytest.approx(rest, abs=1e-9) and scale == 1


def test_a_channel_that_seldom_moves_is_seen_by_its_whole_range():
    seldom = np.zeros(1000)
    seldom[500] = 80  # 999 of 1000 are 0, and so are q01 and q99
    assert one("quantile", seldom) == (40, 40)


def test_a_robot_may_import_it():
    """It has numpy, but neither of the others."""
    others = "{'torch', 'yaml', 'jaxtyping', 'scipy', 'pyarrow'} & {*sys.modules}"
    code = f"import sys, worldsim.core.spec; sys.exit(str({others}) if {others} else 0)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_what_needs_statistics_says_so():
    with pytest.raises(ValueError, match="quantile of action channel shoulder needs statistics"):
        SPEC.affine("action")
    assert [row.tolist() for row in SPEC.affine("state")] == [[0] * 5, [1] * 5]
    fitted = SPEC.fitted(np.zeros((3, 5)), np.zeros((3, 2)))
    assert fitted.state_statistics is not None and fitted.state_statistics.count == 3 and len({SPEC, fitted}) == 2
    with pytest.raises(ValueError, match="action has 2 channels, its statistics 3; compute them again"):
        SPEC.fitted(np.zeros((3, 5)), np.zeros((3, 3)))


def test_clipped_actions_are_named_most_first():
    actions = np.zeros((100, 2))
    assert SPEC.clipped(actions) == SPEC.clipped(actions[:0]) == ""
    actions[:, 0] = 90 * (1 + 9e-7)  # as a float may write 90
    actions[0, 1] = -1
    assert SPEC.clipped(actions) == "", "one of 100 is not more than 1 %"
    actions[:2, 1], actions[:50, 0] = 101, -91
    expected = "shoulder 50.0 % beyond -90..90, gripper 2.0 % beyond 0..100 of all steps"
    assert SPEC.clipped(actions) == f"actions lie beyond their limits, to which they are clamped: {expected}"
    many = replace(SPEC, action=tuple(Channel(str(i), high=1) for i in range(7)))
    assert SPEC.clipped(actions) and many.clipped(np.full((9, 7), 2.0)).endswith("4 100.0 % beyond -inf..1 and 2 more of all steps")


@pytest.mark.parametrize(
    ("unit", "normal"),
    [("Degrees", "deg"), ("radians", "rad"), ("meter", "m"), ("millimetres", "mm"), ("metres/s", "m/s"), ("degree/s", "deg/s")]
    + [("%", "percent"), ("Nm", "Nm"), ("unknown", "unknown")],
)
def test_units_have_one_spelling(unit: str, normal: str):
    assert Channel("a", unit).unit == normal


def test_channels_are_joined_by_name():
    there = (Channel("c", "deg", "absolute"), Channel("a", "rad"), Channel("b"))
    wanted = (Channel("a", "rad"), Channel("b", "mm"), Channel("c"))
    words: dict[str, Any] = {"what": "action", "who": "the policy", "where": "the robot"}
    assert match(wanted, there, **words, exact=True) == (1, 2, 0)
    assert match(wanted[:1], there, **words, exact=False) == (1,)
    with pytest.raises(ValueError, match="^the robot's action c, b are nothing that the policy has; correct"):
        match(wanted[:1], there, **words, exact=True)
    odd = (Channel("c", "percent", "delta"), Channel("d"))
    differences = [
        "the policy's action c is in percent, the robot's in deg",
        "the policy's action c is delta, the robot's absolute",
        "the policy's action d is missing in the robot, which has c, a, b, a",
        "the robot has action a twice",
    ]
    with pytest.raises(
        ValueError, match=f"^{'; '.join(differences)}; correct meta/spec.yaml, or names, units and kinds of the robot$"
    ):
        match(odd, (*there, there[1]), **words, exact=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Channel("a", kind="odd"), "kind of channel a is 'odd', expected one of unknown, absolute"),  # type: ignore[arg-type]
        (lambda: Channel("a", low=1, high=1), "channel a has the limits 1 and 1"),
        (lambda: Channel("a", low=math.nan), "channel a has the limits nan and inf"),
        (lambda: Channel("*"), "named '\\*'"),
        (lambda: Channel("a", ""), "named 'a', in ''; expected a name of its own and a unit or unknown"),
        (lambda: Group("g", "state", ("a", "b", "c"), "quaternion"), "group g has 3 channels, expected 4 for quaternion"),
        (lambda: Group("state", "state", ("a", "b", "c"), "euler"), "named 'state'"),
        (lambda: Camera(0, 8, 10), "0x8 pixels"),
        (lambda: Statistics((1.0,), (1.0, 2.0), (0.0,), (1.0,), (0.0,), (1.0,), 3), "one finite number per channel"),
        (lambda: Statistics((1.0,), (-1.0,), (0.0,), (1.0,), (0.0,), (1.0,), 3), "negative spread"),
        (lambda: replace(SPEC, state=(*STATE, STATE[0])), "state channel x is there twice"),
        (lambda: replace(SPEC, groups=(TURN, replace(TURN, name="again"))), "grouped state channel qx is there twice"),
        (lambda: replace(SPEC, groups=(replace(TURN, feature="action"),)), "'qx', expected one of shoulder, gripper"),
        (lambda: replace(SPEC, fps=0), "fps is 0"),
    ],
)
def test_what_has_no_meaning_is_refused(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_file_gives_back_the_same(tmp_path: Path):
    spec = SPEC.fitted(np.random.default_rng(0).normal(size=(9, 5)), np.eye(2))
    for value in (SPEC, spec):
        value.write(tmp_path)
        again = Spec.read(tmp_path)
        assert again == value and hash(again) == hash(value) and again.cameras["depth"].kind == "depth"
    content = json.loads((tmp_path / "spec.json").read_text())
    assert [channel["low"] for channel in content["state"] + content["action"]] == [None] * 5 + [-90, 0]
    with pytest.raises(FileNotFoundError, match="spec.json is missing"):
        Spec.read(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("colour",), 1, "colour is unknown; there is cameras, fps, robot_type"),
        (("fps",), "30", "fps is '30', expected a finite number"),
        (("fps",), True, "fps is True, expected a finite number"),
        pytest.param(("fps",), 10**400, "expected a finite number", id="huge"),
        (("action", 0, "low"), math.inf, r"action\[0\].low is inf, expected a finite number"),
        (("action", 0, "unit"), None, r"action\[0\].unit is None, expected text"),
        (("action", 0, "kind"), "odd", r"action\[0\]: kind of channel shoulder is 'odd'"),
        (("action", 0), [], r"action\[0\] is \[\], expected a mapping"),
        (("cameras", "front", "height"), 4.5, "cameras.front.height is 4.5, expected a whole number above 0"),
        (("groups",), {}, "groups is {}, expected a list"),
        (("groups", 0, "channels"), ["x"], r"groups\[0\]: group turn has 1 channels, expected 4"),
        (("state_statistics",), {"mean": []}, "state_statistics.std is missing, expected mean, std"),
    ],
)
def test_a_file_of_anybodys_is_believed_nothing(tmp_path: Path, path: tuple[Any, ...], value: Any, message: str):
    content = json.loads(json.dumps(SPEC.to_json()))
    place = content
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "spec.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"^{tmp_path}/spec.json: .*{message}") as error:
        Spec.read(tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "\xff"])
def test_a_damaged_file_is_one_line(tmp_path: Path, text: str):
    (tmp_path / "spec.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"spec.json(: it is \[\], expected a mapping| is not valid JSON)"):
        Spec.read(tmp_path)


def test_an_overlay_completes():
    bare = replace(SPEC, groups=(), state=tuple(replace(c, normalisation="mean_std") for c in STATE))
    overlay = {
        "robot_type": "so101",
        "state": {"x": {"unit": "mm", "limits": [0, None]}},
        "action": {"gripper": {"kind": "binary", "limits": [0, 1]}, "*": {"unit": "rad", "kind": "velocity"}},
        "groups": {"turn": {"of": "state", "channels": ["qx", "qy", "qz", "qw"], "meaning": "quaternion"}},
        "cameras": {"front": {"kind": "depth"}},
    }
    spec = bare.completed(overlay, "spec.yaml")
    assert spec.state[0] == Channel("x", "mm", low=0, normalisation="mean_std") and spec.robot_type == "so101"
    assert spec.action == (
        Channel("shoulder", "rad", "velocity", -90, 90, "quantile"),
        Channel("gripper", "percent", "binary", 0, 1, "identity"),
    )
    assert spec.groups == (TURN,) and [c.normalisation for c in spec.state[1:]] == ["identity"] * 4
    assert spec.cameras["front"].kind == "depth" and spec.completed({}, "spec.yaml") == spec


@pytest.mark.parametrize(
    ("overlay", "expected"),
    [
        ({"normalisation": {"state": "min_max"}}, ["min_max", "identity", "identity"]),
        ({"normalisation": {"state": "min_max", "turn": "quantile"}}, ["min_max", "quantile", "quantile"]),
        ({"state": {"*": {"normalisation": "quantile"}}}, ["quantile", "quantile", "quantile"]),
        ({"state": {"*": {"normalisation": "quantile"}}, "normalisation": {"turn": "min_max"}}, ["quantile", "min_max", "min_max"]),
        (
            {"state": {"qx": {"normalisation": "mean_std"}}, "normalisation": {"turn": "min_max"}},
            ["identity", "mean_std", "min_max"],
        ),
    ],
)
def test_the_nearest_word_on_normalisation_counts(overlay: dict[str, Any], expected: list[str]):
    """Of x, qx and qy; a word on the whole state is not meant for a quaternion."""
    assert [channel.normalisation for channel in SPEC.completed(overlay, "spec.yaml").state[:3]] == expected


@pytest.mark.parametrize(
    ("overlay", "message"),
    [
        ([], r"spec.yaml: it is \[\], expected a mapping"),
        ({"unit": 1}, "spec.yaml: unit is unknown; there is robot_type, state, action, groups, normalisation, cameras"),
        ({"action": {"elbow": {}}}, r"action.elbow is unknown; there is shoulder, gripper, \*"),
        ({"action": {"gripper": {"units": "mm"}}}, "action.gripper.units is unknown; there is unit, kind, limits, normalisation"),
        ({"action": {"gripper": {"limits": [1]}}}, r"action.gripper.limits is \[1\], expected \[low, high\]"),
        ({"action": {"gripper": {"limits": [1, 0]}}}, "action.gripper: channel gripper has the limits 1 and 0"),
        ({"action": {"shoulder": {}, "gripper": {}, "*": None}}, r"action.\* is None, expected a mapping"),
        ({"cameras": {"wrist": {"kind": "depth"}}}, "cameras.wrist is unknown; there is front, depth"),
        ({"groups": {"g": {"of": "state", "channels": ["x"]}}}, "groups.g.meaning is missing, expected of, channels, meaning"),
        ({"normalisation": {"tool": "identity"}}, "normalisation.tool is unknown; there is state, action, turn"),
        (
            {"normalisation": {"turn": "none"}},
            "normalisation.turn is 'none', expected one of quantile, mean_std, min_max, identity",
        ),
        ({True: 1}, "spec.yaml: True is no name; put it in quotes"),
    ],
)
def test_an_overlay_of_something_else_is_one_line(overlay: Any, message: str):
    with pytest.raises(ValueError, match=message):
        SPEC.completed(overlay, "spec.yaml")
