"""Statistics of dataset features, in LeRobot's keys: min, max, mean, std, count and five quantiles.

They exist because policies normalise with them, so they must be those of the data and not an estimate that drifts.
Read `lerobot.py` next: it stores them per episode and for the whole dataset.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Num, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}

NAMES = ("min", "max", "mean", "std", "count", *QUANTILES)

Stats = dict[str, np.ndarray]


def statistics(values: Num[np.ndarray, "n d"]) -> Stats:
    """Exact statistics over n samples, in float64: each of shape [d], `count` of shape [1]; quantiles interpolate linearly."""
    values = values.astype(np.float64)
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    moments = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {**moments, "count": np.array([len(values)]), **dict(zip(QUANTILES, quantiles, strict=True))}


def image_statistics(frames: UInt8[np.ndarray, "n h w 3"]) -> Stats:
    """Statistics of the colour channels in [0, 1], each of shape [3, 1, 1]; `count` [1] is the number of frames.

    They come from a histogram of the 256 levels, so they are exact; a quantile is the first level that reaches it.
    """
    levels = np.arange(256) / 255
    counts = np.stack([np.bincount(frames[..., c].ravel(), minlength=256) for c in range(3)])
    share = counts / counts.sum(axis=1, keepdims=True)
    cumulative = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
    mean = share @ levels
    stats = {
        "min": levels[(counts > 0).argmax(axis=1)],
        "max": levels[255 - (counts > 0)[:, ::-1].argmax(axis=1)],
        "mean": mean,
        "std": np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1)),
        **{name: levels[(cumulative >= q).argmax(axis=1)] for name, q in QUANTILES.items()},
    }
    return {**{name: value.reshape(3, 1, 1) for name, value in stats.items()}, "count": np.array([len(frames)])}


def merge_statistics(parts: Sequence[Stats]) -> Stats:
    """Statistics of the union of disjoint parts of one feature.

    min, max, mean, std and count are exact. A quantile of the union lies between the least and the greatest of the parts', and no
    nearer can be said without the values: so one up to the median is the least of them, one above it the greatest, as in LeRobot
    (huggingface/lerobot#3804, after 0.6.1). No range from a low to a high quantile is then too narrow, which a mean of the parts'
    would be.

    Raises:
        ValueError: if there are no parts.
    """
    if not parts:
        raise ValueError("merge_statistics needs at least one part, got none")
    stacked = {name: np.stack([part[name] for part in parts]) for name in parts[0]}
    count = stacked["count"].sum(axis=0)
    weight = (stacked["count"] / count).reshape(-1, *[1] * parts[0]["mean"].ndim)
    mean = (weight * stacked["mean"]).sum(axis=0)
    variance = (weight * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    moments = {"min": stacked["min"].min(axis=0), "max": stacked["max"].max(axis=0), "mean": mean, "std": np.sqrt(variance)}
    bounds = {name: (np.min if q <= 0.5 else np.max)(stacked[name], axis=0) for name, q in QUANTILES.items()}
    return {**moments, "count": count, **bounds}
