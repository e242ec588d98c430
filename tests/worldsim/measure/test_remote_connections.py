"""Connections to a policy server: no more than are of use, and none is left behind, whatever happens."""

import re
import time
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest

pytest.importorskip("websockets")

from worldsim.measure.remote import RemotePolicies
from worldsim.robot.server import Server

pytestmark = pytest.mark.alone


class Echo:
    """Answers with the number that it is sent; refuses negative ones."""

    metadata: dict[str, Any] = {"name": "echo"}

    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        if any(observation["number"] < 0 for observation in observations):
            raise ValueError("number must not be negative")
        return [np.full((1, 1), observation["number"], np.float32) for observation in observations]


def clients(server: Server) -> int:
    """Connected at this moment."""
    with urlopen(server.url.replace("ws", "http", 1) + "/metrics") as page:
        found = re.search(r"^worldsim_clients (\d+)", page.read().decode(), re.MULTILINE)
    assert found is not None
    return int(found[1])


def wait_for(server: Server, number: int) -> None:
    end = time.monotonic() + 5
    while (connected := clients(server)) != number:
        assert time.monotonic() < end, f"{connected} clients are connected, not {number}"
        time.sleep(0.01)


def ask(policies: RemotePolicies, number: int) -> None:
    answers = policies.infer([{"number": k} for k in range(number)])
    assert [answer.item() for answer in answers] == list(range(number))


def test_as_many_connections_as_environments_and_none_afterwards() -> None:
    with Server(Echo(), port=0, max_batch=64) as server:
        with RemotePolicies(server.url) as policies:
            assert policies.metadata == {"name": "echo"} and clients(server) == 1
            for number, connected in ((1, 1), (4, 4), (2, 4), (5, 5)):
                ask(policies, number)
                assert clients(server) == connected
        wait_for(server, 0)
        policies.close()  # twice is once


def test_environments_beyond_the_connections_share_them() -> None:
    with Server(Echo(), port=0, max_batch=64) as server, RemotePolicies(server.url, connections=3) as policies:
        ask(policies, 10)
        assert clients(server) == 3


def test_where_only_some_connections_open_none_stays() -> None:
    with Server(Echo(), port=0, max_batch=64, max_clients=3) as server:
        policies = RemotePolicies(server.url, timeout_s=0.5)
        ask(policies, 3)
        with pytest.raises(ConnectionError, match="gave no answer within 0.5 s"):
            policies.infer([{"number": k} for k in range(6)])
        wait_for(server, 0)  # though nobody has called `close`


def test_a_failure_closes_what_was_opened_and_nothing_opens_again() -> None:
    with Server(Echo(), port=0, max_batch=64) as server:
        with pytest.raises(ConnectionError, match="number must not be negative"), RemotePolicies(server.url) as policies:
            policies.infer([{"number": k} for k in (-1, 1, 2, 3)])
        wait_for(server, 0)
        time.sleep(0.2)
        assert clients(server) == 0
