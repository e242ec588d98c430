"""What the numbers of a dataset mean: LeRobot's `meta/` says names, cameras and statistics, `meta/spec.yaml` beside it the rest.

LeRobot has no place for units, kinds of actions, limits or what belongs together, so whoever knows writes them into that one small
file (docs/data.md), or, of a dataset that is not theirs to write, into the one that adopts it. Read `worldsim/core/spec.py` next.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from worldsim.core.channels import MOMENTS, UNKNOWN, Camera, Channel, Feature, Statistics, default_normalisation
from worldsim.core.spec import STATISTICS, Spec
from worldsim.core.strict import Node
from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import SPEC, adoption, open_info, read_yaml

OVERLAY = Path("meta/spec.yaml")
KEYS: dict[Feature, str] = {"state": "observation.state", "action": "action"}


def read_spec(root: Path, info: Mapping[str, Any] | None = None, cameras: Collection[str] | None = None) -> Spec:
    """The `Spec` of a dataset; its statistics are those of `meta/stats.json`, if they are complete and of all its frames.

    Args:
        root: the dataset's folder.
        info: what to take `info.json` to say; by default what it says.
        cameras: those that must be described; by default all. Another one that has no shape of a picture is left out.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if a file of `meta/` is damaged, or says what has no meaning, in one line.
    """
    adopted = adoption(root)
    files = root if adopted is None else adopted.dataset
    spec = _said_by_lerobot(files, open_info(root)[1] if info is None else info, cameras)
    if (path := files / OVERLAY).is_file():
        spec = spec.completed(read_yaml(path), str(path))
    return spec if adopted is None else spec.completed(adopted.overlay, str(root / SPEC))


def write_overlay(root: Path, spec: Spec) -> None:
    """Write to `meta/spec.yaml` what LeRobot's meta cannot say, whole or not at all: `read_spec` then gives `spec`.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if the dataset is another one: other cameras, channels or rate.
    """
    path, said = root / OVERLAY, _said_by_lerobot(root, fmt.read_info(root))
    overlay: dict[str, Any] = {
        "robot_type": spec.robot_type,
        "state": {channel.name: _entry(channel) for channel in spec.state},
        "action": {channel.name: _entry(channel) for channel in spec.action},
    }
    if spec.groups:
        overlay["groups"] = {
            group.name: {"of": group.feature, "channels": [*group.channels], "meaning": group.meaning, "frame": group.frame}
            for group in spec.groups
        }
    if kinds := {name: {"kind": camera.kind} for name, camera in spec.cameras.items() if camera.kind != "colour"}:
        overlay["cameras"] = kinds
    back = said.completed(overlay, str(path))
    if unlike := [f.name for f in fields(Spec) if f.name not in STATISTICS and getattr(back, f.name) != getattr(spec, f.name)]:
        raise ValueError(
            f"{root}: {fmt.INFO} has other {', '.join(unlike)} than the spec; write it beside the dataset that it is of"
        )
    with fmt.replacing(path) as temporary:
        text = yaml.safe_dump(overlay, sort_keys=False, default_flow_style=None, width=132, allow_unicode=True)
        temporary.write_text(f"# What the numbers of this dataset mean, as far as LeRobot's meta cannot say it.\n{text}")


def _entry(channel: Channel) -> dict[str, Any]:
    """What an overlay says of a channel: everything, since one that is binary, or of a quaternion, has another default."""
    limits = [float(limit) if math.isfinite(limit) else None for limit in (channel.low, channel.high)]
    entry = {"unit": channel.unit, "kind": channel.kind, "normalisation": channel.normalisation}
    return entry if limits == [None, None] else {**entry, "limits": limits}


def _said_by_lerobot(root: Path, info: Mapping[str, Any], needed: Collection[str] | None = None) -> Spec:
    """What `meta/info.json` and `meta/stats.json` say."""
    file, features = Node(str(root / fmt.INFO), "", info), info["features"]
    cameras = {}
    for key, feature in features.items():
        try:
            cameras[fmt.camera_name(key)] = file.make(_camera, key, feature, info["fps"])
        except ValueError:
            if needed is None or fmt.camera_name(key) in needed:
                raise
    channels = {
        feature: tuple(Channel(name, normalisation=default_normalisation(feature)) for name in fmt.dimension_names(features[key]))
        for feature, key in KEYS.items()
    }
    stored = fmt.read_statistics(root, info["total_frames"]) or {}
    statistics = {f"{feature}_statistics": _statistics(root, key, stored.get(key, {})) for feature, key in KEYS.items()}
    return file.make(
        Spec,
        cameras={name: camera for name, camera in cameras.items() if camera is not None},
        fps=info["fps"],
        robot_type=str(info.get("robot_type") or UNKNOWN),
        **channels,
        **statistics,
    )


def _camera(key: str, feature: Mapping[str, Any], fps: float) -> Camera | None:
    """A feature as a camera, if it is one; a depth map may have two sides and no channel. All of them have the dataset's rate."""
    if feature["dtype"] not in ("image", "video"):
        return None
    if fmt.is_rgb(feature):
        return Camera(*fmt.resolution(key, feature), fps=fps)
    shape = feature["shape"]
    return Camera(*fmt.resolution(key, {"shape": [*shape, 1] if len(shape) == 2 else shape}), fps=fps, kind="depth")


def _statistics(root: Path, key: str, stored: Mapping[str, Any]) -> Statistics | None:
    """Those of a feature, or None if there are not all that a `Spec` has."""
    if not {*MOMENTS, "count"} <= stored.keys():
        return None
    nodes = {name: Node(str(root / fmt.STATS), f"{key}.{name}", stored[name]).items() for name in (*MOMENTS, "count")}
    (count,) = nodes.pop("count")
    rows = {name: tuple(node.number() for node in row) for name, row in nodes.items()}
    return count.make(Statistics, **rows, count=count.count())
