"""`worldsim evaluate world_model=M reflector=R data=X`: what is written, and what is answered in one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from training.app import cli
from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter

T = 6
NAMES: dict[str, Any] = {"state_names": ["x", "y", "vx", "vy"], "action_names": ["dx", "dy"]}


def write(
    root: Path, episodes: int, *, labels: bool = True, moving: bool = True, camera: str = "front", fps: int = 10, **names: Any
) -> str:
    """Squares that move by a pixel a step; every other episode succeeds at its end."""
    settings: Any = {"fps": fps, "robot_type": "toy", "cameras": {camera: (64, 64)}, "storage": "image", "judged": labels}
    with DatasetWriter(root, **settings, **(NAMES | names)) as writer:
        for number in range(episodes):
            g = torch.Generator().manual_seed(number)
            frames = torch.zeros(T + 1, 64, 64, 3, dtype=torch.uint8)
            for k in range(T + 1):
                left = 8 + number % 16 + (2 * k if moving else 0)
                frames[k, 20:40, left : left + 20] = 200
            success = torch.full((T + 1,), torch.nan)
            if labels:
                success = ((torch.arange(T + 1) == T) & (number % 2 == 0)).float()
            state, action = 0.1 * torch.randn(T + 1, 4, generator=g), torch.rand(T, 2, generator=g) - 0.5
            writer.add([Episode({camera: frames}, state, action, torch.zeros(T), success, success, "push", "expert")])
    return str(root)


def test_both_models_are_held_to_episodes_and_found_out(folders: dict[str, str], tmp_path: Path, capsys) -> None:
    """An untrained world model: nothing good may be said of it."""
    data, out = write(tmp_path / "data", 34), tmp_path / "out"
    models = [f"{name}={folders[name]}" for name in ("world_model", "reflector")] + [f"rivals={folders['world_model']}"]
    assert cli.main(["evaluate", *models, f"data={data}", "held_out=1", "horizon=6", f"out={out}"]) == 0
    said, found = capsys.readouterr().out, json.loads((out / "models.json").read_text())
    assert "world model: Do not learn in it: it is" in said and found["world_model"]["verdict"].startswith("Do not learn")
    assert found["world_model"]["episodes"] == found["imagined_success"]["episodes"] == 34 and found["world_model"]["steps"] == T
    assert found["reflector"]["frames"] == 34 * (T + 1) and found["reflector"]["episodes"] == 34
    assert found["imagined_success"]["rates"]["label"]["rate"] == 0.5 and len(found["world_model_weights_sha256"]) == 64
    assert found["doubt"]["episodes"] == 34 and "no doubt is so small that 90 % of" in said, "it agrees with itself, and errs"
    page = (out / "models.md").read_text()
    assert "| one horizon for all | 0 | 0.00 [0.00, 0.00] |" in page
    assert "| front | " in page and "| always success | 7.1 % |" in page and "| labels | 50.0 [" in page
    written = {"models.json", "models.md", "curves.png", "dreams.png", "partings.json", "partings.png"}
    assert {file.name for file in out.iterdir()} == written
    apart = json.loads((out / "partings.json").read_text())["partings"]
    assert found["partings"]["episodes"] == len(apart) and 1 <= found["partings"]["step"] <= T
    assert {one["root"] for one in apart} == {data} and f"dream and recording part in {len(apart)} episodes, after" in said


def test_each_of_them_alone(folders: dict[str, str], tmp_path: Path) -> None:
    """The last half of the episodes, each once: 9 of 18, which have no labels."""
    data = write(tmp_path / "data", 18, labels=False)
    model, twice = f"world_model={folders['world_model']}", f"data=[{data},{data}]"
    assert cli.main(["evaluate", model, twice, "held_out=0.5", "horizon=4", f"out={tmp_path / 'new'}"]) == 0
    found = json.loads((tmp_path / "new" / "models.json").read_text())
    assert found["world_model"]["episodes"] == 9 and found["world_model"]["dreams"] == 18 and "reflector" not in found
    labelled = write(tmp_path / "labelled", 9)
    assert cli.main(["evaluate", f"reflector={folders['reflector']}", f"data={labelled}", "held_out=1", f"out={tmp_path}"]) == 0
    found = json.loads((tmp_path / "models.json").read_text())
    assert found["reflector"]["episodes"] == 9 and "world_model" not in found


def test_what_few_episodes_cannot_say_is_left_out(folders: dict[str, str], tmp_path: Path, capsys) -> None:
    """Nine say something of a world model and of a reflector's frames, and nothing of imagined success."""
    models = [f"world_model={folders['world_model']}", f"reflector={folders['reflector']}"]
    assert cli.main(["evaluate", *models, f"data={write(tmp_path / 'data', 9)}", "held_out=1", f"out={tmp_path / 'out'}"]) == 0
    assert "left out: 9 labelled episodes are too few" in capsys.readouterr().out
    found = json.loads((tmp_path / "out/models.json").read_text())
    assert {"world_model", "reflector"} <= found.keys() and "imagined_success" not in found


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ([], "nothing to evaluate: name a policy="),
        (["world_model={world_model}"], "name some with data="),
        (["policy={policy}", "data=x"], "leave out policy= or data="),
        (["world_model={world_model}", "data=x", "baseline=x"], "baseline= goes with a policy="),
        (["policy={policy}", "rivals=[x]"], "leave out policy= or rivals="),
        (["reflector={reflector}", "data={data}", "rivals=[x]"], "rivals= says where a world_model= is not to be believed"),
        (["world_model={world_model}", "data={data}", "rivals=[{policy}]"], "expected a WorldModel"),
        (["world_model={world_model}", "data={data}", "held_out=0.7", "rivals=[{world_model}]"], "8 are the fewest, got 6"),
        (["world_model={world_model}", "data={data}", "held_out=0"], "held_out must be in (0, 1]"),
        (["world_model={world_model}", "data={data}"], "dreams of 1 episodes say little"),
        (["world_model={world_model}", "data={still}", "held_out=1"], "nothing moves in front"),
        (["world_model={world_model}", "data={side}", "held_out=1"], "front"),
        (["world_model={world_model}", "data={names}", "held_out=1"], "lift"),
        (["reflector={reflector}", "data={unlabelled}", "held_out=1"], "0 of these episodes say whether they succeeded"),
        (["world_model={reflector}", "data={data}"], "WorldModel"),
        (["reflector={reflector}", "data={nowhere}"], "nowhere"),
        (["reflector={reflector}", "data=[]"], "data names no dataset"),
        (["reflector={reflector}", "data=[2024]"], "2024"),
        (["world_model={world_model}", "data={data}", "held_out=1", "horizon=0"], "got horizon=0"),
        (["world_model={world_model}", "data={data}", "held_out=1", "dreams=1"], "dreams of 1 episodes"),
        (["world_model={world_model}", "data={fast}", "held_out=1"], "learned from 10 frames a second"),
    ],
)
def test_what_cannot_be_said_is_one_line(settings: list[str], words: str, folders: dict[str, str], tmp_path: Path, capsys) -> None:
    datasets = {
        "data": lambda root: write(root, 9),
        "still": lambda root: write(root, 9, moving=False),
        "side": lambda root: write(root, 9, camera="side"),
        "names": lambda root: write(root, 9, action_names=["dx", "lift"]),
        "unlabelled": lambda root: write(root, 9, labels=False),
        "nowhere": str,
        "fast": lambda root: write(root, 9, fps=20),
    }
    made = {name: made(tmp_path / name) for name, made in datasets.items() if any(f"{{{name}}}" in s for s in settings)}
    run = ["evaluate", *(setting.format(**folders, **made) for setting in settings), f"out={tmp_path / 'out'}"]
    assert cli.main(run) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("decoding")]
    assert len(lines) == 1 and lines[0].startswith("worldsim: ") and words in lines[0], lines
