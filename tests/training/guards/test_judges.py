"""What judges measure and what it costs, and how a configuration chooses a guard."""

import copy
import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from conditions import watched
from guarding import (
    CHUNK,
    EPISODES,
    CountedDream,
    Recorder,
    Scripted,
    dream,
    fit,
    read,
    same,
    shipped,
)
from hydra.utils import get_object
from omegaconf import OmegaConf

from training.__main__ import RepeatCLI
from training.app.cli import compose_config
from training.app.fit import run_fit
from training.guards.alarms import JudgeFalls
from training.guards.guard import Guard
from training.guards.held_out import PhysicsCheck, SecondReflector, Verdict
from worldsim.core import checkpoint
from worldsim.core.seeds import GUARDING, REPORTING
from worldsim.measure.identification import SPREAD

# Judges -----------------------------------------------------------------------------------------------------------------------


def test_second_reflector_judges_the_same_dreams_differently(models: dict[str, Any], data: list[str], tmp_path: Path) -> None:
    """The two reflectors disagree on every frame. In dreams of one chunk ended by the first success, 1 - judged is the share of
    dreams with successes only."""
    policy = models["policy"]
    three = (models["world_model"], models["reflector"], models["second_reflector"])
    judge = SecondReflector(*three, data, episodes=EPISODES, max_episode_steps=CHUNK)
    verdict = judge.measure(policy)
    assert verdict == judge.measure(policy)
    twin = copy.deepcopy(models["reflector"])
    equal = SecondReflector(*three[:2], twin, data, episodes=EPISODES, max_episode_steps=CHUNK).measure(policy)
    assert equal.imagined == equal.judged == verdict.imagined
    assert verdict.judged != verdict.imagined and verdict.imagined + verdict.judged >= 1  # every dream pleases one of the two
    swapped = SecondReflector(three[0], three[2], three[1], data, episodes=EPISODES, max_episode_steps=CHUNK).measure(policy)
    assert (swapped.imagined, swapped.judged) == (verdict.judged, verdict.imagined)


def test_second_reflector_chooses_episodes_by_its_seed(models: dict[str, Any], data: list[str]) -> None:
    three = (models["world_model"], models["reflector"], models["second_reflector"])
    a, b, again = (SecondReflector(*three, data, episodes=4, seed=seed).starts for seed in (0, 1, 0))
    assert len(a) == 4 and torch.equal(a.state, again.state) and not torch.equal(a.state, b.state)
    with pytest.raises(ValueError, match=r"episodes must be in \[1, 8\]"):
        SecondReflector(*three, data, episodes=9)
    with pytest.raises(ValueError, match="second_reflector must differ from reflector"):
        SecondReflector(*three[:2], three[1], data, episodes=4)


def test_physics_check_measures_both_on_the_same_starts(models: dict[str, Any], data: list[str]) -> None:
    """The same world model in the place of physics predicts the same from the same starts: with one sampling step it does not
    depend on its noise, and the policy's noise has the check's seed in both."""
    policy = models["policy"]
    world = dream(models, data)
    verdicts = []
    for seed in range(800_000_000, 800_000_048, 8):
        verdict = PhysicsCheck(world, models["world_model"], models["reflector"], episodes=8, seed=seed).measure(policy)
        assert verdict is not None and verdict.step == verdict.physics_steps == 0
        assert verdict.imagined == verdict.judged
        verdicts.append(verdict.judged)
    assert len(set(verdicts)) > 1
    # Imagination is judged by the reflector, physics by itself.
    never = copy.deepcopy(models["reflector"])
    never.threshold.fill_(1.0)
    judge = PhysicsCheck(world, models["world_model"], never, episodes=8)
    missed = {"agreement": 1 - verdicts[0], "false_success": 0.0, "missed_success": verdicts[0], "kappa": 0.0}
    assert judge.measure(policy) == judge.measure(policy) == Verdict(0, 0.0, judged=verdicts[0], physics_steps=0, agreement=missed)


