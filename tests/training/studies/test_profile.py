"""Whose time an iteration's seconds are."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from training.studies import profile
from training.studies.profile import Parts, run_profile


class Inner:
    def step(self) -> str:
        CLOCK[0] += 2
        return "stepped"


class Outer:
    def __init__(self, inner: Inner) -> None:
        self.inner = inner

    def play(self) -> str:
        CLOCK[0] += 3
        said = self.inner.step() + self.inner.step()
        CLOCK[0] += 1
        return said


CLOCK = [0.0]


def test_a_parts_time_is_without_that_of_the_parts_it_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 + 1 s of a world that calls a model twice for 2 s, and 5 s of nobody; the first iterations do not count."""
    monkeypatch.setattr(profile, "_now", lambda: CLOCK[0])
    parts, inner = Parts(), Inner()
    outer = Outer(inner)
    parts._watch(inner, "step", "model")
    parts._watch(outer, "play", "world")
    for number in range(profile.FIRST + 3):
        parts.on_train_batch_start(None, None, None, number)  # type: ignore[arg-type]
        assert outer.play() == "steppedstepped"
        CLOCK[0] += 5
        parts.on_train_batch_end(None, None, None, None, number)  # type: ignore[arg-type]
    assert "step" in vars(inner)
    parts.on_train_end(SimpleNamespace(default_root_dir=tmp_path), None)  # type: ignore[arg-type]
    assert not vars(inner) and vars(outer) == {"inner": inner}, "nobody watches any longer"
    assert parts.iterations == 3 and parts.seconds == {"model": 3 * 4, "world": 3 * 4, "rest": 3 * 5}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"against": {"one": "gone"}}, "against compares gone, which is none of the cells one; name one"),
        ({"turns": 0}, "turns must be at least 1, got 6 and 0"),
    ],
)
def test_what_cannot_be_timed_is_refused(tmp_path: Path, values: dict, said: str) -> None:
    config = {"cells": {"one": []}, "against": {}, "iterations": 6, "turns": 1, "out": str(tmp_path / "out")}
    with pytest.raises(ValueError, match=said):
        run_profile(config | values)
    assert not (tmp_path / "out").exists()
