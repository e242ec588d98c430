"""A client written from openpi's published protocol alone (websockets and msgpack, none of our code), and policies to serve."""

import threading
from typing import Any

import msgpack
import numpy as np
from websockets.sync.client import connect


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
