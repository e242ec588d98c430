"""Time of two updates of a demo's last post-training, mostly start-up: as a new process, and as a stage.

.venv/bin/python benchmarks/stages.py [RUN of a finished demo] [ROUNDS]
"""

import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from training.app.stages import Stage, execute


def command(run: Path, out: Path) -> tuple[str, ...]:
    """What the demo ran, with two updates and another folder."""
    words = shlex.split((run / "stages" / "post_train_2" / "command.txt").read_text())[1:]
    kept = [word for word in words if not word.startswith(("run_dir=", "resume=", "trainer.limit_train_batches="))]
    return (*kept, f"run_dir={out}", "trainer.limit_train_batches=2")


if __name__ == "__main__":
    run, rounds = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/demo"), int(sys.argv[2]) if len(sys.argv) > 2 else 3
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    seconds: dict[str, list[float]] = {"new process": [], "stage": []}
    with tempfile.TemporaryDirectory() as scratch:
        list(execute([Stage("first", ("doctor", "--help"))], Path(scratch), jobs=2))  # starts the server
        for i in range(rounds):
            began = time.monotonic()
            verb = [sys.executable, "-W", "ignore", "-m", "training.app.cli", *command(run, Path(scratch) / f"process_{i}")]
            subprocess.run(verb, env=environment, check=True, capture_output=True)
            seconds["new process"].append(time.monotonic() - began)
            began = time.monotonic()
            list(execute([Stage(f"stage_{i}", command(run, Path(scratch) / f"stage_{i}"))], Path(scratch), jobs=2))
            seconds["stage"].append(time.monotonic() - began)
    for name, times in seconds.items():
        print(f"{name:12s} {median(times):.1f} s (of {rounds}: {', '.join(f'{t:.1f}' for t in times)})")
