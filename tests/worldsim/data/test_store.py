"""Windows of a `FrameStore` at the borders of episodes; what of datasets and cameras it reads, at which size."""

import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_datasets import foreign_dataset, random_episode, write

from worldsim.core.types import Episode
from worldsim.core.views import resize
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.data.store import FrameStore, training_episodes

LENGTHS = (3, 5)  # actions; rows 0..3 and 4..9


def episode(number: int, length: int) -> Episode:
    """Frame k of episode n has the pixel value 50*n + k and the state (50*n + k, k); action k is (50*n + k)/100."""
    values = 50 * number + torch.arange(length + 1)
    return Episode(
        images={"front": values.to(torch.uint8)[:, None, None, None].expand(-1, 4, 6, 3).clone()},
        state=torch.stack([values, torch.arange(length + 1)], dim=1).float(),
        action=values[:-1, None] / 100,
        reward=torch.zeros(length),
        success=(torch.arange(length + 1) == length).float(),
        progress=torch.linspace(0, 1, length + 1),
        instruction=f"sentence {number}",
        source="expert",
    )


def record(root: Path, episodes: list[Episode]) -> Path:
    names: dict = {"state_names": ["v", "k"], "action_names": ["a"], "robot_type": "test"}
    with DatasetWriter(root, fps=10, cameras={"front": (4, 6)}, storage="image", **names) as writer:
        writer.add(episodes)
    return root


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """Each episode in a dataset of its own, so that windows lie in two files."""
    root = tmp_path_factory.mktemp("data")
    roots = [record(root / str(n), [episode(n, length)]) for n, length in enumerate(LENGTHS)]
    return FrameStore.read(roots, {"front": None})


def test_rows(table: FrameStore):
    t = table
    assert t.first.tolist() == [0] * 4 + [4] * 6
    assert t.last.tolist() == [3] * 4 + [9] * 6
    assert t.episode.tolist() == [0] * 4 + [1] * 6
    assert t.acting_rows.tolist() == [0, 1, 2, 4, 5, 6, 7, 8]
    assert t.action[:, 0].tolist() == pytest.approx([0, 0.01, 0.02, 0, 0.5, 0.51, 0.52, 0.53, 0.54, 0])
    assert t.instruction == ("sentence 0", "sentence 1")


@pytest.mark.parametrize(
    ("row", "frames", "action", "valid"),
    [
        # context 3, horizon 3: frames row-2 ... row+3
        (4, [50, 50, 50, 51, 52, 53], [0.50, 0.51, 0.52], [True, True, True]),  # the first episode never shows through
        (5, [50, 50, 51, 52, 53, 54], [0.51, 0.52, 0.53], [True, True, True]),
        (2, [0, 1, 2, 3, 3, 3], [0.02, 0, 0], [True, False, False]),  # nor the second one
        (8, [52, 53, 54, 55, 55, 55], [0.54, 0, 0], [True, False, False]),
        (3, [1, 2, 3, 3, 3, 3], [0, 0, 0], [False, False, False]),
    ],
)
def test_windows_stay_within_their_episode(table, row, frames, action, valid):
    window = table.window(torch.tensor([row]), context=3, horizon=3)
    assert window["images"]["front"][0, :, 0, 0, 0].tolist() == frames
    assert window["state"][0, :, 0].tolist() == frames
    assert window["action"][0, :, 0].tolist() == pytest.approx(action)
    assert window["valid"][0].tolist() == valid


def test_a_batch_is_its_rows(table: FrameStore):
    rows = torch.tensor([7, 0, 2])
    batch = table.window(rows, context=2, horizon=4)
    for i, row in enumerate(rows):
        alone = table.window(row[None], context=2, horizon=4)
        assert torch.equal(batch["images"]["front"][i], alone["images"]["front"][0])
        assert all(torch.equal(batch[name][i], alone[name][0]) for name in ("state", "action", "valid"))


def test_rows_are_found_by_time(table: FrameStore):
    """At 10 frames per second 0.14 s is nearest to one step and 0.26 s to three; episodes end."""
    rows = table.at(torch.tensor([5, 1]), torch.tensor([-0.4, 0.0, 0.14, 0.26, 9.0]))
    assert rows.tolist() == [[4, 5, 6, 8, 9], [0, 1, 2, 3, 3]]


