"""Memory of the CPU: what is freed stays with the process, for a learner asks for the same amounts in every step.

glibc hands large tensors back to the system as soon as they are freed, which clears their pages anew for the next ones. In a dream
of small networks on a CPU that was a third of the time (`benchmarks/precision.py`).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def keep_memory() -> None:
    """Nothing that this process frees goes back to the system before it ends: its size stays what it once needed. Only glibc is
    told; elsewhere nothing happens."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_MMAP_MAX, 0)  # large amounts come from the heap, too,
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # whose end is never cut off
