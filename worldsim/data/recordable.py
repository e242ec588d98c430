"""What can be recorded: episodes that fit a dataset, and features that go together.

It is apart from the writer, which it keeps from committing what no reader would take. Read `lerobot.py` next.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.types import Episode
from worldsim.data import lerobot_format as fmt
from worldsim.data.columns import wrong_rows


def check_episode(
    episode: Episode, name: str, *, cameras: Mapping[str, tuple[int, int]], widths: tuple[int, int], labels: Mapping[str, bool]
) -> None:
    """An episode fits a dataset, and every value of it may be learned from.

    Args:
        episode: what is to be recorded.
        name: what errors call it.
        cameras: (height, width) by camera name.
        widths: dimensions of state and action.
        labels: the features of `LABELS` that there are, and whether they are known of every frame.

    Raises:
        ValueError: if it does not fit, in one line.
    """
    t, (s, ad) = len(episode), widths
    if t < 1:
        raise ValueError(f"{name} has no action; leave it out")
    if episode.images.keys() != cameras.keys():
        got, expected = (", ".join(sorted(there)) or "none" for there in (episode.images, cameras))
        raise ValueError(f"{name} has the cameras {got}, expected {expected}; record exactly those")
    expected_shapes: dict[str, tuple[Tensor, tuple[int, ...]]] = {
        "state": (episode.state, (t + 1, s)),
        "action": (episode.action, (t, ad)),
        "reward": (episode.reward, (t,)),
        "success": (episode.success, (t + 1,)),
        "progress": (episode.progress, (t + 1,)),
        **{f"camera {camera}": (episode.images[camera], (t + 1, *size, 3)) for camera, size in cameras.items()},
    }
    for field, (tensor, shape) in expected_shapes.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: {field} has shape {tuple(tensor.shape)}, expected {shape} for {t} actions")
        if field in ("success", "progress"):
            _check_label(name, field, tensor.numpy(), labels)
        elif tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{name}: {field} has a value that is not finite; leave the episode out")
    for camera, frames in episode.images.items():
        if frames.dtype != torch.uint8:
            raise ValueError(f"{name}: camera {camera} has dtype {frames.dtype}, expected torch.uint8 in 0..255; convert it")


def _check_label(name: str, field: str, values: np.ndarray, labels: Mapping[str, bool]) -> None:
    """ValueError if a label is wrong, unknown where the dataset says that it is known, or known where that would be lost."""
    if (odd := values[wrong_rows(field, values[:, None])]).size:
        expected = "0 or 1" if field == "success" else "a share from 0 to 1"
        raise ValueError(f"{name}: {field} is {odd[0]:.3g} in a frame, expected {expected}; NaN says that nobody knows")
    known, kept = np.isfinite(values), np.full(len(values), field in labels)
    kept[1:] |= f"next.{field}" in labels
    if (known & ~kept).any() or (labels.get(field, True) and (known != kept).any()):
        there = "does not" if not kept.any() else "says it of all" if kept.all() else "says it of all but the first"
        raise ValueError(
            f"{name}: {field} is known of {known.sum()} of {len(known)} frames, while this dataset {there}; record what is judged "
            "(judged=True) and what is not (judged=False) into two datasets"
        )


def description(feature: Mapping[str, Any]) -> dict[str, Any]:
    """What must be the same of a feature for two recordings to go together; others nest the names of a vector."""
    names = fmt.dimension_names(feature) if feature.get("names") and len(feature["shape"]) == 1 else feature.get("names")
    return {"dtype": feature["dtype"], "shape": feature["shape"], "names": names}
