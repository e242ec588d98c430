"""The four top-level packages are the ones of this checkout, and no others are ever installed."""

import re
from importlib import import_module
from pathlib import Path

import pytest
from setuptools import find_packages

try:
    import tomllib
except ModuleNotFoundError:  # Python 3.10
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("worldsim", "models", "reflectors", "training")
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
