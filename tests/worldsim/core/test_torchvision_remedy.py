"""A torchvision whose compiled operators do not fit torch can be imported all the same."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# What a mismatched wheel does when imported: its library does not load, then shapes are registered for its operators.
BROKEN = """
import torch
from pathlib import Path
try:
    torch.ops.load_library(Path(__file__).with_name("_C.so"))
except OSError:
    pass

@torch.library.register_fake("torchvision::nms")
def shape(dets, scores, iou_threshold):
    return dets.new_empty(0)
"""


def run(code: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(BROKEN)
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"built for another torch")
    return tmp_path


def test_a_mismatched_torchvision_imports_after_the_remedy(broken: Path) -> None:
    assert run("from worldsim.core import torchvision_remedy; import torchvision", broken).returncode == 0
    assert "operator torchvision::nms does not exist" in run("import torch, torchvision", broken).stderr


def test_without_torchvision_nothing_is_declared(tmp_path: Path) -> None:
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("")
    code = "from worldsim.core import torchvision_remedy as remedy; assert not remedy._libraries"
    assert run(code, tmp_path).returncode == 0, "nor with one that has no compiled operators at all"
