"""How long a demo takes: stages are foretold in the order in which they run, and every one of a demo has its price."""

from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from training.app.cli import compose_config, main
from training.app.stages import Stage
from training.studies.demo import stages
from training.studies.estimate import ALL_CORES, EPISODE_S, PROBE_S, START_S, minutes, probe


def of(episodes: int, name: str, *needs: str, alone: bool = False) -> Stage:
    return Stage(name, ("collect", f"episodes={episodes}", "world.num_envs=8"), needs, alone)


@pytest.mark.parametrize(
    ("jobs", "cores", "starts", "worked"), [(2, 2, 2, 80 + 10 * ALL_CORES), (1, 2, 4, 90 + 10 * ALL_CORES), (2, 1, 4, 100)]
)
def test_side_by_side_in_their_order_and_alone(jobs: int, cores: int, starts: int, worked: float) -> None:
    """b and c have ended before a has, if they run beside it; d waits for both and has all cores."""
    todo = [of(800, "a"), of(100, "b"), of(0, "c", "b"), of(100, "d", "a", "c", alone=True)]
    for slower in (1, 3):
        took = minutes(todo, jobs=jobs, cores=cores, probed_s=slower * PROBE_S)
        assert took == pytest.approx((starts * START_S + slower * 10 * worked * EPISODE_S["collect"]) / 60)


@pytest.mark.parametrize(("size", "low", "high"), [("tiny", 0.5, 3), ("default", 15, 45)])
def test_every_stage_of_a_demo_has_its_price(size: str, low: float, high: float) -> None:
    config: Any = OmegaConf.to_container(compose_config("demo", [f"size={size}"]), resolve=True)
    assert low < minutes(stages(config), jobs=2, cores=2, probed_s=PROBE_S) < high


def test_the_probe_leaves_the_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    assert 0.01 < probe(1) < 60
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("wrong", "words"),
    [("n_action_steps=0", "n_action_steps must be an integer from 1 on, got 0"), ("jobs=0", "jobs must be at least 1, got 0")],
)
def test_what_could_never_run_is_refused_before_the_first_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, words: str
) -> None:
    assert main(["demo", "size=tiny", f"run={tmp_path / 'run'}", wrong]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "run" / "stages").exists()
