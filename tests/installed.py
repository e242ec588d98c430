"""The wheel of this checkout, an environment that has nothing else of it, and one run of the demo there, for all who look at it."""

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("worldsim", "models", "reflectors", "training")
SHIPPED = ("configs", "sim_assets")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, because setuptools leaves `build/` behind, whose files would be in the next wheel, too."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in (*PACKAGES, *SHIPPED):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "MANIFEST.in", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    build = ("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(folder / "source"))
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="session")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, where the packages of this one can be imported, but no editable installation."""
    folder = tmp_path_factory.mktemp("venv")
    subprocess.run([sys.executable, "-m", "venv", "--system-site-packages", "--without-pip", str(folder)], check=True)
    python = str(folder / "bin" / "python")
    install = ("--python", python, "install", "-q", "--no-deps", "--ignore-installed", str(wheel))
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    # Where this environment is a virtual one itself, the system's packages are not its own. Its .pth files are not read from there.
    modules = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (modules / "outer.pth").write_text("\n".join(site.getsitepackages()))
    return folder


class Demo(NamedTuple):
    """A demo of the wheel: how it is called, and the folder of its run."""

    command: tuple[str, ...]
    run: Path


@pytest.fixture(scope="session")
def demo(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """`worldsim demo size=tiny` in a folder with packages of our names; neither the command nor its stages may take one of them."""
    folder = tmp_path_factory.mktemp("demo")
    for name in PACKAGES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("raise RuntimeError('imported from the working directory')")
    command = ("worldsim", "demo", "size=tiny", "seed=3", f"run={folder / 'run'}")
    done = run(environment, *command, cwd=folder, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    return Demo(command, folder / "run")


def run(environment: Path, program: str, *arguments: str, cwd: Path, timeout: int = 100) -> subprocess.CompletedProcess[str]:
    """A program of the environment, which does not see the packages of this checkout."""
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [str(environment / "bin" / program), *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)
