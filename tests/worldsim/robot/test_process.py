"""A robot in a process of its own: what goes over the wire, and that nothing on either side of it can hang or hurt the other."""

import json
import os
import signal
import socket
import struct
import threading
import time
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_robot import ToyRobot, robot_process

from worldsim.core.spec import Channel, Spec
from worldsim.robot.drivers import DriverError, RobotObservation, joined
from worldsim.robot.process import MAX_ARRAYS, MAX_HEADER, ProcessDriver, _read, _write, serve_robot

pytestmark = pytest.mark.alone


class Served:
    """A `ToyRobot` behind `serve_robot` in a thread of the test."""

    def __init__(self, **more):
        self.notes: list[tuple[float, str]] = []
        self.robot = ToyRobot(lambda what: self.notes.append((time.monotonic(), what)))
        ready, self.port = threading.Event(), 0

        def listening(port: int) -> None:
            self.port = port
            ready.set()

        arguments = {"listening": listening, **more}
        threading.Thread(target=serve_robot, args=(self.robot,), kwargs=arguments, daemon=True).start()
        assert ready.wait(5)
        self.address = f"tcp://127.0.0.1:{self.port}"

    def told(self) -> list[str]:
        return [what for _, what in self.notes]

    def wait_for(self, what: str, timeout_s: float = 2.0) -> None:
        end = time.monotonic() + timeout_s
        while what not in self.told():
            assert time.monotonic() < end, f"not told to {what}, but {self.told()}"
            time.sleep(0.005)


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("!II", len(text), len(data)) + text + data


def test_observations_and_commands_arrive_as_they_were():
    served = Served()
    driver = ProcessDriver(served.address)
    observation = driver.observe()
    assert observation.images["front"].shape == (32, 32, 3) and observation.images["front"].dtype == np.uint8
    assert observation.state.tolist() == np.array([0.1, 0], np.float32).tolist() and observation.state.dtype == np.float32
    assert abs(observation.time - time.monotonic()) < 0.1
    driver.send(np.array([0.25, -1 / 3]))
    assert served.robot.sent[0].tolist() == [0.25, -1 / 3]
    driver.hold()
    driver.stop()
    assert served.told()[:3] == ["send", "hold", "stop"]
    driver.close()


def test_whether_it_is_simulated_is_what_the_robots_own_driver_says():
    served = Served()
    driver = ProcessDriver(served.address)
    assert not driver.simulated
    for simulated in (True, False):
        served.robot.simulated = simulated
        driver.observe()
        assert driver.simulated is simulated
    driver.close()


def test_channels_cross_and_every_joint_gets_its_own_number():
    served = Served()
    x, y, dx, dy = Channel("x", "m"), Channel("y", "mm"), Channel("dx", "m/s", "velocity"), Channel("dy", kind="delta")
    served.robot.state_channels, served.robot.action_channels = (y, x), (dy, dx)  # and the toy's x is called y
    driver = ProcessDriver(served.address)
    assert driver.state_channels is None is driver.action_channels
    driver.observe()
    assert driver.state_channels == (y, x) and driver.action_channels == (dy, dx)
    policys = joined(driver, {"spec": Spec({}, 10, "toy", (x, y), (dx, dy)).to_json()})
    assert policys.observe().state.tolist() == np.array([0, 0.1], np.float32).tolist()
    policys.send(np.array([0.25, 0.5]))
    assert served.robot.sent[-1].tolist() == [0.5, 0.25]
    for changed in ((dx, dy), None):
        served.robot.action_channels = changed
        with pytest.raises(DriverError, match="^the robot at tcp.* has other channels than at the first observation; start again$"):
            policys.observe()
    served.robot.action_channels = dy, dx
    policys.observe()
    policys.close()


