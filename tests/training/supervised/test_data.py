"""The data modules: batches depend on seed and number alone, held-out episodes stay out, mirrored rows are mirrored whole."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from toy_datasets import DATA_FILE, edit_column
from toy_tables import CLASSES, EPISODES, HELD_OUT, LENGTH, VIEWS, attached, build, episode, record

from training.supervised import dream_judge as dreamed
from training.supervised.batches import BatchStream
from training.supervised.data import ReflectorData, WorldModelData
from worldsim.core.interfaces import WorldModel
from worldsim.data.dataset_spec import OVERLAY
from worldsim.worlds.genesis.scene import Paraphrases


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("data") / "episodes", EPISODES)


def leaves(batch: dict[str, Any]) -> dict[str, Any]:
    obs = batch.get("obs")
    return batch if obs is None else {**batch, "obs": obs.state, "images": obs.images, "instruction": obs.instruction}


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    def plain(value: Any) -> Any:  # torch's loader turns a tuple of sentences into a list
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value.tolist() if isinstance(value, torch.Tensor) else list(value) if isinstance(value, tuple) else value

    a, b = leaves(a), leaves(b)
    return all(plain(value) == plain(b[name]) for name, value in a.items() if name != "seed")


@pytest.mark.parametrize("name", CLASSES)
def test_batches_depend_on_seed_and_number_alone(name, root):
    data, again, other = build(name, root), build(name, root), build(name, root, seed=1)
    batches = list(islice(data.train_dataloader(), 6))
    assert all(same(a, b) for a, b in zip(batches, islice(again.train_dataloader(), 6), strict=True))
    assert not any(same(a, b) for a, b in zip(batches, islice(other.train_dataloader(), 6), strict=True))
    assert not any(same(batches[0], b) for b in batches[1:]), "no two batches are equal"
    resumed = islice(BatchStream(data.draw, data.seed, start=lambda: 3), 3)
    assert all(same(a, b) for a, b in zip(batches[3:], resumed, strict=True)), "a resumed run sees what the first would have seen"


@pytest.mark.parametrize("name", ["WorldModelData", "ReflectorData"])
def test_workers_and_ranks_share_the_batches_of_one_process(name: str, root: Path):
    data = build(name, root)
    alone = list(islice(data.train_dataloader(), 8))
    assert alone[0]["seed"] == int(np.random.SeedSequence([0, 0, 0]).generate_state(2, np.uint64)[1]) >> 1, "as ever"
    assert len({batch["seed"] for batch in alone}) == 8
    loader = DataLoader(BatchStream(data.draw, data.seed), batch_size=None, num_workers=2)
    assert all(same(a, b) and a["seed"] == b["seed"] for a, b in zip(alone, islice(loader, 8), strict=True))
    for rank in range(2):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=2, fit_loop=SimpleNamespace(total_batch_idx=-1))  # pyright: ignore
        share = list(islice(data.train_dataloader(), 4))
        assert all(same(a, b) and a["seed"] == b["seed"] for a, b in zip(alone[rank::2], share, strict=True))
        data.trainer.fit_loop.total_batch_idx = 1  # two of its batches are learned
        assert same(alone[rank::2][2], next(iter(data.train_dataloader()))), "a rank goes on with its own"


@pytest.mark.parametrize("name", CLASSES)
def test_held_out_episodes_are_never_drawn(name, root):
    data, seen = build(name, root), set()
    for batch in islice(data.train_dataloader(), 20):
        seen |= set(leaves(batch)["images"]["front"][..., 0].flatten().tolist())
    assert seen == set(range(8)), "the first 80 % of the episodes, and all of them"


@pytest.mark.parametrize("name", ["WorldModelData", "ReflectorData"])
def test_validation_sees_the_held_out_episodes_only(name, root):
    batches = list(build(name, root).val_dataloader())
    assert {value for batch in batches for value in batch["images"]["front"][..., 0].flatten().tolist()} == {8, 9}
    for batch in batches:  # numbers of the episodes, counted from the first that is held out, so that a calibration can part them
        assert name != "ReflectorData" or torch.equal(batch["episode"], batch["images"]["front"][:, 0, 0, 0, 0] - 8)


@pytest.mark.parametrize("name", CLASSES)
def test_half_of_the_rows_are_mirrored_whole(name, root):
    data, rows = build(name, root), []
    for batch in islice(data.train_dataloader(), 10):
        flat = leaves(batch)
        frames = flat["images"]["front"].reshape(32, -1, 8, 8, 3)
        right = frames[:, :, 0, -1, 2] == 200
        assert (right == right[:, :1]).all(), "all frames of a row, or none"
        mirrored = right[:, 0]
        state = flat.get("state", flat.get("obs"))
        for value in (state, batch.get("action")):
            if value is not None:
                x, y = value.reshape(32, -1, 2).unbind(-1)
                assert ((x <= 0).all(1) == mirrored).all(), "the x components change sign with the picture"
                assert (y >= 0).all()
        rows.append(mirrored)
    share = torch.cat(rows).float().mean().item()
    assert 0.35 < share < 0.65, f"{share:.2f} of 320 rows are mirrored; 0.35 is 5 standard deviations away"


@pytest.mark.parametrize("name", CLASSES)
def test_without_symmetry_nothing_is_mirrored(name, root):
    for batch in islice(build(name, root, mirror=None).train_dataloader(), 4):
        assert (leaves(batch)["images"]["front"][..., 0, -1, 2] == 0).all()


def test_demonstrations_pair_a_frame_with_what_followed(root):
    data = build("DemonstrationData", root, mirror=None)
    for batch in islice(data.train_dataloader(), 4):
        frame = batch["obs"].images["front"][:, 0, 0]
        number, step = frame[:, 0].long(), frame[:, 1].long()
        assert batch["valid"].tolist() == [[s + k < LENGTH for k in range(3)] for s in step.tolist()]
        expected = 0.01 * (1 + number)[:, None, None] * batch["valid"][..., None]
        torch.testing.assert_close(batch["action"], expected.expand(-1, -1, 2).float())
        assert batch["obs"].instruction == tuple(f"sentence {n % 3}" for n in number.tolist())


def test_reflector_batches_hold_their_share_of_successes(root):
    data = build("ReflectorData", root, success_share=0.5)
    batches = list(islice(data.train_dataloader(), 20))
    for batch in batches:
        assert torch.equal(batch["success"] == 1, batch["images"]["front"][:, 0, 0, 0, 1] == LENGTH), (
            "labels belong to their frames"
        )
    # 0.5 + 0.5 * 1/7, the natural share; the standard deviation over 640 rows is 0.02.
    share = torch.cat([b["success"] for b in batches]).float().mean().item()
    assert share == pytest.approx(0.5 + 0.5 / 7, abs=0.1)


@pytest.mark.parametrize("name", ["ReflectorData", "DemonstrationData"])
def test_each_sentence_is_heard_in_all_its_wordings(name, root):
    """and stays with its frames: both wordings of sentence 0 go with episodes 0, 3 and 6 only."""
    wordings = Paraphrases()
    wordings.same = dict.fromkeys(("sentence 0", "wish 0"), ["sentence 0", "wish 0"])
    heard = set()
    for batch in islice(build(name, root, paraphrases=wordings).train_dataloader(), 10):
        frames = batch["images"]["front"] if name == "ReflectorData" else batch["obs"].images["front"]
        said = batch["instruction"] if name == "ReflectorData" else batch["obs"].instruction
        for number, sentence in zip(frames[..., 0, 0, 0].flatten().tolist(), said, strict=True):
            assert sentence.endswith(str(number % 3))
            heard.add(sentence)
    assert heard == {"sentence 0", "wish 0", "sentence 1", "sentence 2"}


class Counting(WorldModel):
    """Dreams two frames a call whose blue is 77 and whose green goes on counting, as the recorded one does."""

    views, context, action_horizon, action_dim = VIEWS, 2, 2, 2

    def fit_statistics(self, frames, spec):
        raise AssertionError("a judge does not train the world model")

    def init(self, images, state, instruction):
        return images["front"][:, -1].float() / 255

    def noise(self, batch, generator):
        return torch.zeros(batch)

    def step(self, state, actions, noise):
        frames = state[:, None].repeat(1, 2, 1, 1, 1)
        frames[..., 1] += torch.tensor([1, 2])[:, None, None] / 255
        frames[..., 2] = 77 / 255
        return frames[:, -1], {"front": frames}, torch.zeros(len(state), 2, 2)

    def loss(self, batch, generator):
        return self.fit_statistics(batch["images"], batch["state"])


def test_a_judge_learns_from_dreams_with_what_happened_in_physics(root):
    settings = {"batch_size": 32, "held_out": HELD_OUT, "max_shift": 0, "dreams": 64, "chunks": 2}
    data = attached(dreamed.DreamedReflectorData([str(root)], Counting(), **settings))
    data.setup("fit")
    episodes, depths, imagined = set(), set(), []
    for batch in islice(data.train_dataloader(), 20):
        number, step, blue = batch["images"]["front"][:, 0, 0, 0].unbind(-1)
        assert torch.equal(batch["success"] == 1, step == LENGTH)
        torch.testing.assert_close(batch["progress"], step / LENGTH)
        assert list(batch["instruction"]) == [f"sentence {n % 3}" for n in number.tolist()]
        episodes |= set(number.tolist())
        depths |= set(step[blue == 77].tolist())
        imagined.append(blue == 77)
    assert episodes == set(range(8)), "the held-out ones stay out"
    assert depths == set(range(1, LENGTH + 1)), "no frame from beyond an episode's end, and none that was not dreamed"
    assert 0.4 < torch.cat(imagined).float().mean().item() < 0.6
    held_out = list(data.val_dataloader())
    assert {n for batch in held_out for n in batch["images"]["front"][:, 0, 0, 0, 0].tolist()} == {8, 9}
    assert all(torch.equal(batch["episode"], batch["images"]["front"][:, 0, 0, 0, 0] - 8) for batch in held_out)
    assert all((batch["images"]["front"][..., 2] == 77).all() for batch in held_out)


def test_a_judge_does_not_learn_from_dreams_of_what_nobody_judged(tmp_path: Path) -> None:
    """Nobody judged the second episode: its dreams are neither failures nor drawn."""
    path = record(tmp_path / "partly", 3)
    rows = range(LENGTH + 1, 2 * LENGTH + 2)
    edit_column(path / DATA_FILE, "success", dict.fromkeys(rows))
    edit_column(path / DATA_FILE, "progress", dict.fromkeys(rows, float("nan")))
    data = attached(dreamed.DreamedReflectorData([str(path)], Counting(), held_out=0.3, max_shift=0, dreams=64, chunks=2))
    data.setup("fit")
    assert set(data.table.episode[data.moments].tolist()) == {0, 1}
    for batch in islice(data.train_dataloader(), 5):
        assert (batch["images"]["front"][:, 0, 0, 0, 0] == 0).all() and not batch["success"].isnan().any()


@pytest.mark.parametrize("imagined", [False, True])
def test_a_judge_of_clips_learns_from_the_frames_before(root, imagined):
    """Recorded ones, the first of an episode repeated before it; those of a dream are recorded until it begins."""
    settings: dict[str, Any] = {"batch_size": 32, "held_out": HELD_OUT, "max_shift": 0}
    if imagined:
        data = attached(dreamed.DreamedReflectorData([str(root)], Counting(), dreams=64, chunks=2, **settings))
    else:
        data = attached(ReflectorData([str(root)], **settings))
    data.module.reflector.context = 4  # the world model looks back on 2
    data.setup("fit")
    blue = set()
    for batch in [*islice(data.train_dataloader(), 10), *data.val_dataloader()]:
        clip = batch["images"]["front"]
        assert clip.shape[1:] == (4, 8, 8, 3)
        number, step, colour = clip[:, :, 0, 0].long().unbind(-1)
        assert torch.equal(step, (step[:, -1:] + torch.arange(-3, 1)).clamp(min=0)), "what was recorded before a dream, too"
        assert (number == number[:, :1]).all()
        known = ~batch["progress"].isnan()
        torch.testing.assert_close(batch["progress"][known], step[known, -1] / LENGTH)
        blue |= {tuple(row) for row in (colour == 77).tolist()}
    assert blue >= ({(False,) * (4 - n) + (True,) * n for n in (1, 2, 3, 4)} if imagined else {(False,) * 4})
    assert imagined or len(blue) == 1


def test_a_judge_without_dreams_is_refused(root):
    with pytest.raises(ValueError, match="needs dreams >= 8 and chunks >= 1, got 0 and 10"):
        dreamed.DreamedReflectorData([str(root)], Counting(), dreams=0)


def test_starts_draw_instructions_and_first_frames(root):
    batches = list(islice(build("StartData", root, first_share=0.5).train_dataloader(), 20))
    step = torch.cat([b["images"]["front"][:, -1, 0, 0, 1] for b in batches])
    assert (step == 0).float().mean().item() == pytest.approx(0.5 + 0.5 / LENGTH, abs=0.1)
    assert step.max() == LENGTH - 1
    assert {s for b in batches for s in b["instruction"]} == {"sentence 0", "sentence 1", "sentence 2"}


@pytest.mark.parametrize("name", ["StartData", "KeyframeStarts"])
def test_a_start_of_a_pool_is_always_the_same(name, root):
    """In every batch, in another run, and mirrored: then only the x components of the state change sign."""
    known: dict[int, tuple] = {}
    for run in range(2):
        torch.manual_seed(run)
        for batch in islice(build(name, root, pool=7).train_dataloader(), 10):
            moments = batch["images"]["front"][:, :, 0, 0, :2].flatten(1).tolist()  # episode and frame
            for start, moment, sentence, state in zip(
                batch["start"].tolist(), moments, batch["instruction"], batch["state"], strict=True
            ):
                assert known.setdefault(start, (moment, sentence, state.abs().tolist())) == (moment, sentence, state.abs().tolist())
    assert set(known) == set(range(7))
    assert len({str(start) for start in known.values()}) > 3, "the starts differ"
    other = next(iter(build(name, root, pool=7, seed=1).train_dataloader()))
    moments = zip(other["start"].tolist(), other["images"]["front"][:, :, 0, 0, :2].flatten(1).tolist(), strict=True)
    assert any(known[start][0] != moment for start, moment in moments), "another seed has another pool"


def test_without_a_pool_starts_have_no_names(root):
    assert "start" not in next(iter(build("StartData", root).train_dataloader()))


def test_keyframes_are_where_progress_changes(root):
    """Progress jumps at frame 4 of 6. Two steps ahead of 2 and 3 it changes by 1, elsewhere by 0; with the constant 0.01 these two
    weigh 2.02 of 2.06. The standard deviation over 6000 draws is 0.002."""
    data = build("KeyframeStarts", root, lookahead=2, mirror=None)
    data.table = replace(data.table, progress=(data.table.frames[:][:, 0, 0, 1] >= 4).float())
    rows, wishes = data.moments(6000, torch.Generator().manual_seed(0))
    frame = data.table.frames[rows][:, 0, 0, 1]
    decisive = ((frame == 2) | (frame == 3)).float().mean().item()
    assert decisive == pytest.approx(2.02 / 2.06, abs=0.008)
    # Every instruction is asked for everywhere, whatever was recorded there: 1/3, standard deviation 0.006.
    for wish in range(3):
        assert (wishes == wish).float().mean().item() == pytest.approx(1 / 3, abs=0.024)
    assert (data.table.episode[rows] % 3 == wishes).float().mean().item() == pytest.approx(1 / 3, abs=0.024)

    sharp = build("KeyframeStarts", root, lookahead=6, sharpness=2.0, mirror=None)  # progress is linear: 1, 5/6, ... 1/6
    share = (sharp.table.frames[sharp.moments(6000, torch.Generator().manual_seed(0))[0]][:, 0, 0, 1] == 0).float().mean().item()
    assert share == pytest.approx(1.01 / (91 / 36 + 0.06), abs=0.025), "1^2 of the sum of the squares"

    first = build("KeyframeStarts", root, first_share=0.5, mirror=None)
    first.table = data.table
    share = (data.table.frames[first.moments(6000, torch.Generator().manual_seed(0))[0]][:, 0, 0, 1] == 0).float().mean().item()
    assert share == pytest.approx(0.5 + 0.5 * 1.01 / 4.06, abs=0.025), "half, and a share among frames 0..3 of the rest"


@pytest.mark.parametrize("name", ["WorldModelData", "ReflectorData"])
@pytest.mark.parametrize("number", [5, 10])
def test_small_datasets_hold_out_one_episode_by_default(name: str, number: int, tmp_path: Path) -> None:
    few = record(tmp_path / "few", number)
    data = attached(CLASSES[name]([str(few)]))
    with pytest.warns(UserWarning, match=f"^{number - 1} episodes to learn from: whether it carries beyond them") as told:
        data.setup("fit")
    assert len(told) == 1
    assert data.table.frames[:][:, 0, 0, 0].unique().tolist() == list(range(number - 1))
    held_out = {value for batch in data.val_dataloader() for value in batch["images"]["front"][..., 0].flatten().tolist()}
    assert held_out == {number - 1}


def test_a_single_episode_is_trained_on_and_validates(tmp_path: Path) -> None:
    one = record(tmp_path / "one", 1)
    data = attached(WorldModelData([str(one)]))
    with pytest.warns(UserWarning, match="one has one episode: it is trained on, and none is held out"):
        data.setup("fit")
    assert len(data.table.instruction) == 1 and len(data.validation["state"])
    judge = attached(ReflectorData([str(one)]))
    with pytest.warns(UserWarning, match="none is held out"):
        judge.setup("fit")
    assert not judge.calibrates_unseen


def test_actions_that_would_be_clamped_are_one_warning_with_their_share(tmp_path: Path) -> None:
    """Of two times six steps, dx is 3 in the second episode, where its limit is 1; dy is a float's idea of 1 throughout."""
    first, second = (replace(episode(n), action=torch.tensor([[0.5, 1.0000001]] * LENGTH)) for n in range(2))
    second = replace(second, action=second.action * torch.tensor([6, 1]))
    path = record(tmp_path / "raw", [first, second, first])
    (path / OVERLAY).write_text('action: {"*": {limits: [-1, 1]}}')
    with pytest.warns(
        UserWarning, match=r"raw: actions lie beyond their limits,.*: dx 50.0 % beyond -1..1 of all steps; correct"
    ) as seen:
        attached(WorldModelData([str(path)], held_out=0.3)).setup("fit")
    assert len([one for one in seen if "limits" in str(one.message)]) == 1


