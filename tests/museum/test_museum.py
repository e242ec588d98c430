"""Every dataset of the museum is judged as it should be, and a judgement can fail."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from museum import cases as museum
from museum import visit
from museum.cases import Case, cases
from museum.recorder import Take, takes, write, write_v2
from museum.visit import GOOD, Seen, differs, judge, look
from rich.console import Console
from toy_datasets import edit_info

from worldsim.data.counters import mend_counters

# Every check of robovet 0.2.2 but VIDEO-400, which says that PyAV is not installed.
ROBOVET = {f"STRUCT-{name}" for name in ("001", "002", "002b", "003", "004", "005", "006", "007", "008")}
ROBOVET |= {f"META-{number}" for number in range(501, 505)} | {f"STATS-{number}" for number in range(301, 305)}
ROBOVET |= {f"DATA-{name}" for name in ("101", "102", "103", "104", "105a", "105b", "105c", "106", "107", "108", "109")}
ROBOVET |= {f"TIME-{number}" for number in range(201, 206)}
ROBOVET |= {f"VIDEO-{name}" for name in ("401", "401b", "402", "403", "404", "405")}
REPORTS = {f"B{number}" for number in (10, 11, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 24, 25, 27, 28, 29, 30)}


@pytest.mark.parametrize("case", cases(), ids=lambda case: case.name)
def test_a_case_is_judged_as_it_should_be(case: Case, tmp_path: Path) -> None:
    truth, seen = case.build(tmp_path), look(tmp_path)
    verdict = judge(case.expected, truth, seen)
    assert verdict in GOOD, f"{case.wrong}; expected {case.expected}, got {replace(seen, episodes=[])}"


def test_the_museum_is_complete() -> None:
    """Every public report and every check of robovet has a case; names are none twice."""
    sources = {source for case in cases() for source in case.source.split("; ")}
    assert sources >= ROBOVET | REPORTS
    assert len({case.name for case in cases()}) == len(cases())
    assert sum(case.expected == "fine" for case in cases()) >= 8 and all(case.wrong for case in cases())


FAULT = ("values", "error", "1 row is not finite", "record again")
WARNING = ("labels", "warning", "success is unknown", "judge them")


@pytest.mark.parametrize(
    ("expected", "seen", "verdict"),
    [
        ("error values", Seen(), "silent"),
        ("error values", Seen(reader="ValueError: no"), "only the reader"),
        ("error values", Seen([FAULT]), "found"),
        ("error time", Seen([FAULT]), "another error"),
        ("error values", Seen([FAULT], reader="KeyError: 'data_path'"), "traceback"),
        ("error values", Seen([(*FAULT[:3], "")]), "a fault without a remedy, or of several lines"),
        ("warning labels", Seen(), "silent"),
        ("warning labels", Seen([WARNING]), "found"),
        ("warning units", Seen([WARNING]), "another warning"),
        ("warning labels", Seen([WARNING, FAULT]), "refused needlessly"),
        ("fine", Seen([WARNING]), "cries wolf"),
        ("fine", Seen(reader="ValueError: no"), "refused needlessly"),
        ("fine", Seen(), "fine"),
        ("refused fps", Seen(doctor="ValueError: fps is 0", reader="ValueError: fps is 0"), "found"),
        ("refused fps", Seen(doctor="ValueError: no", reader="ValueError: no"), "refused in other words"),
        ("refused fps", Seen(), "silent"),
    ],
)
def test_verdicts(expected: str, seen: Seen, verdict: str) -> None:
    assert judge(expected, None, seen) == verdict


def test_wrong_values_are_noticed(tmp_path: Path) -> None:
    """Another state, another sentence, and pictures of the next frame."""
    made = write(tmp_path, takes(2), storage="video")
    episodes = look(tmp_path).episodes
    assert not differs(made, episodes)
    others = {"state": made[1].state + 1, "task": "another", "pictures": np.roll(made[1].pictures, 1, axis=0)}
    for field, value in others.items():
        assert differs([made[0], replace(made[1], **{field: value})], episodes) in (field, "instruction")
    assert differs(made[:1], episodes) == "2 episodes instead of 1"


@pytest.mark.parametrize(
    ("name", "lag"),
    [
        ("a_camera_that_is_late", "3 steps (300 ms) after the state"),
        ("a_camera_that_is_early", "2 steps (200 ms) before the state"),
    ],
)
def test_a_lag_is_said_in_steps_and_milliseconds(name: str, lag: str, tmp_path: Path) -> None:
    next(case for case in cases() if case.name == name).build(tmp_path)
    (fault,) = look(tmp_path).faults
    assert lag in fault[2] and "of the 320 frames of 8 episodes that were looked at" in fault[2]


def test_a_visit_counts_what_is_not_as_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(root: Path) -> list[Take]:
        return write(root, takes(1))

    wanted = [Case("one", "nothing", "fine", "", build), Case("two", "nothing", "error time", "B11", build)]
    monkeypatch.setattr(museum, "_CASES", wanted)
    stream = io.StringIO()
    assert visit.visit(Console(file=stream, width=200)) == 1
    assert "silent" in stream.getvalue() and "2 cases, 1 not as expected" in stream.getvalue()


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_counters_of_older_versions_are_mended(version: str, tmp_path: Path) -> None:
    """Which have no statistics in their episodes, and v2.1 none of the whole."""
    write_v2(tmp_path, takes(), version=version)
    edit_info(tmp_path, total_episodes=2, total_frames=80, total_tasks=1)
    assert "meta/tasks.jsonl" in " ".join(fault[2] for fault in look(tmp_path).faults)
    assert "total_episodes 2 -> 4, total_frames 80 -> 160, total_tasks 1 -> 2" in mend_counters(tmp_path)
    assert judge("fine", takes(), look(tmp_path)) == "fine" and "nothing to mend" in mend_counters(tmp_path)
    assert (tmp_path / "meta/stats.json").exists() == (version == "v2.0")
