"""Whether two things that a world gave are the same, up to what repeating leaves: observations, judgements, states, chunk results.

`checks.py` compares with it what must repeat. Read that next.
"""

from typing import Any

import torch
from torch import Tensor

from worldsim.core.types import TensorBatch

# Largest differences between two runs from one state. Solver warm starts of contacts are not part of a physics snapshot; in
# single precision over a few control steps they measured 2e-7 in Genesis, a lost velocity component 0.3. Networks give 1e-6.
STATE_TOLERANCE = 1e-4  # m, m/s
REWARD_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 0.1  # mean over an image, of 255


def assert_close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    """Two tensors of one shape differ by no more than `tolerance`; what is unknown (NaN) in both is equal."""
    assert a.shape == b.shape, f"{what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}"
    if a.numel():
        unknown = a.isnan() & b.isnan()
        error = torch.where(unknown, 0.0, a.double() - b.double()).abs().max().item()
        assert error <= tolerance, f"{what} differ by {error:.2g}, more than {tolerance}"


def assert_equal(a: Any, b: Any, what: str) -> None:
    """Two observations, states or steps are equal up to the tolerances."""
    if isinstance(a, TensorBatch):
        for name, value in vars(a).items():
            assert_equal(value, getattr(b, name), f"{what}: {name}")
    elif isinstance(a, dict):
        assert set(a) == set(b), f"{what} differ in their keys: {sorted(a)} and {sorted(b)}"
        for name in a:
            assert_equal(a[name], b[name], f"{what}: {name}")
    elif isinstance(a, tuple) and any(isinstance(value, Tensor | TensorBatch) for value in a):
        for left, right in zip(a, b, strict=True):
            assert_equal(left, right, what)
    elif isinstance(a, Tensor) and a.dtype == torch.uint8:
        assert a.shape == b.shape, f"{what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}"
        if a.numel():
            error = (a.float() - b.float()).abs().flatten(1).mean(1).max().item()
            assert error <= PIXEL_TOLERANCE, f"{what} differ by {error:.2g} of 255 on average, more than {PIXEL_TOLERANCE}"
    elif isinstance(a, Tensor):
        assert_close(a, b, STATE_TOLERANCE if a.is_floating_point() else 0, what)
    else:
        assert a == b, f"{what} differ: {a!r} and {b!r}"
