"""One number of a state or an action: name, unit, kind, limits and statistics; groups that are one thing; and cameras.

They are plain values with a hash. Numbers of two sources are joined by name, with `match`. Read `spec.py` next, which puts them
together.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal, get_args

import numpy as np

Feature = Literal["state", "action"]
Kind = Literal["unknown", "absolute", "delta", "velocity", "binary", "angle"]
Normalisation = Literal["quantile", "mean_std", "min_max", "identity"]
Meaning = Literal["position", "quaternion", "euler", "axis_angle", "rotation_6d"]
Frame = Literal["base", "tool"]
CameraKind = Literal["colour", "depth"]

WIDTHS: dict[Meaning, int] = {"position": 3, "quaternion": 4, "euler": 3, "axis_angle": 3, "rotation_6d": 6}
_SPELLINGS = {
    **dict.fromkeys(("deg", "degree", "degrees", "°"), "deg"),
    **dict.fromkeys(("rad", "radian", "radians"), "rad"),
    **dict.fromkeys(("m", "metre", "metres", "meter", "meters"), "m"),
    **dict.fromkeys(("mm", "millimetre", "millimetres", "millimeter", "millimeters"), "mm"),
}
_SPELLINGS |= {f"{spelling}/s": f"{unit}/s" for spelling, unit in _SPELLINGS.items()} | dict.fromkeys(("percent", "%"), "percent")
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Statistics:
    """Of `count` rows, by channel, in native units.

    Raises:
        ValueError: if the lengths differ, a number is not finite, or a spread is negative.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    min: tuple[float, ...]
    max: tuple[float, ...]
    q01: tuple[float, ...]
    q99: tuple[float, ...]
    count: int

    def __post_init__(self) -> None:
        if len({*map(len, self.rows())}) > 1 or not np.isfinite(self.rows()).all() or self.count < 1:
            raise ValueError("statistics need one finite number per channel and name, of at least one row; compute them again")
        _, std, low, high, q01, q99 = np.array(self.rows())
        if (std < 0).any() or (low > high).any() or (q01 > q99).any():
            raise ValueError("statistics have a negative spread (std, max - min or q99 - q01); compute them again")

    def rows(self) -> list[tuple[float, ...]]:
        """mean, std, min, max, q01 and q99."""
        return [getattr(self, name) for name in MOMENTS]

    @classmethod
    def of(cls, values: np.ndarray) -> "Statistics":
        """Exact statistics of rows [n, d], in float64; quantiles interpolate linearly."""
        values = values.astype(np.float64)
        if values.ndim != 2 or not len(values):
            raise ValueError(f"statistics need rows of channels, [n, d] with n above 0, got {list(values.shape)}")
        rows = (values.mean(0), values.std(0), values.min(0), values.max(0), *np.quantile(values, (0.01, 0.99), axis=0))
        return cls(*(tuple(map(float, row)) for row in rows), count=len(values))


MOMENTS = tuple(f.name for f in fields(Statistics) if f.name != "count")


@dataclass(frozen=True)
class Channel:
    """One number of the state or the action.

    Attributes:
        name: by which it is matched.
        unit: "deg", "rad", "m", "mm", these "/s", "percent" in any usual spelling, or whatever else; "unknown" goes with any.
        kind: what it says: a value, a change of one, a velocity, 0 or 1, or a value that comes round again.
        low: least value that the robot or world takes, in native units.
        high: largest one.
        normalisation: how a network sees it (`Spec.affine`).
    """

    name: str
    unit: str = UNKNOWN
    kind: Kind = UNKNOWN
    low: float = -math.inf
    high: float = math.inf
    normalisation: Normalisation = "identity"

    def __post_init__(self) -> None:
        if self.name in ("", "*") or not self.unit:
            raise ValueError(
                f"a channel is named {self.name!r}, in {self.unit!r}; expected a name of its own and a unit or unknown"
            )
        check(f"kind of channel {self.name}", self.kind, get_args(Kind))
        check(f"normalisation of channel {self.name}", self.normalisation, get_args(Normalisation))
        if not self.low < self.high:
            raise ValueError(f"channel {self.name} has the limits {self.low:g} and {self.high:g}, expected the lower one first")
        object.__setattr__(self, "low", float(self.low))
        object.__setattr__(self, "high", float(self.high))
        object.__setattr__(self, "unit", _SPELLINGS.get(self.unit.strip().lower(), self.unit))


