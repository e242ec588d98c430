"""Every configuration composes, and every object that it names is built with arguments that its constructor takes."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.utils import get_object, instantiate
from lightning import Trainer
from omegaconf import OmegaConf

from training.app.cli import CONFIG_DIR, VERBS, compose_config
from training.app.fit import parameters, run_fit
from training.supervised.data import StreamData
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.tasks.reward import ProgressReward, SparseSuccess

EXPERIMENTS = sorted(path.stem for path in (CONFIG_DIR / "experiment").glob("*.yaml"))
ALGORITHMS = [
    path.relative_to(CONFIG_DIR)
    for pattern in ("chain/*", "advantage/*", "reward/*")
    for path in sorted(CONFIG_DIR.glob(f"{pattern}.yaml"))
]
LEARNERS = sorted(path.stem for path in (CONFIG_DIR / "learner").glob("*.yaml"))
MODELS = sorted(path.relative_to(CONFIG_DIR) for path in (CONFIG_DIR / "model").rglob("*.yaml"))
CELLS = [
    pytest.param(experiment, overrides, id=f"{study}-{cell}")
    for study, experiment in (("rollouts", "post_train"), ("world_model", "world_model"))
    for cell, overrides in compose_config("bench", [f"study={study}"]).cells.items()
]
CHOICES = [
    f"{group}={path.stem}"
    for group in ("world", "renderer", "randomization")
    for path in sorted((CONFIG_DIR / group).glob("*.yaml"))
]


def written(file: Path) -> dict[str, Any]:
    """What stands in one file; PyYAML alone would read 5e-4 as a word."""
    content = OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / file))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def targets(node: Any):
    """Every (class path, arguments) of a configuration."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield node["_target_"], [key for key in node if not key.startswith("_")]
        for value in node.values():
            yield from targets(value)
    elif isinstance(node, list):
        for value in node:
            yield from targets(value)


def check(config: Any) -> None:
    found = list(targets(OmegaConf.to_container(config, resolve=False)))
    for target, arguments in found:
        if target.startswith(("worldsim.worlds.genesis.world", "worldsim.worlds.genesis.nerf", "worldsim.worlds.genesis.drive")):
            continue  # importing it starts the simulator; test_genesis.py builds it
        known = parameters(get_object(target))
        unknown = [name for name in arguments if name not in known]
        assert not unknown, f"{target} does not take {unknown}"


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("fit", "bench")])
def test_verbs(verb: str) -> None:
    check(compose_config(verb))


@pytest.mark.parametrize("study", sorted(path.stem for path in (CONFIG_DIR / "study").glob("*.yaml")))
def test_studies(study: str) -> None:
    check(compose_config("bench", [f"study={study}"]))


@pytest.mark.parametrize(("experiment", "overrides"), CELLS)
def test_cells_of_studies(experiment: str, overrides: list[str]) -> None:
    check(compose_config("fit", [f"experiment={experiment}", *overrides]))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments(experiment: str) -> None:
    config = compose_config("fit", [f"experiment={experiment}"])
    if experiment.startswith("nerf"):
        pytest.importorskip("nerfstudio", reason="needs the extra nerf")
    check(config)
    assert issubclass(get_object(config.data._target_), StreamData)


@pytest.mark.parametrize("learner", LEARNERS)
def test_learners(learner: str) -> None:
    check(compose_config("fit", ["experiment=post_train", f"learner={learner}"]))


@pytest.mark.parametrize("file", MODELS, ids=str)
def test_models(file: Path) -> None:
    """Each is what its group says: a `saved` one by the return type of the function that reads it."""
    (target, arguments), kind = *targets(written(file)), file.parent.name
    made = get_object(target) if file.stem != "saved" else get_type_hints(get_object(target))["return"]
    assert issubclass(made, {"policy": Policy, "world_model": WorldModel, "reflector": Reflector}[kind])
    assert set(arguments) <= set(parameters(get_object(target)))
    experiment = compose_config("fit", [f"experiment={kind}", f"model/{kind}={file.stem}"])
    assert experiment.model[kind]._target_ == target


@pytest.mark.parametrize("choice", CHOICES)
def test_worlds(choice: str) -> None:
    check(compose_config("evaluate", [choice]))


