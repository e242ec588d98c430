"""The client of a policy server, openpi's or our own: an observation goes out, a chunk of actions comes back, in bounded time.

A robot must know when it cannot have an answer, so every call ends within `timeout_s`, with an answer or with a ConnectionError; a
broken connection is opened again within that time. Read `server.py` for the other side and `worldsim/measure/remote.py` for
evaluations.
"""

import contextlib
import socket
import struct
import time
from typing import Any

import numpy as np
from websockets.exceptions import InvalidStatus, InvalidURI, WebSocketException
from websockets.sync.client import ClientConnection, connect
from websockets.uri import parse_uri

from worldsim.robot.protocol import MAX_MESSAGE_BYTES, pack, unpack

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0  # between attempts to connect; doubled after each


class RemotePolicy:
    """One connection to a policy server, opened when it is first needed. Belongs to one thread.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        api_key: sent as ``Authorization: Api-Key <api_key>``.
        timeout_s: longest time that a call takes, connecting included.

    Raises:
        ValueError: if `url` is no websocket URL or `timeout_s` is not positive.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 10.0):
        try:
            parse_uri(url)
        except InvalidURI as error:
            raise ValueError(f"a policy server has a URL such as ws://127.0.0.1:8000, got {url!r}") from error
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, got {timeout_s}")
        self.url, self.timeout_s = url, timeout_s
        self._headers = {} if api_key is None else {"Authorization": f"Api-Key {api_key}"}
        self._connection: ClientConnection | None = None
        self._metadata: dict[str, Any] = {}

    @property
    def metadata(self) -> dict[str, Any]:
        """What the server said first; connects if there is no connection.

        Raises:
            ConnectionError: if there is none within `timeout_s`.
        """
        self._exchange(None)
        return self._metadata

    def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
        """The server's answer to an observation; sent again if the connection breaks.

        Args:
            observation: maps, lists, strings, numbers and arrays; the keys are the server's choice.

        Returns:
            The answer, with ``actions`` [ah, ad] and, by most servers, ``server_timing`` in milliseconds.

        Raises:
            ValueError: if the observation cannot be packed.
            ConnectionError: if there is no answer within `timeout_s`, or it is an error or no answer of this protocol.
        """
        answer = self._exchange(pack(observation))
        if not isinstance(answer.get("actions"), np.ndarray):
            raise self._broken("answered without an array of actions; is this a policy server?")
        return answer

    def close(self) -> None:
        """Close the connection, if there is one. A later call opens another."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def __enter__(self) -> "RemotePolicy":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _exchange(self, message: bytes | None) -> dict[str, Any]:
        """The answer to a message; only connects if it is None."""
        deadline, pause = time.monotonic() + self.timeout_s, FIRST_PAUSE_S
        while True:
            try:
                connection = self._connected(deadline)
                if message is None:
                    return self._metadata
                connection.send(message)
                return self._read(connection, deadline)
            except _Final:
                raise
            except (OSError, WebSocketException) as error:
                self._abandon()
                if isinstance(error, InvalidStatus) and error.response.status_code in (401, 403):
                    raise self._broken("refused the connection; is api_key right?") from error
                if time.monotonic() + pause > deadline:
                    raise self._broken(
                        f"gave no answer within {self.timeout_s:g} s ({_reason(error)}); is the server up?"
                    ) from error
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_S)

    def _connected(self, deadline: float) -> ClientConnection:
        if self._connection is None:
            connection = connect(
                self.url,
                additional_headers=self._headers,
                compression=None,
                max_size=MAX_MESSAGE_BYTES,
                open_timeout=_left(deadline),
                ping_interval=None,  # every call has its own deadline
                close_timeout=1,
                proxy=None,
            )
            self._connection = connection.__enter__()  # `connect` is meant for `with`, this connection outlives the call
            # Reading has a timeout of its own, sending to a server that has stopped to read would have none.
            seconds, part = divmod(self.timeout_s, 1)
            self._connection.socket.setsockopt(
                socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(seconds), int(1e6 * part))
            )
            self._metadata = self._read(self._connection, deadline)
        return self._connection

    def _read(self, connection: ClientConnection, deadline: float) -> dict[str, Any]:
        frame = connection.recv(timeout=_left(deadline))
        if isinstance(frame, str):
            raise self._broken(f"answered with an error: {frame.strip()}")
        try:
            answer = unpack(frame)
        except ValueError as error:
            raise self._broken(f"sent what is not of openpi's protocol: {error}") from error
        if not isinstance(answer, dict):
            raise self._broken(f"must send a map, sent a {type(answer).__name__}; is this a policy server?")
        return answer

    def _broken(self, what: str) -> "_Final":
        self._abandon()
        return _Final(f"{self.url} {what}")

    def _abandon(self) -> None:
        """Drop the connection at once: a late answer must not be taken for the next one, and a robot cannot wait for a goodbye."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_RDWR)


class _Final(ConnectionError):
    """Trying again would not help, or there is no time for it."""


def _left(deadline: float) -> float:
    return max(0.001, deadline - time.monotonic())


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
