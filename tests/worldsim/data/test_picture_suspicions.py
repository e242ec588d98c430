"""How late a camera is: known lags are found, healthy cameras are in step, and where nothing can be said, nothing is."""

from pathlib import Path

import numpy as np
import pytest

from worldsim.data.contents import Contents
from worldsim.data.picture_suspicions import Clip, camera_lag, clips_of, lag_of
from worldsim.data.suspicions import finite_rows

PUSHT = Path(__file__).resolve().parents[4] / "shared/data/pusht_human"


def motion(clips: int, steps: int, *, share: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Moves of states without a pattern, and changes of pictures of which a share is theirs and the rest chance."""
    chance = np.random.default_rng(3)
    moves = [chance.gamma(1, size=steps) for _ in range(clips)]
    return [share * move + (1 - share) * chance.gamma(1, size=steps) for move in moves], moves


@pytest.mark.parametrize("steps", [-3, -1, 0, 1, 2, 5])
def test_a_known_lag_is_found(steps: int) -> None:
    changes, moves = motion(8, 60, share=0.8)
    lag = camera_lag([change[8:48] for change in changes], [move[8 + steps : 48 + steps] for move in moves])
    assert lag is not None and lag.steps == steps and lag.sure >= 0.95
    assert lag.correlation > 0.8, "ranks of .8 x + .2 y, both of variance 1: .8 / sqrt(.64 + .04) = .97, less for ranks"


def test_nothing_is_said_where_the_signal_is_weak() -> None:
    """A camera that sees other things move, two clips, clips too short, and a picture that never changes."""
    assert camera_lag(*motion(8, 60, share=0.1)) is None
    assert camera_lag(*motion(2, 60, share=0.8)) is None
    assert camera_lag(*motion(8, 20, share=0.8)) is None
    changes, moves = motion(8, 60, share=0.8)
    assert camera_lag([np.zeros(60)] * 8, moves) is None and camera_lag(changes, [np.ones(60)] * 8) is None


def test_nothing_is_said_where_every_clip_says_something_else() -> None:
    changes, moves = motion(9, 60, share=0.9)
    lags = [i % 3 for i in range(9)]
    assert camera_lag([np.roll(change, lag) for change, lag in zip(changes, lags, strict=True)], moves) is None


@pytest.mark.skipif(not PUSHT.is_dir(), reason="the human demonstrations of PushT are not beside this checkout")
@pytest.mark.parametrize("steps", [0, 2])
def test_a_real_camera(steps: int) -> None:
    """Human demonstrations are in step as they are, and late where states are taken from later frames."""
    contents = Contents(PUSHT)
    clips = [*clips_of(contents, "observation.image", finite_rows(contents, "observation.state"))]
    lag = lag_of([Clip(clip.episode, clip.first, clip.frames[: len(clip.frames) - steps], clip.states[steps:]) for clip in clips])
    assert lag is not None and lag.steps == steps