def test_frames_are_indexed_by_rows_of_any_shape(table: FrameStore):
    frames = table.frames
    assert len(frames) == 10 and frames.shape == (10, 4, 6, 3)
    rows = torch.tensor([[3, 4, 5], [9, 0, 0]])  # across the border of the files, and backwards
    assert frames[rows][..., 0, 0, 0].tolist() == [[3, 50, 51], [55, 0, 0]]
    assert frames[rows].shape == (2, 3, 4, 6, 3) and frames[1:8:3][:, 0, 0, 0].tolist() == [1, 50, 53]
    assert frames[torch.empty(0, dtype=torch.long)].shape == (0, 4, 6, 3)
    copy, again = frames[rows], pickle.loads(pickle.dumps(frames))
    copy.zero_()
    assert frames[rows][0, 1, 0, 0, 0] == 50, "what is read belongs to the reader"
    assert len(pickle.dumps(frames)) < 1000 and torch.equal(again[rows], frames[rows]), "other processes map the files themselves"
    for wrong in (-1, 10):
        with pytest.raises(IndexError, match=r"rows must be in \[0, 10\)"):
            frames[torch.tensor([wrong])]


def test_forty_gigabytes_are_drawn_from_in_two():
    """Sparse files take no disk; the process may have 3 GB of its own, checks the pictures and says what it had at most."""
    script = Path(__file__).parents[3] / "benchmarks/store.py"
    said = subprocess.run([sys.executable, str(script), "memory", "40", "6"], capture_output=True, text=True, check=True).stdout
    held, most = (float(re.search(rf"{words}([0-9.]+) GB", said)[1]) for words in ("^", "at most "))  # pyright: ignore
    assert held == pytest.approx(40, abs=0.1) and most < 2, said


def test_no_episodes(tmp_path: Path):
    with pytest.raises(ValueError, match="no episodes to learn from"):
        FrameStore.read([record(tmp_path / "none", [])], {"front": None})


@pytest.mark.parametrize(
    ("number", "share", "training"),
    [
        (4, 0.25, 3),
        (4, 0.0, 4),
        (20, 0.05, 19),
        (10, 0.05, 9),  # one at least is held out
        (5, 0.1, 4),
        (2, 0.05, 1),
        (2, 0.99, 1),  # and one at least is trained on
        (1, 0.05, 1),
        (0, 0.05, 0),
    ],
)
def test_episodes_that_training_sees(number: int, share: float, training: int):
    assert training_episodes(range(number), share) == training


def test_parts_of_one_recording_are_held_out_together():
    """Of episodes 0, 1, 1, 1, 2 a fifth would begin in the middle of 1 or at 2; three fifths at the second part of 1."""
    assert training_episodes([0, 1, 1, 1, 2], 0.2) == 4 and training_episodes([0, 1, 1, 1, 2], 0.6) == 1
    assert training_episodes([3, 3, 3], 0.5) == 3, "there is nothing to hold out"


def test_read_takes_a_share_of_each_dataset_and_a_single_path(tmp_path: Path):
    record(tmp_path / "data", [replace(episode(n, 2), action=torch.zeros(2, 1)) for n in range(4)])
    train = FrameStore.read([str(tmp_path / "data")], {"front": None}, held_out=0.25)
    held_out = FrameStore.read_held_out(tmp_path / "data", {"front": None}, held_out=0.25)
    assert train.instruction == ("sentence 0", "sentence 1", "sentence 2")
    assert held_out is not None and held_out.instruction == ("sentence 3",)
    assert held_out.frames[:][:, 0, 0, 0].tolist() == [150, 151, 152]
    assert len(FrameStore.read(tmp_path / "data", {"front": None}).instruction) == 4
    assert FrameStore.read_held_out([tmp_path / "data"], {"front": None}, held_out=0.0) is None


def test_only_the_cameras_that_are_asked_for_are_decoded(tmp_path: Path):
    """Others may be damaged, or of no shape that a picture has."""
    foreign_dataset(tmp_path, features={"observation.images.top": {"dtype": "image", "shape": [48, 64]}})
    table = FrameStore.read([tmp_path], {"image": None})
    assert table.frames.shape == (7, 8, 8, 3) and table.success.isnan().all() and table.success.dtype == torch.float32
    with pytest.raises(ValueError, match="has no camera front; choose among image, top"):
        FrameStore.read([tmp_path], {"front": None})


def test_cameras_have_sizes_of_their_own(tmp_path: Path):
    episodes = [random_episode(n) for n in range(2)]
    write(tmp_path, episodes)
    store = FrameStore.read(tmp_path, {"top": (8, 12), "wrist": None})
    rows = torch.tensor([[7, 8], [0, 11]])
    seen = store.pictures(rows)
    whole = {name: torch.cat([e.images[name] for e in Dataset(tmp_path).episodes()]) for name in ("top", "wrist")}
    assert torch.equal(seen["wrist"], whole["wrist"][rows])
    assert torch.equal(seen["top"], torch.from_numpy(resize(whole["top"][rows].numpy(), (8, 12))))
    with pytest.raises(ValueError, match=r"there are the cameras top, wrist; say which: images\[CAMERA\]"):
        _ = store.frames
