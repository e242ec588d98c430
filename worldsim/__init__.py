"""worldsim: worlds, learned and simulated, and the contracts of what acts, dreams and judges in them.

`worldsim.load(FOLDER)` is the door for Python users. Read `worldsim/core/interfaces.py` next.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from worldsim.core.checkpoint import Configured

M = TypeVar("M", bound="Configured")


def load(folder: str | Path, expected: type[M] | None = None) -> M:
    """The policy, world model or reflector in a folder that a training run or `worldsim.core.checkpoint.save` wrote.

    It is in evaluation mode. The folder may be a stranger's: nothing is unpickled, and only classes of worldsim or of an installed
    plug-in are built.

    Args:
        folder: such as "runs/policy".
        expected: contract or class that it must be, such as `Policy`; any of the three if None.

    Raises:
        FileNotFoundError: if the folder holds no exported model.
        ValueError: if it holds something else, or is damaged.
    """
    from worldsim.core import checkpoint, interfaces  # here: `import worldsim` costs no torch, which a robot does not have

    contracts = (interfaces.Policy, interfaces.WorldModel, interfaces.Reflector)
    return checkpoint.load(folder, contracts if expected is None else expected)  # type: ignore[return-value]
