"""Memory of the CPU: what is freed stays with the process, for a learner asks for the same amounts in every step.

glibc hands large tensors back to the system as soon as they are freed, which clears their pages anew for the next ones. In a dream
of small networks on a CPU that was a third of the time (`benchmarks/precision.py`).
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of mallopt(3)


def keep_memory() -> None:
    """Nothing that this process frees goes back to the system before it ends: its size stays what it once needed.

    Only glibc is told; elsewhere nothing happens.
    """
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 0)  # large amounts come from the heap, too,
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # whose end is never cut off


def give_memory_back() -> None:
    """The contrary, from now on: what is free goes back, and a tensor of 64 KiB or more has pages of its own that come and go with
    it, so that the size of the process says what it needs."""
    if (libc := _glibc()) is not None:
        libc.mallopt(M_MMAP_MAX, 2**16)
        libc.mallopt(M_MMAP_THRESHOLD, 2**16)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    return libc if hasattr(libc, "gnu_get_libc_version") else None
