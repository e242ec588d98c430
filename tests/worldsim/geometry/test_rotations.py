"""Rotations in four kinds of numbers: by hand, round trips of random ones and of half turns, and differences to a reference."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldsim.core.channels import Frame, Meaning
from worldsim.geometry.rotations import convert, from_matrices, to_absolute, to_delta, to_matrices

H = math.sqrt(0.5)
# x goes to y, y to z, z to x: a third of a turn about (1, 1, 1). About fixed axes: 90 degrees about x takes y to z and z to -y,
# then 90 about z takes x to y and -y to x. Columns are where the axes go.
CYCLE = np.array([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]])
THIRD = 2 * math.pi / 3 / math.sqrt(3)
SAME: dict[Meaning, list[float]] = {
    "quaternion": [0.5, 0.5, 0.5, 0.5],  # sin(60 degrees) / sqrt(3) = 1/2 = cos(60 degrees)
    "euler": [math.pi / 2, 0, math.pi / 2],
    "axis_angle": [THIRD, THIRD, THIRD],
    "rotation_6d": [0, 1, 0, 0, 0, 1],
}
QUARTER_Z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
GENERATOR = np.random.default_rng(0)
RANDOM = Rotation.from_quat(GENERATOR.normal(size=(200, 4))).as_matrix().reshape(20, 10, 3, 3)
AXES = GENERATOR.normal(size=(50, 3))
NEAR_PI = AXES / np.linalg.norm(AXES, axis=1, keepdims=True) * (math.pi - np.logspace(-12, -1, 50)[:, None])


@pytest.mark.parametrize("meaning", SAME)
def test_a_third_of_a_turn_by_hand(meaning: Meaning):
    values = np.array(SAME[meaning])
    np.testing.assert_allclose(to_matrices(values, meaning), CYCLE, atol=1e-15)
    np.testing.assert_allclose(from_matrices(CYCLE, meaning), values, atol=1e-15)
    for other, same in SAME.items():
        np.testing.assert_allclose(convert(values, meaning, other), same, atol=2e-15)


@pytest.mark.parametrize("meaning", SAME)
@pytest.mark.parametrize("matrices", [RANDOM, Rotation.from_rotvec(NEAR_PI).as_matrix()], ids=["random", "near pi"])
def test_round_trips(meaning: Meaning, matrices: np.ndarray):
    """In float64 to the last bits, in float32 to those of float32; -q is q, and what comes out has w >= 0."""
    values = from_matrices(matrices, meaning)
    assert values.shape[:-1] == matrices.shape[:-2]
    np.testing.assert_allclose(to_matrices(values, meaning), matrices, atol=3e-15)
    single = convert(values.astype(np.float32), meaning, "rotation_6d")
    assert single.dtype == np.float32
    np.testing.assert_allclose(to_matrices(single, "rotation_6d"), matrices, atol=2e-6)
    if meaning == "quaternion":
        assert (values[..., 3] >= 0).all()
        np.testing.assert_allclose(convert(-3 * values, meaning, meaning), values, atol=2e-15)


def test_half_turns_keep_their_axis():
    np.testing.assert_allclose(convert(NEAR_PI, "axis_angle", "axis_angle"), NEAR_PI, atol=2e-8)
    np.testing.assert_allclose(convert(np.array([1.0, 0, 0, 0]), "quaternion", "axis_angle"), [math.pi, 0, 0], atol=1e-15)


def test_six_numbers_need_not_be_orthonormal():
    """(2, 0, 0) is x; what (3, 4, 0) has beside x is y, so the third is z."""
    np.testing.assert_allclose(to_matrices(np.array([2.0, 0, 0, 3, 4, 0]), "rotation_6d"), np.eye(3), atol=1e-15)


@pytest.mark.parametrize(
    ("frame", "position", "turn"),
    [
        # The tool is turned by 90 degrees about z: its x axis is the base's y, so 2 along y is 2 along the tool's x. From there to
        # CYCLE, which takes x to y, y to z, z to x: CYCLE Rz^-1 takes y = Rz x to y, so it keeps y and takes z to x; Rz^-1 CYCLE
        # takes x to y to x, so it keeps x and takes y to z.
        ("base", [0, 2, 1], [0, H, 0, H]),
        ("tool", [2, 0, 1], [H, 0, 0, H]),
    ],
)
def test_differences_by_hand(frame: Frame, position: list[float], turn: list[float]):
    here, there = np.array([1.0, 1, 1]), np.array([1.0, 3, 2])
    np.testing.assert_allclose(to_delta(there, here, "position", frame, QUARTER_Z), position, atol=1e-15)
    np.testing.assert_allclose(to_absolute(np.array(position), here, "position", frame, QUARTER_Z), there, atol=1e-15)
    now, then = np.array([0, 0, H, H]), np.array(SAME["quaternion"])
    np.testing.assert_allclose(to_delta(then, now, "quaternion", frame), turn, atol=1e-15)
    np.testing.assert_allclose(to_absolute(np.array(turn), now, "quaternion", frame), then, atol=1e-15)


@pytest.mark.parametrize("meaning", ["position", *SAME])
@pytest.mark.parametrize("frame", ["base", "tool"])
@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-14), (np.float32, 4e-6)])
def test_differences_round_trip(meaning: Meaning, frame: Frame, dtype: type, atol: float):
    """Of chunks [20, 10, d] to one reference each, [20, 1, d]."""
    values = GENERATOR.normal(size=(20, 10, 3)) if meaning == "position" else from_matrices(RANDOM, meaning)
    values, turned = values.astype(dtype), RANDOM[:, :1]
    reference = values[:, -1:]
    delta = to_delta(values, reference, meaning, frame, turned)
    again = to_absolute(delta, reference, meaning, frame, turned)
    assert delta.dtype == again.dtype == dtype and delta.shape == values.shape
    if meaning != "position":
        again, values = to_matrices(again, meaning), to_matrices(values, meaning)
    np.testing.assert_allclose(again, values, atol=atol)


@pytest.mark.parametrize(
    ("values", "meaning", "message"),
    [
        ([1.0, 0, 0], "quaternion", "quaternion of 3 values is no rotation"),
        ([1.0, 0, 0], "position", "position of 3 values is no rotation"),
        ([0.0, 0, 0, 0], "quaternion", "zero norm"),
        ([1.0, 0, 0, 2, 0, 0], "rotation_6d", "both are parallel"),
        ([0.0, 0, 0, 2, 0, 0], "rotation_6d", "a column is 0"),
    ],
)
def test_what_is_no_rotation_is_refused(values: list[float], meaning: Meaning, message: str):
    with pytest.raises(ValueError, match=message):
        to_matrices(np.array(values), meaning)


def test_a_tools_frame_needs_its_orientation():
    with pytest.raises(ValueError, match="need its orientation at the reference"):
        to_delta(np.zeros(3), np.zeros(3), "position", "tool")
