"""Drivers: LeRobot-style objects look like robots, a dry run sends nothing, and a bundle's channels are matched by name."""

import numpy as np
import pytest
from toy_robot import ToyRobot

from worldsim.core.spec import Channel, Spec
from worldsim.robot.drivers import Driver, DriverError, DryRun, RobotDriver, joined


def test_a_driver_that_says_nothing_moves_a_machine():
    assert not Driver.simulated and not RobotDriver.simulated and not ToyRobot().simulated
    assert DryRun(ToyRobot()).simulated


class Arm:
    """A robot in LeRobot's style, without inheriting from anything."""

    action_features = {"shoulder.pos": float, "wheel.vel": float, "gripper.pos": float}

    def __init__(self):
        self.sent, self.connected = [], True

    def get_observation(self):
        return {"shoulder.pos": 0.1, "gripper.pos": 0.9, "wheel.vel": 0.3, "wrist": np.zeros((4, 4, 3), np.uint8)}

    def send_action(self, action):
        self.sent.append(dict(action))
        return action

    def disconnect(self):
        self.connected = False


def test_a_lerobot_style_object_is_a_robot():
    arm = Arm()
    driver = RobotDriver(arm, state_names=["gripper.pos", "shoulder.pos"], cameras=["wrist"])
    observation = driver.observe()
    np.testing.assert_allclose(observation.state, [0.9, 0.1], rtol=1e-6)
    assert observation.images.keys() == {"wrist"}
    driver.hold()
    assert arm.sent[-1] == {"shoulder.pos": 0.1, "wheel.vel": 0.0, "gripper.pos": 0.9}  # where it is, and no wheel turns
    driver.send(np.array([0.2, 0.5, 0.8]))
    assert arm.sent[-1] == {"shoulder.pos": 0.2, "wheel.vel": 0.5, "gripper.pos": 0.8}
    driver.stop()
    assert arm.sent[-1] == {"shoulder.pos": 0.2, "wheel.vel": 0.0, "gripper.pos": 0.8}
    driver.close()
    assert not arm.connected
    with pytest.raises(ValueError, match="does not observe 'elbow.pos', but shoulder.pos, gripper.pos"):
        RobotDriver(Arm(), state_names=["elbow.pos"], cameras=["wrist"])
    with pytest.raises(ValueError, match="channel of units and kinds is 'elbow.pos', expected one of gripper.pos, shoulder.pos"):
        RobotDriver(Arm(), state_names=["gripper.pos"], cameras=["wrist"], units={"elbow.pos": "deg"})


def test_differences_are_not_sent_again_to_stand_still():
    arm = Arm()
    driver = RobotDriver(arm, state_names=["shoulder.pos"], cameras=[], kinds={"shoulder.pos": "delta", "wheel.vel": "absolute"})
    driver.send(np.array([0.2, 0.5, 0.8]))
    driver.hold()
    assert arm.sent[-1] == {"shoulder.pos": 0.0, "wheel.vel": 0.5, "gripper.pos": 0.8}


def said(state: list[Channel], action: list[Channel]) -> dict[str, object]:
    """Of a bundle's description, what its numbers mean."""
    return {"spec": Spec({}, 10, "arm", tuple(state), tuple(action)).to_json()}


SHOULDER, WHEEL, GRIPPER = Channel("shoulder.pos", "degrees"), Channel("wheel.vel", kind="velocity"), Channel("gripper.pos")
DEGREES = {"shoulder.pos": "deg"}


def test_every_joint_gets_its_own_number_in_whatever_order():
    arm = Arm()  # it lists shoulder, wheel, gripper, and its state as below
    robot = RobotDriver(arm, state_names=["gripper.pos", "wheel.vel", "shoulder.pos"], cameras=["wrist"], units=DEGREES)
    description = said([SHOULDER, GRIPPER], [GRIPPER, SHOULDER, WHEEL])
    driver = joined(robot, description)
    observation = driver.observe()
    np.testing.assert_allclose(observation.state, [0.1, 0.9], rtol=1e-6)
    assert observation.images.keys() == {"wrist"}
    driver.send(np.array([0.8, 0.2, 0.5]))
    assert arm.sent[-1] == {"gripper.pos": 0.8, "shoulder.pos": 0.2, "wheel.vel": 0.5}
    driver.hold()
    assert arm.sent[-1] == {"gripper.pos": 0.8, "shoulder.pos": 0.2, "wheel.vel": 0.0}
    assert not driver.simulated and joined(driver, description) is driver
    dry = joined(DryRun(robot), description)
    np.testing.assert_allclose(dry.observe().state, [0.1, 0.9], rtol=1e-6)
    dry.send(np.ones(3))
    assert dry.simulated and len(arm.sent) == 2
    driver.stop()
    driver.close()
    assert len(arm.sent) == 3 and not arm.connected


def test_what_has_the_order_or_names_nothing_stays_as_it_is():
    robot = RobotDriver(Arm(), state_names=["gripper.pos", "shoulder.pos"], cameras=[])
    assert joined(robot, said([GRIPPER, SHOULDER], [SHOULDER, WHEEL, GRIPPER])) is robot
    assert joined(robot, {"spec": None}) is robot
    toy = ToyRobot()
    assert joined(toy, said([GRIPPER, SHOULDER], [WHEEL, GRIPPER])) is toy
    toy.action_channels = GRIPPER, WHEEL  # and nothing of its state
    driver = joined(toy, said([GRIPPER, SHOULDER], [WHEEL, GRIPPER]))
    assert driver.observe().state.tolist() == pytest.approx([0.1, 0])
    driver.send(np.array([0.25, 0.5]))
    assert toy.sent[-1].tolist() == [0.5, 0.25]
    with pytest.raises(DriverError, match=r"state has the shape \(2,\), expected one number for 1 channels"):
        joined(toy, said([GRIPPER], [WHEEL, GRIPPER])).observe()


@pytest.mark.parametrize(
    ("state", "action", "message"),
    [
        ([Channel("elbow.pos")], [SHOULDER, WHEEL, GRIPPER], "state elbow.pos is missing in the robot, which has gripper.pos"),
        ([GRIPPER], [SHOULDER, WHEEL, GRIPPER, Channel("elbow.pos")], "action elbow.pos is missing in the robot"),
        ([GRIPPER], [SHOULDER, GRIPPER], "robot's action wheel.vel is nothing that the policy has"),
        ([Channel("shoulder.pos", "rad")], [SHOULDER, WHEEL, GRIPPER], "state shoulder.pos is in rad, the robot's in deg"),
        ([GRIPPER], [Channel("shoulder.pos", "rad"), WHEEL, GRIPPER], "action shoulder.pos is in rad, the robot's in deg"),
        ([GRIPPER], [SHOULDER, Channel("wheel.vel", kind="delta"), GRIPPER], "action wheel.vel is delta, the robot's velocity"),
    ],
)
def test_what_does_not_match_is_one_line_with_its_name(state, action, message):
    robot = RobotDriver(Arm(), state_names=["gripper.pos", "shoulder.pos"], cameras=[], units=DEGREES)
    with pytest.raises(ValueError, match=message) as error:
        joined(robot, said(state, action))
    assert "\n" not in str(error.value)


def test_a_dry_run_observes_and_sends_nothing():
    notes: list[str] = []
    driver = DryRun(ToyRobot(notes.append))
    assert driver.observe().state.shape == (2,)
    driver.send(np.ones(2))
    driver.hold()
    driver.stop()
    assert notes == []
    driver.close()
    assert notes == ["close"]
