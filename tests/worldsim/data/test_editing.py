"""New datasets of old ones: every value, picture and label where it belongs, and the old ones as they were."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_datasets import Killed, edit_info, files, foreign_dataset, kill_at_rename, random_episode, smooth_episode, write

from training.app.cli import main
from worldsim.core.types import Episode
from worldsim.data import editing
from worldsim.data import lerobot_format as fmt
from worldsim.data.dataset_spec import read_spec
from worldsim.data.editing import RECORD, Edits, convert_datasets
from worldsim.data.faults import dataset_faults
from worldsim.data.lerobot import Dataset

TURNED: dict[str, Any] = {"state_names": ["z", "x", "y"], "action_names": ["dy", "dx"]}


def turned(episode: Episode) -> Episode:
    """As a recorder notes it that names the channels in the order of `TURNED`."""
    return replace(episode, state=episode.state[:, [2, 0, 1]], action=episode.action[:, [1, 0]])


def assert_equal(got: Episode, expected: Episode) -> None:
    for name in ("state", "action", "reward", "success", "progress"):
        assert torch.equal(getattr(got, name).nan_to_num(-1), getattr(expected, name).nan_to_num(-1)), name
    assert got.images.keys() == expected.images.keys()
    assert all(torch.equal(got.images[camera], expected.images[camera]) for camera in got.images)
    assert (got.instruction, got.source) == (expected.instruction, expected.source)


def part(episode: Episode, first: int, stop: int, instruction: str) -> Episode:
    """Frames `first` to `stop`, without the last."""
    rows = {name: getattr(episode, name)[first:stop] for name in ("state", "success", "progress")}
    rows |= {name: getattr(episode, name)[first : stop - 1] for name in ("action", "reward")}
    images = {camera: frames[first:stop] for camera, frames in episode.images.items()}
    return replace(episode, **rows, images=images, instruction=instruction)


def line(call: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match="; |expected") as raised:
        call()
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path, list[Episode]]:
    """Two datasets whose channels stand in another order, and their five episodes in the order of the first."""
    episodes = [random_episode(i, t=5 + i, instruction=("push", "lift")[i % 2]) for i in range(5)]
    write(tmp_path / "a", episodes[:3])
    write(tmp_path / "b", [turned(episode) for episode in episodes[3:]], **TURNED)
    return tmp_path / "a", tmp_path / "b", episodes


def test_datasets_are_merged_by_the_names_of_their_channels(pair: tuple[Path, Path, list[Episode]], tmp_path: Path) -> None:
    a, b, episodes = pair
    before = files(a) | {f"b/{name}": content for name, content in files(b).items()}
    data, new = convert_datasets([a, b], tmp_path / "c")
    assert new == 5 and (data.num_episodes, data.num_frames) == (5, 6 + 7 + 8 + 9 + 10)
    assert data.state_names == ("x", "y", "z") and data.tasks == ("push", "lift") and data.episode_indices == [*range(5)]
    for got, expected in zip(data.episodes(), episodes, strict=True):
        assert_equal(got, expected)
    state = torch.cat([episode.state for episode in episodes]).double().numpy()
    assert np.allclose(data.stats["observation.state"]["q99"], np.quantile(state, 0.99, axis=0), rtol=1e-12)
    assert not dataset_faults(tmp_path / "c")
    assert files(a) | {f"b/{name}": content for name, content in files(b).items()} == before
    assert convert_datasets([a, b], tmp_path / "c")[1] == 0, "what is there is not written again"


def test_episodes_are_dropped_split_and_relabelled(pair: tuple[Path, Path, list[Episode]], tmp_path: Path) -> None:
    """Numbers run on through both datasets: 3 is the first episode of b, which has 9 frames."""
    a, b, episodes = pair
    edits = Edits(drop=[1], split={3: [4, 6], 0: [2]}, relabel={"push": "shove", 3: ["reach", "grasp", "lift"], 0: "begin"})
    data, _ = convert_datasets([a, b], tmp_path / "c", edits=edits)
    expected = [
        part(episodes[0], 0, 2, "begin"),
        part(episodes[0], 2, 6, "begin"),
        replace(episodes[2], instruction="shove"),
        part(episodes[3], 0, 4, "reach"),
        part(episodes[3], 4, 6, "grasp"),
        part(episodes[3], 6, 9, "lift"),
        replace(episodes[4], instruction="shove"),
    ]
    for got, wanted in zip(data.episodes(), expected, strict=True):
        assert_equal(got, wanted)
    assert data.num_frames == 6 + 8 + 9 + 10 and data.tasks == ("begin", "shove", "reach", "grasp", "lift")
    assert {fault.kind for fault in dataset_faults(tmp_path / "c")} <= {"labels"}, "which are noise"
    kept, _ = convert_datasets([a, b], tmp_path / "d", edits=Edits(keep=[4, 0]))
    for got, wanted in zip(kept.episodes(), [episodes[0], episodes[4]], strict=True):
        assert_equal(got, wanted)


def test_a_damaged_episode_is_dropped(tmp_path: Path) -> None:
    """Nothing of it is read; and before the first file is written, all that is taken was."""
    episodes = [random_episode(i) for i in range(3)]
    write(tmp_path / "a", *([episode] for episode in episodes))
    path = tmp_path / "a/data/chunk-000/file-001.parquet"
    content = bytearray(path.read_bytes())
    content[100:400] = bytes(300)
    path.write_bytes(content)
    assert "file-001.parquet cannot be read" in line(lambda: [*Dataset(tmp_path / "a").episodes()])
    data, _ = convert_datasets([tmp_path / "a"], tmp_path / "c", edits=Edits(drop=[1]))
    for got, expected in zip(data.episodes(), [episodes[0], episodes[2]], strict=True):
        assert_equal(got, expected)


def test_pictures_are_stored_as_they_were_unless_told_otherwise(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"cameras": {"top": (64, 64), "wrist": (64, 64)}}
    episodes = [smooth_episode(i) for i in range(2)]
    video = write(tmp_path / "video", episodes, storage="video", **sizes)
    again, _ = convert_datasets([video.root], tmp_path / "again")
    images, _ = convert_datasets([video.root], tmp_path / "images", storage="image")
    back, _ = convert_datasets([images.root], tmp_path / "back", storage="video")
    kinds = [data.features["observation.images.top"]["dtype"] for data in (video, again, images, back)]
    assert kinds == ["video", "video", "image", "video"]
    for first, second, third, fourth, original in zip(
        *(data.episodes() for data in (video, again, images, back)), episodes, strict=True
    ):
        assert torch.equal(third.images["top"], first.images["top"]), "PNG keeps what the video shows"
        for got in (first, second, fourth):
            error = (got.images["wrist"].float() - original.images["wrist"].float()).square().mean()
            assert error < 255**2 / 10**3, "30 dB"


def test_labels_of_others_stay_what_they_were(tmp_path: Path) -> None:
    """Success that comes with the next frame, progress that is known of some frames, and of others nothing at all."""
    nothing, some, following = (tmp_path / name for name in ("nothing", "some", "following"))
    foreign_dataset(nothing)
    foreign_dataset(some, **{"next.success": [0.0, 1, 0, 0, 1, np.nan, 0], "progress": [0.5] * 3 + [np.nan] * 4})
    success = {"next.success": {"dtype": "bool", "shape": [1], "names": None}}
    truths: dict[str, Any] = {"next.success": [False, True, True, False, False, True, True]}
    foreign_dataset(following, features=success, **truths)
    labels = {nothing: {}, some: {"next.success": False, "success": False, "progress": False}, following: {"next.success": True}}
    for root, expected in labels.items():
        data, _ = convert_datasets([root], tmp_path / "new" / root.name)
        for got, before in zip(data.episodes(), Dataset(root).episodes(), strict=True):
            assert_equal(got, before)
        assert fmt.read_json(data.root / RECORD)["judged"] == expected
        assert {key for key in fmt.LABELS if key in data.features} == expected.keys()
        assert not [fault for fault in dataset_faults(data.root) if fault.severity == "error"]
    assert [e.success.tolist()[1:] for e in data.episodes()] == [[0, 1], [0, 0, 1]]
    parts, _ = convert_datasets([following], tmp_path / "parts", edits=Edits(split={1: [2]}))
    assert [e.success.nan_to_num(-1).tolist() for e in parts.episodes()] == [[-1, 0, 1], [-1, 0], [0, 1]], (
        "the first frame is known, too"
    )


def test_what_the_numbers_mean_is_kept(pair: tuple[Path, Path, list[Episode]], tmp_path: Path) -> None:
    a, b, _ = pair
    (a / "meta/spec.yaml").write_text(
        "robot_type: arm\nstate: {z: {unit: deg, kind: absolute, limits: [-9, null]}}\naction: {'*': {kind: delta}}\n"
        "groups: {place: {of: state, channels: [x, y, z], meaning: position, frame: base}}\nnormalisation: {state: min_max}\n"
    )
    data, _ = convert_datasets([a], tmp_path / "c")
    assert data.spec == read_spec(a) and data.spec.state[2].unit == "deg" and data.spec.groups[0].meaning == "position"
    merged, _ = convert_datasets([b, a], tmp_path / "d")
    assert [channel.name for channel in merged.spec.state] == ["z", "x", "y"], "the first dataset says the order and the units"
    (b / "meta/spec.yaml").write_text("state: {z: {unit: m}}\n")
    assert "'s state z is in m, " in line(lambda: convert_datasets([b, a], tmp_path / "e"))
    assert not (tmp_path / "e").exists()


def test_episodes_are_written_as_memory_allows(
    pair: tuple[Path, Path, list[Episode]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 x 24 and 8 x 8 pixels are 1,344 bytes a frame; episodes have 6 to 10 frames, so 20,000 bytes are 3 of them, or 2."""
    a, b, _ = pair
    monkeypatch.setattr(editing, "FLUSH_BYTES", 20_000)
    data, _ = convert_datasets([a, b], tmp_path / "c")
    assert [len(Dataset(data.root).lengths), len([*data.root.glob("data/*/*.parquet")])] == [5, 2]
    monkeypatch.setattr(editing, "FLUSH_BYTES", 1)
    assert len([*convert_datasets([a, b], tmp_path / "d")[0].root.glob("data/*/*.parquet")]) == 5


