"""Stages of a demo or a benchmark: `worldsim` commands in processes of their own, side by side when cores allow.

Importing torch, Lightning and Genesis takes a process several seconds, so a server imports them once and is copied for every stage
(`multiprocessing`'s forkserver). A finished stage leaves `done.json` and is skipped when its run is started again,
unless its command is another one now.
"""

import json
import multiprocessing
import os
import resource
import shlex
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

from worldsim.core.cores import cores
from worldsim.core.files import write_json

STATUS_EVERY_S = 20
# What the server imports: the commands, and what their configurations name.
PRELOADED = [
    *(
        "training.app.fit",
        "training.app.verbs",
        "training.supervised.data",
        "training.supervised.bc",
        "training.supervised.world_model",
        "training.supervised.reflector",
    ),
    *("training.rl.analytic", "training.supervised.dream_judge", "training.app.evaluate"),
    *("models.world.latent_flow", "worldsim.worlds.dream", "worldsim.worlds.genesis.world"),
]


@dataclass(frozen=True)
class Stage:
    """One command of the loop.

    Attributes:
        name: also the name of its folder in the run.
        arguments: of the `worldsim` command.
        needs: stages of the same list that must have finished.
        alone: it gets all cores.
    """

    name: str
    arguments: tuple[str, ...]
    needs: tuple[str, ...] = ()
    alone: bool = False


def execute(todo: list[Stage], run: Path, *, jobs: int) -> Iterator[str]:
    """Run stages in order of the list as soon as what they need is done, `jobs` at a time; yields each finished name.

    Raises:
        ValueError: if a stage failed; at once, before any starts, if one could never start.
    """
    _check(todo, jobs)
    return _execute(todo, run, jobs)


def _check(todo: list[Stage], jobs: int) -> None:
    """Every stage gets its turn: there is room for one, names are unique, and what is needed comes before what needs it."""
    if jobs < 1:
        raise ValueError(f"jobs must be at least 1, got {jobs}; 1 runs one stage after the other")
    names = [stage.name for stage in todo]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"there must be one stage {twice}, got {names.count(twice)}; give each a name of its own")
    for stage in todo:
        if missing := [need for need in stage.needs if need not in names]:
            raise ValueError(f"stage {stage.name} needs {missing[0]}, which is not among the stages {', '.join(names)}; add it")
    try:
        TopologicalSorter({stage.name: stage.needs for stage in todo}).prepare()
    except CycleError as error:
        circle = " needs ".join(reversed(error.args[1]))
        raise ValueError(f"no stage of a circle can be the first: {circle}; take out one of these needs") from error


def _execute(todo: list[Stage], run: Path, jobs: int) -> Iterator[str]:
    finished = _finished(todo, run)
    running: dict[str, BaseProcess] = {}
    usable, last_status = cores(), time.monotonic()
    try:
        while len(finished) < len(todo):
            for stage in todo:
                free = len(running) < (1 if stage.alone else jobs)
                if stage.name not in finished and stage.name not in running and free and finished.issuperset(stage.needs):
                    running[stage.name] = _start(stage, run, threads=usable if stage.alone else max(1, usable // jobs))
            time.sleep(0.2)
            for name, process in list(running.items()):
                if process.exitcode is None:
                    continue
                del running[name]
                if process.exitcode != 0:
                    raise ValueError(f"stage {name} failed: {_last_line(run, name)} (log: {folder(run, name) / 'log.txt'})")
                finished.add(name)
                yield name
            if time.monotonic() - last_status > STATUS_EVERY_S:
                last_status = time.monotonic()
                for name in running:
                    print(f"    {name}: {_last_line(run, name)}", flush=True)
    finally:
        for process in running.values():
            process.terminate()
            process.join()


def _finished(todo: list[Stage], run: Path) -> set[str]:
    """Stages that are done. What other arguments made, and whatever was made from that, is made again."""
    stages, stale = {stage.name: stage for stage in todo}, set()
    for name in TopologicalSorter({stage.name: stage.needs for stage in todo}).static_order():
        file = done_file(run, name)
        if not stale.isdisjoint(stages[name].needs) or (file.is_file() and not _made(stages[name], file)):
            file.unlink(missing_ok=True)
            stale.add(name)
    return {name for name in stages if done_file(run, name).is_file()}


def _made(stage: Stage, done: Path) -> bool:
    return json.loads(done.read_text()).get("arguments") == [*stage.arguments]


def folder(run: Path, name: str) -> Path:
    """Where a stage keeps its command, log, metrics and `done.json`."""
    return run / "stages" / name


def done_file(run: Path, name: str) -> Path:
    """Of a stage: `arguments`, `wall_s` and `peak_rss_mb`, written when it has succeeded."""
    return folder(run, name) / "done.json"


def _start(stage: Stage, run: Path, threads: int) -> BaseProcess:
    folder(run, stage.name).mkdir(parents=True, exist_ok=True)
    (folder(run, stage.name) / "command.txt").write_text("worldsim " + shlex.join(stage.arguments) + "\n")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    # The server looks for modules where this process does, not in the working directory, which may have its own `models/`.
    looks = {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONSAFEPATH": "1"}
    with _environment(OMP_NUM_THREADS="1", PYTHONWARNINGS="ignore", **looks):
        forkserver.ensure_running()
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    process = context.Process(target=_work, args=(stage, run, threads, environment, time.monotonic()), name=stage.name)
    process.start()
    return process


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables for a process that starts meanwhile."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _work(stage: Stage, run: Path, threads: int, environment: dict[str, str], began: float) -> None:
    """A stage in its process, a copy of the server."""
    import torch

    from training.app.cli import main

    with (folder(run, stage.name) / "log.txt").open("a") as log:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(log.fileno(), stream.fileno())
    os.environ.clear()
    os.environ.update(environment)
    warnings.resetwarnings()  # the server ignores those of its imports; what a stage warns of belongs into its log
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):  # as Python does
        warnings.simplefilter("ignore", category)
    torch.set_num_threads(threads)
    sys.argv = ["worldsim", *stage.arguments]
    if code := main(stage.arguments):
        sys.exit(code)
    _keep_metrics(run, stage.name)
    peak_rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    figures = {"wall_s": time.monotonic() - began, "peak_rss_mb": peak_rss_mb}
    write_json(done_file(run, stage.name), {"arguments": [*stage.arguments], **figures})


def _keep_metrics(run: Path, name: str) -> None:
    """The newest Lightning CSV of a stage, where the report looks for it."""
    files = sorted((run / name).glob("csv/version_*/metrics.csv"), key=lambda path: path.stat().st_mtime)
    if files:
        shutil.copy(files[-1], folder(run, name) / "metrics.csv")


def _last_line(run: Path, name: str) -> str:
    log = folder(run, name) / "log.txt"
    lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines() if log.is_file() else []
    return lines[-1].strip()[:140] if lines else "starting"