def test_a_robot_holds_by_itself_when_nobody_speaks_and_when_the_other_side_is_gone():
    served = Served(watchdog_s=0.15)
    driver = ProcessDriver(served.address)
    driver.send(np.zeros(2))
    sent_at = served.notes[0][0]
    served.wait_for("hold")
    assert 0.1 < served.notes[1][0] - sent_at < 0.3
    driver.send(np.zeros(2))
    served.notes.clear()
    closed_at = time.monotonic()
    driver.close()
    served.wait_for("hold")
    assert served.notes[0][0] - closed_at < 0.1


def test_commands_of_the_past_are_not_executed():
    served = Served(watchdog_s=0.2)
    array = {"name": "action", "dtype": "float64", "shape": [2]}
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        for age_s, error in ((0.0, False), (0.5, True), (-0.5, True)):
            connection.sendall(raw({"do": "send", "time": time.monotonic() - age_s, "arrays": [array]}, bytes(16)))
            assert ("error" in _read(connection, time.monotonic() + 1)[0]) is error
    assert len(served.robot.sent) == 1
    assert served.told()[:3] == ["send", "hold", "hold"]


@pytest.mark.parametrize(
    ("header", "data"),
    [
        ({"do": "send", "arrays": []}, b""),  # no time
        ({"do": "dance", "time": 0.0, "arrays": []}, b""),
        ({"do": "send", "time": "now", "arrays": [{"name": "action", "dtype": "float64", "shape": [2]}]}, bytes(16)),
        ({"do": "send", "time": "NOW", "arrays": [{"name": "action", "dtype": "float64", "shape": [1]}]}, b"\0\0\0\0\0\0\xf8\x7f"),
    ],
)
def test_what_is_no_command_holds(header, data):
    served = Served()
    if header.get("time") == "NOW":  # a NaN, and in time
        header = {**header, "time": time.monotonic()}
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(raw(header, data))
        assert "the robot holds" in _read(connection, time.monotonic() + 1)[0]["error"]
    assert served.told()[0] == "hold" and served.robot.sent == []


@pytest.mark.parametrize(
    "message",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        raw(b"{"),
        raw(b"[1]"),
        raw(b"[" * 60_000),
        raw({"do": "send"}),
        raw({"arrays": [1]}),
        raw({"arrays": [{"name": "action", "dtype": "object", "shape": [1]}]}, bytes(8)),
        raw({"arrays": [{"name": "action", "dtype": "float64", "shape": [3]}]}, bytes(16)),
        raw({"arrays": [{"name": "action", "dtype": "float64", "shape": [-1]}]}, bytes(16)),
        raw({"arrays": [{"name": "action", "dtype": "float64", "shape": [1e9]}]}, bytes(16)),
        struct.pack("!II", 2**32 - 1, 0),
        struct.pack("!II", 2, MAX_ARRAYS + 1) + b"{}",
        struct.pack("!II", 100, 0) + b"slow",
    ],
)
def test_hostile_messages_end_the_connection_and_nothing_else(message):
    served = Served(watchdog_s=0.1)
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.settimeout(2)
        connection.sendall(message)
        with suppress(ConnectionResetError):
            assert connection.recv(100) == b""  # closed, without an answer
    driver = ProcessDriver(served.address)
    assert driver.observe().state.shape == (2,)
    assert served.robot.sent == []


def test_several_arrays_keep_their_places():
    arrays = {
        "a": np.arange(6.0).reshape(2, 3),
        "b": np.arange(3, dtype=np.float32),
        "c": np.full((2, 2), 7, np.uint8),
        "d": np.ones(1),
    }
    ours, theirs = socket.socketpair()
    with ours, theirs:
        _write(theirs, {"do": "test"}, arrays, time.monotonic() + 1)
        header, got = _read(ours, time.monotonic() + 1)
    assert header["do"] == "test" and list(got) == list(arrays)
    for name, array in arrays.items():
        assert got[name].dtype == array.dtype
        np.testing.assert_array_equal(got[name], array)


@pytest.mark.parametrize("lengths", [(MAX_HEADER + 1, 0), (2, MAX_ARRAYS + 1)])
def test_messages_that_are_too_long_are_not_waited_for(lengths):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(struct.pack("!II", *lengths) + b"{}")
        with pytest.raises(ValueError, match="bytes is too long"):
            _read(ours, time.monotonic() + 0.2)


