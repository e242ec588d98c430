"""How far an observation may be trusted, as a number in [0, 1]: pure functions of pixels, state and training data.

A policy answers with equal confidence in front of a smeared lens and of a scene it has never seen. A robot that knows what its
training looked like can slow down instead. Read `autonomy.py` next: it adds time and decides.

Every estimate is a ramp between a value at which all is well (1) and one at which nothing is to be trusted (0).
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from worldsim.core.views import Views, mosaic

ARRAYS, THRESHOLDS = "reliability.npy", "reliability.json"
GRID = 4  # the picture is described by the mean colours of GRID x GRID fields
NEIGHBOURS = 5
MAX_ROWS = 1000
FEWEST = 20  # observations that say anything about a distribution
QUANTILE = 0.99  # of held-out training data; up to there all is well
Frames = tuple[Mapping[str, np.ndarray], np.ndarray]  # images uint8 [t, h, w, 3] by camera and states [t, s] of an episode
_BLACK, _WHITE, _FLAT_SHARE = 8, 247, 0.98  # grey levels, and the share of pixels that makes a camera blind


@dataclass(frozen=True, eq=False)
class Reference:
    """What training looked like; its images are the mosaics of a policy's views.

    Attributes:
        rows: standardised features of training observations, float32 [n, f].
        mean, scale: that standardise features, [f].
        moved: how far each element of the state must move before the picture must change, [s].
        near, far: distances to `rows` up to which all is well, and from which nothing is.
        sharp, blurred: sharpness down to which all is well, and from which nothing is.
    """

    rows: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    moved: np.ndarray
    near: float
    far: float
    sharp: float
    blurred: float

    def distance(self, image: np.ndarray, state: np.ndarray) -> float:
        """Mean Euclidean distance of the standardised features to those of the nearest training observations.

        Raises:
            ValueError: if the state has another length than in training.
        """
        vector = features(image, state)
        if vector.shape != self.mean.shape:
            raise ValueError(f"state must have {len(self.mean) - 3 * GRID**2} elements as in training, got {len(state)}")
        squares = np.square(self.rows - (vector - self.mean) / self.scale).sum(axis=1)
        return float(np.sqrt(np.partition(squares, NEIGHBOURS - 1)[:NEIGHBOURS]).mean())

    def familiarity(self, image: np.ndarray, state: np.ndarray) -> float:
        """1 near the training data, 0 far from it."""
        return ramp(self.distance(image, state), good=self.near, bad=self.far)

    def clarity(self, image: np.ndarray) -> float:
        """1 as sharp as in training, 0 blurred."""
        return ramp(sharpness(image), good=self.sharp, bad=self.blurred)


def fit_reference(training: Sequence[Frames], held_out: Sequence[Frames], views: Views, *, seed: int = 0) -> Reference:
    """Describe training episodes, and set the thresholds on other episodes of the same kind.

    `near` is the 0.99 quantile of the held-out distances, and `far` lies as far beyond it as three times its distance from their
    median. `sharp` is the 0.01 quantile of held-out sharpness, and `blurred` half of that.

    Args:
        training: (images uint8 [t, h, w, 3] by camera, of any size, states [t, s]) of each episode.
        held_out: the same, of episodes that are not among them.
        views: of the policy.
        seed: of the choice of at most 1,000 rows.

    Raises:
        ValueError: if there are fewer than 20 observations of either kind, the training pictures are all alike, or a camera of
            the views is missing.
    """
    frames, held = (
        [pair for images, states in part for pair in zip(mosaic(images, views), states, strict=True)]
        for part in (training, held_out)
    )
    if min(len(frames), len(held)) < FEWEST:
        raise ValueError(f"expected at least {FEWEST} training and held-out observations, got {len(frames)} and {len(held)}")
    chosen = np.random.default_rng(seed).permutation(len(frames))[:MAX_ROWS]
    vectors = np.stack([features(*frames[i]) for i in chosen])
    mean, scale = vectors.mean(axis=0), _scale(vectors.std(axis=0))
    rows = ((vectors - mean) / scale).astype(np.float32)
    episodes = (*training, *held_out)
    unseen = np.max([motion_unseen(images[name], states) for images, states in episodes for name in views], axis=0)
    moved = np.maximum(1.5 * unseen, 0.05 * np.std([state for _, state in frames], axis=0))
    draft = Reference(rows, mean, scale, moved, near=0, far=1, sharp=1, blurred=0)
    near, usual = np.quantile([draft.distance(*pair) for pair in held], [QUANTILE, 0.5])
    sharp = float(np.quantile([sharpness(image) for image, _ in held], 1 - QUANTILE))
    far = float(near + 3 * (near - usual))
    return Reference(rows, mean, scale, moved, near=float(near), far=far, sharp=sharp, blurred=sharp / 2)


def _scale(deviation: np.ndarray) -> np.ndarray:
    """One scale for all colours, so that a field that hardly ever changed does not outweigh the others; for the state, its own."""
    colours, state = np.split(deviation, [3 * GRID**2])
    colour = np.sqrt(np.square(colours).mean())
    if not colour > 1e-6:
        raise ValueError("all training pictures are alike; pass observations of whole episodes")
    least = 0.05 * state.max(initial=0)  # an element that stood still in training will jitter some day
    return np.concatenate([np.full_like(colours, colour), np.maximum(state, least if least > 0 else 1.0)])


def motion_unseen(images: np.ndarray, states: np.ndarray) -> np.ndarray:
    """How far each element of the state moved at most while a camera's picture stayed exactly the same, [s].

    A slow robot in front of a coarse camera is not a frozen camera.
    """
    most, first = np.zeros(np.shape(states)[1]), 0
    for i in range(1, len(images)):
        if np.array_equal(images[i], images[first]):
            most = np.maximum(most, np.abs(states[i] - states[first]))
        else:
            first = i
    return most


def write_reference(reference: Reference, folder: Path) -> list[str]:
    """Write `reliability.npy` and `reliability.json`; returns their names."""
    np.save(folder / ARRAYS, reference.rows, allow_pickle=False)
    values = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(reference).items()}
    del values["rows"]
    (folder / THRESHOLDS).write_text(json.dumps({**values, "grid": GRID, "neighbours": NEIGHBOURS}, indent=2) + "\n")
    return [ARRAYS, THRESHOLDS]


def read_reference(folder: Path) -> Reference:
    """What `write_reference` wrote.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if one is damaged, or describes other features than this version computes.
    """
    content = json.loads((folder / THRESHOLDS).read_text())
    rows = np.load(folder / ARRAYS, allow_pickle=False)
    names = {field.name for field in fields(Reference)} - {"rows"}
    described = {"grid": GRID, "neighbours": NEIGHBOURS}
    if not isinstance(content, dict) or names - content.keys() or {key: content.get(key) for key in described} != described:
        raise ValueError(f"{folder / THRESHOLDS} lacks a value or describes other features; export the policy again")
    vectors = {name: np.asarray(content[name], np.float64) for name in ("mean", "scale", "moved")}
    lengths = {name: (3 * GRID**2 * (name != "moved") + len(vectors["moved"]),) for name in vectors}
    if rows.ndim != 2 or len(rows) < NEIGHBOURS or {name: vector.shape for name, vector in vectors.items()} != lengths:
        raise ValueError(f"{folder / ARRAYS} does not fit {THRESHOLDS}; export the policy again")
    numbers = [float(content[name]) for name in ("near", "far", "sharp", "blurred")]
    return Reference(rows, vectors["mean"], vectors["scale"], vectors["moved"], *numbers)


def features(image: np.ndarray, state: np.ndarray) -> np.ndarray:
    """Mean colours in [0, 1] of GRID x GRID fields of the picture, row by row, then the state, [3 GRID^2 + s].

    Raises:
        ValueError: if the image is not uint8 [h, w, 3] with sides of at least GRID.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or min(image.shape[:2]) < GRID:
        raise ValueError(f"image must be uint8 [h, w, 3] of at least {GRID} x {GRID}, got {image.dtype} {image.shape}")
    rows, columns = (np.arange(GRID) * side // GRID for side in image.shape[:2])
    sums = np.add.reduceat(np.add.reduceat(image, rows, axis=0, dtype=np.float64), columns, axis=1)
    heights, widths = np.diff([*rows, image.shape[0]]), np.diff([*columns, image.shape[1]])
    colours = sums / (255 * heights[:, None, None] * widths[None, :, None])
    return np.concatenate([colours.ravel(), np.asarray(state, np.float64)])


def sharpness(image: np.ndarray) -> float:
    """Variance of the Laplacian of the grey picture, in grey levels squared; falls when a picture is blurred."""
    grey = image.mean(axis=2)
    laplacian = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:] - 4 * grey[1:-1, 1:-1]
    return float(laplacian.var())


def exposure(image: np.ndarray) -> float:
    """0 if nearly every value is black, or nearly every value is white; 1 otherwise."""
    blind = max((image <= _BLACK).mean(), (image >= _WHITE).mean()) >= _FLAT_SHARE
    return 0.0 if blind else 1.0


def ramp(value: float, *, good: float, bad: float) -> float:
    """1 at `good` and on its side, 0 at `bad` and beyond, linear between; 0 for NaN."""
    if good == bad:
        return 1.0 if value == good else 0.0
    share = (value - bad) / (good - bad)
    return float(min(max(share, 0.0), 1.0)) if share == share else 0.0
