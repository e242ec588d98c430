"""A torchvision whose compiled operators do not fit torch can be imported all the same."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# What a mismatched wheel does when imported: its library does not load, then shapes are registered for its operators.
BROKEN = """
import torch
from pathlib import Path
from torch import library
try:
    torch.ops.load_library(Path(__file__).with_name("_C.so"))
except OSError:
    pass

@library.register_fake("torchvision::nms")
def shape(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"built for another torch")
    return tmp_path


def test_a_mismatched_torchvision_imports_after_the_remedy(broken: Path) -> None:
    assert "operator torchvision::nms does not exist" in run("import torch, torchvision", broken).stderr
    assert run("import worldsim.core.torchvision_remedy, torchvision", broken).returncode == 0


def test_whoever_imports_what_imports_torchvision_imports_the_remedy_first() -> None:
    """In the module, above, or in the package's `__init__.py`."""
    needy = re.compile(r"^(import|from) (lightning|torchmetrics|nerfstudio)\b", re.MULTILINE)
    seen = 0
    for name in ("worldsim", "models", "reflectors", "training"):
        for file in (ROOT / name).rglob("*.py"):
            if first := needy.search(text := file.read_text()):
                before = text[: first.start()] + (file.parent / "__init__.py").read_text()
                assert "from worldsim.core import torchvision_remedy" in before, file
                seen += 1
    assert seen > 10


def test_without_torchvision_nothing_is_declared(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    code = "import torch; from worldsim.core import torchvision_remedy as remedy; assert not remedy._libraries"
    assert run(code, tmp_path).returncode == 0, "nor with one that has no compiled operators at all"
