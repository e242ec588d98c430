"""A robot in a process of its own on this machine: `serve_robot` beside the hardware, `ProcessDriver` beside the policy.

Neither can take the other down: a robot that hangs is noticed within 0.3 s, and a robot whose policy died holds by itself. Messages
are JSON and raw arrays with a length in front, so nothing that arrives is ever executed. Read `loop.py` next: it drives any driver.
"""

import json
import math
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from worldsim.core.channels import Channel
from worldsim.core.strict import Node
from worldsim.robot.drivers import Channels, Driver, DriverError, RobotObservation

HOST = "127.0.0.1"  # and nowhere else: whoever reaches this port moves the robot
MAX_HEADER, MAX_ARRAYS = 1 << 16, 1 << 26  # bytes
_LENGTHS = struct.Struct("!II")
_DTYPES = ("uint8", "float32", "float64")
_FEATURES, _SAID = ("state_channels", "action_channels"), ("name", "unit", "kind")
Arrays = Mapping[str, np.ndarray]


class ProcessDriver(Driver):
    """A robot that `serve_robot` serves. Every call ends within `timeout_s`; after an error the next call connects again.

    `simulated`, `state_channels` and `action_channels` are what the robot's own driver says, known after the first observation. A
    robot whose channels change later, because another one is served now, is an error: whoever drives it has matched the first ones.

    Args:
        address: tcp://127.0.0.1:PORT.
        timeout_s: longest wait for the robot's answer.

    Raises:
        ValueError: if the address is not one on this machine.
    """

    def __init__(self, address: str, *, timeout_s: float = 0.2):
        self._port, self._timeout_s = _port(address), timeout_s
        self._connection: socket.socket | None = None
        self._said: dict[str, Any] | None = None

    def observe(self) -> RobotObservation:
        header, arrays = self._call("observe", {})
        state, seconds = arrays.pop("state", None), header.get("time")
        if state is None or isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise DriverError("the robot's observation lacks its state or time; serve it with worldsim.robot.process.serve_robot")
        self.simulated = header.get("simulated") is True
        self._hear(header)
        return RobotObservation({name.removeprefix("image."): image for name, image in arrays.items()}, state, float(seconds))

    def send(self, action: np.ndarray) -> None:
        self._call("send", {"action": np.asarray(action, np.float64)})

    def hold(self) -> None:
        self._call("hold", {})

    def stop(self) -> None:
        self._call("stop", {})

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _hear(self, header: dict[str, Any]) -> None:
        """Keep what the robot says of its channels the first time."""
        robot, said = f"the robot at tcp://{HOST}:{self._port}", {feature: header.get(feature) for feature in _FEATURES}
        if self._said is None:
            try:
                entries = Node(robot, "", header).entries(needed=_FEATURES)
                self.state_channels, self.action_channels = (_channels(entries[feature]) for feature in _FEATURES)
            except ValueError as error:
                raise DriverError(str(error)) from error
            self._said = said
        if said != self._said:
            raise DriverError(f"{robot} has other channels than at the first observation; start again")

    def _call(self, what: str, arrays: Arrays) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        deadline = time.monotonic() + self._timeout_s
        try:
            if self._connection is None:
                self._connection = socket.create_connection((HOST, self._port), timeout=self._timeout_s)
                self._connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _write(self._connection, {"do": what, "time": time.monotonic()}, arrays, deadline)
            header, answer = _read(self._connection, deadline)
        except (OSError, ValueError) as error:
            self.close()  # a late answer must not be taken for the answer to the next call
            raise DriverError(f"the robot at tcp://{HOST}:{self._port} does not answer ({error}); is its process alive?") from error
        if "error" in header:
            raise DriverError(f"the robot refused to {what}: {header['error']}")
        return header, answer


def serve_robot(
    driver: Driver, port: int = 0, *, watchdog_s: float = 0.3, listening: Callable[[int], None] = lambda port: None
) -> None:
    """Serve a robot to one `ProcessDriver` at a time, on the loopback interface, until an exception or a signal ends it.

    The robot holds while nobody is connected, when no message comes for `watchdog_s`, and instead of a command that is older than
    that. When this function ends, it stops.

    Args:
        driver: the robot.
        port: 0 lets the system choose.
        watchdog_s: longest silence [s].
        listening: is called once with the port.
    """
    try:
        with socket.create_server((HOST, port)) as server:
            listening(server.getsockname()[1])
            while True:
                connection, _ = server.accept()
                with connection:
                    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    _converse(driver, connection, watchdog_s)
                driver.hold()
    finally:
        driver.stop()


def _converse(driver: Driver, connection: socket.socket, watchdog_s: float) -> None:
    """Answer until the other side is gone, or says what cannot be read."""
    while True:
        if not select.select([connection], [], [], watchdog_s)[0]:
            driver.hold()
            continue
        try:
            header, arrays = _read(connection, time.monotonic() + watchdog_s)
        except (OSError, ValueError):
            return
        answer, images = _obey(driver, header, arrays, watchdog_s)
        try:
            _write(connection, answer, images, time.monotonic() + watchdog_s)
        except OSError:
            return


