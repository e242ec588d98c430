"""A policy server that robots already speak to: openpi's websocket protocol, with batching, limits and a graceful end.

It sends metadata first and then answers every observation with `actions` and `server_timing`, or a mistake with a line of text and
the end of the connection. It listens on loopback unless told otherwise, and nothing that a stranger sends may crash it, hang it or
run code. Read `protocol.py` for the bytes, `client.py` for the other side, `served_bundle.py` for a policy.
"""

import asyncio
import hmac
import ipaddress
import logging
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosed
from websockets.frames import CloseCode
from websockets.http11 import Request, Response

from worldsim.robot.prometheus import Histogram, counter
from worldsim.robot.protocol import MAX_MESSAGE_BYTES, pack, unpack

_log = logging.getLogger(__name__)


class Policy(Protocol):
    """What a `Server` serves.

    Attributes:
        metadata: sent to every client first; maps, lists, strings, numbers and arrays.
    """

    metadata: dict[str, Any]

    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        """Actions [ah, ad] of each observation. Called from one thread, so never twice at a time.

        Raises:
            ValueError: if an observation is not right. The message goes to the client that sent it; the others are asked again.
        """
        ...


class _Refusal(Exception):
    """Ends a connection with a line for the client; `kind` is what it counts as."""

    def __init__(self, text: str, kind: str, code: CloseCode):
        super().__init__(" ".join(text.split())[:500])
        self.kind, self.code = kind, code


@dataclass(frozen=True)
class _Answer:
    actions: np.ndarray | BaseException
    began: float
    seconds: float


@dataclass(frozen=True)
class _Waiting:
    observation: dict[str, Any]
    answer: "asyncio.Future[_Answer]"


