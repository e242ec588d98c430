"""What the numbers of a dataset mean: cameras, channels with units, kinds and limits, statistics and normalisation.

Whoever holds numbers holds a `Spec`: datasets, models, worlds, bundles and robots. They speak native units at their border, and
what is joined is matched by name. It needs numpy alone, because a robot reads it, so shapes stand in docstrings. Read `channels.py`
next, of which it consists, and `worldsim/data/dataset_spec.py`, which reads the `Spec` of a dataset.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from worldsim.core.channels import (
    MOMENTS,
    Camera,
    CameraKind,
    Cameras,
    Channel,
    Feature,
    Group,
    Kind,
    Normalisation,
    Statistics,
    check,
    check_distinct,
    default_normalisation,
    match,
)
from worldsim.core.files import write_json
from worldsim.core.strict import Node

__all__ = ["Camera", "Channel", "Group", "Spec", "Statistics", "default_normalisation", "match"]

FILE = "spec.json"
NAMED = 5  # channels that a warning names
TOLERANCE = 1e-6  # of a limit's magnitude: what a float makes of the limit is not beyond it
MANY = 0.01  # share of actions beyond a limit that is worth a warning
# A spread that a 32-bit float hardly tells from rounding (6e-8 of the magnitude), or that of a zero that was computed.
RELATIVE_REST, ABSOLUTE_REST = 1e-6, 1e-8
STATISTICS = ("state_statistics", "action_statistics")
OVERLAY = ("robot_type", "state", "action", "groups", "normalisation", "cameras")


@dataclass(frozen=True)
class Spec:
    """What the numbers of a dataset, model, world or robot mean.

    Attributes:
        cameras: by name; any mapping, kept as one that has a hash.
        fps: steps per second.
        robot_type: its name.
        state: channels of the state.
        action: channels of the action.
        groups: channels that are one thing; none is in two groups.
        state_statistics: of the state, or None where nobody computed them.
        action_statistics: of the action.

    Raises:
        ValueError: if two things have one name, a group has a channel that is not there, or statistics have another width.
    """

    cameras: Mapping[str, Camera]
    fps: float
    robot_type: str
    state: tuple[Channel, ...]
    action: tuple[Channel, ...]
    groups: tuple[Group, ...] = ()
    state_statistics: Statistics | None = None
    action_statistics: Statistics | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "cameras", Cameras(self.cameras))
        if not 0 < self.fps < math.inf or not self.robot_type:
            raise ValueError(
                f"fps is {self.fps:g}, robot_type {self.robot_type!r}; expected a number above 0 and a name or unknown"
            )
        check_distinct("group", [group.name for group in self.groups])
        for feature in get_args(Feature):
            names = self._names(feature)
            check_distinct(f"{feature} channel", names)
            grouped = [name for group in self.groups if group.feature == feature for name in group.channels]
            check_distinct(f"grouped {feature} channel", grouped)
            for name in grouped:
                check(f"{feature} channel of a group", name, names)
            statistics: Statistics | None = getattr(self, f"{feature}_statistics")
            if statistics is not None and len(statistics.mean) != len(names):
                raise ValueError(f"{feature} has {len(names)} channels, its statistics {len(statistics.mean)}; compute them again")

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the state's channels."""
        return self._names("state")

    @property
    def action_names(self) -> tuple[str, ...]:
        """Names of the action's channels."""
        return self._names("action")

    def _names(self, feature: Feature) -> tuple[str, ...]:
        channels: tuple[Channel, ...] = getattr(self, feature)
        return tuple(channel.name for channel in channels)

    @property
    def sizes(self) -> dict[str, int]:
        """What models are built for: state_dim and action_dim."""
        return {f"{feature}_dim": len(self._names(feature)) for feature in get_args(Feature)}

    def fitted(self, state: np.ndarray, action: np.ndarray) -> "Spec":
        """With the statistics of these rows, [n, s] and [m, ad]."""
        return replace(self, state_statistics=Statistics.of(state), action_statistics=Statistics.of(action))

    def affine(self, feature: Feature) -> tuple[np.ndarray, np.ndarray]:
        """Shift and scale by channel, float64 [d]: what a network sees is (x - shift) / scale.

        quantile maps q01..q99 to -1..1, min_max does so with min..max, mean_std gives mean 0 and standard deviation 1, identity
        changes nothing. A channel that rests in 98 of 100 frames has no quantiles to speak of: its whole range stands in. One that
        never moves, as far as a 32-bit float can tell, is centred and not divided, because its spread is rounding and no measure.

        Raises:
            ValueError: if a channel needs statistics and there are none.
        """
        channels: tuple[Channel, ...] = getattr(self, feature)
        statistics: Statistics | None = getattr(self, f"{feature}_statistics")
        shift, scale = np.zeros(len(channels)), np.ones(len(channels))
        for i, channel in enumerate(channels):
            if channel.normalisation == "identity":
                continue
            if statistics is None:
                needs = f"{channel.normalisation} of {feature} channel {channel.name} needs statistics, and there are none"
                raise ValueError(f"{needs}; fit the Spec to data, or choose identity")
            mean, std, low, high, q01, q99 = (row[i] for row in statistics.rows())
            rest = max(ABSOLUTE_REST, RELATIVE_REST * max(abs(low), abs(high)))
            if channel.normalisation == "mean_std":
                shift[i], spread = mean, std
            else:
                if channel.normalisation == "quantile" and (q99 - q01) / 2 >= rest:
                    low, high = q01, q99
                shift[i], spread = (low + high) / 2, (high - low) / 2
            scale[i] = spread if spread >= rest else 1
        return shift, scale

    def clipped(self, actions: np.ndarray) -> str:
        """What of actions [n, ad] lies beyond its own limits in more than one of 100 rows, in words; "" if nothing does."""
        low, high = (np.array([getattr(channel, side) for channel in self.action]) for side in ("low", "high"))
        margin = TOLERANCE * np.array([[abs(x) if math.isfinite(x) else 0 for x in side] for side in (low, high)]).max(axis=0)
        share = ((actions < low - margin) | (actions > high + margin)).mean(axis=0) if len(actions) else np.zeros(len(low))
        worst = sorted((-part, i) for i, part in enumerate(share) if part > MANY)
        some = [(self.action[i], -100 * part) for part, i in worst[:NAMED]]
        words = ", ".join(f"{c.name} {part:.1f} % beyond {c.low:g}..{c.high:g}" for c, part in some)
        more = f" and {len(worst) - NAMED} more" if len(worst) > NAMED else ""
        return f"actions lie beyond their limits, to which they are clamped: {words}{more} of all steps" if worst else ""

    def to_json(self) -> dict[str, Any]:
        """Plain values; a limit that is infinite is None."""
        channels = {name: [asdict(channel) for channel in getattr(self, name)] for name in get_args(Feature)}
        for channel in (*channels["state"], *channels["action"]):
            channel |= {side: channel[side] if math.isfinite(channel[side]) else None for side in ("low", "high")}
        statistics = {name: None if (s := getattr(self, name)) is None else _plain(s) for name in STATISTICS}
        cameras = {name: asdict(camera) for name, camera in self.cameras.items()}
        head = {"cameras": cameras, "fps": self.fps, "robot_type": self.robot_type}
        return {**head, **channels, "groups": [_plain(group) for group in self.groups], **statistics}

    @classmethod
    def from_json(cls, value: Any, where: str) -> "Spec":
        """What `to_json` gave, of anybody's; ValueError names `where` and the key if it is anything else."""
        spec = Node(where, "", value)
        entries = _all(spec, cls)
        statistics = {name: None if entries[name].value is None else _statistics(entries[name]) for name in STATISTICS}
        return spec.make(
            cls,
            cameras={name: _camera(camera) for name, camera in entries["cameras"].entries().items()},
            fps=entries["fps"].number(),
            robot_type=entries["robot_type"].text(),
            state=tuple(_channel(channel) for channel in entries["state"].items()),
            action=tuple(_channel(channel) for channel in entries["action"].items()),
            groups=tuple(_group(group, _all(group, Group)) for group in entries["groups"].items()),
            **statistics,
        )

    def write(self, folder: Path) -> None:
        """Write `spec.json`, whole or not at all."""
        write_json(folder / FILE, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> "Spec":
        """Read `spec.json`.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is damaged, in one line.
        """
        path = folder / FILE
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: nobody says what the numbers of {folder} mean; make it again")
        try:
            value = json.loads(path.read_text())
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}); make it again") from error
        return cls.from_json(value, str(path))

    def completed(self, overlay: Any, where: str) -> "Spec":
        """With what somebody adds in a small YAML (docs/data.md): units, kinds, limits, normalisation, groups, kinds of cameras.

        A channel's normalisation is the first that is said of it by name, of its group, of "*", or of its feature; the last is not
        meant for what `default_normalisation` leaves as it is. What nobody says stays, unless the overlay makes it such.

        Args:
            overlay: the contents of that file.
            where: its name, for errors.

        Raises:
            ValueError: in one line, if a key, channel or camera is none that there is, or a value has no meaning.
        """
        file = Node(where, "", overlay)
        said = {key: Node(where, key, {}) for key in OVERLAY[1:]} | file.entries(OVERLAY)
        groups = {group.name: group for group in self.groups}
        for name, node in said["groups"].entries().items():
            entries = node.entries(("of", "channels", "meaning", "frame"), needed=("of", "channels", "meaning"))
            groups[name] = _group(node, {"name": Node(where, "", name), "feature": entries.pop("of"), **entries})
        chosen = said["normalisation"].entries((*get_args(Feature), *groups))
        words = {name: node.text(get_args(Normalisation)) for name, node in chosen.items()}
        cameras = dict(self.cameras)
        for name, node in said["cameras"].entries(tuple(cameras)).items():
            kind = node.entries(("kind",), needed=("kind",))["kind"].text(get_args(CameraKind))
            cameras[name] = replace(cameras[name], kind=kind)
        return file.make(
            Spec,
            cameras=cameras,
            fps=self.fps,
            robot_type=said["robot_type"].text() if "robot_type" in said else self.robot_type,
            state=self._channels("state", said["state"], tuple(groups.values()), words),
            action=self._channels("action", said["action"], tuple(groups.values()), words),
            groups=tuple(groups.values()),
            **{name: getattr(self, name) for name in STATISTICS},
        )

    def _channels(self, feature: Feature, said: Node, groups: tuple[Group, ...], words: Mapping[str, str]) -> tuple[Channel, ...]:
        """The channels of a feature as an overlay completes them; `words` are normalisations by group and feature."""
        nodes = said.entries((*self._names(feature), "*"))
        said_of = {name: _changes(node) for name, node in nodes.items()}
        before, after = _grouped(self.groups, feature), _grouped(groups, feature)
        channels: tuple[Channel, ...] = getattr(self, feature)
        completed = []
        for old in channels:
            changes, own = said_of.get(old.name, said_of.get("*", ({}, None)))
            old_group, group = before.get(old.name), after.get(old.name)
            was = default_normalisation(feature, old.kind, old_group and old_group.meaning)
            default = default_normalisation(feature, changes.get("kind", old.kind), group and group.meaning)
            kept = old.normalisation if default == was else default
            whole = kept if default == "identity" else words.get(feature, kept)
            of_group = words.get(group.name) if group else None
            first, second = (own, of_group) if old.name in nodes else (of_group, own)
            node = nodes.get(old.name, nodes.get("*", said))
            completed.append(node.make(replace, old, **changes, normalisation=first or second or whole))
        return tuple(completed)