def test_keyframes_of_unknown_progress(root: Path) -> None:
    """Where nobody knows, nothing changes; where nobody knows anything, there are no keyframes."""
    data = build("KeyframeStarts", root, lookahead=2, mirror=None)
    green = data.table.frames[:][:, 0, 0, 1]
    progress = torch.where(data.table.episode == 0, (green >= 4).float(), torch.nan)
    data.table = replace(data.table, progress=progress)
    rows, _ = data.moments(2000, torch.Generator().manual_seed(0))
    # Two decisive frames weigh 2.02 of 2.02 + 46 * 0.01; the standard deviation over 2000 draws is 0.009.
    decisive = ((data.table.episode[rows] == 0) & ((green[rows] == 2) | (green[rows] == 3))).float().mean().item()
    assert decisive == pytest.approx(2.02 / 2.48, abs=0.04)
    data.table = replace(data.table, progress=torch.full_like(progress, torch.nan))
    with pytest.raises(ValueError, match="nobody recorded progress in .*; use training.supervised.data.StartData"):
        data.moments(10, torch.Generator().manual_seed(0))


def test_errors(root, tmp_path):
    with pytest.raises(ValueError, match=r"held_out must be in \[0, 1\)"):
        build("DemonstrationData", root, held_out=1.0)
    for size in (0, -3):
        with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {size}; set data.batch_size"):
            build("DemonstrationData", root, batch_size=size)
    with pytest.raises(ValueError, match="has no camera wrist; choose among front"):
        build("DemonstrationData", root, views={"wrist": (8, 8)})
    with pytest.raises(FileNotFoundError):
        build("DemonstrationData", tmp_path / "nowhere")
