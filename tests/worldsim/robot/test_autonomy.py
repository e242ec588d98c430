"""Adaptive autonomy: levels with hysteresis, frozen cameras, clocks, and when a person is asked."""

import numpy as np
import pytest
from toy_robot import blurred, draw, walk

from worldsim.core.views import mosaic
from worldsim.robot.autonomy import Autonomy, Level
from worldsim.robot.drivers import RobotObservation
from worldsim.robot.reliability import fit_reference

VIEWS = {"front": (32, 32)}


class Robot:
    """Makes observations one tenth of a second apart, of a moving dot unless told otherwise."""

    def __init__(self, **more):
        self.asked = []
        self.autonomy = Autonomy(VIEWS, ask=self.asked.append, **more)
        self.random, self.now, self.x = np.random.default_rng(0), 100.0, 0.0

    def look(self, *, image=None, dx: float = 0.01, delay_s: float = 0.02, passed_s: float = 0.1):
        self.now, self.x = self.now + passed_s, self.x + dx
        state = np.array([self.x, 0], np.float32)
        image = draw(state, self.random) if image is None else image
        return self.autonomy.judge(RobotObservation({"front": image}, state, self.now - delay_s), self.now)


BLACK = np.zeros((32, 32, 3), np.uint8)


def test_a_moving_robot_with_a_good_camera_is_free():
    robot = Robot()
    for _ in range(20):
        verdict = robot.look()
        assert verdict.level is Level.FULL and verdict.speed == 1 and verdict.reliability == 1
    assert set(verdict.estimates) == {"exposure", "motion", "clock"}


def test_it_falls_at_once_and_rises_after_three_good_observations():
    robot = Robot()
    robot.look()
    assert robot.look(image=BLACK).level is Level.HOLD
    assert [robot.look().level for _ in range(4)] == [Level.HOLD, Level.HOLD, Level.FULL, Level.FULL]


def test_rising_takes_a_margin():
    robot = Robot(slow_below=0.7, hold_below=0.3, recover=1)
    levels = []
    for value in (0.71, 0.69, 0.75, 0.79, 0.81, 0.29, 0.35, 0.41, 0.75, 0.85):
        robot.autonomy._settle(value)
        levels.append(robot.autonomy.level.name)
    assert levels == ["FULL", "SLOW", "SLOW", "SLOW", "FULL", "HOLD", "HOLD", "SLOW", "SLOW", "FULL"]


def test_slow_is_half_speed():
    robot = Robot()
    robot.autonomy._settle(0.5)
    assert robot.look().speed == 0.5  # not yet recovered


def test_a_frozen_camera_is_noticed_after_four_frames_of_motion():
    robot = Robot()
    robot.look()
    image = draw(np.zeros(2), np.random.default_rng(1))
    assert [robot.look(image=image).level for _ in range(5)] == [Level.FULL] * 3 + [Level.HOLD] * 2
    assert robot.look(image=image, dx=0).level is Level.HOLD  # standing still does not thaw it
    assert [robot.look().level for _ in range(3)] == [Level.HOLD, Level.HOLD, Level.FULL]


def test_a_picture_that_a_driver_overwrites_in_place_still_counts_as_new():
    robot, image = Robot(), np.zeros((32, 32, 3), np.uint8)
    for i in range(10):
        image[:] = 50 + i
        assert robot.look(image=image).level is Level.FULL


def test_a_scene_without_noise_in_which_nothing_moves_is_not_frozen():
    robot = Robot()
    image = draw(np.zeros(2), np.random.default_rng(1))
    assert {robot.look(image=image, dx=0.0001).level for _ in range(40)} == {Level.FULL}


@pytest.mark.parametrize("jump_s", [-100.0, -0.3, 0.3, 100.0])
def test_a_jump_of_the_robots_clock_holds(jump_s):
    robot = Robot()
    for _ in range(5):
        robot.look()
    assert robot.look(delay_s=0.02 + jump_s).level is Level.HOLD
    if jump_s < 0:  # its clock is ahead; a new origin is no fault in the long run
        assert [robot.look(delay_s=0.02 + jump_s).level for _ in range(3)][-1] is Level.FULL


def test_a_late_observation_slows_down_then_holds():
    robot = Robot(max_skew_s=0.2)
    robot.look()
    assert robot.look(delay_s=0.02 + 0.1).reliability == pytest.approx(1)
    assert robot.look(delay_s=0.02 + 0.15).reliability == pytest.approx(0.5)
    assert robot.look(delay_s=0.02 + 0.19).level is Level.HOLD


def test_a_robot_that_repeats_itself_becomes_late():
    robot = Robot()
    robot.look()
    levels = [robot.look(delay_s=0.02 + 0.1 * i).level for i in range(1, 5)]
    assert levels[0] is Level.FULL and levels[2:] == [Level.HOLD] * 2


