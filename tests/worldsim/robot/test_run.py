"""`python -m worldsim.robot.run`: a bundle moves a robot, is recorded, and what cannot start says why in one line."""

import json
import shutil
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from toy_robot import LIMITS, ROOT, ToyRobot, make_limits

from worldsim.core.spec import Channel, Spec
from worldsim.core.views import mosaic
from worldsim.robot.bundle import DESCRIPTION, load_bundle
from worldsim.robot.drivers import RobotDriver, RobotObservation
from worldsim.robot.limits import require_limits
from worldsim.robot.process import serve_robot
from worldsim.robot.run import bundle_policy, main

pytestmark = pytest.mark.alone


def arguments(bundle, robot, *more: str) -> list[str]:
    return [str(bundle), "--robot", robot.address, "--instruction", "go", "--seconds", "0.7", "--threads", "1", *more]


def test_a_bundle_moves_a_robot_and_is_recorded(toy_bundle, robot, tmp_path):
    log = tmp_path / "log"
    command = [sys.executable, "-m", "worldsim.robot.run", *arguments(toy_bundle, robot, "--log", str(log))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ended"] == "time" and report["recording"] is None and report["rows_dropped"] == 0
    moving = report["modes"].get("run", 0) + report["modes"].get("slow", 0)
    assert moving >= 8 and 10 <= report["ticks"] <= 14
    told = [what for _, what in robot.notes()]
    assert told.count("send") == moving and told[-2:] == ["stop", "hold"]  # the robot holds when the connection is closed
    rows = [json.loads(line) for line in (log / "rows.jsonl").read_text().splitlines()]
    assert len(rows) == report["ticks"]
    actions = np.fromfile(log / "action.f32", "<f4").reshape(-1, 2)
    assert len(actions) == len(rows) and np.abs(np.diff(actions, axis=0)).max() <= make_limits().max_delta.max() + 1e-6
    assert (log / "camera_front.u8").stat().st_size == len(rows) * 32 * 32 * 3


@pytest.mark.parametrize("chunks", ["ensemble", "open_loop", "blend"])
def test_other_executions_move_it_too(toy_bundle, robot, chunks):
    assert main(arguments(toy_bundle, robot, "--chunks", chunks)) == 0
    assert [what for _, what in robot.notes()].count("send") >= 8


def test_a_dry_run_sends_nothing(toy_bundle, robot, capsys):
    assert main(arguments(toy_bundle, robot, "--dry-run")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["modes"].get("run", 0) + report["modes"].get("slow", 0) >= 8
    assert "send" not in [what for _, what in robot.notes()]
    assert "stop" not in [what for _, what in robot.notes()]


def test_a_scene_unlike_training_holds(toy_bundle, robot, capsys):
    robot.fail("elsewhere")
    assert main(arguments(toy_bundle, robot)) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["modes"] == {"hold": report["ticks"]} and report["interventions"]["autonomy"] > 8
    assert "send" not in [what for _, what in robot.notes()]


def test_a_higher_control_rate(toy_bundle, robot, capsys):
    assert main(arguments(toy_bundle, robot, "--multiplier", "3", "--dry-run")) == 0
    assert 32 <= json.loads(capsys.readouterr().out)["ticks"] <= 42


def test_limits_from_a_file_go_before_the_bundles(toy_bundle, robot, tmp_path):
    (tmp_path / "limits.json").write_text(json.dumps({"max_delta": [0.01, 0.01]}))
    log = tmp_path / "log"
    assert main(arguments(toy_bundle, robot, "--limits", str(tmp_path / "limits.json"), "--log", str(log))) == 0
    actions = np.fromfile(log / "action.f32", "<f4").reshape(-1, 2)
    assert 0 < np.abs(np.diff(actions, axis=0)).max() <= 0.01 + 1e-6


@pytest.fixture
def unlimited(toy_bundle, tmp_path):
    """A bundle that says nothing about its robot's limits, as `worldsim export` writes it by default."""
    from toy_bundle import sign

    folder = shutil.copytree(toy_bundle, tmp_path / "unlimited")
    sign(folder, {**json.loads((folder / DESCRIPTION).read_text()), "limits": None})
    return folder


FAST, BOX, JOINTS = (
    {name: LIMITS[name] for name in names} for names in (("max_delta",), ("workspace",), ("state_low", "state_high"))
)


@pytest.mark.parametrize(
    "changes",
    [
        None,
        *({}, {"stop_s": 3.0, "watchdog_s": 0.4}, FAST, BOX, JOINTS, {**FAST, "state_low": [-0.3, -0.3]}),
        *(
            {**FAST, "workspace": None},
            {**BOX, "max_rate_per_s": [None, None]},
            {**FAST, "state_low": [None] * 2, "state_high": [None] * 2},
        ),
        *(  # a limit that allows everything is none, and one of two elements is not both
            {**BOX, "max_delta": [2.0, 2.0]},
            {**BOX, "max_delta": [0.5, 2.0]},
            {**BOX, "max_rate_per_s": [9.0, None]},
            {**BOX, "max_rate_per_s": [9.0, 1e9]},
            {**FAST, "workspace": BOX["workspace"] | {"low_m": [-0.2], "high_m": [0.2], "state": [0], "action": [0]}},
            {**FAST, **JOINTS, "state_low": [None, *JOINTS["state_low"][1:]]},
        ),
    ],
)
def test_a_real_robot_does_not_move_without_limits(unlimited, robot, tmp_path, capsys, changes):
    (tmp_path / "limits.json").write_text(json.dumps(changes))
    assert main(arguments(unlimited, robot, *([] if changes is None else ["--limits", str(tmp_path / "limits.json")]))) == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1
    assert error.startswith("error: a robot that is not simulated needs limits") and "--dry-run" in error
    assert not {"send", "stop"} & {what for _, what in robot.notes()}


@pytest.mark.parametrize(
    "changes", [FAST | BOX, FAST | JOINTS, {"max_delta": [2, 0.1], "max_rate_per_s": [9, None], "measured": [0, 1]}]
)
def test_limits_that_say_how_fast_and_where_are_enough(unlimited, changes):
    description = json.loads((unlimited / DESCRIPTION).read_text())
    require_limits(description, changes)
    require_limits({**description, "limits": changes})


def test_a_real_robot_moves_with_limits_from_a_file(unlimited, robot, tmp_path):
    (tmp_path / "limits.json").write_text(json.dumps(FAST | BOX))
    assert main(arguments(unlimited, robot, "--limits", str(tmp_path / "limits.json"))) == 0
    assert "send" in [what for _, what in robot.notes()]


def test_a_dry_run_needs_no_limits(unlimited, robot):
    assert main(arguments(unlimited, robot, "--dry-run")) == 0
    assert "send" not in [what for _, what in robot.notes()]


def test_a_simulated_robot_needs_no_limits(unlimited, robot):
    robot.fail("simulated")
    assert main(arguments(unlimited, robot)) == 0
    assert "send" in [what for _, what in robot.notes()]


class Turned:
    """The toy robot in LeRobot's style. It lists y before x, and feels its temperature in between."""

    action_features = {"dy": float, "dx": float}

    def __init__(self):
        self.toy, self.told = ToyRobot(), []

    def get_observation(self):
        observation = self.toy.observe()
        x, y = observation.state
        return {"y": y, "temperature": 40.0, "x": x, **observation.images}

    def send_action(self, action):
        self.told.append(action)
        self.toy.send(np.array([action["dx"], action["dy"]]))


@pytest.mark.parametrize("unit", ["metres", "mm"])
def test_a_robot_that_lists_its_joints_in_another_order(toy_bundle, tmp_path, capsys, unit):
    from toy_bundle import sign

    folder, turned, found = shutil.copytree(toy_bundle, tmp_path / "named"), Turned(), threading.Event()
    spec = Spec({}, 20, "toy", (Channel("x", "m"), Channel("y", "m")), (Channel("dx"), Channel("dy")))
    sign(folder, {**json.loads((folder / DESCRIPTION).read_text()), "spec": spec.to_json()})
    served = RobotDriver(turned, state_names=["y", "temperature", "x"], cameras=["front"], units={"x": unit})
    robot = SimpleNamespace(address="")

    def listening(port: int) -> None:
        robot.address = f"tcp://127.0.0.1:{port}"
        found.set()

    threading.Thread(target=serve_robot, args=(served,), kwargs={"listening": listening}, daemon=True).start()
    assert found.wait(5)
    if unit == "mm":
        assert main(arguments(folder, robot)) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: the policy's state x is in m, the robot's in mm") and error.count("\n") == 1
        assert turned.told == []
        return
    assert main(arguments(folder, robot, "--log", str(tmp_path / "log"))) == 0
    first = turned.told[0]  # at x = 0.1 and y = 0 the policy's dx is -0.05 and its dy is 1, of which max_delta leaves 0.5
    assert first["dx"] == pytest.approx(-0.05, abs=0.04) and first["dy"] == pytest.approx(0.5)
    assert np.fromfile(tmp_path / "log" / "state.f32", "<f4")[:2].tolist() == pytest.approx([0.1, 0])


def test_what_cannot_start_says_why_in_one_line(toy_bundle, mortal_robot, tmp_path, capsys):
    robot = mortal_robot
    broken = shutil.copytree(toy_bundle, tmp_path / "broken")
    (broken / "policy.onnx").write_bytes(b"")
    (tmp_path / "limits.json").write_text('{"max_dleta": 1}')
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "file").touch()
    robot.process.kill()
    robot.process.wait()
    for bundle, more, message in (
        (broken, (), "policy.onnx was altered"),
        (tmp_path, (), "no robot bundle in"),
        (toy_bundle, ("--limits", str(tmp_path / "limits.json")), "unknown name 'max_dleta'"),
        (toy_bundle, ("--limits", str(tmp_path / "nowhere")), "No such file"),
        (toy_bundle, ("--robot", "tcp://10.0.0.7:1"), "must be tcp://127.0.0.1:PORT"),
        (toy_bundle, (), "does not answer"),
    ):
        assert main(arguments(bundle, robot, *more)) == 2
        out, error = capsys.readouterr()
        assert out == "" and error.startswith("error: ") and error.count("\n") == 1
        assert message in error


def test_a_policy_names_the_camera_that_it_misses(toy_bundle):
    policy = bundle_policy(load_bundle(toy_bundle, threads=1), "go")
    with pytest.raises(ValueError, match="looks through camera 'front', the robot has wrist; rename one"):
        policy(RobotObservation({"wrist": np.zeros((32, 32, 3), np.uint8)}, np.zeros(2, np.float32), 0.0))
    with pytest.raises(ValueError, match=r"camera front must be a picture, uint8 .* got float64 \(64, 64, 3\)"):
        policy(RobotObservation({"front": np.zeros((64, 64, 3))}, np.zeros(2, np.float32), 0.0))


def test_a_policy_sees_the_mosaic_of_what_the_robot_shows():
    class Echo:
        description: dict = {"views": {"front": [16, 24], "wrist": [8, 8]}}

        def noise(self, generator):
            return 0

        def __call__(self, *inputs):
            return inputs

    random = np.random.default_rng(0)
    images = {"wrist": random.integers(0, 256, (40, 40, 3), dtype=np.uint8), "depth": np.zeros((4, 4), np.float32)}
    images["front"] = random.integers(0, 256, (8, 12, 3), dtype=np.uint8)
    image, state, instruction, _ = bundle_policy(cast(Any, Echo()), "go")(RobotObservation(images, np.zeros(2, np.float32), 0.0))
    np.testing.assert_array_equal(image, mosaic(images, {"front": (16, 24), "wrist": (8, 8)}))
    assert image.shape == (16, 32, 3) and instruction == "go" and not image[8:, 24:].any()
