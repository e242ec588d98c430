"""What a process that keeps its memory asks the system for."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys, torch
from worldsim.core.memory import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for _ in range(16):  # an aligned tensor needs a little more than the last one left behind, until that lies together
    torch.ones(2**24)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
torch.ones(2**24)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone is told to keep memory")
def test_what_was_freed_is_used_again_without_asking() -> None:
    """64 MB that were used once cost no fault of a page when they are asked for again; without `keep_memory` they do."""
    asked = {}
    for how in ("keep", "free"):
        result = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True)
        asked[how] = int(result.stdout)
    assert asked["free"] > 8  # of 16,384 pages, or 32 huge ones
    assert asked["keep"] < asked["free"] / 4
