"""Lenses and poses against OpenCV, and nerfstudio's file of them: damaged ones are refused."""

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

from worldsim.geometry.cameras import FLIP, Intrinsics, look_at, orbit, read_transforms, write_transforms

LENS = Intrinsics(300.0, 310.0, 155.0, 122.0, 320, 240, (0.08, -0.02, 0.001, -0.002))


def test_projection_is_opencvs():
    rng = np.random.default_rng(0)
    pose, points = look_at([0.3, -1.0, 0.8], [0, 0, 0.1]), rng.uniform(-0.3, 0.3, (50, 3))
    world_to_camera = FLIP @ np.linalg.inv(pose)
    expected, _ = cv2.projectPoints(
        points, cv2.Rodrigues(world_to_camera[:3, :3])[0], world_to_camera[:3, 3], LENS.matrix, np.array(LENS.distortion)
    )
    pixels, depth = LENS.project(points, pose)
    np.testing.assert_allclose(pixels, expected[:, 0], atol=1e-9)
    np.testing.assert_allclose(depth, (points - pose[:3, 3]) @ -pose[:3, 2], atol=1e-12)


def test_every_ray_ends_in_its_own_pixel():
    pose = look_at([0.3, -1.0, 0.8], [0, 0, 0.1])
    rays = LENS.directions() @ pose[:3, :3].T
    pixels, depth = LENS.project((pose[:3, 3] + 2.0 * rays).reshape(-1, 3), pose)
    columns, rows = np.meshgrid(np.arange(320) + 0.5, np.arange(240) + 0.5)
    np.testing.assert_allclose(pixels, np.stack([columns, rows], -1).reshape(-1, 2), atol=1e-4)
    np.testing.assert_allclose(depth.reshape(240, 320), 2.0 * LENS.planar_per_ray(), atol=1e-9)


def test_field_of_view_is_vertical():
    lens = Intrinsics.from_fov(40, width=64, height=48)
    top = look_at([0, 0, 0], [0, 1, 0])
    pixels, _ = lens.project(np.array([[0, 1, math.tan(math.radians(20))], [0, 1, 0]]), top)
    np.testing.assert_allclose(pixels, [[32, 0], [32, 24]], atol=1e-9)


def test_orbit_looks_at_its_target_from_where_it_should():
    target = np.array([0.1, -0.2, 0.05])
    poses = orbit(40, target=target, radius=(0.7, 0.9), elevation=(20, 70), seed=1)
    away = poses[:, :3, 3] - target
    distance = np.linalg.norm(away, axis=1)
    assert ((distance > 0.7) & (distance < 0.9)).all()
    elevation = np.rad2deg(np.arcsin(away[:, 2] / distance))
    assert (elevation > 20).all() and (elevation < 70).all() and np.ptp(elevation) > 20
    np.testing.assert_allclose(poses[:, :3, 2], away / distance[:, None], atol=1e-9)
    assert (poses[:, 2, 1] > 0).all()  # nothing stands on its head
    azimuth = np.sort(np.arctan2(away[:, 1], away[:, 0]))
    assert np.diff(azimuth).max() < 2 * math.pi / 40 * 3  # golden angles leave no gap
    with pytest.raises(ValueError, match="choose another up"):
        look_at([0, 0, 1], [0, 0, 0])


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    poses = orbit(3, target=(0, 0, 0), radius=(1, 1), elevation=(30, 30))
    (tmp_path / "images").mkdir()
    files = [f"images/{i}.png" for i in range(3)]
    for file in files:
        (tmp_path / file).write_bytes(b"")
    write_transforms(tmp_path, LENS, poses, files)
    return tmp_path


def test_transforms_come_back(dataset: Path):
    lens, poses, files = read_transforms(dataset)
    assert lens == LENS
    np.testing.assert_array_equal(poses, orbit(3, target=(0, 0, 0), radius=(1, 1), elevation=(30, 30)))
    assert [file.name for file in files] == ["0.png", "1.png", "2.png"]


def damage(data: dict, what: str) -> None:
    frame = data["frames"][1]
    changes = {
        "no focal length": lambda: data.pop("fl_x"),
        "no frames": lambda: data.update(frames=[]),
        "fisheye": lambda: data.update(camera_model="OPENCV_FISHEYE"),
        "3x4": lambda: frame.update(transform_matrix=frame["transform_matrix"][:3]),
        "NaN": lambda: frame["transform_matrix"][0].__setitem__(3, math.nan),
        "mirrored": lambda: [row.__setitem__(0, -row[0]) for row in frame["transform_matrix"]],
        "scaled": lambda: [row.__setitem__(slice(0, 3), [2 * x for x in row[:3]]) for row in frame["transform_matrix"][:3]],
        "text": lambda: frame.update(transform_matrix="identity"),
    }
    changes[what]()


@pytest.mark.parametrize("what", ["no focal length", "no frames", "fisheye", "3x4", "NaN", "mirrored", "scaled", "text"])
def test_a_damaged_dataset_is_refused_by_name(dataset: Path, what: str):
    data = json.loads((dataset / "transforms.json").read_text())
    damage(data, what)
    (dataset / "transforms.json").write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"transforms\.json"):
        read_transforms(dataset)


def test_a_missing_image_or_file_is_named(dataset: Path, tmp_path: Path):
    (dataset / "images" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1\.png"):
        read_transforms(dataset)
    with pytest.raises(FileNotFoundError, match="ns-process-data"):
        read_transforms(tmp_path / "nowhere")
