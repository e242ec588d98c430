"""The client: answers in bounded time, connections that come back, and servers that are none."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openpi import Doubling, foreign_server, state

from worldsim.robot.client import RemotePolicy
from worldsim.robot.protocol import pack
from worldsim.robot.server import Server

pytestmark = pytest.mark.alone

TESTS = Path(__file__).resolve().parents[2]
ENVIRONMENT = {"PYTHONPATH": f"{TESTS}:{TESTS.parent}", "OMP_NUM_THREADS": "1"}


def test_metadata_and_actions() -> None:
    with Server(Doubling(), port=0) as server, RemotePolicy(server.url) as policy:
        assert policy.metadata["robot"] == "test"
        for value in (1, 2):
            np.testing.assert_array_equal(policy.infer(state(value))["actions"], [[2 * value, -2 * value]] * 3)


def test_an_openpi_server_is_understood() -> None:
    answer = pack({"actions": np.ones((50, 7)), "policy_timing": {"infer_ms": 3.0}, "server_timing": {"infer_ms": 4.0}})
    with foreign_server(pack({}), answer) as url, RemotePolicy(url) as policy:
        got = policy.infer({"observation/state": np.zeros(8), "prompt": "pick up the cup"})
        assert policy.metadata == {}
    np.testing.assert_array_equal(got["actions"], np.ones((50, 7)))
    assert got["policy_timing"] == {"infer_ms": 3.0}


def test_the_key_is_sent_and_a_wrong_one_is_said_at_once() -> None:
    with Server(Doubling(), port=0, api_key="secret") as server:
        with RemotePolicy(server.url, api_key="secret") as policy:
            policy.infer(state(1))
        for key in (None, "wrong"):
            began = time.monotonic()
            with RemotePolicy(server.url, api_key=key) as policy, pytest.raises(ConnectionError, match="is api_key right?"):
                policy.infer(state(1))
            assert time.monotonic() - began < 2


def test_a_server_that_comes_back_is_found_again() -> None:
    port = free_port()
    with RemotePolicy(f"ws://127.0.0.1:{port}") as policy:
        for value in (1, 2, 3):
            server = Server(Doubling(), port=port)
            start = threading.Timer(0.2, server.__enter__)  # the client asks before there is a server
            start.start()
            np.testing.assert_array_equal(policy.infer(state(value))["actions"], [[2 * value, -2 * value]] * 3)
            server.__exit__()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def test_nobody_there_is_said_within_the_time() -> None:
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"gave no answer within 0.3 s \(.*refused.*\); is the server up?"):
        RemotePolicy(f"ws://127.0.0.1:{free_port()}", timeout_s=0.3).infer(state(1))
    assert time.monotonic() - began < 1


def test_a_late_answer_is_nobodys_answer() -> None:
    doubling = Doubling()
    with Server(doubling, port=0) as server, RemotePolicy(server.url, timeout_s=0.3) as policy:
        policy.infer(state(1))
        doubling.gate.clear()
        began = time.monotonic()
        with pytest.raises(ConnectionError, match="gave no answer within 0.3 s"):
            policy.infer(state(2))
        assert time.monotonic() - began < 1
        doubling.gate.set()
        np.testing.assert_array_equal(policy.infer(state(5))["actions"], [[10, -10]] * 3)


def test_a_server_that_stops_reading_is_noticed_within_the_time() -> None:
    code = "from openpi import Doubling; from worldsim.robot.server import Server\n"
    code += "server = Server(Doubling(), port=0); server.run(ready=lambda: print(server.url, flush=True))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=TESTS.parent, env=ENVIRONMENT)
    assert process.stdout is not None
    try:
        policy = RemotePolicy(process.stdout.readline().strip(), timeout_s=0.5)
        policy.infer(state(1))
        process.send_signal(signal.SIGSTOP)
        for image in (b"", bytes(15 * 2**20)):  # the second does not fit into the buffers between the two
            began = time.monotonic()
            with pytest.raises(ConnectionError, match="gave no answer within 0.5 s"):
                policy.infer({**state(1), "image": image})
            assert time.monotonic() - began < 2
            process.send_signal(signal.SIGCONT)
            policy.infer(state(1))
            process.send_signal(signal.SIGSTOP)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (["Traceback: no GPU"], "answered with an error: Traceback: no GPU"),
        ([b"\xc1"], "sent what is not of openpi's protocol: this is not a MessagePack message"),
        ([pack([1])], "must send a map, sent a list"),
        ([pack({}), "out of memory"], "answered with an error: out of memory"),
        ([pack({}), b""], "sent what is not of openpi's protocol"),
        ([pack({}), pack({"action": 1})], "answered without an array of actions"),
        ([pack({}), pack({"actions": [[1.0]]})], "answered without an array of actions"),
    ],
)
def test_what_is_no_policy_server_is_named(frames: list[Any], words: str) -> None:
    began = time.monotonic()
    with foreign_server(*frames) as url, RemotePolicy(url) as policy, pytest.raises(ConnectionError, match=words) as error:
        policy.infer(state(1))
    assert str(error.value).startswith(url)
    assert time.monotonic() - began < 3  # asking again would not help


def test_an_error_of_the_server_does_not_spoil_the_next_answer() -> None:
    with Server(Doubling(), port=0) as server, RemotePolicy(server.url) as policy:
        with pytest.raises(ConnectionError, match="state is missing; send it"):
            policy.infer({"prompt": "go"})
        np.testing.assert_array_equal(policy.infer(state(1))["actions"], [[2, -2]] * 3)


def test_what_cannot_be_sent_is_a_mistake_of_the_caller() -> None:
    with Server(Doubling(), port=0) as server, RemotePolicy(server.url) as policy:
        with pytest.raises(ValueError, match="message holds"):
            policy.infer({"state": object()})
        policy.infer(state(1))


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "http://127.0.0.1:8000", "", "ws://"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="a policy server has a URL such as ws://127.0.0.1:8000"):
        RemotePolicy(url)
    with pytest.raises(ValueError, match="timeout_s must be positive"):
        RemotePolicy("ws://127.0.0.1:8000", timeout_s=0)