@given(st.binary(max_size=300), st.binary(max_size=64), st.booleans())
@settings(max_examples=300, deadline=None)
def test_whatever_arrives_is_a_message_or_an_error(header, data, framed):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(raw(header, data) if framed else header + data)
        theirs.shutdown(socket.SHUT_WR)
        try:
            answer, arrays = _read(ours, time.monotonic() + 1)
        except (OSError, ValueError):
            return
    assert isinstance(answer, dict) and isinstance(arrays, dict)


def test_errors_of_the_driver_reach_the_other_side_and_the_connection_stays():
    served = Served()

    def observe() -> RobotObservation:
        raise DriverError("the camera is unplugged")

    working, served.robot.observe = served.robot.observe, observe  # type: ignore[method-assign]
    driver = ProcessDriver(served.address)
    with pytest.raises(DriverError, match="refused to observe: the camera is unplugged"):
        driver.observe()
    served.robot.observe = working  # type: ignore[method-assign]
    assert driver.observe().state.shape == (2,)


def test_a_robot_that_lies_about_its_observation_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                for header in ({"time": 1.0, "arrays": []}, {"time": "soon", "arrays": []}):
                    _read(connection, time.monotonic() + 2)
                    connection.sendall(raw(header))

        threading.Thread(target=answer, daemon=True).start()
        driver = ProcessDriver(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        for _ in range(2):
            with pytest.raises(DriverError, match="lacks its state or time"):
                driver.observe()


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ({}, "state_channels is missing"),
        ({"state_channels": None, "action_channels": "xy"}, "action_channels is 'xy', expected a list"),
        ({"state_channels": [["x", "m"]], "action_channels": None}, r"state_channels\[0\] is .*, expected a mapping"),
        ({"state_channels": [{"name": "x", "unit": "m"}], "action_channels": None}, r"state_channels\[0\].kind is missing"),
        ({"state_channels": [{"name": "x", "unit": 1, "kind": "angle"}], "action_channels": None}, "unit is 1, expected text"),
        ({"state_channels": [{"name": "x", "unit": "m", "kind": "odd"}], "action_channels": None}, "kind of channel x is 'odd'"),
    ],
)
def test_channels_that_cannot_be_are_one_line(channels, message):
    ours, theirs = socket.socketpair()
    driver = ProcessDriver("tcp://127.0.0.1:9")
    driver._connection = ours
    with ours, theirs:
        _write(theirs, {"time": 1.0, **channels}, {"state": np.zeros(2, np.float32)}, time.monotonic() + 1)
        with pytest.raises(DriverError, match=f"^the robot at tcp://127.0.0.1:9: .*{message}") as error:
            driver.observe()
    assert "\n" not in str(error.value) and driver.state_channels is None


def test_a_killed_and_a_stalled_robot_are_noticed_within_300_ms(tmp_path):
    with robot_process(tmp_path / "log") as robot:
        driver = ProcessDriver(robot.address)
        driver.observe()
        os.kill(robot.process.pid, signal.SIGSTOP)
        began = time.monotonic()
        with pytest.raises(DriverError, match="does not answer"):
            driver.observe()
        assert time.monotonic() - began < 0.3
        os.kill(robot.process.pid, signal.SIGCONT)
        time.sleep(0.1)
        assert driver.observe().state.shape == (2,)  # connected again
        robot.process.kill()
        robot.process.wait()
        for _ in range(2):
            began = time.monotonic()
            with pytest.raises(DriverError, match="is its process alive"):
                driver.observe()
            assert time.monotonic() - began < 0.3


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:9000",
        "tcp://10.0.0.7:9000",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "http://127.0.0.1:9000",
        "",
    ],
)
def test_only_this_machine_is_reached(address):
    with pytest.raises(ValueError, match="must be tcp://127.0.0.1:PORT"):
        ProcessDriver(address)
