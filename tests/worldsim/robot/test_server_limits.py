"""Where the server says no, cuts off or stops: full queues, large messages, silent clients, signals."""

import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi import Doubling, OpenpiClient, end, fetch, metrics, state, until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from worldsim.robot.server import Server

pytestmark = pytest.mark.alone

TESTS = Path(__file__).resolve().parents[2]


def test_a_full_queue_says_so(policy: Doubling) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(policy, port=0, max_waiting=2))
        clients = [stack.enter_context(OpenpiClient(server.url)) for _ in range(4)]
        policy.gate.clear()
        clients[0].send(state(0))
        assert policy.entered.wait(5)
        for i in (1, 2):
            clients[i].send(state(i))
        until(lambda: metrics(server)["worldsim_waiting"] == 2)
        with pytest.raises(RuntimeError, match="the server is busy, 2 observations wait already; try again later"):
            clients[3].infer(state(3))
        assert end(clients[3]) == 1013
        policy.gate.set()
        assert [client.read()["actions"][0, 0] for client in clients[:3]] == [0, 2, 4]
        assert metrics(server)['worldsim_errors_total{kind="busy"}'] == 1


def test_a_client_that_pipelines_waits_for_itself_alone(policy: Doubling) -> None:
    with Server(policy, port=0, max_waiting=1) as server, OpenpiClient(server.url) as client:
        for i in range(20):
            client.send(state(i))
        assert [client.read()["actions"][0, 0] for _ in range(20)] == [2 * i for i in range(20)]


def test_too_many_clients_are_told_so(policy: Doubling) -> None:
    with Server(policy, port=0, max_clients=2) as server, OpenpiClient(server.url):
        with OpenpiClient(server.url):
            with pytest.raises(InvalidStatus) as error:
                OpenpiClient(server.url)
            assert error.value.response.status_code == 503
            assert fetch(server, "/healthz") == (200, "OK\n")
        until(lambda: metrics(server)["worldsim_clients"] == 1)
        with OpenpiClient(server.url) as client:
            client.infer(state(1))


def test_too_large_a_message_ends_the_connection(policy: Doubling) -> None:
    with Server(policy, port=0, max_message_bytes=10_000) as server, OpenpiClient(server.url) as client:
        client.infer({**state(1), "image": bytes(9_000)})
        client.send({**state(1), "image": bytes(11_000)})
        assert end(client) == 1009


def test_whoever_leaves_answers_unread_is_cut_off() -> None:
    class Talkative:
        metadata: dict[str, Any] = {}

        def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
            return [np.zeros((2000, 2000), np.float32)] * len(observations)  # 16 MB, more than the buffers between the two

    with Server(Talkative(), port=0, patience_s=0.4) as server:
        silent = socket.create_connection(("127.0.0.1", server.port))
        silent.sendall(HANDSHAKE + frame(msgpack.packb({})))
        until(lambda: metrics(server)["worldsim_clients"] == 1)
        until(lambda: metrics(server)["worldsim_clients"] == 0)
        silent.close()
        with OpenpiClient(server.url) as client:
            assert client.infer({})["actions"].shape == (2000, 2000)


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nHost: robot\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


def frame(payload: bytes) -> bytes:
    """A masked binary frame of at most 125 bytes; the mask of zeros changes nothing."""
    return bytes([0x82, 0x80 | len(payload)]) + bytes(4) + payload


def test_a_stop_answers_what_is_in_flight(policy: Doubling) -> None:
    server = Server(policy, port=0).__enter__()
    clients = [OpenpiClient(server.url) for _ in range(3)]
    policy.gate.clear()
    for i in (0, 1):
        clients[i].send(state(i + 1))
    assert policy.entered.wait(5)
    until(lambda: metrics(server)["worldsim_waiting"] == 1)
    stopping = threading.Thread(target=server.__exit__)
    stopping.start()
    assert end(clients[2]) == 1001  # nothing to wait for
    with pytest.raises(OSError, match="refused"):
        OpenpiClient(server.url)
    assert stopping.is_alive()
    policy.gate.set()
    for i in (0, 1):
        np.testing.assert_array_equal(clients[i].read()["actions"], [[2 * (i + 1), -2 * (i + 1)]] * 3)
        assert end(clients[i]) == 1001
    stopping.join(5)
    assert not stopping.is_alive()


def test_a_stop_does_not_wait_for_ever(policy: Doubling) -> None:
    server = Server(policy, port=0, grace_s=0.2).__enter__()
    client = OpenpiClient(server.url)
    policy.gate.clear()
    client.send(state(1))
    assert policy.entered.wait(5)
    began = time.monotonic()
    server.__exit__()
    assert 0.2 <= time.monotonic() - began < 2
    with pytest.raises(ConnectionClosed):
        client.connection.recv(timeout=5)


PROCESS = """
import sys, time
from openpi import Doubling
from worldsim.robot.server import Server

class Slow(Doubling):
    def infer(self, observations):
        time.sleep(0.5)
        return super().infer(observations)

server = Server(Slow(), port=0)
server.run(ready=lambda: print(server.url, flush=True))
print("bye", flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_after_the_last_answer(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS], stdout=subprocess.PIPE, text=True, cwd=TESTS.parent, env=ENVIRONMENT
    )
    assert process.stdout is not None
    try:
        client = OpenpiClient(process.stdout.readline().strip())
        client.send(state(1))
        time.sleep(0.1)
        process.send_signal(number)
        np.testing.assert_array_equal(client.read()["actions"], [[2, -2]] * 3)
        assert end(client) == 1001
        assert process.wait(5) == 0
        assert process.stdout.read() == "bye\n"
    finally:
        process.kill()
        process.wait()


ENVIRONMENT = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}


def test_a_robot_needs_no_torch() -> None:
    code = "import sys; sys.modules.update(dict.fromkeys(['torch', 'gymnasium', 'hydra', 'jaxtyping']))\n"
    code += "import worldsim.robot.server, worldsim.robot.client, worldsim.robot.served_bundle"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TESTS.parent, env=ENVIRONMENT)
