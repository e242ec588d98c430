"""Pinhole cameras with lens distortion, as every renderer here understands them, and nerfstudio's `transforms.json`.

A pose is camera-to-world in the OpenGL convention that nerfstudio, Blender and Genesis share: x right, y up, the camera looks along
-z. Pixel (column i, row j) is looked at through its centre (i + 0.5, j + 0.5). Read `alignment.py` next.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float

from worldsim.core.files import write_json

Pose = Float[np.ndarray, "4 4"]
FLIP = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenGL's camera axes <-> OpenCV's (x right, y down, z forward)


@dataclass(frozen=True)
class Intrinsics:
    """Focal lengths and principal point [pixels], image size [pixels] and OpenCV's distortion k1, k2, p1, p2."""

    fx: float
    fy: float
    cx: float
    cy: float
    width: int
    height: int
    distortion: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)

    @classmethod
    def from_fov(cls, degrees: float, *, width: int, height: int) -> "Intrinsics":
        """Square pixels, the axis in the middle, a vertical field of view as simulators give it."""
        focal = height / (2 * math.tan(math.radians(degrees) / 2))
        return cls(focal, focal, width / 2, height / 2, width, height)

    @property
    def matrix(self) -> Float[np.ndarray, "3 3"]:
        """OpenCV's camera matrix."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]])

    def directions(self) -> Float[np.ndarray, "h w 3"]:
        """Unit vectors through the pixels' centres, in OpenGL's camera axes."""
        columns, rows = np.meshgrid(np.arange(self.width) + 0.5, np.arange(self.height) + 0.5)
        pixels = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
        steps = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 50, 1e-10)
        flat = cv2.undistortPointsIter(pixels, self.matrix, np.array(self.distortion), np.eye(3), np.eye(3), steps)
        x, y = flat.reshape(self.height, self.width, 2).transpose(2, 0, 1)
        rays = np.stack([x, -y, -np.ones_like(x)], axis=-1)
        return rays / np.linalg.norm(rays, axis=-1, keepdims=True)

    def planar_per_ray(self) -> Float[np.ndarray, "h w"]:
        """Cosine between each pixel's ray and the optical axis: planar depth = this * distance along the ray."""
        return -self.directions()[..., 2]

    def project(self, points: Float[np.ndarray, "n 3"], pose: Pose) -> tuple[Float[np.ndarray, "n 2"], Float[np.ndarray, " n"]]:
        """Pixel coordinates (column, row) and planar depth of points in the world; the depth of points behind is negative."""
        world_to_camera = FLIP @ np.linalg.inv(pose)
        seen = points @ world_to_camera[:3, :3].T + world_to_camera[:3, 3]
        x, y = (seen[:, :2] / seen[:, 2:]).T
        k1, k2, p1, p2 = self.distortion
        r2 = x * x + y * y
        radial = 1 + k1 * r2 + k2 * r2 * r2
        bent_x = x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)
        bent_y = y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y
        return np.stack([self.fx * bent_x + self.cx, self.fy * bent_y + self.cy], axis=1), seen[:, 2]


def look_at(position: Sequence[float], target: Sequence[float], up: Sequence[float] = (0, 0, 1)) -> Pose:
    """The pose of a camera at `position` that looks at `target`.

    Raises:
        ValueError: if it looks along `up`, or nowhere.
    """
    eye = np.asarray(position, dtype=float)
    back = eye - np.asarray(target, dtype=float)
    right = np.cross(np.asarray(up, dtype=float), back)
    if np.linalg.norm(right) < 1e-9:
        raise ValueError(f"a camera at {list(position)} cannot look at {list(target)} with {list(up)} up; choose another up")
    back, right = back / np.linalg.norm(back), right / np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
    return pose


def orbit(
    number: int, *, target: Sequence[float], radius: tuple[float, float], elevation: tuple[float, float], seed: int = 0
) -> Float[np.ndarray, "number 4 4"]:
    """Poses around a target, evenly in azimuth (golden angle), at random distances [m] and elevations [degrees]."""
    rng = np.random.default_rng(seed)
    azimuth = np.arange(number) * math.pi * (3 - math.sqrt(5))
    height, distance = np.deg2rad(rng.uniform(*elevation, number)), rng.uniform(*radius, number)
    around = np.stack([np.cos(height) * np.cos(azimuth), np.cos(height) * np.sin(azimuth), np.sin(height)], axis=1)
    return np.stack([look_at(np.asarray(target) + d * offset, target) for d, offset in zip(distance, around, strict=True)])


