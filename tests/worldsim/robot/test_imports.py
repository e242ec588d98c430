"""A robot has numpy, tokenizers and onnxruntime: no module of its runtime may import more."""

import json
import pkgutil
import subprocess
import sys

from toy_robot import ROOT

import worldsim.robot

FORBIDDEN = ("torch", "pandas", "pyarrow", "av", "cv2", "jaxtyping", "gymnasium", "hydra", "yaml", "einops", "scipy")


def test_the_runtime_imports_without_the_rest():
    modules = sorted(f"worldsim.robot.{module.name}" for module in pkgutil.iter_modules(worldsim.robot.__path__))
    assert "worldsim.robot.run" in modules
    code = (
        "import importlib, json, sys\n"
        "found = {}\n"
        f"for name in {modules}:\n"
        "    importlib.import_module(name)\n"
        f"    found[name] = [other for other in {FORBIDDEN} if other in sys.modules]\n"
        "print(json.dumps(found))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: [] for name in modules}