class Server:
    """Serves one policy to many clients: ``Server(policy).run()``, or ``with Server(policy, port=0) as server:`` in the background.

    Args:
        policy: asked for up to `max_batch` observations at a time.
        host: address to listen on; any but loopback needs an `api_key`.
        port: 0 takes a free one; `url` says which.
        api_key: clients must send ``Authorization: Api-Key <api_key>``; printable ASCII.
        max_message_bytes: of one observation.
        max_clients: connections at a time; further ones get HTTP 503.
        max_waiting: observations that may wait for the policy; a further one is refused as busy.
        max_batch: observations per call of the policy; 1 for a policy that cannot batch.
        max_wait_s: how long a batch waits for observations of further clients.
        grace_s: how long a stop waits for what is in flight.
        patience_s: how long a client may leave its answers unread.

    Raises:
        ValueError: if a number is out of range, `api_key` is not printable ASCII, or `host` is not loopback and there is no key.
    """

    def __init__(
        self,
        policy: Policy,
        *,
        host: str = "127.0.0.1",
        port: int = 8000,
        api_key: str | None = None,
        max_message_bytes: int = MAX_MESSAGE_BYTES,
        max_clients: int = 128,
        max_waiting: int = 64,
        max_batch: int = 1,
        max_wait_s: float = 0.003,
        grace_s: float = 10.0,
        patience_s: float = 10.0,
    ):
        if api_key is None and not _is_loopback(host):
            raise ValueError(f"host={host} opens the policy to the network; set an api_key, or listen on 127.0.0.1")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip() == api_key != ""):
            raise ValueError("api_key must be printable ASCII without spaces around it, and not empty; choose another one")
        counts = {"max_message_bytes": max_message_bytes, "max_clients": max_clients, "max_waiting": max_waiting}
        for name, value in {**counts, "max_batch": max_batch}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.policy, self.host, self.port, self.api_key = policy, host, port, api_key
        self.max_message_bytes, self.max_clients, self.max_waiting = max_message_bytes, max_clients, max_waiting
        self.max_batch, self.max_wait_s, self.grace_s, self.patience_s = max_batch, max_wait_s, grace_s, patience_s
        self._metadata = pack(policy.metadata)
        self._clients: dict[ServerConnection, asyncio.Task | None] = {}
        self._waiting: deque[_Waiting] = deque()
        self._requests, self._errors = 0, {"request": 0, "busy": 0, "policy": 0}
        self._latency = Histogram([0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0])
        self._batch_size = Histogram([1, 2, 4, 8, 16, 32, 64])

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://[{self.host}]:{self.port}" if ":" in self.host else f"ws://{self.host}:{self.port}"

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Serve until SIGINT or SIGTERM, then answer what is in flight; a second signal acts as it does by default.

        Args:
            ready: called as soon as clients can connect.

        Raises:
            ValueError: if the address cannot be listened on.
        """
        listener = self._listen()

        async def main() -> None:
            loop, stop = asyncio.get_running_loop(), asyncio.Event()

            def stopped() -> None:
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
                stop.set()

            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stopped)
            ready()
            await self._serve(listener, stop)

        asyncio.run(main())

    def __enter__(self) -> "Server":
        listener, self._loop, self._stop = self._listen(), asyncio.new_event_loop(), asyncio.Event()
        serving = self._serve(listener, self._stop)
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(serving,), name="server", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        self._loop.close()

    def _listen(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        try:
            listener = socket.create_server((self.host, self.port), family=family)
        except (OSError, OverflowError) as error:
            raise ValueError(f"cannot listen on {self.host}:{self.port} ({error}); choose another address or port") from error
        self.port = listener.getsockname()[1]
        return listener

    async def _serve(self, listener: socket.socket, stop: asyncio.Event) -> None:
        self._stopping = asyncio.ensure_future(stop.wait())
        self._arrived, self._enough = asyncio.Event(), asyncio.Event()
        executor = ThreadPoolExecutor(1, thread_name_prefix="policy")
        server = await serve(
            self._converse,
            sock=listener,
            process_request=self._http,
            origins=[None],  # robots send none; a web page in somebody's browser does
            compression=None,
            max_size=self.max_message_bytes,
            max_queue=1,
            open_timeout=5,
            close_timeout=2,
        )
        work = [asyncio.ensure_future(self._answer_batches(executor)), asyncio.ensure_future(self._cut_off())]
        await asyncio.wait({self._stopping, *work}, return_when=asyncio.FIRST_COMPLETED)
        server.close(close_connections=False)
        closed = asyncio.ensure_future(server.wait_closed())
        await asyncio.wait({closed, *work}, timeout=self.grace_s, return_when=asyncio.FIRST_COMPLETED)
        for connection, task in list(self._clients.items()):
            connection.transport.abort()
            if task is not None:
                task.cancel()
        await closed
        executor.shutdown(wait=False, cancel_futures=True)
        for task in work:
            if task.done():
                task.result()  # work never ends but by a mistake of ours, which must be seen
            task.cancel()

    def _http(self, connection: ServerConnection, request: Request) -> Response | None:
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(HTTPStatus.OK, "OK\n")
        if not self._is_authorized(request.headers):
            return connection.respond(
                HTTPStatus.UNAUTHORIZED, "send the header 'Authorization: Api-Key ...' with this server's key\n"
            )
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self._metrics())
        if len(self._clients) >= self.max_clients:
            return connection.respond(
                HTTPStatus.SERVICE_UNAVAILABLE, f"{self.max_clients} clients are connected; try again later\n"
            )
        return None

    def _is_authorized(self, headers: Headers) -> bool:
        if self.api_key is None:
            return True
        given = headers.get_all("Authorization")
        expected = f"Api-Key {self.api_key}".encode()
        return len(given) == 1 and hmac.compare_digest(given[0].encode("utf-8", "surrogateescape"), expected)

    async def _converse(self, connection: ServerConnection) -> None:
        self._clients[connection] = asyncio.current_task()
        try:
            with suppress(ConnectionClosed):
                await self._answer_until_refusal(connection)
        finally:
            del self._clients[connection]

    async def _answer_until_refusal(self, connection: ServerConnection) -> None:
        timing: dict[str, float] = {}
        await connection.send(self._metadata)
        try:
            while (message := await self._receive(connection)) is not None:
                began = time.monotonic()
                await connection.send(await self._answer(message, began, timing))
                timing = {"prev_total_ms": 1e3 * (time.monotonic() - began)}
        except _Refusal as refusal:
            self._errors[refusal.kind] += 1
            await connection.send(str(refusal))
            await connection.close(refusal.code, "the last text frame says why")
        else:
            await connection.close(CloseCode.GOING_AWAY, "the server stops")

    async def _receive(self, connection: ServerConnection) -> bytes | str | None:
        """The next message, or None once the server stops; what has arrived by then is still answered."""
        message = asyncio.ensure_future(connection.recv())
        await asyncio.wait({message, self._stopping}, return_when=asyncio.FIRST_COMPLETED)
        if message.done():
            return message.result()
        message.cancel()
        return None

    async def _answer(self, message: bytes | str, began: float, timing: dict[str, float]) -> bytes:
        try:
            observation = unpack(message, max_bytes=self.max_message_bytes)
        except ValueError as error:
            raise _Refusal(str(error), "request", CloseCode.INVALID_DATA) from error
        if not isinstance(observation, dict):
            text = f"an observation must be a map of keys such as prompt, got a {type(observation).__name__}"
            raise _Refusal(text, "request", CloseCode.INVALID_DATA)
        if len(self._waiting) >= self.max_waiting:
            text = f"the server is busy, {self.max_waiting} observations wait already; try again later"
            raise _Refusal(text, "busy", CloseCode.TRY_AGAIN_LATER)
        waiting = _Waiting(observation, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._arrived.set()
        if len(self._waiting) >= self._wanted:
            self._enough.set()
        answer = await waiting.answer
        if isinstance(answer.actions, ValueError):
            raise _Refusal(str(answer.actions), "request", CloseCode.INVALID_DATA)
        if isinstance(answer.actions, BaseException):
            raise _Refusal("the policy failed; the server's log says why", "policy", CloseCode.INTERNAL_ERROR)
        self._requests += 1
        self._latency.observe(time.monotonic() - began)
        timing = {"infer_ms": 1e3 * answer.seconds, "wait_ms": 1e3 * (answer.began - began), **timing}
        return pack({"actions": answer.actions, "server_timing": timing})

    @property
    def _wanted(self) -> int:
        """A batch is not worth waiting for once it has so many: each client has at most one observation in flight."""
        return min(self.max_batch, len(self._clients))

    async def _answer_batches(self, executor: ThreadPoolExecutor) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._arrived.wait()
            if len(self._waiting) < self._wanted:
                self._enough.clear()
                with suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._enough.wait(), self.max_wait_s)
            batch = [self._waiting.popleft() for _ in range(min(self.max_batch, len(self._waiting)))]
            if not self._waiting:
                self._arrived.clear()
            began = time.monotonic()
            call = loop.run_in_executor(executor, self._infer, [waiting.observation for waiting in batch])
            await asyncio.wait({call})
            seconds, error = time.monotonic() - began, call.exception()
            results = call.result() if error is None else [error] * len(batch)
            if failure := next(filter(_is_failure, results), None):
                _log.error("the policy failed", exc_info=failure)
            self._batch_size.observe(len(batch))
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(_Answer(result, began, seconds))

    def _infer(self, observations: list[dict[str, Any]]) -> list[Any]:
        """Actions or an exception for each observation. A refused batch is halved, so that a bad observation fails alone."""
        try:
            results = self.policy.infer(observations)
        except ValueError as error:
            if len(observations) == 1:
                return [error]
            middle = len(observations) // 2
            return self._infer(observations[:middle]) + self._infer(observations[middle:])
        if len(results) != len(observations):
            raise RuntimeError(f"the policy gave {len(results)} answers to {len(observations)} observations")
        return [_checked(actions) for actions in results]

    async def _cut_off(self) -> None:
        """Ends connections that leave their answers unread: websockets would wait for them, and collect its pongs, for ever."""
        since: dict[ServerConnection, float] = {}
        while True:
            await asyncio.sleep(min(1.0, self.patience_s / 4))
            now = time.monotonic()
            since = {client: since.get(client, now) for client in self._clients if client.transport.get_write_buffer_size()}
            for client, began in since.items():
                if now - began > self.patience_s:
                    client.transport.abort()

    def _metrics(self) -> str:
        errors = {f'{{kind="{kind}"}}': number for kind, number in self._errors.items()}
        lines = [
            *counter("worldsim_requests_total", "Observations answered with actions.", {"": self._requests}),
            *counter("worldsim_errors_total", "Connections ended with an error frame.", errors),
            *counter("worldsim_clients", "Connected clients.", {"": len(self._clients)}, kind="gauge"),
            *counter("worldsim_waiting", "Observations that wait for the policy.", {"": len(self._waiting)}, kind="gauge"),
            *self._latency.lines("worldsim_request_seconds", "From an observation's arrival to its answer."),
            *self._batch_size.lines("worldsim_batch_size", "Observations per call of the policy."),
        ]
        return "\n".join(lines) + "\n"


def _checked(actions: np.ndarray) -> np.ndarray | RuntimeError:
    actions = np.asarray(actions, dtype=np.float32)
    if actions.ndim != 2 or not actions.size or not np.isfinite(actions).all():
        return RuntimeError(f"the policy's actions must be finite and of shape [ah, ad], got shape {actions.shape}")
    return actions


def _is_failure(result: object) -> bool:
    return isinstance(result, BaseException) and not isinstance(result, ValueError)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