def around(
    number: int, *, low: Sequence[float], high: Sequence[float], tilt: tuple[float, float], seed: int = 0
) -> Float[np.ndarray, "number 4 4"]:
    """Poses at random places of a box [m], evenly in azimuth (golden angle), at random tilts [degrees, up is positive]: how a robot
    sees the room that it is in."""
    rng = np.random.default_rng(seed)
    azimuth = np.arange(number) * math.pi * (3 - math.sqrt(5))
    up, places = np.deg2rad(rng.uniform(*tilt, number)), rng.uniform(low, high, (number, 3))
    ahead = np.stack([np.cos(up) * np.cos(azimuth), np.cos(up) * np.sin(azimuth), np.sin(up)], axis=1)
    return np.stack([look_at(place, place + direction) for place, direction in zip(places, ahead, strict=True)])


def write_transforms(
    folder: Path,
    intrinsics: Intrinsics,
    poses: Float[np.ndarray, "n 4 4"],
    files: Sequence[str],
    depth: Sequence[str] | None = None,
) -> Path:
    """nerfstudio's `transforms.json` for images with one lens; `files` and `depth` (16 bit, mm) are relative to `folder`."""
    lens = {"fl_x": intrinsics.fx, "fl_y": intrinsics.fy, "cx": intrinsics.cx, "cy": intrinsics.cy}
    lens |= {"w": intrinsics.width, "h": intrinsics.height, "camera_model": "OPENCV"}
    lens |= dict(zip(("k1", "k2", "p1", "p2"), intrinsics.distortion, strict=True))
    frames: list[dict[str, Any]] = [
        {"file_path": str(file), "transform_matrix": pose.tolist()} for file, pose in zip(files, poses, strict=True)
    ]
    for frame, file in zip(frames, depth or (), strict=depth is not None):
        frame["depth_file_path"] = str(file)
    write_json(folder / "transforms.json", {**lens, "frames": frames})
    return folder / "transforms.json"


def read_transforms(folder: Path) -> tuple[Intrinsics, Float[np.ndarray, "n 4 4"], list[Path]]:
    """Lens, poses and image files of a nerfstudio dataset, as `ns-process-data` and `write_transforms` leave it.

    Raises:
        FileNotFoundError: if there is no `transforms.json`, or an image that it names is missing.
        ValueError: if it is damaged, has no frames, several lenses, a lens that is not OPENCV's, or a pose that is no rigid motion.
    """
    path = folder / "transforms.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; make it with ns-process-data or worldsim collect capture=orbit")
    try:
        data: dict[str, Any] = json.loads(path.read_text())
        size = (int(data["w"]), int(data["h"]))
        lens = Intrinsics(
            *(float(data[key]) for key in ("fl_x", "fl_y", "cx", "cy")),
            *size,
            tuple(float(data.get(key, 0)) for key in ("k1", "k2", "p1", "p2")),  # type: ignore[arg-type]
        )
        files = [folder / str(frame["file_path"]) for frame in data["frames"]]
        poses = np.array([frame["transform_matrix"] for frame in data["frames"]], dtype=float)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a nerfstudio dataset with one lens: {error!r}; see docs.nerf.studio, 'Data conventions'"
        ) from error
    if data.get("camera_model", "OPENCV") not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE"):
        raise ValueError(f"{path} has camera_model {data['camera_model']!r}, expected OPENCV; undistort the images first")
    if poses.shape != (len(files), 4, 4) or not files:
        raise ValueError(
            f"{path} has transform_matrix entries of shape {poses.shape[1:]} for {len(files)} frames, expected 4x4 each"
        )
    rotation = poses[:, :3, :3]
    rigid = np.allclose(rotation @ rotation.transpose(0, 2, 1), np.eye(3), atol=1e-3) and (np.linalg.det(rotation) > 0).all()
    if not (np.isfinite(poses).all() and rigid and np.allclose(poses[:, 3], [0, 0, 0, 1])):
        raise ValueError(f"{path} holds a transform_matrix that is not a rotation and a translation; export the poses again")
    if missing := [file for file in files if not file.is_file()]:
        raise FileNotFoundError(f"{path} names {missing[0]}, which is missing ({len(missing)} in all); copy the images beside it")
    return lens, poses, files
