"""What this machine's processor is good for: the numeric precision that training uses.

Half precision pays only where the hardware computes in it; elsewhere it is emulated, slower than float32.
`worldsim/report/doctor.py` prints it.
"""

from collections.abc import Callable
from functools import wraps
from typing import Literal, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def precision(cuda: bool = True) -> Literal["bf16-mixed", "32-true"]:
    """Lightning's `precision`: "bf16-mixed" on a GPU with bfloat16, or a CPU with AMX or AVX512_BF16, else "32-true".

    Args:
        cuda: a GPU computes, if there is one.
    """
    cpu = has_amx() or has_avx512_bf16()
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if cuda and torch.cuda.is_available() else cpu
    return "bf16-mixed" if fast else "32-true"


def exact(function: Callable[P, R]) -> Callable[P, R]:
    """Matrix products in `function` stay float32 under a caller's autocast: poses, rays and the densities of actions need more
    digits than bfloat16 has."""

    @wraps(function)
    def in_float32(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            return function(*args, **kwargs)

    return in_float32


def has_amx() -> bool:
    """The CPU multiplies bfloat16 tiles (Intel AMX; every CPU with tiles has them for bfloat16) and torch's kernels use them."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_amx_tile_supported()


def has_avx512_bf16() -> bool:
    """The CPU multiplies pairs of bfloat16 (AVX512_BF16, so AMD's since Zen 4) and torch's kernels use it: half of the
    instructions. How much that brings a model, `benchmarks/precision.py` says; seen on EPYCs alone."""
    return torch.backends.mkldnn.is_available() and torch.cpu._is_avx512_bf16_supported()


def autocast(precision: str) -> torch.autocast:
    """The context in which networks on the CPU compute with Lightning's `precision`.

    Raises:
        ValueError: if it is neither "32-true" nor "bf16-mixed".
    """
    if precision not in ("32-true", "bf16-mixed"):
        raise ValueError(f"precision must be 32-true or bf16-mixed, got {precision!r}; rates are compared at equal precision")
    return torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed")


def circumstances(precision: str, num_envs: int) -> dict[str, str | int]:
    """What a rate depends on besides policy and starts, if only by arithmetic; it stands in every report."""
    return {"precision": precision, "device": "cpu", "num_envs": num_envs, "threads": torch.get_num_threads()}