def test_physics_check_stays_within_its_budget(
    models: dict[str, Any], data: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check of 4 episodes of at most 6 steps, in chunks of 4, takes up to 4 * 8 = 32 steps."""
    policy, world = models["policy"], dream(models, data, CountedDream)
    judge = PhysicsCheck(world, models["world_model"], models["reflector"], episodes=4, budget=80)
    spent = 0
    while spent + 32 <= 80:
        verdict = judge.measure(policy)
        assert verdict is not None and 0 < verdict.physics_steps <= 32
        spent += verdict.physics_steps
        assert judge.physics_steps == world.physics_steps == spent
        assert judge.spent is None and "guard:" not in capsys.readouterr().out
    assert judge.measure(policy) is None
    assert world.physics_steps == spent <= 80
    (line,) = capsys.readouterr().out.splitlines()
    assert f"guard: {spent} of budget=80 control steps are taken and a check takes up to 32, so nothing is measured" in line
    assert "raise trainer.callbacks.guard.judge.budget" in line and judge.spent is not None and judge.spent in line
    assert judge.measure(policy) is None and capsys.readouterr().out == "", "it says so once"
    # A run goes on without it, and still ships the best of what was measured only if the last measured was clearly worse.
    recorder, guard = Recorder(), Guard([JudgeFalls(margin=1)], judge, every=1)
    fit(Scripted(models["policy"]), tmp_path / "run", 3, recorder, guard)
    assert guard.history == [] and same(shipped(tmp_path / "run"), recorder.weights[-1])


def test_physics_check_refuses_starts_of_training_and_of_the_final_evaluation(models: dict[str, Any], data: list[str]) -> None:
    three = (dream(models, data), models["world_model"], models["reflector"])
    for seed in (0, GUARDING - 1, REPORTING, REPORTING + 5, REPORTING - 63):  # the last one reaches into them
        with pytest.raises(ValueError, match=r"starts that guard a run lie in \[800,000,000, 900,000,000\)"):
            PhysicsCheck(*three, episodes=64, seed=seed)
    PhysicsCheck(*three, episodes=64, seed=REPORTING - 64)


# Configuration ----------------------------------------------------------------------------------------------------------------


def configured(folders: dict[str, str], data: list[str], run: Path, guard: str, *overrides: str) -> dict[str, Any]:
    roots = f"[{data[0]}]"
    models = [f"model.{name}.folder={folders[name]}" for name in ("policy", "world_model", "reflector")]
    small = ["data.batch_size=4", "trainer.limit_train_batches=2", "trainer.accelerator=cpu", f"data.roots={roots}"]
    named = ["experiment=post_train", f"guard={guard}", f"run_dir={run}"]
    config = OmegaConf.to_container(compose_config("fit", [*named, *models, *small, *overrides]), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


def test_guards_are_chosen_by_configuration(
    folders: dict[str, str], data: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each folder is read once, though learner and judge name the same ones; stock Lightning syntax repeats the run."""
    read_folders: list[str] = []
    load = checkpoint.load
    monkeypatch.setattr(checkpoint, "load", lambda folder, expected: read_folders.append(folder) or load(folder, expected))
    assert "guard" not in configured(folders, data, tmp_path, "alarms", "~guard")["trainer"]["callbacks"]
    assert "judge" not in configured(folders, data, tmp_path, "alarms")["trainer"]["callbacks"]["guard"]
    judge = "trainer.callbacks.guard.judge"
    overrides = [f"{judge}.{name}.folder={folders[name]}" for name in ("world_model", "reflector", "second_reflector")]
    overrides += [f"{judge}.data=[{data[0]}]", f"{judge}.episodes=4", f"{judge}.max_episode_steps=4"]
    run_fit(configured(folders, data, tmp_path / "run", "second_reflector", *overrides))
    steps = [verdict["step"] for verdict in read(tmp_path / "run" / "guard.json")["verdicts"]]
    assert steps == [0, 2]
    assert "judge/gap" in next((tmp_path / "run" / "csv").rglob("metrics.csv")).read_text()
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Guard"]
    assert [Verdict(**verdict).step for verdict in saved["history"]][0] == 0 and saved["good"]["step"] == 0
    assert sorted(read_folders) == sorted(folders.values())
    RepeatCLI(args=["fit", "--config", str(tmp_path / "run" / "config.yaml"), "--model.policy.init_args.folder", folders["policy"]])
    again = tmp_path / "run" / "again"
    assert same(shipped(again), shipped(tmp_path / "run")) and read(again / "guard.json") == read(tmp_path / "run" / "guard.json")


@pytest.mark.parametrize("guard", ["alarms", "second_reflector", "physics"])
def test_a_guard_shows_all_its_numbers(guard: str) -> None:
    """What stands in the YAML are the defaults of the code, but for the interval and the check's world."""

    def compare(node: Any) -> None:
        parameters = inspect.signature(get_object(node["_target_"])).parameters
        numbers = {name: p.default for name, p in parameters.items() if type(p.default) in (int, float)}
        written = {name: value for name, value in node.items() if name in numbers}
        if node["_target_"] != "training.guards.guard.Guard":
            assert written == numbers, node
        else:
            assert numbers["margin"] == written.get("margin", numbers["margin"])
        for child in [node.get("judge"), *node.get("alarms", []), *node.get("verdict_alarms", [])]:
            if child is not None:
                compare(child)

    compare(OmegaConf.to_container(compose_config("fit", ["experiment=post_train", f"guard={guard}"]).trainer.callbacks.guard))


def test_every_experiment_of_post_training_is_guarded() -> None:
    for learner in ("analytic", "ppo", "grpo", "nft", "prdp"):
        config = compose_config("fit", ["experiment=post_train", f"learner={learner}"])
        assert config.trainer.callbacks.guard._target_ == "training.guards.guard.Guard"


@pytest.mark.slow
@pytest.mark.genesis
def test_physics_guard_of_the_configuration(folders: dict[str, str], data: list[str], tmp_path: Path, monkeypatch) -> None:
    judge = "trainer.callbacks.guard.judge"
    overrides = [f"{judge}.{name}.folder={folders[name]}" for name in ("world_model", "reflector")]
    overrides += [f"{judge}.world.num_envs=2", f"{judge}.episodes=2", f"{judge}.budget=200"]
    (tmp_path / "identified.json").write_text(json.dumps({"found": dict.fromkeys(SPREAD, 1.0) | {"latency.delay": 0.0}}))
    overrides += [f"+randomization@{judge}.randomization=identified", f"{judge}.randomization.file={tmp_path / 'identified.json'}"]
    randomised = watched(monkeypatch)
    run_fit(configured(folders, data, tmp_path / "run", "physics", *overrides))
    assert [world.num_envs for world in randomised] == [2, 2], "once per check"
    verdicts = [Verdict(**verdict) for verdict in read(tmp_path / "run" / "guard.json")["verdicts"]]
    assert [verdict.step for verdict in verdicts] == [0, 2]
    assert all(0 < verdict.physics_steps <= 80 for verdict in verdicts)
    assert asdict(verdicts[0])["step"] == 0
