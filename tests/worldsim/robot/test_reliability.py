"""Reliability of single observations: numbers by hand, and pictures that are blurred, dark, white or from elsewhere."""

import json

import numpy as np
import pytest
from toy_robot import SIZE, blurred, walk

from worldsim.robot.reliability import (
    ARRAYS,
    GRID,
    THRESHOLDS,
    exposure,
    features,
    fit_reference,
    motion_unseen,
    ramp,
    read_reference,
    sharpness,
    write_reference,
)

VIEWS = {"front": (SIZE, SIZE)}


def episode(seed: int, steps: int = 40):
    images, states = walk(seed, steps)
    return {"front": images}, states


@pytest.fixture(scope="module")
def reference():
    return fit_reference([episode(i) for i in range(20)], [episode(100 + i) for i in range(10)], VIEWS)


def test_features_by_hand():
    image = np.zeros((8, 12, 3), np.uint8)
    image[:2, :3] = (255, 0, 51)  # the first field
    image[7, 11] = 255  # one pixel of the 2 x 3 of the last field
    vector = features(image, np.array([0.5, -2.0]))
    assert vector.shape == (3 * GRID**2 + 2,)
    np.testing.assert_allclose(vector[:3], [1, 0, 0.2])
    np.testing.assert_allclose(vector[45:], [1 / 6, 1 / 6, 1 / 6, 0.5, -2])
    assert not vector[3:45].any()


def test_features_of_sides_that_do_not_divide():
    image = np.full((7, 10, 3), 51, np.uint8)
    np.testing.assert_allclose(features(image, np.zeros(0)), 0.2)
    for wrong in (image.astype(float), image[:3], image[..., :1], image[0]):
        with pytest.raises(ValueError, match="image must be uint8"):
            features(wrong, np.zeros(0))


def test_sharpness_by_hand():
    image = np.zeros((5, 5, 3), np.uint8)
    image[2, 2] = 9
    # The Laplacian is -36 there, 9 at four neighbours and 0 at four: mean 0, (36^2 + 4 * 81) / 9 = 180.
    assert sharpness(image) == pytest.approx(180)
    assert sharpness(np.full((5, 5, 3), 77, np.uint8)) == 0


def test_exposure():
    picture = walk(0)[0][0]
    assert exposure(picture) == 1
    assert exposure(np.zeros_like(picture)) == exposure(np.full_like(picture, 255)) == 0
    nearly = np.zeros((10, 10, 3), np.uint8)
    nearly[0] = 200  # a tenth is lit
    assert exposure(nearly) == 1


def test_ramp():
    assert [ramp(value, good=2, bad=4) for value in (1, 2, 2.5, 3, 4, 9)] == [1, 1, 0.75, 0.5, 0, 0]
    assert [ramp(value, good=4, bad=2) for value in (1, 2, 3, 4, 9)] == [0, 0, 0.5, 1, 1]
    assert ramp(float("nan"), good=0, bad=1) == 0
    assert (ramp(1, good=1, bad=1), ramp(2, good=1, bad=1)) == (1, 0)


def test_distance_by_hand():
    images, states = np.full((20, 8, 8, 3), 100, np.uint8), np.arange(20, dtype=np.float32)[:, None]
    images[10:] = 151  # 0.2 brighter: every colour has a standard deviation of 0.1
    reference = fit_reference([({"front": images}, states)], [({"front": images}, states)], {"front": (8, 8)})
    np.testing.assert_allclose(reference.scale, [*[0.1] * 48, np.sqrt(399 / 12)])  # (20^2 - 1) / 12 for 0 ... 19
    # From state 0, the five nearest are 0, 1, 2, 3 and 4 away, all of them as dark: mean 2.
    assert reference.distance(images[0], np.array([0.0])) == pytest.approx(2 / np.sqrt(399 / 12), rel=1e-5)
    # All 48 colours 0.1 darker are one standard deviation each from the dark ones.
    darker = reference.distance(images[0] - 25, np.array([2.0]))
    away = [np.sqrt(48 * (25 / 25.5) ** 2 + n**2 / (399 / 12)) for n in (0, 1, 1, 2, 2)]
    assert darker == pytest.approx(np.mean(away), rel=1e-5)
    assert reference.moved.tolist() == [9 * 1.5]  # the picture did not change while the state went from 0 to 9


def test_an_element_that_never_moved_may_jitter():
    images, states = walk(0)
    still = np.concatenate([states, np.zeros((40, 1), np.float32)], axis=1)
    episodes = [({"front": images}, still)]
    assert fit_reference(episodes, episodes, VIEWS).scale[-1] == pytest.approx(0.05 * states.std(axis=0).max())


