"""Plants known mistakes, one at a time, and says which test notices: `python tests/planted_bugs.py [part of a bug's name ...]`.

A suite is as good as the mistakes it sees. One process imports what everything needs and is copied for each mistake; the copy
changes the text of one module as it is imported and runs the tests that must notice, up to the first failure. Part of `.ci/run`.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

ROOT, LONGEST_S = Path(__file__).parents[1], 180
# Imported once. Nothing of this repository in which a mistake is planted may be among them: it would not be changed any more.
HEAVY = (
    "worldsim.core.torchvision_remedy",
    "torch",
    "lightning",
    "diffusers.training_utils",
    "diffusers.schedulers.scheduling_ddpm",
    "gymnasium.vector",
    "scipy.stats",
)
HEAVY += ("jsonargparse", "hydra", "torchmetrics.functional.classification", "pyarrow.parquet", "av", "cv2", "tokenizers")
HEAVY += ("matplotlib.pyplot", "einops", "jaxtyping", "safetensors.torch", "rich.progress")


class Bug(NamedTuple):
    """What goes wrong, the module, the right text in it (once) and the wrong one, and the file below `tests/` that must notice."""

    what: str
    module: str
    right: str
    wrong: str
    test: str


BUGS = [
    Bug(**bug, test=test) for test, bugs in yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text()).items() for bug in bugs
]


class Planted(importlib.abc.MetaPathFinder, importlib.machinery.SourceFileLoader):
    """Finds one module and compiles another text of it."""

    def __init__(self, bug: Bug):
        self.bug, file = bug, ROOT / (bug.module.replace(".", "/") + ".py")
        super().__init__(bug.module, str(file))
        text = file.read_text()
        assert text.count(bug.right) == 1, (
            f"{bug.what}: {bug.right!r} must be in {file.name} once, is {text.count(bug.right)} times"
        )
        self.text = text.replace(bug.right, bug.wrong)

    def find_spec(self, fullname, path=None, target=None):
        return importlib.util.spec_from_file_location(fullname, self.path, loader=self) if fullname == self.bug.module else None

    def get_code(self, fullname):
        return compile(self.text, self.path, "exec", dont_inherit=True)


class Failures:
    """A pytest plugin that notes which tests fail."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.names.append(report.nodeid.rpartition("::")[2])


def failing(test: str, bug: Bug | None = None) -> list[str]:
    """The first test of a file that fails with this mistake, in a copy of this process; without one there should be none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        with os.fdopen(reading) as pipe:
            found = pipe.read()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
            return []  # too slow a test notices nothing
        assert found, f"{test} did not run to its end with {bug}"
        return json.loads(found)
    signal.alarm(LONGEST_S)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    if bug is not None:
        sys.meta_path.insert(0, Planted(bug))
    failures = Failures()
    options = ["-q", "-x", "-p", "no:cacheprovider", "-W", "ignore", "-m", "not gpu and not slow and not genesis"]
    code = pytest.main([*options, str(ROOT / "tests" / test)], plugins=[failures])
    with os.fdopen(writing, "w") as pipe:
        json.dump(failures.names if code == pytest.ExitCode.TESTS_FAILED else [], pipe)
    os._exit(0)


def chosen(words: list[str]) -> Iterator[Bug]:
    """The mistakes whose name has one of the words; all without any."""
    return (bug for bug in BUGS if not words or any(word in bug.what for word in words))


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    os.chdir(ROOT)
    sys.path.insert(0, str(ROOT))  # before this script's folder, which has a `worldsim` of tests
    began, bugs = time.monotonic(), list(chosen(sys.argv[1:]))
    for bug in bugs:
        Planted(bug)  # a text that has changed is told before anything runs
    for name in HEAVY:
        importlib.import_module(name)
    missed, files = 0, sorted({bug.test for bug in bugs})
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for file, tests in zip(files, pool.map(failing, files), strict=True):
            if tests:
                sys.exit(f"{file} fails as it is, so it notices nothing: {', '.join(tests)}")
        for bug, tests in zip(bugs, pool.map(lambda bug: failing(bug.test, bug), bugs), strict=True):
            missed += not tests
            print(f"{bug.what}: {', '.join(tests) or 'NOBODY NOTICED'}", flush=True)
    print(f"{len(bugs)} planted, {missed} missed, {time.monotonic() - began:.0f} s")
    sys.exit(min(missed, 1))