def test_a_killed_conversion_goes_on(
    pair: tuple[Path, Path, list[Episode]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, _ = pair
    monkeypatch.setattr(editing, "FLUSH_BYTES", 1)
    edits = Edits(split={4: [5]})
    whole = convert_datasets([a, b], tmp_path / "whole", edits=edits)[0]
    out = tmp_path / "killed"
    for survived in (0, 1, 2, 4, 8, 2, 9, 1):  # renames: info, record and spec.yaml, then six for each episode, info last
        with monkeypatch.context() as patch:
            kill_at_rename(patch, survived)
            with pytest.raises(Killed):
                convert_datasets([a, b], out, edits=edits)
    assert 0 < Dataset(out).num_episodes < 6
    assert "holds something else than this conversion (split)" in line(lambda: convert_datasets([a, b], out))
    data, new = convert_datasets([a, b], out, edits=edits)
    assert 0 < new < 6
    for got, expected in zip(data.episodes(), whole.episodes(), strict=True):
        assert_equal(got, expected)
    assert not dataset_faults(out) and read_spec(out) == read_spec(whole.root)


def other_fps(root: Path) -> None:
    write(root, [random_episode(0)], fps=20)


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"drop": [5]}, "drop names episode 5; there are 5, counted from 0 through all datasets"),
        ({"drop": [-1]}, "drop names episode -1"),
        ({"keep": [1.5]}, "keep names episode 1.5"),
        ({"drop": 3}, "drop is 3, expected the form [3, 5]"),
        ({"keep": 0}, "keep is 0, expected the form [3, 5]"),
        ({"drop": [1], "keep": [2]}, "drop and keep are both said"),
        ({"keep": []}, "no episode is left to write"),
        ({"split": {7: [2]}}, "split names episode 7"),
        ({"split": {1: 3}}, "split cuts episode 1, of 7 frames, at 3, expected a list of rising frames"),
        ({"split": {1: [1]}}, "at [1], expected a list of rising frames that leaves 2 or more to each part"),
        ({"split": {1: [6]}}, "at [6], expected"),
        ({"split": {1: [4, 3]}}, "at [4, 3], expected"),
        ({"split": {1: [-3]}}, "at [-3], expected"),
        ({"split": {1: [3]}, "drop": [1]}, "names episode 1, which is not taken"),
        ({"relabel": {"pull": "push"}}, "relabel says 'pull': 'push', expected one of the sentences ['lift', 'push']"),
        ({"relabel": {"push": 3}}, "relabel says 'push': 3"),
        ({"relabel": {1: ["a", "b"]}}, "relabel says ['a', 'b'] of episode 1, expected a sentence, or one for each of its 1 parts"),
        ({"relabel": {1: 7}}, "relabel says 7 of episode 1"),
    ],
)
def test_edits_that_do_not_fit_are_one_line(
    pair: tuple[Path, Path, list[Episode]], tmp_path: Path, edits: dict[str, Any], message: str
) -> None:
    a, b, _ = pair
    assert message in line(lambda: convert_datasets([a, b], tmp_path / "c", edits=Edits(**edits)))
    assert not (tmp_path / "c").exists()


