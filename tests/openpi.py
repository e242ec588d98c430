"""openpi's protocol from its description alone, with websockets and msgpack and none of our code: client, server and policy."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import msgpack
import numpy as np
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve


def encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    if isinstance(value, np.generic):
        return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}
    return value


def decode(fields: dict[Any, Any]) -> Any:
    if b"__ndarray__" in fields:
        return np.ndarray(buffer=fields[b"data"], dtype=np.dtype(fields[b"dtype"]), shape=fields[b"shape"])
    if b"__npgeneric__" in fields:
        return np.dtype(fields[b"dtype"]).type(fields[b"data"])
    return fields


class OpenpiClient:
    """Metadata first, then observations and answers in turn; an error is a text frame."""

    def __init__(self, url: str, api_key: str | None = None):
        headers = None if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self.connection = connect(url, compression=None, max_size=None, additional_headers=headers).__enter__()
        self.metadata = self.read()

    def send(self, observation: Any) -> None:
        self.connection.send(msgpack.packb(observation, default=encode))

    def read(self, timeout_s: float = 10) -> Any:
        frame = self.connection.recv(timeout=timeout_s)
        if isinstance(frame, str):
            raise RuntimeError(frame)
        return msgpack.unpackb(frame, object_hook=decode)

    def infer(self, observation: Any) -> Any:
        self.send(observation)
        return self.read()

    def __enter__(self) -> "OpenpiClient":
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()


@contextmanager
def foreign_server(*frames: Any) -> Iterator[str]:
    """Somebody's server: sends the first frame, then one more for every message."""

    def handler(connection: ServerConnection) -> None:
        connection.send(frames[0])
        for answer in frames[1:]:
            connection.recv()
            connection.send(answer)
        connection.recv()  # keep the connection until the client ends it

    with serve(handler, "127.0.0.1", 0, compression=None) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


class Doubling:
    """Answers with twice the state, three times over. Waits for `gate`, and notes the size of every batch."""

    metadata = {"robot": "test", "action_horizon": 3, "home": np.array([0.5, -0.5], np.float32)}

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.gate, self.entered = threading.Event(), threading.Event()
        self.gate.set()

    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        self.sizes.append(len(observations))
        self.entered.set()
        assert self.gate.wait(20)
        if any("state" not in observation for observation in observations):
            raise ValueError("state is missing;\n send it")
        if any(observation.get("fail") for observation in observations):
            raise KeyError("a secret of the server")
        return [np.tile(2 * observation["state"], (3, 1)) for observation in observations]


def state(value: float) -> dict[str, Any]:
    return {"state": np.array([value, -value], np.float32), "prompt": "go"}


def fetch(server: Any, path: str, **headers: str) -> tuple[int, str]:
    request = Request(server.url.replace("ws://", "http://") + path, headers=headers)
    try:
        with urlopen(request, timeout=5) as response:
            return response.status, response.read().decode()
    except HTTPError as error:
        return error.code, error.read().decode()


def metrics(server: Any) -> dict[str, float]:
    lines = [line for line in fetch(server, "/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def until(condition: Callable[[], bool], within_s: float = 5) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.005)


def end(client: OpenpiClient, within_s: float = 5) -> int:
    """The code with which the server closes this connection."""
    with pytest.raises(ConnectionClosed) as error:
        client.connection.recv(timeout=within_s)
    assert error.value.rcvd is not None
    return error.value.rcvd.code