def _plain(value: Any) -> dict[str, Any]:
    """Fields by name, as JSON has them."""
    return {name: [*field] if isinstance(field, tuple) else field for name, field in asdict(value).items()}


def _changes(node: Node) -> tuple[dict[str, Any], str | None]:
    """What an overlay says of a channel: fields to change, and a normalisation if it says one."""
    entries, changes = node.entries(("unit", "kind", "limits", "normalisation")), {}
    if "unit" in entries:
        changes["unit"] = entries["unit"].text()
    if "kind" in entries:
        changes["kind"] = entries["kind"].text(get_args(Kind))
    if "limits" in entries:
        if len(limits := entries["limits"].items()) != 2:
            raise entries["limits"].wrong("[low, high]")
        changes |= {"low": limits[0].limit(-math.inf), "high": limits[1].limit(math.inf)}
    return changes, entries["normalisation"].text(get_args(Normalisation)) if "normalisation" in entries else None


def _grouped(groups: tuple[Group, ...], feature: Feature) -> dict[str, Group]:
    """The groups of a feature by the names of their channels."""
    return {name: group for group in groups if group.feature == feature for name in group.channels}


def _all(node: Node, cls: type) -> dict[str, Node]:
    """Entries that are exactly the fields of a class."""
    names = tuple(field.name for field in fields(cls))
    return node.entries(names, needed=names)


def _statistics(node: Node) -> Statistics:
    entries = _all(node, Statistics)
    rows = {name: tuple(value.number() for value in entries[name].items()) for name in MOMENTS}
    return node.make(Statistics, **rows, count=entries["count"].count())


def _channel(node: Node) -> Channel:
    entries = _all(node, Channel)
    limits = {"low": entries["low"].limit(-math.inf), "high": entries["high"].limit(math.inf)}
    words = {name: entries[name].text() for name in ("name", "unit", "kind", "normalisation")}
    return node.make(Channel, **words, **limits)


def _camera(node: Node) -> Camera:
    entries = _all(node, Camera)
    size = {name: entries[name].count() for name in ("height", "width")}
    return node.make(Camera, **size, fps=entries["fps"].number(), kind=entries["kind"].text())


def _group(node: Node, entries: Mapping[str, Node]) -> Group:
    channels = tuple(channel.name() for channel in entries["channels"].items())
    words = {name: entry.text() for name, entry in entries.items() if name != "channels"}
    return node.make(Group, channels=channels, **words)