def _obey(
    driver: Driver, header: dict[str, Any], arrays: dict[str, np.ndarray], watchdog_s: float
) -> tuple[dict[str, Any], Arrays]:
    what, sent_at, action = header.get("do"), header.get("time"), arrays.get("action")
    try:
        if what == "observe":
            obs = driver.observe()
            images = {f"image.{name}": np.asarray(image, np.uint8) for name, image in obs.images.items()}
            said = {"time": obs.time, "simulated": driver.simulated, **{name: _plain(getattr(driver, name)) for name in _FEATURES}}
            return said, {**images, "state": np.asarray(obs.state, np.float32)}
        if what == "stop":
            driver.stop()
            return {}, {}
        if what == "hold":
            driver.hold()
            return {}, {}
        # After a pause of this process, commands of the past are still waiting to be read. Both sides share the monotonic clock.
        if what != "send" or not isinstance(sent_at, float) or not abs(time.monotonic() - sent_at) <= watchdog_s:
            driver.hold()
            return {"error": f"{what!r} is unknown, or came late; the robot holds"}, {}
        if action is None or not np.isfinite(action).all():
            driver.hold()
            return {"error": "the command has no finite action; the robot holds"}, {}
        driver.send(action)
    except (DriverError, OSError) as error:
        return {"error": str(error)}, {}
    return {}, {}


def _plain(channels: Channels) -> list[dict[str, str]] | None:
    return None if channels is None else [{word: getattr(channel, word) for word in _SAID} for channel in channels]


def _channels(node: Node) -> Channels:
    if node.value is None:
        return None
    words = ((channel, channel.entries(_SAID, needed=_SAID)) for channel in node.items())
    return tuple(channel.make(Channel, **{word: value.text() for word, value in said.items()}) for channel, said in words)


# Messages: two lengths, a JSON object that names the arrays, and their bytes ------------------------------------------------


def _write(connection: socket.socket, header: Mapping[str, Any], arrays: Arrays, deadline: float) -> None:
    described = [{"name": name, "dtype": str(array.dtype), "shape": array.shape} for name, array in arrays.items()]
    text = json.dumps({**header, "arrays": described}).encode()
    data = b"".join(array.tobytes() for array in arrays.values())
    connection.settimeout(_remaining(deadline))
    connection.sendall(_LENGTHS.pack(len(text), len(data)) + text + data)


def _read(connection: socket.socket, deadline: float) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """One message.

    Raises:
        ValueError: if it is not one.
        OSError: if the connection ends or the deadline passes.
    """
    header_size, data_size = _LENGTHS.unpack(_receive(connection, _LENGTHS.size, deadline))
    if header_size > MAX_HEADER or data_size > MAX_ARRAYS:
        raise ValueError(f"a message of {header_size} + {data_size} bytes is too long")
    try:
        header = json.loads(_receive(connection, header_size, deadline))
    except RecursionError as error:
        raise ValueError("the header of a message is nested too deeply") from error
    data = _receive(connection, data_size, deadline)
    if not isinstance(header, dict) or not isinstance(header.get("arrays"), list):
        raise ValueError("the header of a message is not an object with arrays")
    arrays, start = {}, 0
    for entry in header["arrays"]:
        name, dtype, shape = _check_entry(entry)
        count = math.prod(shape)
        arrays[name] = np.frombuffer(data, dtype, count, start).reshape(shape)  # ValueError beyond the end
        start += arrays[name].nbytes
    return header, arrays


def _check_entry(entry: Any) -> tuple[str, str, list[int]]:
    if (
        not isinstance(entry, dict)
        or not isinstance(name := entry.get("name"), str)
        or (dtype := entry.get("dtype")) not in _DTYPES
    ):
        raise ValueError(f"an array of a message must have a name and one of the types {', '.join(_DTYPES)}")
    shape = entry.get("shape")
    if not isinstance(shape, list) or len(shape) > 4 or not all(type(n) is int and 0 <= n <= MAX_ARRAYS for n in shape):
        raise ValueError(f"array {name!r} has no possible shape")
    return name, dtype, shape


def _receive(connection: socket.socket, size: int, deadline: float) -> bytes:
    received = bytearray()
    while len(received) < size:
        connection.settimeout(_remaining(deadline))
        part = connection.recv(min(size - len(received), 1 << 20))
        if not part:
            raise ConnectionResetError("the connection was closed")
        received += part
    return bytes(received)


def _remaining(deadline: float) -> float:
    remaining_s = deadline - time.monotonic()
    if remaining_s <= 0:
        raise TimeoutError("timed out")
    return remaining_s


def _port(address: str) -> int:
    parts = urlsplit(address)
    try:
        port = parts.port
    except ValueError:
        port = None
    if parts.scheme != "tcp" or parts.hostname not in (HOST, "localhost") or not port or parts.path not in ("", "/"):
        raise ValueError(f"a robot's address must be tcp://{HOST}:PORT, got {address!r}; forward the port if it is elsewhere")
    return port
