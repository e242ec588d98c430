"""The server, spoken to by a client that was written from openpi's published protocol alone."""

import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from openpi import Doubling, OpenpiClient, encode, end, fetch, metrics, state, until
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from worldsim.robot.server import Server

pytestmark = pytest.mark.alone

TESTS = Path(__file__).resolve().parents[2]


def test_metadata_comes_first_and_actions_answer_observations(policy: Doubling) -> None:
    with Server(policy, port=0) as server:
        with connect(server.url, compression=None) as raw:
            assert raw.recv(timeout=5) == msgpack.packb(policy.metadata, default=encode)
        with OpenpiClient(server.url) as client:
            assert client.metadata["robot"] == "test"
            np.testing.assert_array_equal(client.metadata["home"], policy.metadata["home"])
            first, second = client.infer(state(1.5)), client.infer(state(-4))
    assert first["actions"].dtype == np.float32
    np.testing.assert_array_equal(first["actions"], [[3, -3]] * 3)
    np.testing.assert_array_equal(second["actions"], [[-8, 8]] * 3)
    assert set(first["server_timing"]) == {"infer_ms", "wait_ms"}
    assert set(second["server_timing"]) == {"infer_ms", "wait_ms", "prev_total_ms"}
    assert all(0 <= milliseconds < 5000 for milliseconds in second["server_timing"].values())


def test_timing_says_how_long_the_policy_and_the_queue_took(policy: Doubling) -> None:
    with Server(policy, port=0) as server, OpenpiClient(server.url) as one, OpenpiClient(server.url) as two:
        policy.gate.clear()
        one.send(state(1))
        assert policy.entered.wait(5)
        two.send(state(2))
        until(lambda: metrics(server)["worldsim_waiting"] == 1)
        time.sleep(0.1)
        policy.gate.set()
        assert one.read()["server_timing"]["infer_ms"] >= 100
        timing = two.read()["server_timing"]
        assert timing["wait_ms"] >= 100 > timing["infer_ms"]


@pytest.mark.parametrize("key", [None, "", "wrong", "secre", "secrets"])
def test_a_wrong_key_opens_nothing(policy: Doubling, key: str | None) -> None:
    headers = {} if key is None else {"Authorization": f"Api-Key {key}"}
    with Server(policy, port=0, api_key="secret") as server:
        with pytest.raises(InvalidStatus) as error:
            connect(server.url, additional_headers=headers)
        assert error.value.response.status_code == 401
        assert fetch(server, "/metrics", **headers)[0] == 401
        assert fetch(server, "/healthz") == (200, "OK\n")
        assert fetch(server, "/metrics", Authorization="Api-Key secret")[0] == 200
        with OpenpiClient(server.url, api_key="secret") as client:
            np.testing.assert_array_equal(client.infer(state(1))["actions"], [[2, -2]] * 3)


