"""Alignment of a captured scene: exact where the data are, with an honest residual where they are not."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldsim.geometry.alignment import Similarity, from_cameras, from_fiducials, from_points, triangulate
from worldsim.geometry.cameras import Intrinsics, look_at, orbit


def rotation(rng: np.random.Generator) -> np.ndarray:
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def similarity(seed: int) -> Similarity:
    rng = np.random.default_rng(seed)
    return Similarity(float(np.exp(rng.uniform(-3, 3))), rotation(rng), rng.normal(size=3))


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(3, 20))
def test_exact_pairs_give_back_the_transform(seed: int, number: int):
    true, nerf = similarity(seed), np.random.default_rng(seed + 1).normal(size=(number, 3))
    found = from_points(nerf, true.points(nerf))
    assert found.similarity.scale == pytest.approx(true.scale, rel=1e-6)
    np.testing.assert_allclose(found.similarity.rotation, true.rotation, atol=1e-6)
    np.testing.assert_allclose(found.similarity.translation, true.translation, atol=1e-6)
    assert found.residual_mm < 1e-6


def test_residual_of_noisy_pairs_is_their_noise():
    """1 mm of noise on each coordinate of 2,000 points: sqrt(3) mm; the 7 fitted parameters take next to nothing of it."""
    true, rng = similarity(3), np.random.default_rng(0)
    nerf = rng.normal(size=(2000, 3))
    found = from_points(nerf, true.points(nerf) + 0.001 * rng.normal(size=(2000, 3)))
    assert found.residual_mm == pytest.approx(np.sqrt(3), rel=0.03)
    assert found.similarity.scale == pytest.approx(true.scale, rel=1e-3)


def test_mirrored_pairs_are_not_fitted_by_a_mirror():
    nerf = np.random.default_rng(0).normal(size=(10, 3))
    found = from_points(nerf, nerf * [1, 1, -1])
    assert np.linalg.det(found.similarity.rotation) == pytest.approx(1)
    assert found.residual_mm > 100


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_cameras_align_even_in_a_row(seed: int):
    true = similarity(seed)
    nerf = np.stack([look_at([0.3 * i, 0, 1], [1, 2 + i, 0]) for i in range(4)])  # positions alone leave a rotation open
    found = from_cameras(nerf, true.poses(nerf))
    assert found.similarity.scale == pytest.approx(true.scale, rel=1e-6)
    np.testing.assert_allclose(found.similarity.rotation, true.rotation, atol=1e-6)
    np.testing.assert_allclose(found.similarity.translation, true.translation, atol=1e-6)
    np.testing.assert_allclose(found.similarity.inverse().poses(true.poses(nerf)), nerf, atol=1e-6)


def test_transforms_compose():
    first, second, points = similarity(1), similarity(2), np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(second.after(first).points(points), second.points(first.points(points)))
    np.testing.assert_allclose(first.inverse().after(first).points(points), points, atol=1e-9)


@pytest.mark.parametrize(
    ("nerf", "words"),
    [
        (np.zeros((2, 3)), "at least 3 pairs"),
        (np.outer(np.arange(4.0), [1, 2, 3]), "on one line"),
        (np.full((4, 3), np.nan), "finite"),
        (np.zeros((4, 2)), "at least 3 pairs"),
    ],
)
def test_pairs_that_say_too_little_are_refused(nerf: np.ndarray, words: str):
    with pytest.raises(ValueError, match=words):
        from_points(nerf, nerf)


def test_cameras_that_say_too_little_are_refused():
    pose = look_at([1, 1, 1], [0, 0, 0])
    with pytest.raises(ValueError, match="at least 2 cameras"):
        from_cameras(pose[None], pose[None])
    with pytest.raises(ValueError, match="at one place"):
        from_cameras(np.stack([pose, pose]), np.stack([pose, pose]))


LENS = Intrinsics.from_fov(45, width=640, height=480)


def marker_image(pose: np.ndarray, markers: dict[int, np.ndarray]) -> np.ndarray:
    """A white floor with ArUco markers as the camera sees them."""
    dictionary = cv2.aruco.getPredefinedDictionary(cv2.aruco.DICT_4X4_50)
    image = np.full((480, 640), 255, np.uint8)
    for number, corners in markers.items():
        side = 240
        texture = cv2.aruco.generateImageMarker(dictionary, number, side)
        pixels = LENS.project(corners, pose)[0].astype(np.float32)
        square = np.array([[0, 0], [side, 0], [side, side], [0, side]], np.float32)
        warp = cv2.getPerspectiveTransform(square - 0.5, pixels - 0.5)  # OpenCV's pixel centres are whole numbers
        drawn = cv2.warpPerspective(texture, warp, (640, 480), flags=cv2.INTER_AREA, borderValue=255)
        inside = cv2.warpPerspective(np.full_like(texture, 255), warp, (640, 480))
        image = np.where(inside > 127, drawn, image).astype(np.uint8)
    return np.repeat(image[..., None], 3, axis=-1)


def square(x: float, y: float, side: float = 0.12) -> np.ndarray:
    """World corners of a marker that lies flat, clockwise from its top left as seen from above."""
    half = side / 2
    return np.array([[x - half, y + half, 0], [x + half, y + half, 0], [x + half, y - half, 0], [x - half, y - half, 0]])


def test_fiducials_align_a_scene_to_millimetres():
    markers = {3: square(-0.2, 0.1), 7: square(0.15, 0.2), 11: square(0.05, -0.2)}
    world = orbit(6, target=(0, 0, 0), radius=(0.9, 1.1), elevation=(45, 70), seed=2)
    images = [marker_image(pose, markers) for pose in world]
    true = Similarity(0.37, rotation(np.random.default_rng(5)), np.array([1.0, -2.0, 0.5]))
    nerf = true.inverse().poses(world)
    found = from_fiducials(images, LENS, nerf, markers)
    assert found.residual_mm < 2 and found.residual_px < 1
    assert found.similarity.scale == pytest.approx(true.scale, rel=0.01)
    np.testing.assert_allclose(found.similarity.points(nerf[:, :3, 3]), world[:, :3, 3], atol=0.01)
    with pytest.raises(ValueError, match="seen from two places"):
        from_fiducials(images[:1], LENS, nerf[:1], markers)
    with pytest.raises(ValueError, match="seen from two places"):
        from_fiducials(images, LENS, nerf, {4: square(0, 0)})


def test_triangulation_undoes_projection():
    lens = Intrinsics(300.0, 310.0, 155.0, 122.0, 320, 240, (0.08, -0.02, 0.001, -0.002))
    poses = orbit(3, target=(0, 0, 0), radius=(1, 1), elevation=(30, 60))
    point = np.array([0.05, -0.1, 0.07])
    pixels = np.stack([lens.project(point[None], pose)[0][0] for pose in poses])
    np.testing.assert_allclose(triangulate(lens, poses, pixels), point, atol=1e-5)


def test_saved_alignment_comes_back_and_a_damaged_one_is_refused(tmp_path: Path):
    path, true = tmp_path / "alignment.json", similarity(4)
    true.save(path)
    loaded = Similarity.load(path)
    assert loaded.scale == true.scale
    np.testing.assert_array_equal(loaded.rotation, true.rotation)
    data = json.loads(path.read_text())
    for change in (
        {"scale": -1},
        {"scale": None},
        {"rotation": np.eye(2).tolist()},
        {"rotation": (2 * np.eye(3)).tolist()},
        {"translation": [0, float("nan"), 0]},
    ):
        path.write_text(json.dumps(data | change))
        with pytest.raises(ValueError, match=r"alignment\.json"):
            Similarity.load(path)
    with pytest.raises(FileNotFoundError, match="has not been aligned"):
        Similarity.load(tmp_path / "nothing.json")
