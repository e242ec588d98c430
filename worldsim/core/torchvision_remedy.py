"""Importing this lets `import torchvision` succeed where its wheel was built for another torch, as CUDA's beside a CPU torch.

Such a wheel lacks its compiled operators, and the import fails while it registers shapes for them: `operator torchvision::nms does
not exist`. Lightning and torchmetrics fail with it, as they import torchvision wherever it is installed, and nerfstudio brings it.
Declaring the operators is enough, as nothing here calls them. Packages whose modules import one of the three import this first."""

import importlib.util
from pathlib import Path

import torch

_libraries: list[torch.library.Library] = []  # what a Library declares lives as long as it does


def declare_missing_operators() -> None:
    """Declare `nms` and `qnms` if torchvision is there and its own operators cannot be loaded; otherwise do nothing."""
    found = importlib.util.find_spec("torchvision")
    compiled = Path(found.origin).with_name("_C.so") if found and found.origin else None
    if compiled is None or not compiled.is_file() or _libraries:
        return
    try:
        torch.ops.load_library(compiled)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _libraries.append(library)


declare_missing_operators()
