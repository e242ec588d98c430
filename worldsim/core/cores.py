"""How many processor cores this process may use: those it may run on, and no more than its container has time for.

`os.cpu_count` counts the machine's; threads beyond what a container may use only slow each other down. No torch is needed here, so
that `worldsim/report/doctor.py` answers without it; read `precision.py` for what the cores are good for.
"""

import os
from pathlib import Path


def cores() -> int:
    """Cores that are worth a thread of their own, at least 1; half a core of a container's time is none."""
    limit = quota()
    return visible() if limit is None else max(1, min(visible(), int(limit)))


def visible() -> int:
    """Cores that the scheduler lets this process run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def quota() -> float | None:
    """Cores' worth of time that a container may use, if it is limited (cgroup v2)."""
    time_us, _, period_us = cgroup("cpu.max").partition(" ")
    return int(time_us) / int(period_us) if time_us.isdigit() and period_us.isdigit() else None


def cgroup(name: str) -> str:
    """A file of this container's control group (version 2), empty where there is none: no Linux, version 1 or no limit."""
    try:
        return (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return ""
