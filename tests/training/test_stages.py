"""Stages in processes that a server copies: their threads and environment, their order, and what a failure leaves."""

import json
import re
from pathlib import Path

import pytest

from training.stages import Stage, execute

DOCTOR = ("doctor",)


def test_stages_run_in_order_with_their_threads_and_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Stage("second", ("doctor", "--help"), needs=("first",)), Stage("first", DOCTOR)]
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    for threads in (1, 2):  # of each stage, by how many may run side by side; the second time the server is there already
        run = tmp_path / str(threads)
        assert list(execute(stages, run, jobs=2 // threads)) == ["first", "second"]
        log = (run / "stages" / "first" / "log.txt").read_text()
        assert re.search(rf"OMP_NUM_THREADS +{threads}\b", log)
        done = json.loads((run / "stages" / "first" / "done.json").read_text())
        assert 0 < done["wall_s"] < 120 and 100 < done["peak_rss_mb"] < 10_000
        assert (run / "stages" / "second" / "command.txt").read_text() == "worldsim doctor --help\n"
    assert list(execute(stages, tmp_path / "1", jobs=2)) == [], "finished stages are skipped"


def test_a_stage_that_fails_says_why_and_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage learn failed: worldsim: .*'nonsense'.*log\.txt"):
        list(execute([Stage("learn", ("fit", "experiment=nonsense"))], tmp_path, jobs=1))
    assert not (tmp_path / "stages" / "learn" / "done.json").exists()
