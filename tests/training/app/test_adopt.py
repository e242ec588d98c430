"""Anybody's dataset in one command, and everything after it without an override: a generated twin of a humanoid's recording, and
real ones where they lie beside the checkout."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from toy_datasets import as_v2, foreign_dataset, smooth_episode, write

from training.app.cli import main
from worldsim.data import lerobot_format as fmt

REAL = Path(__file__).parents[4] / "shared/data"
FIT = ["+trainer.enable_progress_bar=false", "data.batch_size=8"]
SMALL = ["+model.world_model.channels=[8,16]", "+model.world_model.layers=[1,1]"]


def twin(root: Path, episodes: int = 6) -> Path:
    """An arm of three joints at 20 Hz in LeRobot v2.1: names nested, one AV1 camera, no labels and no statistics, one task.

    Joints are where their actions sent them one frame before.
    """
    recorded = root.parent / "v3"
    cameras = {"top": (64, 96)}
    settings = {
        "fps": 20,
        "robot_type": "twin",
        "state_names": ["shoulder", "elbow", "gripper"],
        "action_names": ["shoulder", "elbow"],
    }
    made = []
    for seed in range(episodes):
        episode = smooth_episode(seed, t=14, size=(64, 96))
        angle = torch.sin(torch.arange(16)[:, None] / 4 + seed + torch.arange(2))
        state = torch.cat([angle[:15], torch.arange(15)[:, None] % 2 * 100.0], dim=1)
        made.append(replace(episode, images={"top": episode.images["top"]}, state=state, action=angle[1:15], instruction="wave"))
    unknown = [replace(e, success=torch.full((15,), torch.nan), progress=torch.full((15,), torch.nan)) for e in made]
    write(recorded, *([one] for one in unknown), storage="video", judged=False, cameras=cameras, **settings)
    as_v2(recorded, root)
    return root


def learn(name: str, run: Path, steps: int, fit: list[str], small: list[str]) -> None:
    """Three fits, post-training, a dream and an evaluation of an adopted dataset, with sizes cut and nothing else said."""
    for experiment, more in (("world_model", small), ("reflector", []), ("policy", [])):
        options = [f"trainer.max_steps={steps}", *fit, *more]
        if experiment != "policy":
            options.append(f"trainer.val_check_interval={steps}")
        assert main(["fit", f"experiment={name}/{experiment}", *options]) == 0
    assert main(["rollout", f"experiment={name}/dream", "episodes=2", "world.num_envs=2"]) == 0
    assert (run / "dream/grid.mp4").is_file()


def test_a_twin_of_a_real_recording_is_adopted_and_learned_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    twin(tmp_path / "my_arm")
    assert main(["adopt", "my_arm"]) == 0
    told = capsys.readouterr().out
    assert "twin, LeRobot v2.1, 20 frames per second" in told and "6 episodes, 90 frames, 0.75 to 0.75 s each" in told
    assert "camera top: 64 x 96" in told and "label=time_to_go" in told and "cost of world_model: 800 steps" in told
    spec = yaml.safe_load((tmp_path / "adopted/my_arm/spec.yaml").read_text())
    assert spec["views"] == {"top": [64, 96]} and spec["action"]["shoulder"] == {"unit": "rad", "kind": "absolute"}
    assert spec["state"]["gripper"] == {"unit": "percent", "kind": "unknown"}
    assert (
        "0.00 of the state's spread from where the state is 1 frames later" in (tmp_path / "adopted/my_arm/spec.yaml").read_text()
    )
    page = (tmp_path / "adopted/my_arm/report.html").read_text()
    assert page.count("data:image/png;base64,") == 4 and "time_to_go" in page
    learn("my_arm", tmp_path / "runs/my_arm", 2, FIT, SMALL)
    chosen = yaml.safe_load((tmp_path / "runs/my_arm/world_model/model.yaml").read_text())
    assert chosen["action_horizon"] == 8, "0.4 s at 20 frames per second"
    assert main(["fit", "experiment=my_arm/post_train", "trainer.limit_train_batches=2", "data.batch_size=2", FIT[0]]) == 0
    assert main(["evaluate", "experiment=my_arm/evaluate"]) == 0, "four of six episodes are held out"
    assert "control" in json.loads((tmp_path / "runs/my_arm/evaluation/models.json").read_text())["world_model"]["cameras"]["top"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g1_pick_bottle", "pusht_human"])
def test_a_real_recording_is_adopted_and_learned_from(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (REAL / name).is_dir():
        pytest.skip(f"{REAL / name} is not there: a real recording that does not belong to the project")
    monkeypatch.chdir(tmp_path)
    assert main(["adopt", str(REAL / name)]) == 0
    learn(name, tmp_path / f"runs/{name}", 20, ["data.batch_size=4"], [])


def test_what_somebody_edited_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    twin(tmp_path / "arm", 3)
    assert main(["adopt", "arm", "name=mine", "out=robots"]) == 0
    assert "worldsim fit experiment=mine/world_model --config-dir" in capsys.readouterr().out
    spec, policy = tmp_path / "robots/mine/spec.yaml", tmp_path / "robots/experiment/mine/policy.yaml"
    spec.write_text(spec.read_text().replace("robot_type: twin", "robot_type: so101"))
    policy.unlink()
    assert main(["adopt", "arm", "name=mine", "out=robots"]) == 0
    assert "robot_type: so101" in spec.read_text() and policy.is_file()
    assert f"kept {spec}" in capsys.readouterr().out


def test_words_that_yaml_reads_otherwise_and_folders_that_hydra_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A robot called 42, a camera called on, recorded progress and no success, in a folder with a quote and a bracket."""
    place = tmp_path / "Jörg's (robots), [old]"
    place.mkdir()
    monkeypatch.chdir(place)
    foreign_dataset(place / "arm", progress=[0.5] * 7)
    info = fmt.read_json(place / "arm" / fmt.INFO)
    fmt.write_json(place / "arm" / fmt.INFO, info | {"robot_type": "42"})
    assert main(["adopt", "arm"]) == 0
    told = capsys.readouterr().out
    assert "label=demo_end" in told and "2 episodes are too few to hold some out" in told and "worldsim evaluate" not in told
    spec = yaml.safe_load((place / "adopted/arm/spec.yaml").read_text())
    assert spec["robot_type"] == "42" and spec["action"] == {"0": {"unit": "unknown", "kind": "unknown"}}
    assert main(["doctor", "data=adopted/arm"]) == 0, "whatever the folder is called, once ./adopted is searched"
    foreign_dataset(place / "other/arm")
    assert main(["adopt", "other/arm"]) == 2
    assert "adopts" in (error := capsys.readouterr().err) and "choose another name with name=..." in error


