"""The `worldsim` command: composition, one-line errors, exit codes and help."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.app import cli

VERBS_MODULE = """
calls = []

def record(config):
    calls.append(config)

def bad_value(config):
    raise ValueError("window 3 must be at least\\n 4")

def disk_full(config):
    raise OSError(28, "No space left on device", "data/demos/meta/info.json.tmp")

def interrupted(config):
    raise KeyboardInterrupt

def interrupted_in_lightning(config):
    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        exit(1)

def needs_extra(config):
    raise ModuleNotFoundError("No module named 'nerfstudio.cameras'", name="nerfstudio.cameras")

def bug(config):
    raise KeyError("a bug")
"""

EXPERIMENT = """# @package _global_
name: tiny
model: {_target_: tiny.Model, width: 4}
data: {_target_: tiny.Data}
"""


@pytest.fixture
def verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module of stand-in verbs, and a folder with the experiment `tiny`."""
    (tmp_path / "standin_verbs.py").write_text(VERBS_MODULE)
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "tiny.yaml").write_text(EXPERIMENT)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("standin_verbs", None)


def test_the_default_of_an_optional_choice_can_be_typed(verbs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.VERBS, "evaluate", cli.VERBS["evaluate"]._replace(function="standin_verbs:record"))
    assert cli.main(["evaluate", "policy=p", "renderer=null", "randomization=null"]) == 0
    (config,) = sys.modules["standin_verbs"].calls
    assert config["randomization"] is None and "fields" not in config["world"]


def use(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    monkeypatch.setitem(cli.VERBS, "fit", cli.VERBS["fit"]._replace(function=f"standin_verbs:{function}"))


def fit_args(folder: Path, *overrides: str) -> list[str]:
    return ["fit", "--config-dir", str(folder), "experiment=tiny", *overrides]


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def test_a_verb_receives_the_resolved_plain_configuration(verbs, monkeypatch):
    use(monkeypatch, "record")
    assert cli.main(fit_args(verbs, "model.width=8", "logger=wandb")) == 0
    config = sys.modules["standin_verbs"].calls[0]
    assert type(config) is dict
    assert config["model"] == {"_target_": "tiny.Model", "width": 8}
    assert config["trainer"]["default_root_dir"] == "runs/tiny"
    assert set(config["trainer"]["logger"]) == {"csv", "tensorboard", "wandb"}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.widht=8", "no key 'model.widht' in the configuration of fit. Did you mean 'model.width'?"),
        ("trainer.max_stepz=8", "Did you mean 'trainer.max_steps'?"),
        ("traner=default", "Did you mean 'trainer'?"),
        ("logger=wandbb", "no 'wandbb' in logger; one of default, wandb. Did you mean 'wandb'?"),
        ("seed_everything", "expected key=value, got 'seed_everything'"),
        ("--max-steps", "unknown flag '--max-steps'"),
        ("name=???", "name has no value"),
        ("model=[", "worldsim: "),
        ("name=${nothing}", "nothing"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(verbs, monkeypatch, capsys, override, expected):
    use(monkeypatch, "record")
    assert cli.main(fit_args(verbs, override)) == 2
    assert expected in one_line(capsys)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("model.critic_warmup=0", "; AnalyticPostTraining takes it all the same: write +model.critic_warmup=..."),
        ("data.held_out=.2", "; StartData takes it all the same: write +data.held_out=..."),
        ("model.critic_warmpu=0", "no key 'model.critic_warmpu' in the configuration of fit. Did you mean"),
    ],
)
def test_what_only_a_constructor_knows_takes_a_plus(override: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["fit", "experiment=post_train", override]) == 2
    assert expected in one_line(capsys)


def test_a_missing_experiment_is_one_line(capsys):
    assert cli.main(["fit"]) == 2
    assert "experiment" in one_line(capsys)


@pytest.mark.parametrize(
    ("function", "code", "expected"),
    [
        ("bad_value", 2, "window 3 must be at least 4"),
        ("disk_full", 2, "No space left on device: 'data/demos/meta/info.json.tmp'"),
        ("needs_extra", 2, ".[nerf]"),
        ("interrupted", 130, "interrupted"),
        ("interrupted_in_lightning", 130, "interrupted"),
    ],
)
def test_a_failing_verb_is_one_line(verbs, monkeypatch, capsys, function, code, expected):
    use(monkeypatch, function)
    assert cli.main(fit_args(verbs)) == code
    assert expected in one_line(capsys)


def test_a_bug_keeps_its_traceback(verbs, monkeypatch):
    use(monkeypatch, "bug")
    with pytest.raises(KeyError, match="a bug"):
        cli.main(fit_args(verbs))


def test_debug_shows_the_traceback(verbs, monkeypatch, capsys):
    use(monkeypatch, "bad_value")
    assert cli.main([*fit_args(verbs), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_unknown_verb_suggests_one(capsys):
    assert cli.main(["evaluat"]) == 2
    assert "Did you mean 'evaluate'?" in one_line(capsys)


def test_help_lists_verbs_and_keys(capsys):
    assert cli.main([]) == 0
    out = capsys.readouterr().out
    assert all(f"\n  {verb} " in out for verb in cli.VERBS)
    assert cli.main(["fit", "--help"]) == 0
    out = capsys.readouterr().out
    assert "experiment=<required>" in out
    assert "logger=default    one of: default, wandb" in out
    assert "seed_everything=0" in out
    assert "\n      post_train: A policy learns in a dream" in out, "what has to be chosen is explained"


def test_bench_says_what_its_studies_are_and_begins_none_of_its_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["bench"]) == 2
    assert "study" in (said := one_line(capsys)) and "algorithms" in said and not any(tmp_path.iterdir())
    assert cli.main(["bench", "--help"]) == 0
    assert "rehearsal: What nominal, randomised and identified training" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        *(["doctor", "data=5"], ["export", "policy=5"], ["export", "policy=x", "data=2026"], ["identify", "recording=5"]),
        *(
            ["collect", "root=1e3"],
            ["evaluate", "policy=x", "baseline=true"],
            ["rollout", "policy=x", "out=7"],
            ["report", "run=1"],
        ),
        ["fit", "experiment=policy", "run_dir=3"],
    ],
)
def test_a_number_is_no_path(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Hydra reads it as one; a folder of that name is ./5."""
    assert cli.main(argv) == 2
    key, _, value = argv[-1].partition("=")
    error = capsys.readouterr().err
    assert error.startswith(f"worldsim: {key} is ") and f"expected a path; {key}=./" in error and error.count("\n") == 1
