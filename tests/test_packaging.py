"""The four top-level packages are the ones of this checkout, no others are ever installed, and a wheel runs wherever it is."""

import json
import os
import re
import shutil
import site
import subprocess
import sys
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
import yaml
from setuptools import find_packages

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("worldsim", "models", "reflectors", "training")
SHIPPED = ("configs", "sim_assets")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
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


@pytest.fixture(scope="module")
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


def run(environment: Path, program: str, *arguments: str, cwd: Path, timeout: int = 100) -> subprocess.CompletedProcess[str]:
    variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    command = [str(environment / "bin" / program), *arguments]
    return subprocess.run(command, cwd=cwd, env=variables, capture_output=True, text=True, timeout=timeout)


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_lies_in_this_repository(name):
    """A foreign `models` in site-packages would win silently outside the repository's root."""
    file = import_module(name).__file__
    assert file is not None
    assert Path(file).resolve() == ROOT / name / "__init__.py"


def test_the_wheel_has_exactly_four_top_level_names():
    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    assert {package.partition(".")[0] for package in find_packages(str(ROOT), include=include)} == set(PACKAGES)


def test_every_folder_with_python_is_a_package():
    """setuptools skips a folder without `__init__.py`, which an editable install would hide."""
    found = set(find_packages(str(ROOT), include=[f"{name}*" for name in PACKAGES]))
    folders = {".".join(path.parent.relative_to(ROOT).parts) for name in PACKAGES for path in (ROOT / name).rglob("*.py")}
    assert folders == found


def test_torchvision_is_not_a_default_dependency():
    """A torchvision built for another torch makes `import lightning` fail."""
    extras = PYPROJECT["project"]["optional-dependencies"]
    declared = PYPROJECT["project"]["dependencies"] + extras["dev"] + extras["export"]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in declared}
    assert "torch" in names
    assert "torchvision" not in names


def test_the_wheel_holds_packages_configurations_and_scenes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {name.partition("/")[0] for name in names} == {*PACKAGES, f"worldsim-{PYPROJECT['project']['version']}.dist-info"}
    here = {f"worldsim/{path.relative_to(ROOT)}" for name in SHIPPED for path in (ROOT / name).rglob("*") if path.is_file()}
    assert {name for name in names if name.startswith(tuple(f"worldsim/{name}/" for name in SHIPPED))} == here
    assert {"worldsim/nn/tokenizer.json", "worldsim/report/report.html.j2"} <= names


def test_an_installed_wheel_answers_from_an_empty_folder(environment: Path, tmp_path: Path) -> None:
    code = "import worldsim, training.app.cli as c, worldsim.core.installation as i"
    code += "; print(worldsim.__file__, c.CONFIG_DIR, i.shipped('sim_assets'), i.add('nerfstudio'), i.INSTALL, sep='\\n')"
    *paths, extra, install = run(environment, "python", "-c", code, cwd=tmp_path).stdout.splitlines()
    assert len(paths) == 3 and all(Path(path).is_relative_to(environment) and Path(path).exists() for path in paths)
    assert (extra, install) == ("pip install 'worldsim[nerf]'", "run pip install worldsim")
    assert "all of the above on the embedded default" in run(environment, "worldsim", "--help", cwd=tmp_path).stdout
    assert "size=default    one of: default, gpu, tiny" in run(environment, "worldsim", "demo", "--help", cwd=tmp_path).stdout
    report = run(environment, "worldsim", "report", "run=nowhere", cwd=tmp_path)
    assert report.returncode == 2 and report.stderr.startswith("worldsim: ") and report.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.genesis
@pytest.mark.alone
def test_the_demo_runs_from_a_wheel_beside_packages_of_the_same_names(environment: Path, tmp_path: Path) -> None:
    """Neither the command nor its stages take a module from the working directory, and none from this checkout."""
    for name in PACKAGES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise RuntimeError('imported from the working directory')")
    done = run(environment, "worldsim", "demo", "size=tiny", cwd=tmp_path, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    size = yaml.safe_load((ROOT / "configs" / "size" / "tiny.yaml").read_text())["size"]
    for when in ("before", "after"):
        success = summary["physics_success"][when]
        assert success["episodes"] == size["episodes"]
        assert 0 <= success["ci95"][0] <= success["rate"] <= success["ci95"][1] <= 1
    assert size["demos"] * 4 < summary["physics_steps"]["collect_demos"] <= size["demos"] * 40
    assert summary["physics_steps"]["post_train_1"] == 0
    assert summary["world_model"]["psnr_at_40"] > 5 and 0 <= summary["imagination"]["rate"] <= 1
    assert summary["command"] == "worldsim demo size=tiny"
    assert "data:video/mp4" in (tmp_path / "runs" / "tiny" / "report.html").read_text()