@pytest.mark.parametrize("delay_s", [float("nan"), float("inf"), -float("inf")])
def test_a_time_that_is_no_number_holds_and_leaves_no_trace(delay_s):
    robot = Robot()
    robot.look()
    assert robot.look(delay_s=delay_s).level is Level.HOLD
    assert [robot.look().level for _ in range(3)][-1] is Level.FULL


def test_a_person_is_asked_once_per_hold():
    robot = Robot(ask_after_s=1.0)
    levels = [robot.look(image=BLACK).level for _ in range(30)]
    assert levels[:10] == [Level.HOLD] * 10 and levels[12:] == [Level.ASK] * 18
    assert robot.look(image=BLACK).speed == 0
    assert len(robot.asked) == 1 and robot.asked[0].estimates["exposure"] == 0
    assert [robot.look().level for _ in range(3)] == [Level.ASK, Level.ASK, Level.FULL]
    for _ in range(15):
        robot.look(image=BLACK)
    assert len(robot.asked) == 2


def test_with_a_reference_pictures_from_elsewhere_hold():
    episodes = [({"front": images}, states) for images, states in map(walk, range(30))]
    reference = fit_reference(episodes[:20], episodes[20:], VIEWS)
    images, states = walk(777)

    def worst(change) -> Level:
        autonomy = Autonomy(VIEWS, reference)
        pairs = enumerate(zip(images, states, strict=True))
        return max(autonomy.judge(RobotObservation({"front": change(i)}, s, 0.1 * t), 0.1 * t).level for t, (i, s) in pairs)

    assert worst(lambda image: image) <= Level.SLOW
    assert worst(blurred) >= Level.HOLD
    assert worst(lambda image: 255 - image) >= Level.HOLD


def test_one_bad_camera_among_good_ones_holds():
    """The wrist sees ten times as large as the policy sees it, the front smaller; what is bad is noticed before that."""
    random = np.random.default_rng(0)

    def wrist(state) -> np.ndarray:
        return draw(state, random).repeat(10, 0).repeat(10, 1)

    frozen = {"front": draw(np.zeros(2), random), "wrist": wrist(np.zeros(2))}
    for name in frozen:
        for bad in ("frozen", "black"):
            autonomy = Autonomy({"front": (48, 48), "wrist": (32, 32)})
            verdicts = []
            for i in range(6):
                state = np.array([0.01 * i, 0], np.float32)
                images = {"front": draw(state, random), "wrist": wrist(state)}
                images[name] = frozen[name] if bad == "frozen" else 0 * frozen[name]
                verdicts.append(autonomy.judge(RobotObservation(images, state, 0.1 * i), 0.1 * i))
            broken = {"frozen": "motion", "black": "exposure"}[bad]
            estimates = [verdict.estimates[broken] for verdict in verdicts]
            assert estimates == ([1, 1, 1, 0, 0, 0] if bad == "frozen" else [0] * 6), (name, bad)
            assert verdicts[-1].level is Level.HOLD


def test_cameras_that_take_turns_to_stand_still_are_not_frozen():
    autonomy, random = Autonomy({"front": (32, 32), "wrist": (32, 32)}), np.random.default_rng(0)
    images = {name: draw(np.zeros(2), random) for name in ("front", "wrist")}
    for i in range(20):
        name = ("front", "wrist")[i // 2 % 2]
        images = {**images, name: draw(np.zeros(2), random)}
        assert autonomy.judge(RobotObservation(images, np.array([0.01 * i, 0]), 0.0), 0.0).estimates["motion"] == 1


def test_familiarity_and_clarity_are_of_what_the_policy_sees():
    """Of the mosaic of two cameras: the reference is of 48 colours, and a blurred wrist is noticed."""
    views = {"front": (32, 32), "wrist": (16, 16)}
    pairs = list(zip(map(walk, range(30)), map(walk, range(30, 60)), strict=True))
    episodes = [({"front": front[0], "wrist": wrist[0]}, front[1]) for front, wrist in pairs]
    reference = fit_reference(episodes[:20], episodes[20:], views)
    images, state = {name: frames[0] for name, frames in episodes[25][0].items()}, episodes[25][1][0]
    got = Autonomy(views, reference).judge(RobotObservation(images, state, 0.0), 0.0).estimates
    seen = mosaic(images, views)
    assert seen.shape == (32, 48, 3)
    assert (got["familiarity"], got["clarity"]) == (reference.familiarity(seen, state), reference.clarity(seen))
    assert got["familiarity"] > 0.9 and got["clarity"] > 0.9


def test_a_missing_camera_is_named_and_thresholds_are_checked():
    with pytest.raises(ValueError, match="the policy looks through camera 'front', the robot has wrist"):
        Autonomy(VIEWS).judge(RobotObservation({"wrist": BLACK}, np.zeros(2), 0.0), 0.0)
    with pytest.raises(ValueError, match="camera front must be a picture, uint8"):
        Autonomy(VIEWS).judge(RobotObservation({"front": BLACK / 255}, np.zeros(2), 0.0), 0.0)
    with pytest.raises(ValueError, match="0 < hold_below < slow_below < 1"):
        Autonomy(VIEWS, hold_below=0.8)
