"""What a robot may be told: bounds of its commands, its state and its patience, validated once and never changed.

They are apart from `safety.py` so that a person can read and edit them in one JSON file, and a bundle can ship them.
Read `safety.py` next: it enforces them.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class Workspace:
    """A box that the commanded position state[state] + scale_m * action[action] must not leave, for actions that displace.

    Outside of the box a command may not lead further out.

    Attributes:
        low_m, high_m: opposite corners [m], [n].
        state: elements of the state that measure the position [m], n indices.
        action: elements of the action that displace it along the same axes, n indices.
        scale_m: displacement by an action of 1 [m].

    Raises:
        ValueError: if the parts do not fit together.
    """

    low_m: np.ndarray
    high_m: np.ndarray
    state: tuple[int, ...]
    action: tuple[int, ...]
    scale_m: float

    def __post_init__(self) -> None:
        for name in ("low_m", "high_m"):
            object.__setattr__(self, name, _vector(f"workspace.{name}", getattr(self, name), finite=True))
        for name in ("state", "action"):
            object.__setattr__(self, name, _indices(f"workspace.{name}", getattr(self, name)))
        object.__setattr__(self, "scale_m", _positive("workspace.scale_m", self.scale_m))
        lengths = [len(self.low_m), len(self.high_m), len(self.state), len(self.action)]
        if len(set(lengths)) != 1:
            raise ValueError(f"workspace needs low_m, high_m, state and action of one length, got lengths {lengths}; one per axis")
        if not (self.low_m < self.high_m).all():
            raise ValueError(f"workspace.low_m must be below high_m, got {self.low_m} and {self.high_m}; swap the corners")


@dataclass(frozen=True, eq=False)
class Limits:
    """Everything that `Safety` enforces.

    Attributes:
        action_low, action_high: range of a command, [ad].
        max_delta: how far each element of a command may differ from the command sent before it, [ad].
        max_rate_per_s: how fast it may change, [ad]; infinity for no such limit.
        state_low, state_high: range in which the measured state must lie, joint limits for instance, [s]; infinity for none.
        workspace: a box for the commanded position, or None.
        measured: None if an action is a displacement or a velocity, so that zero stands still. If an action is a position (of
            joints), the ad elements of the state that measure it; the last command then stands still.
        watchdog_s: without a fresh command for that long the robot holds; also the longest pause between two checks.
        stop_s: a fault that keeps the robot on hold for that long stops it for good.
        resume_s: after a fault, commands must be good for that long before they are sent again.
        max_age_s: oldest observation that a command may come from.
        max_excess: a command is clamped into its range, and refused if it lies outside by more than this share of the range.

    Raises:
        ValueError: if a value is not possible, or the parts do not fit together.
    """

    action_low: np.ndarray
    action_high: np.ndarray
    max_delta: np.ndarray
    max_rate_per_s: np.ndarray
    state_low: np.ndarray
    state_high: np.ndarray
    workspace: Workspace | None = None
    measured: tuple[int, ...] | None = None
    watchdog_s: float = 0.5
    stop_s: float = 2.0
    resume_s: float = 0.2
    max_age_s: float = 1.0
    max_excess: float = 0.5

    def __post_init__(self) -> None:
        for name in ("action_low", "action_high", "max_delta", "max_rate_per_s", "state_low", "state_high"):
            finite = name in ("action_low", "action_high", "max_delta")
            object.__setattr__(self, name, _vector(name, getattr(self, name), finite=finite))
        for name in ("watchdog_s", "stop_s", "resume_s", "max_age_s", "max_excess"):
            object.__setattr__(self, name, _positive(name, getattr(self, name)))
        if self.measured is not None:
            object.__setattr__(self, "measured", _indices("measured", self.measured))
        for name in ("action_high", "max_delta", "max_rate_per_s"):
            if len(getattr(self, name)) != self.action_dim:
                raise ValueError(f"{name} must have {self.action_dim} numbers like action_low, got {len(getattr(self, name))}")
        if len(self.state_low) != len(self.state_high):
            raise ValueError(f"state_low has {len(self.state_low)} numbers and state_high {len(self.state_high)}; one per element")
        for kind in ("action", "state"):
            low, high = getattr(self, f"{kind}_low"), getattr(self, f"{kind}_high")
            if not (low < high).all():
                raise ValueError(f"{kind}_low must be below {kind}_high, got {low} and {high}; swap them")
        for name in ("max_delta", "max_rate_per_s"):
            if not (getattr(self, name) > 0).all():
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}; a robot that may not move needs no limits")
        self._check_stillness()

    def _check_stillness(self) -> None:
        """A hold command must exist, and every index must be there."""
        if self.measured is None:
            if not ((self.action_low <= 0) & (self.action_high >= 0)).all():
                raise ValueError(
                    "0 must lie within action_low and action_high, because it stands still; if an action is a position, set "
                    "`measured` to the elements of the state that measure it"
                )
        elif len(self.measured) != self.action_dim or max(self.measured) >= self.state_dim:
            raise ValueError(f"measured must be {self.action_dim} indices below {self.state_dim}, got {list(self.measured)}")
        if self.workspace is not None:
            if self.measured is not None:
                raise ValueError("workspace is for actions that displace; bound positions with action_low and action_high instead")
            if max(self.workspace.state) >= self.state_dim or max(self.workspace.action) >= self.action_dim:
                raise ValueError(
                    f"workspace has state indices {list(self.workspace.state)} and action indices {list(self.workspace.action)}, "
                    f"but there are {self.state_dim} state and {self.action_dim} action elements, counted from 0"
                )

    @property
    def action_dim(self) -> int:
        """ad."""
        return len(self.action_low)

    @property
    def state_dim(self) -> int:
        """Number of elements of the state."""
        return len(self.state_low)


def limits_of(description: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Limits:
    """The limits of a bundle.

    What neither the bundle nor `changes` names is not limited: a command may jump across its whole range from one step to the
    next, and every finite state is accepted. That is for simulated robots, see `require_limits`.

    Args:
        description: `Bundle.description`; its optional "limits" has the names of `Limits`.
        changes: further such entries, which take precedence; from `read_limits`.

    Raises:
        ValueError: if a value is not possible, a name is unknown, or a length differs from the bundle's.
    """
    output = description["outputs"][0]
    ad = output["shape"][-1]
    s = next(entry["shape"][-1] for entry in description["inputs"] if entry["name"] == "state")
    default = {
        "action_low": output["low"],
        "action_high": output["high"],
        "max_delta": [high - low for low, high in zip(output["low"], output["high"], strict=True)],
        "max_rate_per_s": [None] * ad,
        "state_low": [None] * s,
        "state_high": [None] * s,
    }
    limits = parse_limits({**default, **(description.get("limits") or {}), **(changes or {})})
    if (limits.action_dim, limits.state_dim) != (ad, s):
        raise ValueError(
            f"the bundle has {ad} action and {s} state elements, the limits {limits.action_dim} and {limits.state_dim}; "
            f"give one number per element"
        )
    return limits


def require_limits(description: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> None:
    """Refuse what may not move a machine: limits that leave open how fast an element of its command may change, or where it leads.

    A limit that allows everything is none: a `max_delta` of the whole range of actions, a box on one of three axes.

    Args:
        description: as for `limits_of`, with its "fps" [Hz].
        changes: as for `limits_of`.

    Raises:
        ValueError: if `max_delta` and `max_rate_per_s` let an element of the action cross its range in one command; or if there is
            neither `measured`, with which the range of actions is that of positions, nor a `workspace` with every element of the
            action, nor a finite range of every element of the state.
    """
    limits = limits_of(description, changes)
    step = np.minimum(limits.max_delta, limits.max_rate_per_s / description["fps"])  # of one command
    slow = step < limits.action_high - limits.action_low
    boxed = limits.workspace is not None and set(limits.workspace.action) == set(range(limits.action_dim))
    ranged = np.isfinite(limits.state_low) & np.isfinite(limits.state_high)
    if not (slow.all() and (boxed or limits.measured is not None or ranged.all())):
        faults = [f"action {i} may cross its range in one command" for i in np.flatnonzero(~slow)[:1]]
        faults += [] if boxed or limits.measured is not None or ranged.all() else ["nothing bounds where all of them may lead"]
        raise ValueError(
            "a robot that is not simulated needs limits that say of every element of an action how fast it may change (max_delta "
            "below its range, or max_rate_per_s) and where it may lead (measured, a workspace with all of them, or state_low and "
            f"state_high of the whole state), but {' and '.join(faults)}; name them in a file for --limits, see docs/robot.md, or "
            "watch it with --dry-run"
        )


def read_limits(path: str | Path) -> dict[str, Any]:
    """The entries of a JSON file of limits, for `limits_of`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a JSON object.
    """
    try:
        content = json.loads(Path(path).read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a JSON object of limits, got {type(content).__name__}; see docs/robot.md")
    return content


def parse_limits(content: Mapping[str, Any]) -> Limits:
    """`Limits` from JSON values, in which null stands for an infinite bound.

    Raises:
        ValueError: if a name is unknown or missing, or a value is not possible.
    """
    values = dict(content)
    _check_names("limits", values, Limits)
    if values.get("workspace") is not None:
        if not isinstance(values["workspace"], Mapping):
            raise ValueError(f"workspace must be an object or null, got {values['workspace']!r}; see docs/robot.md")
        _check_names("workspace", values["workspace"], Workspace)
        values["workspace"] = Workspace(**values["workspace"])
    for name, bound in (("max_rate_per_s", math.inf), ("state_low", -math.inf), ("state_high", math.inf)):
        if isinstance(values[name], list):
            values[name] = [bound if value is None else value for value in values[name]]
    return Limits(**values)


def _check_names(what: str, values: Mapping[str, Any], kind: type) -> None:
    known = {field.name: field.default is not MISSING for field in fields(kind)}
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{what} has the unknown name {unknown[0]!r}; choose among {', '.join(known)}")
    if missing := [name for name, optional in known.items() if not optional and name not in values]:
        raise ValueError(f"{what} lacks {missing[0]}; it must have {', '.join(name for name in known if not known[name])}")


def _vector(name: str, value: Any, *, finite: bool) -> np.ndarray:
    try:
        vector = np.array(value, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a list of numbers, got {value!r}") from error
    if vector.ndim != 1 or not len(vector) or np.isnan(vector).any() or (finite and not np.isfinite(vector).all()):
        raise ValueError(f"{name} must be a list of {'finite ' if finite else ''}numbers, got {value!r}")
    vector.setflags(write=False)
    return vector


def _indices(name: str, value: Any) -> tuple[int, ...]:
    whole = isinstance(value, (list, tuple)) and len(value) and all(type(i) is int and i >= 0 for i in value)
    if not whole or len(set(value)) != len(value):
        raise ValueError(f"{name} must be a list of different indices counted from 0, got {value!r}")
    return tuple(value)


def _positive(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not (0 < value < math.inf):
        raise ValueError(f"{name} must be a positive number, got {value!r}")
    return float(value)
