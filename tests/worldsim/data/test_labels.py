"""Labels by hand: two episodes of 5 and 11 frames at 10 frames per second."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_datasets import random_episode, write

from worldsim.data.labels import DemoEnd, Human, Outcome, TimeToGo
from worldsim.data.store import FrameStore

NAN = float("nan")


@pytest.fixture
def store(tmp_path: Path) -> FrameStore:
    unknown = (
        replace(e, success=torch.full((len(e) + 1,), NAN), progress=torch.full((len(e) + 1,), NAN))
        for e in (random_episode(0, 4), random_episode(1, 10))
    )
    write(tmp_path, [*unknown], judged=False)
    return FrameStore.read([tmp_path], {"top": (16, 24)})


def test_what_was_recorded_stays(store: FrameStore) -> None:
    assert Outcome()(store) is store


def test_the_end_of_a_demonstration(store: FrameStore) -> None:
    """0.3 s are three frames; of five frames no more than two, half of the episode."""
    assert DemoEnd(0.3)(store).success.tolist() == [0, 0, 0, 1, 1] + [0] * 8 + [1, 1, 1]
    assert DemoEnd(0.01)(store).success.tolist() == [0] * 4 + [1] + [0] * 10 + [1], "one frame at least"
    assert DemoEnd()(store).progress.isnan().all()
    with pytest.raises(ValueError, match="label.seconds must be above 0, got 0"):
        DemoEnd(0)


def test_time_to_go(store: FrameStore) -> None:
    """The longest episode lasts 1 s: 0.4 s before the end progress is .6, whichever the episode."""
    labelled = TimeToGo()(store)
    torch.testing.assert_close(labelled.progress[:5], torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0]))
    torch.testing.assert_close(labelled.progress[5:], torch.arange(11) / 10)
    assert labelled.success.tolist() == DemoEnd()(store).success.tolist()
    assert TimeToGo(horizon_s=0.5)(store).progress[5:].tolist() == pytest.approx([0] * 6 + [0.2, 0.4, 0.6, 0.8, 1])


def test_what_a_person_wrote(store: FrameStore, tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("episode,first_frame,last_frame,success,progress\n0,,,0,\n0,3,4,1,1\n1,2,,,0.5\n")
    labelled = Human()(store)
    torch.testing.assert_close(labelled.success, torch.tensor([0, 0, 0, 1, 1] + [NAN] * 11), equal_nan=True)
    torch.testing.assert_close(labelled.progress, torch.tensor([NAN] * 3 + [1, 1] + [NAN] * 2 + [0.5] * 9), equal_nan=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("2,,,1,", "line 2: episode is '2', expected a whole number from 0 to 1"),
        ("0,1,5,1,", "line 2: last_frame is '5', expected a whole number from 1 to 4"),
        ("0,,,0.5,", "line 2: success is '0.5', expected 1, 0 or nothing"),
        ("0,,,,2", "line 2: progress is '2', expected 0 to 1 or nothing"),
        ("0,,,yes,", "line 2: success is 'yes'"),
    ],
)
def test_a_line_that_says_nothing_is_told(store: FrameStore, tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "labels.csv").write_text(f"episode,first_frame,last_frame,success,progress\n{line}\n")
    with pytest.raises(ValueError, match=expected):
        Human()(store)


def test_no_file_and_no_column_are_told(store: FrameStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="labels.csv is missing; write there episode,first_frame"):
        Human()(store)
    (tmp_path / "labels.csv").write_text("episode,success\n0,1\n")
    with pytest.raises(ValueError, match="has no column first_frame, expected episode,first_frame"):
        Human()(store)


def test_frames_to_learn_from_set_the_scale_of_all(store: FrameStore) -> None:
    """What is held out is on the scale of what was learned from: the longest of that lasts 1 s, of this .4 s."""
    label = TimeToGo()
    label(store)
    short = replace(store, first=store.first[:5], last=store.last[:5], success=store.success[:5], progress=store.progress[:5])
    torch.testing.assert_close(label(short).progress, torch.tensor([0.6, 0.7, 0.8, 0.9, 1.0]))


def test_a_file_of_a_spreadsheet_for_a_dataset_that_counts_twice(store: FrameStore, tmp_path: Path) -> None:
    """Excel begins a file with a byte order mark."""
    (tmp_path / "labels.csv").write_text("episode,first_frame,last_frame,success,progress\n1,,,1,\n", encoding="utf-8-sig")
    twice = FrameStore.read([tmp_path, tmp_path], {"top": (16, 24)})
    assert Human()(twice).success.nan_to_num(0).tolist() == ([0] * 5 + [1] * 11) * 2