def unjudged(episode: Episode) -> Episode:
    unknown = torch.full_like(episode.success, torch.nan)
    return replace(episode, success=unknown, progress=unknown)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"fps": 20}, None, "has fps 20, "),
        ({"state_names": ["x", "y", "w"]}, None, "state z is missing in "),
        ({"action_names": ["dx", "dz"]}, None, "action dy is missing in "),
        ({"judged": False}, unjudged, "has no labels, "),
        (
            {"cameras": {"top": (16, 24), "side": (8, 8)}},
            lambda e: replace(e, images=dict(zip(("top", "side"), e.images.values(), strict=True))),
            "has cameras {",
        ),
    ],
)
def test_datasets_that_differ_are_one_line(tmp_path: Path, settings: dict[str, Any], change: Any, message: str) -> None:
    write(tmp_path / "a", [random_episode(0)])
    write(tmp_path / "b", [random_episode(1) if change is None else change(random_episode(1))], **settings)
    said = line(lambda: convert_datasets([tmp_path / "a", tmp_path / "b"], tmp_path / "c"))
    assert message in said and str(tmp_path / "b") in said and not (tmp_path / "c").exists()


def test_nothing_is_written_where_something_is(pair: tuple[Path, Path, list[Episode]], tmp_path: Path) -> None:
    a, b, _ = pair
    before = files(tmp_path)
    for out in (a, a / "new", tmp_path, a / ".." / "a"):
        assert f"{out} is not apart from {a.resolve()}, which it is made of" in line(lambda out=out: convert_datasets([a], out))
    assert "holds something else than this conversion (episodes); choose" in line(lambda: convert_datasets([a], b))
    assert files(tmp_path) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run/model.yaml").write_text("a model")
    assert "run holds something else than this conversion (model.yaml)" in line(lambda: convert_datasets([a], tmp_path / "run"))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["model.yaml"]
    convert_datasets([a], tmp_path / "c")
    before = files(tmp_path / "c")
    edits = Edits(drop=[1])
    assert "(drop); choose" in line(lambda: convert_datasets([a], tmp_path / "c", edits=edits))
    assert "(datasets); choose" in line(lambda: convert_datasets([a, b], tmp_path / "c"))
    assert files(tmp_path / "c") == before


