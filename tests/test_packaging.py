"""The four top-level packages are the ones of this checkout, no others are ever installed, and a wheel runs wherever it is."""

import re
import zipfile
from importlib import import_module
from pathlib import Path

import pytest
from installed import PACKAGES, ROOT, SHIPPED, run
from setuptools import find_packages

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


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
    assert (
        "size=default    one of: default, few, gpu, metaworld, pusht, tiny"
        in run(environment, "worldsim", "demo", "--help", cwd=tmp_path).stdout
    )
    report = run(environment, "worldsim", "report", "run=nowhere", cwd=tmp_path)
    assert report.returncode == 2 and report.stderr.startswith("worldsim: ") and report.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
