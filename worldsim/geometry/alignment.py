"""The similarity transform between a NeRF's own coordinates and the world's metres, and how well it fits.

A captured scene has an arbitrary origin, orientation and scale; bodies simulated in metres can only stand in it once that is known.
Three sources: cameras known in both, pairs of points, or ArUco markers seen in the images. Read `compositing.py` next.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float

from worldsim.core.files import write_json
from worldsim.geometry.cameras import FLIP, Intrinsics

ALIGNMENT = "alignment.json"  # beside a field: from its coordinates to the world's
Points = Float[np.ndarray, "n 3"]


@dataclass(frozen=True)
class Similarity:
    """world = scale * rotation @ nerf + translation; lengths in the world are metres."""

    scale: float
    rotation: Float[np.ndarray, "3 3"]
    translation: Float[np.ndarray, " 3"]

    def points(self, nerf: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        """Points of the NeRF in the world."""
        return self.scale * nerf @ self.rotation.T + self.translation

    def poses(self, nerf: Float[np.ndarray, "*n 4 4"]) -> Float[np.ndarray, "*n 4 4"]:
        """Camera-to-NeRF poses as camera-to-world poses: the camera turns and moves, its axes keep their length."""
        world = np.array(nerf, dtype=float)
        world[..., :3, :3] = self.rotation @ world[..., :3, :3]
        world[..., :3, 3] = self.points(world[..., :3, 3])
        return world

    def inverse(self) -> "Similarity":
        """nerf = inverse.points(world)."""
        return Similarity(1 / self.scale, self.rotation.T, -self.rotation.T @ self.translation / self.scale)

    def after(self, first: "Similarity") -> "Similarity":
        """`first`, then this one."""
        return Similarity(self.scale * first.scale, self.rotation @ first.rotation, self.points(first.translation))

    def save(self, path: Path) -> None:
        """Write as JSON."""
        write_json(path, {"scale": self.scale, "rotation": self.rotation.tolist(), "translation": self.translation.tolist()})

    @classmethod
    def load(cls, path: Path) -> "Similarity":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged: a scale that is not positive, a rotation that is none, wrong shapes.
        """
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing; the scene has not been aligned with the world yet")
        try:
            data = json.loads(path.read_text())
            scale, rotation, translation = (
                float(data["scale"]),
                np.array(data["rotation"], float),
                np.array(data["translation"], float),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not an alignment: {error!r}; align the scene again") from error
        if rotation.shape != (3, 3) or translation.shape != (3,) or not scale > 0 or not np.isfinite([scale, *translation]).all():
            raise ValueError(f"{path} needs a positive scale, a 3x3 rotation and 3 numbers of translation; align the scene again")
        if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-6) or np.linalg.det(rotation) < 0:
            raise ValueError(f"the rotation in {path} is not orthonormal and right-handed; align the scene again")
        return cls(scale, rotation, translation)


@dataclass(frozen=True)
class Alignment:
    """A similarity and its residuals: root mean square over the points in millimetres, and over their images in pixels (NaN where
    no camera took part)."""

    similarity: Similarity
    residual_mm: float
    residual_px: float = float("nan")


def from_points(nerf: Points, world: Points) -> Alignment:
    """Least squares over pairs of points (Umeyama 1991, IEEE PAMI 13(4)).

    Raises:
        ValueError: for fewer than 3 pairs, points on one line, or values that are not finite.
    """
    if nerf.shape != world.shape or nerf.ndim != 2 or nerf.shape[1] != 3 or len(nerf) < 3:
        raise ValueError(f"alignment needs at least 3 pairs of points [n, 3], got {nerf.shape} and {world.shape}")
    if not (np.isfinite(nerf).all() and np.isfinite(world).all()):
        raise ValueError("alignment needs finite points; remove the pairs with NaN or infinity")
    a, b = nerf - nerf.mean(0), world - world.mean(0)
    u, singular, vt = np.linalg.svd(b.T @ a / len(a))
    if min(np.linalg.svd(points, compute_uv=False)[1] / np.linalg.norm(points) for points in (a, b)) < 1e-6:
        raise ValueError("the points lie on one line, so the rotation about it is unknown; add a point beside it")
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = u @ np.diag(sign) @ vt
    scale = float(singular @ sign / a.var(axis=0).sum())
    similarity = Similarity(scale, rotation, world.mean(0) - scale * rotation @ nerf.mean(0))
    return Alignment(similarity, 1000 * _rms(similarity.points(nerf) - world))