def test_what_cannot_be_read_leaves_nothing_and_says_all_its_faults(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    foreign_dataset(tmp_path / "arm", progress=[0.5, 7, 0, 0, 0, 0, 0])
    assert main(["adopt", "arm"]) == 2
    assert "error: 1 rows of progress are neither in [0, 1]" in capsys.readouterr().out
    assert not (tmp_path / "adopted").exists()


def test_foreign_names_are_proposed_and_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    vector = {"dtype": "float32", "shape": [1], "names": None}
    foreign_dataset(tmp_path / "arm", qpos=[0.1 * i for i in range(7)], actions=[0.1 * i for i in range(7)])
    info = fmt.read_json(tmp_path / "arm" / fmt.INFO)
    features = {key: value for key, value in info["features"].items() if key not in ("observation.state", "action")}
    fmt.write_json(tmp_path / "arm" / fmt.INFO, info | {"features": features | {"qpos": vector, "actions": vector}})
    assert main(["adopt", "arm"]) == 0
    assert yaml.safe_load((tmp_path / "adopted/arm/spec.yaml").read_text())["features"] == {
        "state": ["qpos"],
        "action": ["actions"],
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nowhere"], "no LeRobot dataset at"),
        (["somebody/nowhere"], "there is no folder somebody/nowhere, and the hub does not give it"),
        (["arm", "name=a/b"], "name is 'a/b', expected letters, digits and underscores"),
        ([], "dataset has no value; pass dataset=..."),
    ],
)
def test_what_cannot_be_adopted_is_one_line(
    arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    foreign_dataset(tmp_path / "arm")
    assert main(["adopt", *arguments]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1
    assert not (tmp_path / "adopted").exists()
