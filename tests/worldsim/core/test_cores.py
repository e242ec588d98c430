"""Cores that a process may use: what the scheduler allows and the container's quota, on machines that are stand-ins."""

import pytest

from worldsim.core import cores


@pytest.mark.parametrize(
    ("allowed", "limit", "expected"),
    [
        ({0, 1, 2, 3}, "", 4),  # no container
        ({0, 1, 2, 3}, "max 100000", 4),
        ({2}, "max 100000", 1),  # taskset
        ({0, 1, 2, 3}, "200000 100000", 2),  # 200 ms of every 100 ms are two cores
        ({0, 1, 2, 3}, "290000 100000", 2),  # a third thread would have nine tenths of one
        ({0, 1, 2, 3}, "50000 100000", 1),
        ({0, 1}, "800000 100000", 2),
    ],
)
def test_cores(monkeypatch: pytest.MonkeyPatch, allowed: set[int], limit: str, expected: int) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda process: allowed)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr(cores, "cgroup", {"cpu.max": limit}.__getitem__)
    assert cores.cores() == expected


def test_where_there_is_neither_all_cores_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    monkeypatch.setattr(cores, "cgroup", lambda name: "")
    assert cores.cores() == 3
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert cores.cores() == 1


def test_this_machine() -> None:
    assert cores.cores() >= 1
    assert cores.cgroup("no.such.file") == ""
