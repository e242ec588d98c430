"""Stages in processes that a server copies: their threads and environment, their order, and what a failure leaves."""

import json
import re
import shutil
from pathlib import Path

import pytest
from toy_datasets import edit_column

from training.app.stages import Stage, execute

DOCTOR, HELP = ("doctor",), ("doctor", "--help")


def test_stages_run_in_order_with_their_threads_and_this_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [Stage("second", HELP, needs=("first",)), Stage("first", DOCTOR)]
    monkeypatch.setattr("training.app.stages.cores", lambda: 2)
    for threads in (1, 2):  # of each stage, by how many may run side by side; the second time the server is there already
        run = tmp_path / str(threads)
        assert list(execute(stages, run, jobs=2 // threads)) == ["first", "second"]
        log = (run / "stages" / "first" / "log.txt").read_text()
        assert re.search(rf"OMP_NUM_THREADS +{threads}\b", log)
        done = json.loads((run / "stages" / "first" / "done.json").read_text())
        assert 0 < done["wall_s"] < 120 and 100 < done["peak_rss_mb"] < 10_000
        assert (run / "stages" / "second" / "command.txt").read_text() == "worldsim doctor --help\n"
    assert list(execute(stages, tmp_path / "1", jobs=2)) == [], "finished stages are skipped"
    other = [stages[0], Stage("first", HELP), Stage("third", HELP)]
    assert list(execute(other, tmp_path / "1", jobs=1)) == ["first", "second", "third"], "another command, then who needs it"
    assert list(execute(other, tmp_path / "1", jobs=1)) == []


def test_what_a_stage_warns_of_is_in_its_log(tmp_path: Path, recorded: str) -> None:
    """Actions beyond their limits, for instance: nobody else tells the user of a demo."""
    table = next(Path(recorded).glob("data/*/*.parquet"))
    shutil.copytree(recorded, tmp_path / "data")
    edit_column(tmp_path / "data" / table.relative_to(recorded), "action", {0: [3.0, 0.0]})
    (tmp_path / "data/meta/spec.yaml").write_text('action: {"*": {limits: [-1, 1]}}')
    settings = ("trainer.max_steps=1", "data.batch_size=2", "trainer.accelerator=cpu", f"run_dir={tmp_path / 'learn'}")
    stage = Stage("learn", ("fit", "experiment=policy", f"data.roots=[{tmp_path / 'data'}]", *settings))
    assert list(execute([stage], tmp_path, jobs=1)) == ["learn"]
    assert "actions lie beyond their limits, to which they are clamped" in (tmp_path / "stages/learn/log.txt").read_text()


def test_a_stage_that_fails_says_why_and_is_not_done(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage learn failed: worldsim: .*'nonsense'.*log\.txt"):
        list(execute([Stage("learn", ("fit", "experiment=nonsense"))], tmp_path, jobs=1))
    assert not (tmp_path / "stages" / "learn" / "done.json").exists()


@pytest.mark.parametrize(
    ("stages", "jobs", "words"),
    [
        (
            [Stage("a", DOCTOR), Stage("b", DOCTOR, ("a", "nowhere"))],
            1,
            "stage b needs nowhere, which is not among the stages a, b",
        ),
        ([Stage("a", DOCTOR, ("a",))], 1, "no stage of a circle can be the first: a needs a"),
        ([Stage("a", DOCTOR, ("b",)), Stage("b", DOCTOR, ("c",)), Stage("c", DOCTOR, ("a",))], 1, "b needs c needs a"),
        ([Stage("a", DOCTOR), Stage("a", DOCTOR)], 1, "there must be one stage a, got 2"),
        ([Stage("a", DOCTOR)], 0, "jobs must be at least 1, got 0"),
    ],
)
def test_stages_that_could_never_all_run_are_refused_before_any_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stages: list[Stage], jobs: int, words: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it waits for what never comes"))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        execute(stages, tmp_path, jobs=jobs)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
