"""Windows of a `FrameTable` at the borders of episodes, the mirror and the shift; indexing of batches."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy_datasets import foreign_dataset

from worldsim.core.types import Episode, Observation
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.windows import FrameTable, Mirror, shift, training_episodes

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


def table() -> FrameTable:
    return FrameTable.from_episodes([episode(n, length) for n, length in enumerate(LENGTHS)], "front")


def test_rows():
    t = table()
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
def test_windows_stay_within_their_episode(row, frames, action, valid):
    window = table().window(torch.tensor([row]), context=3, horizon=3)
    assert window["frames"][0, :, 0, 0, 0].tolist() == frames
    assert window["state"][0, :, 0].tolist() == frames
    assert window["action"][0, :, 0].tolist() == pytest.approx(action)
    assert window["valid"][0].tolist() == valid


def test_a_batch_is_its_rows():
    rows = torch.tensor([7, 0, 2])
    batch = table().window(rows, context=2, horizon=4)
    for i, row in enumerate(rows):
        alone = table().window(row[None], context=2, horizon=4)
        assert all(torch.equal(batch[name][i], alone[name][0]) for name in batch)


def test_missing_camera_is_named_even_in_a_later_episode():
    other = episode(1, 2)
    other.images["wrist"] = other.images.pop("front")
    with pytest.raises(ValueError, match=r"the data has cameras \['wrist'\], not 'front'"):
        FrameTable.from_episodes([episode(0, 2), other], "front")
    with pytest.raises(ValueError, match="no episodes to learn from"):
        FrameTable.from_episodes([], "front")


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
    assert training_episodes(number, share) == training


def test_read_takes_a_share_of_each_dataset_and_a_single_path(tmp_path: Path):
    names: dict = {"state_names": ["v", "k"], "action_names": ["a"], "robot_type": "test"}
    with DatasetWriter(tmp_path / "data", fps=10, cameras={"front": (4, 6)}, storage="image", **names) as writer:
        writer.add([replace(episode(n, 2), action=torch.zeros(2, 1)) for n in range(4)])
    train = FrameTable.read([str(tmp_path / "data")], "front", held_out=0.25)
    held_out = FrameTable.read_held_out(tmp_path / "data", "front", held_out=0.25)
    assert train.instruction == ("sentence 0", "sentence 1", "sentence 2")
    assert held_out is not None and held_out.instruction == ("sentence 3",)
    assert held_out.frames[:, 0, 0, 0].tolist() == [150, 151, 152]
    assert len(FrameTable.read(tmp_path / "data", "front").instruction) == 4
    assert FrameTable.read_held_out([tmp_path / "data"], "front", held_out=0.0) is None


def test_only_the_camera_that_is_asked_for_is_decoded(tmp_path: Path):
    """Others may be damaged, or of no shape that a picture has."""
    foreign_dataset(tmp_path, features={"observation.images.top": {"dtype": "image", "shape": [48, 64]}})
    table = FrameTable.read([tmp_path], "image")
    assert table.frames.shape == (7, 8, 8, 3) and table.success.isnan().all() and table.success.dtype == torch.float32
    with pytest.raises(ValueError, match="has no camera front; choose among image, top"):
        FrameTable.read([tmp_path], "front")


def test_mirror_twice_is_the_identity_and_once_is_not():
    g = torch.Generator().manual_seed(0)
    batch = {
        "frames": torch.randint(0, 256, (4, 3, 5, 6, 3), generator=g, dtype=torch.uint8),
        "state": torch.randn(4, 3, 4, generator=g),
        "action": torch.randn(4, 2, 2, generator=g),
        "instruction": ("a",) * 4,
    }
    mirror, which = Mirror(state=(-1, 1, -1, 1), action=(-1, 1)), torch.tensor([True, False, True, False])
    once = mirror(batch, which)
    twice = mirror(once, which)
    for name in ("frames", "state", "action"):
        assert torch.equal(twice[name], batch[name])
        assert torch.equal(once[name][~which], batch[name][~which])
        assert twice[name].dtype == batch[name].dtype
    assert torch.equal(once["frames"][0, :, :, 0], batch["frames"][0, :, :, -1]), "left becomes right, up stays up"
    assert torch.equal(once["state"][0], batch["state"][0] * torch.tensor([-1, 1, -1, 1]))
    assert torch.equal(once["action"][2], batch["action"][2] * torch.tensor([-1, 1]))
    assert once["instruction"] == batch["instruction"]
    frames_only = mirror({"frames": batch["frames"]}, which)
    assert set(frames_only) == {"frames"}


def test_shift_moves_down_and_right_and_repeats_the_border():
    frame = torch.arange(12, dtype=torch.uint8).reshape(1, 3, 4, 1).expand(1, 3, 4, 3)
    # 0 1 2 3 / 4 5 6 7 / 8 9 10 11
    assert shift(frame, (1, 0))[0, :, :, 0].tolist() == [[0, 1, 2, 3], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert shift(frame, (0, 2))[0, :, :, 0].tolist() == [[0, 0, 0, 1], [4, 4, 4, 5], [8, 8, 8, 9]]
    assert shift(frame, (-1, -1))[0, :, :, 0].tolist() == [[5, 6, 7, 7], [9, 10, 11, 11], [9, 10, 11, 11]]
    assert torch.equal(shift(frame, (0, 0)), frame)


@pytest.mark.parametrize(
    "index", [[2, 0], [True, False, True], torch.tensor([2, 0]), torch.tensor([True, False, True]), slice(1, 3), []]
)
def test_batches_index_tensors_and_sentences_alike(index):
    obs = Observation({"front": torch.arange(3)[:, None, None, None]}, torch.arange(3.0)[:, None], ("0", "1", "2"))
    rows = obs[index]
    chosen = [str(int(value)) for value in rows.state[:, 0]]
    assert list(rows.instruction) == chosen
    assert rows.images["front"].flatten().tolist() == [int(value) for value in chosen]
    wanted = {"[2, 0]": ["2", "0"], "[True, False, True]": ["0", "2"]}.get(str(index))
    assert wanted is None or chosen == wanted
