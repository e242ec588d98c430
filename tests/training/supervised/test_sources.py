"""Which rows of several datasets are drawn, in which light they are seen, and who says success of them."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_tables import EPISODES, LENGTH, VIEWS, attached, build, episode, record

from training.supervised.data import KeyframeStarts, ReflectorData, StartData, WorldModelData
from worldsim.data.labels import DemoEnd
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore
from worldsim.data.windows import Colour


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "episodes", EPISODES)


def test_datasets_have_the_weight_that_they_are_given(root: Path, tmp_path: Path):
    """One of 2 episodes beside one of ten gives three of four rows; without weights it would give one of five or six."""
    few = record(tmp_path / "few", 2)
    data = attached(WorldModelData([str(root), str(few)], batch_size=4000, held_out=0, weights=[1, 3]))
    data.setup("fit")
    rows = data.rows(data.table.acting_rows, torch.Generator().manual_seed(0))
    own = len(data.table.last) - len(FrameStore.read(few, VIEWS).last)
    assert (rows >= own).float().mean().item() == pytest.approx(0.75, abs=0.03)  # the standard deviation is .007
    assert set(rows.tolist()) == set(data.table.acting_rows.tolist())
    only = data.rows(data.table.acting_rows[:5], torch.Generator().manual_seed(0))
    assert set(only.tolist()) == set(data.table.acting_rows[:5].tolist()), "where the heavier one has none"
    for moments in (StartData, KeyframeStarts):
        starts = attached(moments([str(root), str(few)], batch_size=4000, weights=[0, 1], first_share=0.0))
        starts.setup("fit")
        assert (starts.moments(4000, torch.Generator().manual_seed(0))[0] >= starts.ends[0]).all(), "starts of dreams, too"
    with pytest.raises(ValueError, match=r"data.weights is \[1\], expected a number from 0 on for each of 2 roots"):
        WorldModelData([str(root), str(few)], weights=[1])


def test_other_light_is_seen_by_every_learner(root: Path):
    plain, lit = (build("WorldModelData", root, mirror=None) for _ in range(2))
    lit.augmentation = replace(lit.augmentation, colour=Colour(1.0, 0, 0))
    one, other = (data.draw(torch.Generator().manual_seed(0)) for data in (plain, lit))
    assert torch.equal(one["state"], other["state"]) and not torch.equal(one["images"]["front"], other["images"]["front"])


def test_labels_are_those_of_who_was_asked(root: Path):
    data = attached(ReflectorData([str(root)], label=DemoEnd(2.6 / Dataset(root).fps)))
    data.setup("fit")
    assert data.table.success.sum() == 3 * len(data.table.instruction)
    assert torch.equal(data.successes[2::3], data.table.last.unique())
    assert data.calibration.success.sum() == 3 * len(data.calibration.instruction), "of those that are held out, too"


def test_without_a_success_progress_is_learned_alone(root: Path, tmp_path: Path):
    never = record(tmp_path / "never", [replace(episode(n), success=torch.zeros(LENGTH + 1)) for n in range(4)])
    data = attached(ReflectorData([str(never)]))
    with pytest.warns(UserWarning, match="none of the frames in .* is a success: the reflector learns progress alone"):
        data.setup("fit")
    assert len(data.draw(torch.Generator().manual_seed(0))["success"]) == data.batch_size


def test_who_judged_nothing_is_named_though_another_has_no_episode(root: Path, tmp_path: Path):
    """Of a dataset without episodes there is no part, and the next one's name is its own."""
    none = record(tmp_path / "none", [])
    unknown = torch.full((LENGTH + 1,), torch.nan)
    mute = record(tmp_path / "mute", [replace(episode(n), success=unknown, progress=unknown) for n in range(3)], judged=False)
    data = attached(ReflectorData([str(none), str(root), str(mute)]))
    with pytest.raises(ValueError, match="nobody judged success or progress in .*mute; leave it out"):
        data.setup("fit")