def test_training_is_familiar_and_other_scenes_are_not(reference):
    images, states = walk(555)
    known = [reference.familiarity(*pair) for pair in zip(images, states, strict=True)]
    assert np.mean(known) > 0.9
    rng = np.random.default_rng(0)
    for other in (
        255 - images[0],
        rng.integers(0, 256, images[0].shape, dtype=np.uint8),
        images[0] // 3,
    ):
        assert reference.familiarity(other, states[0]) == 0
    assert reference.familiarity(images[0], states[0] + 2) == 0


def test_blur_is_noticed(reference):
    images, _ = walk(556)
    assert np.mean([reference.clarity(image) for image in images]) > 0.95
    assert max(reference.clarity(blurred(image)) for image in images) == 0


def test_motion_that_a_coarse_camera_does_not_see():
    a, b = np.zeros((4, 4, 3), np.uint8), np.ones((4, 4, 3), np.uint8)
    states = np.array([[0, 0], [1, 0], [3, -1], [9, 9], [9.5, 9]])
    np.testing.assert_array_equal(motion_unseen(np.stack([a, a, a, b, b]), states), [3, 1])


def test_the_camera_that_sees_least_says_what_may_move_unseen():
    """The wrist's picture changes with every step of 1, the front's with every fourth: 3 go unseen, times 1.5."""
    states = np.arange(20, dtype=np.float32)[:, None]
    wrist = np.full((20, 8, 8, 3), 60, np.uint8) + 5 * np.arange(20, dtype=np.uint8)[:, None, None, None]
    front = wrist[np.arange(20) // 4 * 4]
    for order in (("front", "wrist"), ("wrist", "front")):
        seen = [({"front": front, "wrist": wrist}, states)]
        assert fit_reference(seen, seen, dict.fromkeys(order, (8, 8))).moved.tolist() == [4.5]


def test_a_reference_is_of_the_mosaic_at_the_sizes_of_the_views():
    """The front is grey and twice as large as its view, the wrist's colours vary, as large as its own. Fields are 4 x 4 pixels."""
    brightness = np.linspace(50, 200, 20).astype(np.uint8)[:, None, None, None]
    wrist = np.broadcast_to(brightness, (20, 16, 8, 3)).copy()
    seen = [({"wrist": wrist, "front": np.full((20, 32, 16, 3), 100, np.uint8)}, np.zeros((20, 1), np.float32))]
    reference = fit_reference(seen, seen, {"front": (16, 8), "wrist": (16, 8)})
    fields = reference.mean[:-1].reshape(4, 4, 3)
    np.testing.assert_allclose(fields[:, :2], 100 / 255)
    np.testing.assert_allclose(fields[:, 2:], brightness.mean() / 255)


def test_a_reference_is_written_and_read_back(reference, tmp_path):
    assert write_reference(reference, tmp_path) == [ARRAYS, THRESHOLDS]
    again = read_reference(tmp_path)
    image, state = (part[0] for part in walk(7))
    assert again.distance(image, state) == pytest.approx(reference.distance(image, state), rel=1e-12)
    assert again.clarity(image) == reference.clarity(image)
    assert again.moved.tolist() == reference.moved.tolist()
    with pytest.raises(ValueError, match="state must have 2 elements as in training, got 3"):
        again.distance(image, np.zeros(3))


@pytest.mark.parametrize("change", [{"grid": 8}, {"near": None}, {"mean": [1.0]}, {"moved": [0.0]}])
def test_a_reference_of_other_features_is_refused(reference, tmp_path, change):
    write_reference(reference, tmp_path)
    content = {**json.loads((tmp_path / THRESHOLDS).read_text()), **change}
    (tmp_path / THRESHOLDS).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    with pytest.raises(ValueError, match="export the policy again"):
        read_reference(tmp_path)


def test_pickled_arrays_are_never_read(reference, tmp_path):
    write_reference(reference, tmp_path)
    np.save(tmp_path / ARRAYS, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_reference(tmp_path)


def test_too_little_data_is_refused():
    with pytest.raises(ValueError, match="at least 20 training and held-out observations, got 40 and 10"):
        fit_reference([episode(0)], [episode(1, steps=10)], VIEWS)
    same = {"front": np.full((30, SIZE, SIZE, 3), 9, np.uint8)}, np.zeros((30, 2), np.float32)
    with pytest.raises(ValueError, match="all training pictures are alike"):
        fit_reference([same], [same], VIEWS)
    with pytest.raises(ValueError, match="the policy looks through camera 'wrist', there is front"):
        fit_reference([episode(0)], [episode(1)], {"wrist": (8, 8)})
