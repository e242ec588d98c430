"""Adaptive autonomy: how fast a robot may move on what it sees, decided once per observation, with hysteresis.

Training features say whether a single picture can be trusted; that a camera is frozen or a clock jumped only shows over time. Both
become one reliability in [0, 1] and one of four levels. Read `reliability.py` for the estimates and `loop.py` for the caller.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from worldsim.core.views import Views
from worldsim.robot.drivers import RobotObservation
from worldsim.robot.observation import picture_of
from worldsim.robot.reliability import Reference, exposure, ramp


class Level(IntEnum):
    """What the robot may do; ASK holds like HOLD, and has told a person."""

    FULL = 0
    SLOW = 1
    HOLD = 2
    ASK = 3


MOVED = 0.005  # without a reference, in the unit of each element of the state
SPEED = {Level.FULL: 1.0, Level.SLOW: 0.5, Level.HOLD: 0.0, Level.ASK: 0.0}


@dataclass(frozen=True)
class Verdict:
    """How far the last observation can be trusted.

    Attributes:
        level: what the robot may do.
        reliability: the least of the estimates, in [0, 1].
        estimates: by name: "exposure", "motion", "clock" and, with a reference, "familiarity" and "clarity".
    """

    level: Level
    reliability: float
    estimates: dict[str, float]

    @property
    def speed(self) -> float:
        """For `Proposal.speed`."""
        return SPEED[self.level]


@dataclass
class _Still:
    """The first of the identical pictures of a camera, the state beside it, and how many they are."""

    image: np.ndarray
    state: np.ndarray
    same: int = 1


class Autonomy:
    """Judges one observation after the other.

    The level falls at once, and rises only after `recover` observations in a row that would allow a higher one by a margin of 0.1.

    Args:
        views: the cameras that the policy looks through, and the sizes at which it sees them.
        reference: what training looked like; without it only broken cameras and clocks are noticed.
        slow_below, hold_below: reliabilities.
        recover: observations.
        frozen_frames: so many identical pictures of one camera mean that it is frozen, if the state moved meanwhile.
        max_skew_s: longest delay of an observation beyond the shortest one seen lately, and largest step of the robot's clock.
        ask_after_s: a hold that lasts that long is told to a person.
        ask: is called with the verdict, once per hold; it must return at once.
    """

    def __init__(
        self,
        views: Views,
        reference: Reference | None = None,
        *,
        slow_below: float = 0.7,
        hold_below: float = 0.3,
        recover: int = 3,
        frozen_frames: int = 4,
        max_skew_s: float = 0.25,
        ask_after_s: float = 3.0,
        ask: Callable[[Verdict], None] = lambda verdict: None,
    ):
        if not 0 < hold_below < slow_below < 1:
            raise ValueError(f"expected 0 < hold_below < slow_below < 1, got {hold_below} and {slow_below}")
        self._views, self._reference = views, reference
        self._slow_below, self._hold_below, self._recover = slow_below, hold_below, recover
        self._frozen_frames, self._max_skew_s = frozen_frames, max_skew_s
        self._moved = MOVED if reference is None else reference.moved
        self._ask_after_s, self._ask = ask_after_s, ask
        self.level = Level.FULL
        self._better = 0
        self._held_since: float | None = None
        self._asked = False
        self._still: dict[str, _Still] = {}  # by camera
        self._delays: deque[float] = deque(maxlen=100)

    def judge(self, observation: RobotObservation, now: float) -> Verdict:
        """The verdict on an observation that arrived at `now`, on the monotonic clock of this process [s].

        Raises:
            ValueError: if a camera is missing or gives no picture, or the state has not the reference's length.
        """
        picture = picture_of(observation.images, self._views)
        estimates = {
            "exposure": min(exposure(observation.images[name]) for name in self._views),
            "motion": min([self._motion(name, observation) for name in self._views]),
            "clock": self._clock(observation, now),
        }
        if self._reference is not None:
            estimates["familiarity"] = self._reference.familiarity(picture, observation.state)
            estimates["clarity"] = self._reference.clarity(picture)
        reliability = min(estimates.values())
        self._settle(reliability)
        if self.level is not Level.HOLD:
            self._held_since, self._asked = None, False
            return Verdict(self.level, reliability, estimates)
        self._held_since = now if self._held_since is None else self._held_since
        if not self._asked and now - self._held_since >= self._ask_after_s:
            self._asked = True
            self._ask(Verdict(Level.ASK, reliability, estimates))
        return Verdict(Level.ASK if self._asked else Level.HOLD, reliability, estimates)

    def _motion(self, camera: str, observation: RobotObservation) -> float:
        """0 if a camera is frozen. A scene in which nothing moves looks the same, so the state must say that something did."""
        still, image = self._still.get(camera), observation.images[camera]
        if still is None or not np.array_equal(still.image, image):
            self._still[camera] = _Still(image.copy(), observation.state.copy())  # a driver may write the next into the same memory
            return 1.0
        still.same += 1
        moved = (np.abs(observation.state - still.state) > self._moved).any()
        return 0.0 if still.same >= self._frozen_frames and moved else 1.0

    def _clock(self, observation: RobotObservation, now: float) -> float:
        """1 for a prompt observation, 0 for one that is late or from a clock that jumped."""
        delay = now - observation.time
        if not np.isfinite(delay):
            return 0.0
        shortest = min(self._delays, default=delay)
        self._delays.append(delay)
        if delay < shortest - self._max_skew_s:
            return 0.0  # the robot's clock jumped ahead; from now on that is its time
        return ramp(delay - shortest, good=self._max_skew_s / 2, bad=self._max_skew_s)

    def _settle(self, reliability: float) -> None:
        wanted = self._level(reliability)
        if wanted > self.level:
            self.level, self._better = wanted, 0
        elif self.level > (cautious := self._level(reliability - 0.1)):
            self._better += 1
            if self._better >= self._recover:
                self.level, self._better = cautious, 0
        else:
            self._better = 0

    def _level(self, reliability: float) -> Level:
        return Level.HOLD if reliability < self._hold_below else Level.SLOW if reliability < self._slow_below else Level.FULL
