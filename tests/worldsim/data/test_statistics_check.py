"""Statistics that contradict the data: which do, and that mending makes them true without touching anything else."""

from pathlib import Path

import numpy as np
import pytest
from toy_datasets import edit_info, files, random_episode, write

from worldsim.data import lerobot_format as fmt
from worldsim.data.counters import mend_counters
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset
from worldsim.data.statistics_check import contradictions, disordered

ROWS = np.array([[0.0, 5.0], [10.0, 5.0]])
TRUE = {"min": [0, 5], "max": [10, 5], "mean": [5, 5], "std": [5, 0], "q01": [0.1, 5], "q99": [9.9, 5]}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({}, []),
        ({"max": [10.09, 5]}, []),  # 1 % of the range of 10 is .1
        ({"max": [10.11, 5]}, ["max of channel 0 is 10.11 instead of 10"]),
        ({"mean": [5, 5.00009]}, []),  # of a channel that stands still, 2 % of a thousandth of its magnitude is .0001
        ({"mean": [5, 5.2]}, ["mean of channel 1 is 5.2 instead of 5"]),
        ({"std": [4.6, 0]}, ["std of channel 0 is 4.6 instead of 5"]),
        ({"q99": [8.5, 5]}, []),  # 1.4 of a range of 10
        ({"q99": [8.3, 5]}, ["q99 of channel 0 is 8.3 instead of 9.9"]),
        ({"min": [0]}, ["min has 1 numbers instead of 2"]),
        ({"q01": [float("nan"), 5]}, ["q01 of channel 0 is nan instead of 0.1"]),
    ],
)
def test_contradictions(changes: dict, found: list[str]) -> None:
    assert contradictions({**TRUE, **changes}, ROWS) == found


def test_what_holds_no_numbers_is_one_line() -> None:
    with pytest.raises(ValueError, match="max holds no numbers"):
        contradictions({**TRUE, "max": ["much", "more"]}, ROWS)


def test_disorder() -> None:
    assert not disordered(TRUE)
    assert disordered({**TRUE, "q01": [9.95, 5]}) == ""  # within 1 % of the range, which means of quantiles may be off by
    assert disordered({**TRUE, "q01": [11.0, 5]}) == "q01 > q99"
    assert disordered({"q99": [1.0], "max": [0.5]}) == "q99 > max"


def test_mending_makes_them_true(tmp_path: Path) -> None:
    """stats.json alone is written, the old one is kept, cameras keep theirs, and a second time there is nothing to do."""
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    true = fmt.read_json(tmp_path / fmt.STATS)
    wrong = {**true, "action": {**true["action"], "max": [9.0, 9.0], "q99": [8.0, 8.0]}}
    fmt.write_json(tmp_path / fmt.STATS, wrong)
    before = files(tmp_path)
    assert [(fault.kind, fault.severity) for fault in dataset_faults(tmp_path)] == [("statistics", "error")]
    assert mend_counters(tmp_path).endswith("meta/stats.json was computed again; the old one is stats.json.bak-1")
    after = files(tmp_path)
    assert after.pop("meta/stats.json.bak-1") == before["meta/stats.json"]
    assert {name for name in after if after[name] != before.get(name)} <= {"meta/stats.json", "meta/.lock"}
    mended = fmt.read_json(tmp_path / fmt.STATS)
    assert mended.keys() == true.keys()
    for key, name in ((key, name) for key, said in true.items() for name in said):
        np.testing.assert_allclose(mended[key][name], true[key][name], rtol=1e-12, err_msg=f"{key} {name}")
    assert not dataset_faults(tmp_path) and "nothing to mend" in mend_counters(tmp_path)
    assert Dataset(tmp_path).stored_stats() is not None


def test_an_adopted_dataset_is_mended_where_it_lies(tmp_path: Path) -> None:
    write(tmp_path / "recording", [random_episode(0)])
    (tmp_path / "spec.yaml").write_text("dataset: recording\n")
    before = files(tmp_path)
    with pytest.raises(ValueError, match=f"adopts another dataset; worldsim doctor data={tmp_path}/recording mend=true mends"):
        mend_counters(tmp_path)
    assert files(tmp_path) == before


def test_counters_and_statistics_are_mended_at_once(tmp_path: Path) -> None:
    """Statistics of all frames that contradict them, beside an info.json that counts one of two tasks."""
    write(tmp_path, [random_episode(0)], [random_episode(1)])
    true = fmt.read_json(tmp_path / fmt.STATS)
    fmt.write_json(tmp_path / fmt.STATS, {**true, "action": {**true["action"], "min": [-9.0, -9.0]}})
    edit_info(tmp_path, total_tasks=0)
    said = mend_counters(tmp_path)
    assert "total_tasks 0 -> 1" in said and "meta/stats.json was computed again" in said
    assert not dataset_faults(tmp_path)