def test_a_rate_that_lerobot_does_not_know_is_one_line(tmp_path: Path) -> None:
    foreign_dataset(tmp_path / "a")
    edit_info(tmp_path / "a", fps=29.97)
    assert "fps must be a positive whole number" in line(lambda: convert_datasets([tmp_path / "a"], tmp_path / "c"))
    assert not (tmp_path / "c").exists()


def test_the_command(pair: tuple[Path, Path, list[Episode]], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, _ = pair
    out = tmp_path / "c"
    edits = ["drop=[0]", "split={2: [3]}", "relabel={lift: raise it, 4: go home}"]
    assert main(["convert", f"data=[{a},{b}]", f"out={out}", *edits]) == 0
    assert f"{out}: 5 episodes with 34 frames, 5 new" in capsys.readouterr().out
    sentences = [episode.instruction for episode in Dataset(out).episodes()]
    assert sentences == ["raise it", "push", "push", "raise it", "go home"]
    assert main(["convert", f"data={a}", f"out={tmp_path / 'd'}", "storage=png"]) == 2
    assert "storage must be 'image' or 'video', got 'png'" in capsys.readouterr().err
    for args in ([], [f"data={a}", "run=x", f"out={out}"]):
        assert main(["convert", *args]) == 2 and "convert needs either data=DATASET" in capsys.readouterr().err
    assert main(["convert", f"data={a}"]) == 2 and "out has no value" in capsys.readouterr().err
    assert main(["convert", f"data={tmp_path / 'none'}", f"out={tmp_path / 'd'}"]) == 2
    assert "no LeRobot dataset at" in capsys.readouterr().err and not (tmp_path / "d").exists()