@pytest.mark.parametrize("file", ALGORITHMS, ids=str)
def test_an_algorithm_shows_all_its_numbers(file: Path) -> None:
    """Each option that is a number by default stands in the YAML, and nothing that the class does not take."""
    for target, arguments in targets(written(file)):
        defaults = {name: p.default for name, p in inspect.signature(get_object(target)).parameters.items()}
        assert set(arguments) <= set(parameters(get_object(target))), target
        assert {name for name, value in defaults.items() if type(value) in (int, float)} <= set(arguments), target


def test_no_two_algorithms_are_the_same() -> None:
    contents = [str(written(file)) for file in ALGORITHMS]
    assert len(set(contents)) == len(contents)


@pytest.fixture
def build(folders: dict[str, str], recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A function that does all of `worldsim fit experiment=post_train learner=ppo ...` but the fitting and gives the learner."""
    fitted = []
    monkeypatch.setattr(Trainer, "fit", lambda trainer, model, **more: fitted.append(model))

    def built(*overrides: str, learner: str = "ppo") -> Any:
        models = [
            f"model.policy.folder={folders['policy']}",
            *(f"model.arena.{name}.folder={folders[name]}" for name in ("world_model", "reflector")),
        ]
        run = [f"run_dir={tmp_path / 'run'}", f"data.roots=[{recorded}]", "trainer.logger=null"]
        config = OmegaConf.to_container(
            compose_config("fit", ["experiment=post_train", f"learner={learner}", *models, *run, *overrides]), resolve=True
        )
        run_fit(config)  # type: ignore[arg-type]
        return fitted[-1]

    return built


@pytest.mark.parametrize("file", [file for file in ALGORITHMS if file.parent.name in ("chain", "advantage")], ids=str)
def test_a_learner_is_built_as_its_yaml_says(build: Callable[..., Any], file: Path) -> None:
    learner = "nft" if file.stem == "deterministic" else "ppo"  # which needs a chain that explores
    made = getattr(build(f"{file.parent.name}={file.stem}", learner=learner), file.parent.name)

    def check_values(made: Any, expected: dict[str, Any]) -> None:
        assert type(made) is get_object(expected.pop("_target_"))
        for name, value in expected.items():
            if isinstance(value, dict):
                check_values(getattr(made, name), value)
            else:
                assert getattr(made, name) == value, name

    check_values(made, written(file))


def test_a_reward_is_chosen_on_the_command_line(build: Callable[..., Any], folders: dict[str, str]) -> None:
    sparse, own = "reward@model.arena.reward=sparse", "+model.arena.reward.success=3"
    made = build(f"+{sparse}", own[1:]).arena.reward
    assert type(made) is SparseSuccess and made.success == 3
    models = [f"model.{name}.folder={folder}" for name, folder in folders.items()]
    config = compose_config("fit", ["experiment=post_train", *models, "+reward@model.reward=progress"])
    made = instantiate(config.model).reward
    assert type(made) is ProgressReward and made.progress == 1.0
    assert compose_config("collect", ["+reward@world.reward=sparse"]).world.reward._target_.endswith("SparseSuccess")


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "+model.chain.noise_lvl=0.3",
            "model: training.rl.chains.FlowSDE: Option 'noise_lvl' is not accepted. Did you mean 'noise_level'?",
        ),
        (
            "+model.advantage.critic.per_actions=true",
            "training.rl.critics.SharedFeatures: Option 'per_actions' is not accepted. Did you mean 'per_action'?",
        ),
        ("+model.epoch=3", "training.rl.ppo.PPOPostTraining: Option 'epoch' is not accepted. Did you mean 'epochs'?"),
        ("+model.clip_hi=0.3", "training.rl.ppo.PPOPostTraining: Option 'clip_hi' is not accepted. Did you mean 'clip_high'?"),
    ],
)
def test_a_misspelt_option_is_refused_in_one_line(build: Callable[..., Any], override: str, words: str) -> None:
    with pytest.raises(ValueError, match="is not accepted") as error:
        build(override)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_configs_stay_few_and_small() -> None:
    files = list(CONFIG_DIR.rglob("*.yaml"))
    assert len(files) <= 97
    assert all(len(Path(file).read_text().splitlines()) <= 40 for file in files)
