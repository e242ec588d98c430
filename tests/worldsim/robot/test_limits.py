"""Limits: what a bundle or a person may say, and that everything else is refused by name."""

import json
import math

import numpy as np
import pytest
from toy_robot import LIMITS, make_limits

from worldsim.robot.limits import limits_of, parse_limits, read_limits

DESCRIPTION = {
    "inputs": [{"name": "image", "shape": [1, 8, 8, 3]}, {"name": "state", "shape": [1, 3]}],
    "outputs": [{"name": "actions", "shape": [1, 4, 2], "low": [-1.0] * 2, "high": [1.0] * 2}],
}


def test_a_bundle_without_limits_bounds_the_range_of_actions_alone():
    limits = limits_of(DESCRIPTION)
    assert limits.action_low.tolist() == [-1, -1]
    assert limits.action_high.tolist() == [1, 1]
    assert limits.max_delta.tolist() == [2, 2]  # from one end to the other
    assert limits.max_rate_per_s.tolist() == [math.inf, math.inf]
    assert limits.state_low.tolist() == [-math.inf] * 3
    assert limits.state_high.tolist() == [math.inf] * 3
    assert (limits.workspace, limits.measured, limits.watchdog_s) == (None, None, 0.5)


def test_a_file_goes_before_the_bundle(tmp_path):
    file = tmp_path / "limits.json"
    file.write_text(json.dumps({"max_delta": [0.1, 0.2], "state_low": [None, -1, None]}))
    limits = limits_of({**DESCRIPTION, "limits": {"max_delta": [0.5, 0.5], "stop_s": 9}}, read_limits(file))
    assert limits.max_delta.tolist() == [0.1, 0.2]
    assert limits.state_low.tolist() == [-math.inf, -1, -math.inf]
    assert limits.stop_s == 9


def test_limits_cannot_be_changed_afterwards():
    limits = make_limits()
    with pytest.raises(ValueError, match="read-only"):
        limits.max_delta[0] = 5
    with pytest.raises(AttributeError):
        limits.stop_s = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_dleta": [1, 1]}, "unknown name 'max_dleta'; choose among action_low"),
        ({"max_delta": [0.5]}, "max_delta must have 2 numbers like action_low, got 1"),
        ({"max_delta": [0, 0.5]}, "max_delta must be positive"),
        ({"max_delta": [float("nan"), 1]}, "max_delta must be a list of finite numbers"),
        ({"max_delta": [math.inf, 1]}, "max_delta must be a list of finite numbers"),
        ({"max_delta": "much"}, "max_delta must be a list of numbers, got 'much'"),
        ({"max_delta": []}, "max_delta must be a list of finite numbers"),
        ({"max_rate_per_s": [-1, 1]}, "max_rate_per_s must be positive"),
        ({"action_low": [1, -1]}, "action_low must be below action_high"),
        ({"action_low": [0.1, 0.1]}, "0 must lie within action_low and action_high"),
        ({"state_low": [0.3, 0]}, "state_low must be below state_high"),
        ({"state_low": [0]}, "state_low has 1 numbers and state_high 2"),
        ({"watchdog_s": 0}, "watchdog_s must be a positive number, got 0"),
        ({"watchdog_s": "0.5"}, "watchdog_s must be a positive number"),
        ({"stop_s": math.inf}, "stop_s must be a positive number"),
        ({"max_age_s": float("nan")}, "max_age_s must be a positive number"),
        ({"measured": [0, 2], "workspace": None}, "measured must be 2 indices below 2"),
        ({"measured": [0, 0], "workspace": None}, "measured must be a list of different indices"),
        ({"measured": [0, 1]}, "workspace is for actions that displace"),
        ({"workspace": [1]}, "workspace must be an object or null"),
        ({"workspace": {**LIMITS["workspace"], "size": 1}}, "workspace has the unknown name 'size'"),
        ({"workspace": {"low_m": [0]}}, "workspace lacks high_m"),
        ({"workspace": {**LIMITS["workspace"], "high_m": [-0.2, 0.2]}}, "workspace.low_m must be below high_m"),
        ({"workspace": {**LIMITS["workspace"], "action": [0]}}, "of one length, got lengths"),
        ({"workspace": {**LIMITS["workspace"], "state": [0, 5]}}, "there are 2 state and 2 action elements"),
        ({"workspace": {**LIMITS["workspace"], "state": [0, -1]}}, "workspace.state must be a list of different indices"),
        ({"workspace": {**LIMITS["workspace"], "scale_m": -1}}, "workspace.scale_m must be a positive number"),
    ],
)
def test_impossible_limits_are_refused(changes, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        make_limits(**changes)


def test_lengths_must_fit_the_bundle():
    with pytest.raises(ValueError, match="the bundle has 2 action and 3 state elements, the limits 2 and 1"):
        limits_of(DESCRIPTION, {"state_low": [-1], "state_high": [1]})


def test_a_missing_name_and_a_broken_file_are_refused(tmp_path):
    with pytest.raises(ValueError, match="limits lacks action_low"):
        parse_limits({})
    file = tmp_path / "limits.json"
    for content, message in (("{", "not valid JSON"), ("[1]", "must hold a JSON object of limits, got list")):
        file.write_text(content)
        with pytest.raises(ValueError, match=message):
            read_limits(file)
    with pytest.raises(FileNotFoundError):
        read_limits(tmp_path / "nowhere.json")


def test_null_is_no_bound():
    assert np.isinf(make_limits(max_rate_per_s=[None, 3]).max_rate_per_s).tolist() == [True, False]