@dataclass(frozen=True)
class Group:
    """Channels that are one thing, in the order of `worldsim/geometry/rotations.py`: a quaternion is x, y, z, w.

    Attributes:
        name: of the group.
        feature: whose channels they are.
        channels: their names, in that order, wherever they stand in the vector.
        meaning: what they are together.
        frame: "base" or "tool": where a difference to a reference is measured.
    """

    name: str
    feature: Feature
    channels: tuple[str, ...]
    meaning: Meaning
    frame: Frame = "base"

    def __post_init__(self) -> None:
        if self.name in ("", *get_args(Feature)):
            raise ValueError(f"a group is named {self.name!r}, expected a name of its own")
        check(f"feature of group {self.name}", self.feature, get_args(Feature))
        check(f"meaning of group {self.name}", self.meaning, tuple(WIDTHS))
        check(f"frame of group {self.name}", self.frame, get_args(Frame))
        if len(self.channels) != WIDTHS[self.meaning]:
            expected = f"{WIDTHS[self.meaning]} for {self.meaning}"
            raise ValueError(f"group {self.name} has {len(self.channels)} channels, expected {expected}")


@dataclass(frozen=True)
class Camera:
    """A camera as it records: height and width in pixels, frames per second; a depth map has one channel."""

    height: int
    width: int
    fps: float
    kind: CameraKind = "colour"

    def __post_init__(self) -> None:
        check("kind of camera", self.kind, get_args(CameraKind))
        if not (self.height > 0 and self.width > 0 and 0 < self.fps < math.inf):
            raise ValueError(f"a camera has {self.height}x{self.width} pixels at {self.fps:g} fps, expected numbers above 0")


class Cameras(Mapping[str, Camera]):
    """Cameras by name, which nobody can change, so that they have a hash."""

    def __init__(self, cameras: Mapping[str, Camera]) -> None:
        self._cameras = dict(cameras)

    def __getitem__(self, name: str) -> Camera:
        return self._cameras[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._cameras)

    def __len__(self) -> int:
        return len(self._cameras)

    def __hash__(self) -> int:
        return hash(frozenset(self._cameras.items()))

    def __repr__(self) -> str:
        return repr(self._cameras)


def default_normalisation(feature: Feature, kind: Kind = UNKNOWN, meaning: Meaning | None = None) -> Normalisation:
    """What a channel of this kind, in a group of this meaning, gets where nobody said: 0 or 1 and unit vectors stay as they are."""
    if kind == "binary" or meaning in ("quaternion", "rotation_6d"):
        return "identity"
    return "mean_std" if feature == "state" else "quantile"


def match(wanted: Sequence[Channel], there: Sequence[Channel], *, what: str, who: str, where: str, exact: bool) -> tuple[int, ...]:
    """The order in which the channels that are there are the wanted ones, by name: there[order[i]] is wanted[i].

    Args:
        wanted: channels that somebody needs.
        there: channels that somebody else has, in any order.
        what: "action" or "state", as an error says it.
        who: who needs them, as "the policy".
        where: who has them, as "the robot".
        exact: nothing else may be there, as all joints of a robot must be told something.

    Raises:
        ValueError: in one line with all differences, if a name is missing or there twice, or has another known unit or kind.
    """
    names, differences = [channel.name for channel in there], []
    places = {name: i for i, name in enumerate(names)}
    for channel in (channel for channel in wanted if channel.name in places):
        other = there[places[channel.name]]
        if channel.unit != other.unit and UNKNOWN not in (channel.unit, other.unit):
            differences.append(f"{who}'s {what} {channel.name} is in {channel.unit}, {where}'s in {other.unit}")
        if channel.kind != other.kind and UNKNOWN not in (channel.kind, other.kind):
            differences.append(f"{who}'s {what} {channel.name} is {channel.kind}, {where}'s {other.kind}")
    if missing := [channel.name for channel in wanted if channel.name not in places]:
        differences.append(f"{who}'s {what} {_listed(missing)} missing in {where}, which has {', '.join(names) or 'none'}")
    needed = {channel.name for channel in wanted}
    differences += [f"{where} has {what} {name} twice" for name in places if names.count(name) > 1]
    if more := [name for name in places if exact and name not in needed]:
        differences.append(f"{where}'s {what} {_listed(more)} nothing that {who} has")
    if differences:
        raise ValueError(f"{'; '.join(differences)}; correct meta/spec.yaml, or names, units and kinds of {where}")
    return tuple(places[channel.name] for channel in wanted)


def _listed(names: Sequence[str]) -> str:
    return f"{', '.join(names)} {'is' if len(names) == 1 else 'are'}"


def check(what: str, value: str, among: Collection[str]) -> None:
    """ValueError if a value is none of those that there are."""
    if value not in among:
        raise ValueError(f"{what} is {value!r}, expected one of {', '.join(among) or 'none'}")


def check_distinct(what: str, names: Sequence[str]) -> None:
    """ValueError if a name is there twice."""
    if twice := [name for i, name in enumerate(names) if name in names[:i]]:
        raise ValueError(f"{what} {twice[0]} is there twice; name each one apart")
