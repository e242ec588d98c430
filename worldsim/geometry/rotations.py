"""Positions and rotations of a tool in the numbers that robots speak, and absolute ones as differences to a reference and back.

Everything goes through rotation matrices, in float64; what comes out has the precision of what went in. In quaternions, x, y, z, w,
the real part is last and not negative. Euler angles turn about the fixed axes x, then y, then z (extrinsic, in radians). A rotation
vector (axis_angle) points along the axis and is as long as the angle in radians. Six numbers (rotation_6d) are the first column of
the matrix and then the second one (Zhou et al., On the Continuity of Rotation Representations in Neural Networks, CVPR 2019);
PyTorch3D writes the first two rows instead. Which channels are what, a `Group` of `worldsim/core/channels.py` says: read that next.
"""

import numpy as np
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from worldsim.core.channels import WIDTHS, Frame, Meaning

Values = Float[np.ndarray, "*b d"]
Matrices = Float[np.ndarray, "*#b 3 3"]
PARALLEL = 1e-6  # least sine between two columns that say a rotation


def to_matrices(values: Values, meaning: Meaning) -> Float[np.ndarray, "*b 3 3"]:
    """Rotation matrices, float64, of quaternions (of any length above 0), Euler angles, rotation vectors or six numbers.

    Raises:
        ValueError: if the meaning is no rotation, or values have another width or say none: a quaternion of length 0, or columns
            that are parallel.
    """
    if meaning == "position" or values.shape[-1] != WIDTHS[meaning]:
        raise ValueError(f"{meaning} of {values.shape[-1]} values is no rotation; expected {_ROTATIONS}")
    flat = values.reshape(-1, values.shape[-1]).astype(np.float64)
    if meaning == "quaternion":
        matrices = Rotation.from_quat(flat).as_matrix()
    elif meaning == "euler":
        matrices = Rotation.from_euler("xyz", flat).as_matrix()
    elif meaning == "axis_angle":
        matrices = Rotation.from_rotvec(flat).as_matrix()
    else:
        matrices = _orthonormal(flat[:, :3], flat[:, 3:])
    return matrices.reshape(*values.shape[:-1], 3, 3)


def from_matrices(matrices: Float[np.ndarray, "*b 3 3"], meaning: Meaning) -> Values:
    """The inverse of `to_matrices`; a quaternion has length 1, a rotation vector at most pi."""
    if meaning == "position":
        raise ValueError(f"a matrix is no position; expected {_ROTATIONS}")
    flat = matrices.reshape(-1, 3, 3)
    if meaning == "quaternion":
        values = Rotation.from_matrix(flat).as_quat(canonical=True)
    elif meaning == "euler":
        values = Rotation.from_matrix(flat).as_euler("xyz")
    elif meaning == "axis_angle":
        values = Rotation.from_matrix(flat).as_rotvec()
    else:
        values = np.concatenate([flat[:, :, 0], flat[:, :, 1]], axis=1)
    return values.reshape(*matrices.shape[:-2], WIDTHS[meaning])


def convert(values: Values, old: Meaning, new: Meaning) -> Values:
    """The same rotations in other numbers."""
    return from_matrices(to_matrices(values, old), new).astype(_precision(values))


def to_delta(values: Values, reference: Values, meaning: Meaning, frame: Frame, orientation: Matrices | None = None) -> Values:
    """Absolute positions or rotations as differences to a reference.

    A position: p - p0 in the base frame, R0^T (p - p0) in the tool's. A rotation: D with R = D R0 in the base frame, R = R0 D in
    the tool's, in the numbers of `meaning`.

    Args:
        values: what to say otherwise, [..., d], as d stands in `WIDTHS`.
        reference: what to measure from, in the same numbers; broadcast over values.
        meaning: of both.
        frame: in which the difference is measured.
        orientation: of the tool at the reference, R0, for positions in its frame.

    Raises:
        ValueError: if positions are wanted in the tool's frame and nobody says how it is turned.
    """
    if meaning == "position":
        difference = values.astype(np.float64) - reference
        if frame == "tool":
            difference = (difference[..., None, :] @ _turned(orientation))[..., 0, :]  # R0^T d as a row
        return difference.astype(_precision(values))
    absolute, start = to_matrices(values, meaning), to_matrices(reference, meaning)
    back = np.swapaxes(start, -1, -2)
    return from_matrices(absolute @ back if frame == "base" else back @ absolute, meaning).astype(_precision(values))


def to_absolute(values: Values, reference: Values, meaning: Meaning, frame: Frame, orientation: Matrices | None = None) -> Values:
    """The inverse of `to_delta`, with the same arguments."""
    if meaning == "position":
        difference = values.astype(np.float64)
        if frame == "tool":
            difference = (difference[..., None, :] @ np.swapaxes(_turned(orientation), -1, -2))[..., 0, :]  # R0 d as a row
        return (reference + difference).astype(_precision(values))
    difference, start = to_matrices(values, meaning), to_matrices(reference, meaning)
    return from_matrices(difference @ start if frame == "base" else start @ difference, meaning).astype(_precision(values))


_ROTATIONS = "quaternion (4), euler (3), axis_angle (3) or rotation_6d (6)"


def _precision(values: Values) -> np.dtype:
    """That of the values; whole numbers become float64."""
    return np.result_type(values.dtype, np.float32)


def _turned(orientation: Matrices | None) -> Matrices:
    if orientation is None:
        raise ValueError("positions in the tool's frame need its orientation at the reference; give it, or use the frame base")
    return orientation


def _orthonormal(first: Float[np.ndarray, "n 3"], second: Float[np.ndarray, "n 3"]) -> Float[np.ndarray, "n 3 3"]:
    """Zhou et al. (2019), equation 15: the first column keeps its direction, the second what is orthogonal to it."""
    lengths = [np.linalg.norm(column, axis=1, keepdims=True) for column in (first, second)]
    x = first / np.maximum(lengths[0], np.finfo(float).tiny)
    y = second / np.maximum(lengths[1], np.finfo(float).tiny)
    y = y - (x * y).sum(axis=1, keepdims=True) * x
    if (sine := np.linalg.norm(y, axis=1, keepdims=True)).size and (sine.min() < PARALLEL or min(map(np.min, lengths)) == 0):
        raise ValueError("six numbers are no rotation where a column is 0 or both are parallel; expected two independent columns")
    y = y / sine
    return np.stack([x, y, np.cross(x, y)], axis=-1)
