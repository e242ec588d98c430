"""Videos: whoever writes one is scheduled as before."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from worldsim.data.video import write_video


def scheduled() -> set[tuple[int, int]]:
    """Policy and priority of every thread of this process."""
    threads = [int(name) for name in os.listdir("/proc/self/task")]
    return {(os.sched_getscheduler(thread), os.sched_getparam(thread).sched_priority) for thread in threads}


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="nothing is scheduled by priority here")
def test_an_encoder_makes_no_real_time_process_of_us(tmp_path: Path) -> None:
    """For root SVT-AV1 does (SCHED_FIFO, priority 99), and then nobody else gets a core that this process wants."""

    def frames() -> Iterator[np.ndarray]:
        for number in range(4):
            yield np.full((64, 64, 3), 60 * number, np.uint8)
            assert scheduled() == before, "while it encodes"

    before = scheduled()
    write_video(tmp_path / "video.mp4", frames(), fps=10, height=64, width=64)
    assert scheduled() == before
