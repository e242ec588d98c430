"""Where this worldsim lies, a checkout or an installed wheel, and the commands that add what it lacks.

`configs/` and `sim_assets/` stand at the top level of a checkout; `setup.py` puts a copy of them into the wheel's
`worldsim/`. `training/app/cli.py` reads the one, `worlds/genesis/scene.py` the other.
"""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = not (_PACKAGE / "configs").is_dir()

# Import name of an optional package -> the extra that installs it.
EXTRAS = {
    "onnx": "export",
    "onnxscript": "export",
    "onnxruntime": "export",
    "nerfstudio": "nerf",
    "gsplat": "nerf",
    "websockets": "robot",
    "msgpack": "robot",
    "gym_pusht": "pusht",
    "metaworld": "metaworld",
}

INSTALL = "run make setup" if CHECKOUT else "run pip install worldsim"  # pip completes what is installed already


def shipped(folder: str) -> Path:
    """`configs` or `sim_assets`."""
    return (_PACKAGE.parent if CHECKOUT else _PACKAGE) / folder


def add(module: str) -> str:
    """The command that installs an optional package, by its import name."""
    extra = EXTRAS[module]
    return f"pip install -c constraints.txt -e '.[{extra}]'" if CHECKOUT else f"pip install 'worldsim[{extra}]'"