def test_two_keys_are_no_key(policy: Doubling) -> None:
    headers = [("Authorization", "Api-Key secret"), ("Authorization", "Api-Key secret")]
    with Server(policy, port=0, api_key="secret") as server, pytest.raises(InvalidStatus):
        connect(server.url, additional_headers=headers)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"host": "0.0.0.0"}, "host=0.0.0.0 opens the policy to the network; set an api_key"),
        ({"host": "::"}, "opens the policy"),
        ({"host": "robot.local"}, "opens the policy"),
        ({"api_key": ""}, "api_key must be"),
        ({"api_key": "é"}, "api_key must be"),
        ({"api_key": "a\n"}, "api_key must be"),
        ({"max_batch": 0}, "max_batch must be at least 1, got 0"),
        ({"max_waiting": 0}, "max_waiting must be"),
    ],
)
def test_an_unsafe_or_senseless_server_is_not_built(policy: Doubling, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Server(policy, **options)


def test_a_taken_port_is_one_line(policy: Doubling) -> None:
    with Server(policy, port=0) as server, pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1:{server.port}"):
        Server(policy, port=server.port).__enter__()
    assert server.port != 0
    for host in ("localhost", "127.0.0.1"):
        with Server(policy, host=host, port=server.port):  # and free again at once
            pass


def test_web_pages_are_kept_out(policy: Doubling) -> None:
    with Server(policy, port=0) as server, pytest.raises(InvalidStatus) as error:
        connect(server.url, origin="http://evil.example")  # type: ignore[arg-type]
    assert error.value.response.status_code == 403


def test_metrics(policy: Doubling) -> None:
    with Server(policy, port=0) as server, OpenpiClient(server.url) as client, OpenpiClient(server.url) as other:
        for value in (1, 2, 3):
            client.infer(state(value))
        with pytest.raises(RuntimeError):
            other.infer({})
        assert end(other) == 1007
        until(lambda: metrics(server)["worldsim_clients"] == 1)
        got = metrics(server)
        text = fetch(server, "/metrics")[1]
    assert got["worldsim_requests_total"] == got["worldsim_request_seconds_count"] == 3
    assert got['worldsim_errors_total{kind="request"}'] == 1
    assert got['worldsim_errors_total{kind="policy"}'] == got['worldsim_errors_total{kind="busy"}'] == got["worldsim_waiting"] == 0
    assert got["worldsim_batch_size_sum"] == got["worldsim_batch_size_count"] == got['worldsim_batch_size_bucket{le="1"}'] == 4
    buckets = [value for name, value in got.items() if name.startswith("worldsim_request_seconds_bucket")]
    assert buckets == sorted(buckets) and buckets[-1] == 3
    assert 0 < got["worldsim_request_seconds_sum"] < 5
    assert (
        "# TYPE worldsim_request_seconds histogram\n" in text and "# TYPE worldsim_clients gauge\n" in text and text.endswith("\n")
    )


NO_MAP = "an observation must be a map of keys such as prompt, got a "
BAD, BROKEN = (1007, "request"), (1011, "policy")
MISTAKES: dict[str, tuple[Any, str, tuple[int, str]]] = {
    "text": ("hello", "expected a binary MessagePack frame, got text; send observations packed", BAD),
    "garbage": (b"\xc1", "this is not a MessagePack message: malformed", BAD),
    "list": (b"\x90", f"{NO_MAP}list", BAD),
    "array": (msgpack.packb(np.zeros(2), default=encode), f"{NO_MAP}ndarray", BAD),
    "refused by the policy": (b"\x80", "state is missing; send it", BAD),
    "failure": (msgpack.packb({**state(1), "fail": True}, default=encode), "the policy failed; the server's log says why", BROKEN),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_one_line_of_text_and_the_end(policy: Doubling, mistake: str) -> None:
    message, text, (code, kind) = MISTAKES[mistake]
    with Server(policy, port=0) as server, OpenpiClient(server.url) as good:
        bad = OpenpiClient(server.url)
        bad.connection.send(message)
        assert bad.connection.recv(timeout=5) == text
        assert end(bad) == code
        assert metrics(server)[f'worldsim_errors_total{{kind="{kind}"}}'] == 1
        np.testing.assert_array_equal(good.infer(state(1))["actions"], [[2, -2]] * 3)


@pytest.mark.parametrize(
    "actions",
    [
        [np.full((3, 2), np.nan)],
        [np.full((3, 2), np.inf)],
        [np.zeros(3)],
        [np.zeros((3, 0))],
        [],
        [np.zeros((3, 2)), np.zeros((3, 2))],
    ],
)
def test_actions_that_a_robot_must_not_execute_are_not_sent(actions: list[np.ndarray], caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        metadata: dict[str, Any] = {}

        def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
            return actions

    with (
        Server(Broken(), port=0) as server,
        OpenpiClient(server.url) as client,
        pytest.raises(RuntimeError, match="the policy failed"),
    ):
        client.infer(state(1))
    assert "policy" in caplog.text and "Traceback" not in caplog.records[0].getMessage()


def gather(server: Server, policy: Doubling, clients: list[OpenpiClient], observations: list[Any]) -> list[Any]:
    """The first client's observation enters the policy, the others wait for it together; then all are answered."""
    policy.gate.clear()
    for i, (client, observation) in enumerate(zip(clients, observations, strict=True)):
        client.send(observation)
        if i == 0:
            assert policy.entered.wait(5)
    until(lambda: metrics(server)["worldsim_waiting"] == len(clients) - 1)
    policy.gate.set()
    answers = []
    for client in clients:
        try:
            answers.append(client.read()["actions"][0, 0])
        except RuntimeError as error:
            answers.append(str(error))
    return answers


def test_observations_of_many_clients_are_answered_in_batches(policy: Doubling) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(policy, port=0, max_batch=4))
        clients = [stack.enter_context(OpenpiClient(server.url)) for _ in range(10)]
        answers = gather(server, policy, clients, [state(i) for i in range(10)])
    assert answers == [2 * i for i in range(10)]  # to each its own
    assert policy.sizes == [1, 4, 4, 1]


def test_a_policy_that_cannot_batch_is_asked_one_by_one(policy: Doubling) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(policy, port=0))
        clients = [stack.enter_context(OpenpiClient(server.url)) for _ in range(5)]
        assert gather(server, policy, clients, [state(i) for i in range(5)]) == [0, 2, 4, 6, 8]
    assert policy.sizes == [1] * 5


def test_a_batch_waits_for_the_other_clients_and_no_longer(policy: Doubling) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(policy, port=0, max_batch=8, max_wait_s=0.5))
        clients = [stack.enter_context(OpenpiClient(server.url)) for _ in range(4)]
        threads = stack.enter_context(ThreadPoolExecutor(4))
        began = time.monotonic()
        answers = list(threads.map(lambda pair: pair[1].infer(state(pair[0]))["actions"][0, 0], enumerate(clients)))
        assert time.monotonic() - began < 0.4 and answers == [0, 2, 4, 6]
        assert policy.sizes == [4]
        began = time.monotonic()
        clients[0].infer(state(1))  # the others stay silent
        assert 0.5 <= time.monotonic() - began < 2
        for client in clients[1:]:
            client.connection.close()
        until(lambda: metrics(server)["worldsim_clients"] == 1)
        began = time.monotonic()
        clients[0].infer(state(1))  # nobody to wait for
        assert time.monotonic() - began < 0.4


def test_a_bad_observation_fails_alone(policy: Doubling) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(Server(policy, port=0, max_batch=8))
        clients = [stack.enter_context(OpenpiClient(server.url)) for _ in range(9)]
        observations = [state(i) for i in range(9)]
        observations[6] = {"prompt": "go"}
        answers = gather(server, policy, clients, observations)
    assert answers == [0, 2, 4, 6, 8, 10, "state is missing; send it", 14, 16]
    # Observation 6 is the sixth of the batch of eight: halves 1-4 and 5-8, quarters 5-6 and 7-8, then 5 and 6.
    assert policy.sizes == [1, 8, 4, 4, 2, 1, 1, 2]