def from_cameras(nerf: Float[np.ndarray, "n 4 4"], world: Float[np.ndarray, "n 4 4"]) -> Alignment:
    """From cameras whose poses are known in both; orientations help where the positions lie on one line.

    Raises:
        ValueError: for fewer than 2 cameras, or if all of them stand at one place.
    """
    if nerf.shape != world.shape or nerf.shape[1:] != (4, 4) or len(nerf) < 2:
        raise ValueError(f"alignment needs at least 2 cameras [n, 4, 4] in both frames, got {nerf.shape} and {world.shape}")
    u, _, vt = np.linalg.svd((world[:, :3, :3] @ nerf[:, :3, :3].transpose(0, 2, 1)).sum(0))  # chordal mean of the rotations
    rotation = u @ np.diag([1.0, 1.0, np.linalg.det(u @ vt)]) @ vt
    positions, targets = nerf[:, :3, 3], world[:, :3, 3]
    turned = (positions - positions.mean(0)) @ rotation.T
    if np.square(turned).sum() < 1e-12:
        raise ValueError("all cameras stand at one place, so the scale is unknown; add a camera elsewhere")
    scale = float((turned * (targets - targets.mean(0))).sum() / np.square(turned).sum())
    if scale <= 0:
        raise ValueError(
            "the cameras' positions and orientations contradict each other; check that the pairs are in the same order"
        )
    similarity = Similarity(scale, rotation, targets.mean(0) - scale * rotation @ positions.mean(0))
    return Alignment(similarity, 1000 * _rms(similarity.points(positions) - targets))


def from_fiducials(
    images: Sequence[np.ndarray],
    intrinsics: Intrinsics,
    poses: Float[np.ndarray, "n 4 4"],
    markers: Mapping[int, Float[np.ndarray, "4 3"]],
    dictionary: int = cv2.aruco.DICT_4X4_50,
) -> Alignment:
    """From ArUco markers of known place: their corners are found in the images, triangulated in the NeRF and matched to the world.

    Args:
        images: RGB uint8 [h, w, 3].
        intrinsics: the lens they were taken with.
        poses: camera-to-NeRF, one per image.
        markers: world coordinates [m] of each marker's corners by its number, clockwise from its top left, as OpenCV finds them.
        dictionary: of the markers, one of OpenCV's.

    Raises:
        ValueError: if no marker is seen from two places.
    """
    detector = cv2.aruco.ArucoDetector(cv2.aruco.getPredefinedDictionary(dictionary))
    seen: dict[tuple[int, int], list[tuple[int, np.ndarray]]] = {}
    for view, image in enumerate(images):
        corners, numbers, _ = detector.detectMarkers(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))
        for quad, number in zip(corners, [] if numbers is None else numbers.flatten().tolist(), strict=True):
            if number in markers:
                for corner in range(4):
                    # OpenCV's pixel centres have whole coordinates, ours end in .5
                    seen.setdefault((number, corner), []).append((view, quad[0, corner].astype(float) + 0.5))
    twice = {key: views for key, views in seen.items() if len(views) >= 2}
    if not twice:
        raise ValueError(f"none of the markers {sorted(markers)} is seen from two places; take more pictures of them, closer")
    nerf = np.stack(
        [triangulate(intrinsics, poses[[v for v, _ in views]], np.stack([p for _, p in views])) for views in twice.values()]
    )
    world = np.stack([np.asarray(markers[number], dtype=float)[corner] for number, corner in twice])
    found = from_points(nerf, world)
    back = found.similarity.inverse().points(world)
    pixels = [
        intrinsics.project(point[None], poses[view])[0][0] - pixel
        for point, views in zip(back, twice.values(), strict=True)
        for view, pixel in views
    ]
    return Alignment(found.similarity, found.residual_mm, _rms(np.stack(pixels)))


def triangulate(
    intrinsics: Intrinsics, poses: Float[np.ndarray, "v 4 4"], pixels: Float[np.ndarray, "v 2"]
) -> Float[np.ndarray, " 3"]:
    """The point nearest to the rays through one pixel of each view, in the frame of the poses (direct linear transform)."""
    ideal = cv2.undistortPoints(pixels[:, None], intrinsics.matrix, np.array(intrinsics.distortion))[:, 0]
    rows = []
    for pose, (x, y) in zip(poses, ideal, strict=True):
        view = (FLIP @ np.linalg.inv(pose))[:3]
        rows += [x * view[2] - view[0], y * view[2] - view[1]]
    point = np.linalg.svd(np.stack(rows))[2][-1]
    return point[:3] / point[3]


def _rms(difference: np.ndarray) -> float:
    """Root mean square of the lengths of vectors."""
    return float(np.sqrt(np.square(difference).sum(axis=-1).mean()))
