"""`worldsim bench STUDY`: comparisons that take hours rather than seconds; each writes a table, a plot and JSON into its folder."""

from typing import Any

from training.studies.algorithms import run_algorithms
from training.studies.coevolution import run_coevolution
from training.studies.exploitation import run_exploitation
from training.studies.profile import run_profile
from training.studies.rehearsal import run_rehearsal
from training.studies.speed import run_speed
from training.studies.world_models import run_world_models

STUDIES = {
    "algorithms": run_algorithms,
    "coevolution": run_coevolution,
    "exploitation": run_exploitation,
    "profile": run_profile,
    "rehearsal": run_rehearsal,
    "speed": run_speed,
    "world_model": run_world_models,
}


def bench(cfg: dict[str, Any]) -> None:
    """The verb: run the study that was asked for."""
    STUDIES[cfg["study"]](cfg)
