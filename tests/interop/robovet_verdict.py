"""What robovet says of our datasets, and of LeRobot's own of the same features. A script, not a test: it needs the environment that
`lerobot_roundtrip.py` describes, and `pip install 'robovet[video]==0.2.2'` in it.

    PYTHONPATH=.:tests/interop python tests/interop/robovet_verdict.py

robovet 0.2.2 takes every text for numbers (DATA-103) and looks for a video of every image (VIDEO-401), so it calls any dataset
unsafe that has a text, as our `source`, or images. That holds of what LeRobot itself records, which this shows: both must get the
same findings, worse than a pass, and a dataset of LeRobot's without text and images none. Recorded at once, in several flushes, and
after a recording that was killed; judged by somebody or nobody.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot_roundtrip import FPS, SIZE, episode

from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter

SETTINGS: dict[str, Any] = {"state_names": ["x", "y", "z"], "action_names": ["dx", "dy"], "cameras": {"top": (SIZE, SIZE)}}
TEXT, IMAGES = {"DATA-103"}, {"VIDEO-401"}


def findings(root: Path) -> set[str]:
    """The checks of robovet that a dataset does not pass; its remark that AV1 is LeRobot's own codec is none."""
    report = root.with_suffix(".json")
    command = [sys.executable, "-c", "from robovet.cli import app; app()", "doctor", str(root), "--json", str(report)]
    subprocess.run(command, capture_output=True, check=False)  # its exit code is 1 if anything fails
    results = json.loads(report.read_text())["results"]
    assert len(results) > 25, "robovet looked at everything"
    return {result["check_id"] for result in results if result["severity"] in ("FAIL", "WARN")}


def episodes_of(judged: bool) -> list[Episode]:
    known = [episode(i, t=9 + i) for i in range(5)]
    return known if judged else [replace(e, success=e.success * torch.nan, progress=e.progress * torch.nan) for e in known]


def record(root: Path, flushes: list[list[Episode]], **settings: Any) -> None:
    with DatasetWriter(root, fps=FPS, robot_type="arm", **SETTINGS, **settings) as writer:
        for flush in flushes:
            writer.add(flush)


def record_killed(root: Path, episodes: list[Episode], **settings: Any) -> None:
    """A process that is killed while it commits the second flush, and another that goes on."""
    record(root, [episodes[:2]], **settings)
    if not (child := os.fork()):
        rename, left = os.replace, iter(range(3))

        def killed(*paths: Path) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            rename(*paths)

        os.replace = killed
        record(root, [episodes[2:]], **settings)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    record(root, [episodes[2:]], **settings)


def record_with_lerobot(root: Path, storage: str, *, text: bool) -> None:
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
        "observation.images.top": {"dtype": storage, "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]},
        **({"source": {"dtype": "string", "shape": (1,), "names": None}} if text else {}),
    }
    dataset = LeRobotDataset.create("worldsim/interop", FPS, features, root=root, use_videos=storage == "video")
    for e in episodes_of(True):
        for j in range(len(e) + 1):
            frame = {"observation.state": e.state[j].numpy(), "action": e.action[min(j, len(e) - 1)].numpy()}
            frame |= {"observation.images.top": e.images["top"][j].numpy(), "task": e.instruction}
            dataset.add_frame(frame | ({"source": "expert"} if text else {}))
        dataset.save_episode()
    dataset.finalize()


def main() -> None:
    """Compare; an AssertionError names what robovet finds in ours alone."""
    for storage in ("image", "video"):
        with tempfile.TemporaryDirectory() as folder:
            for text in (True, False):
                theirs = Path(folder) / f"lerobot_{text}"
                record_with_lerobot(theirs, storage, text=text)
                expected = (TEXT if text else set()) | (IMAGES if storage == "image" else set())
                assert (found := findings(theirs)) == expected, (storage, text, found)
            for judged in (True, False):
                episodes, settings = episodes_of(judged), {"storage": storage, "judged": judged}
                roots = [Path(folder) / f"{how}_{judged}" for how in ("at_once", "in_flushes", "killed")]
                record(roots[0], [episodes], **settings)
                record(roots[1], [episodes[:1], episodes[1:3], episodes[3:]], **settings)
                record_killed(roots[2], episodes, **settings)
                for root in roots:
                    assert (found := findings(root)) == TEXT | (IMAGES if storage == "image" else set()), (root, found)
        print(f"{storage} storage: robovet finds in ours what it finds in LeRobot's own")


if __name__ == "__main__":
    main()
