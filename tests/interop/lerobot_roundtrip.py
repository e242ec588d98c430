"""Round trips between worldsim's dataset code and the real LeRobot. A script, not a test: it needs its own environment.

No lerobot release installs beside our torch, so this recipe leaves out what datasets do not need (Python 3.12, which LeRobot 0.6.1
asks for, from the repository's root; torch comes with accelerate, and torchvision must fit it):

    python3.12 -m venv /tmp/lerobot-venv && . /tmp/lerobot-venv/bin/activate
    pip install --no-deps lerobot==0.6.1
    pip install torch torchvision 'datasets>=4,<6' 'av>=15,<16' huggingface-hub 'draccus==0.10.0' 'packaging<26' 'deepdiff<9' \
        'opencv-python-headless<4.13' accelerate jsonlines pandas einops imageio gymnasium jaxtyping pynput pyserial
    PYTHONPATH=. python tests/interop/lerobot_roundtrip.py

Checked in both directions, with images and with videos: lengths, every value, tasks, statistics and pixels; and that LeRobot opens
a dataset of which nobody judged success, which has fewer columns, and one of which somebody judged some frames.
`robovet_verdict.py` beside it asks another program about such datasets.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from worldsim.core.types import Episode
from worldsim.data.lerobot import Dataset, DatasetWriter

SIZE, FPS = 64, 10


def smooth_frames(n: int, seed: int) -> torch.Tensor:
    """[n, 64, 64, 3] uint8 of moving colour waves."""
    phase = torch.arange(n).view(-1, 1, 1, 1) / 10 + 2 * seed
    grid = torch.linspace(0, 2, SIZE).view(1, 1, -1, 1) + torch.linspace(0, 1, SIZE).view(1, -1, 1, 1)
    return (127 + 100 * torch.sin(grid + phase + torch.arange(3))).to(torch.uint8)


def episode(seed: int, t: int) -> Episode:
    g = torch.Generator().manual_seed(seed)
    return Episode(
        images={"top": smooth_frames(t + 1, seed)},
        state=torch.randn(t + 1, 3, generator=g),
        action=torch.rand(t, 2, generator=g),
        reward=torch.rand(t, generator=g),
        success=(torch.arange(t + 1) > t // 2).float(),
        progress=torch.linspace(0, 1, t + 1),
        instruction=f"task {seed % 2}",
        source="expert",
    )


def assert_pixels(got: torch.Tensor, expected: torch.Tensor, storage: str) -> None:
    """Equal for images, PSNR above 30 dB for videos; both uint8 HWC."""
    error = (got.float() - expected.float()).square().mean().item()
    assert error == 0 if storage == "image" else error < 255**2 / 10**3, (storage, error)


def lerobot_reads_ours(root: Path, storage: Any) -> None:
    episodes = [episode(i, t=6 + i) for i in range(5)]
    settings: dict[str, Any] = {"state_names": ["x", "y", "z"], "action_names": ["dx", "dy"], "cameras": {"top": (SIZE, SIZE)}}
    with DatasetWriter(root, fps=FPS, robot_type="pusher", storage=storage, **settings) as writer:
        writer.add(episodes[:2])
        writer.add(episodes[2:])
    dataset = LeRobotDataset("worldsim/interop", root=root)
    assert dataset.num_episodes == 5 and len(dataset) == sum(len(e) + 1 for e in episodes)
    index = 0
    for i, expected in enumerate(episodes):
        assert dataset.meta.episodes[i]["tasks"] == [expected.instruction]
        for j in range(len(expected) + 1):
            row, index = dataset[index], index + 1
            assert row["task"] == expected.instruction and row["source"] == "expert"
            assert (row["episode_index"], row["frame_index"]) == (i, j) and abs(row["timestamp"] - j / FPS) < 1e-6
            assert torch.equal(row["observation.state"], expected.state[j])
            assert torch.equal(row["action"], expected.action[min(j, len(expected) - 1)])
            assert row["success"] == expected.success[j] and row["progress"] == expected.progress[j]
            assert row["next.done"] == (j == len(expected))
            assert j == len(expected) or row["next.reward"] == expected.reward[j]
            assert_pixels((row["observation.images.top"] * 255).round().permute(1, 2, 0), expected.images["top"][j], storage)
    for key, stats in Dataset(root).stats.items():
        for name, value in stats.items():
            assert np.allclose(dataset.meta.stats[key][name], value), (key, name)
    chunked = LeRobotDataset("worldsim/interop", root=root, episodes=[1, 3], delta_timestamps={"action": [0, 0.1, 0.2]})
    assert torch.equal(chunked[0]["action"], episodes[1].action[:3])


def lerobot_reads_what_nobody_judged(root: Path, storage: Any) -> None:
    unknown = {"success": torch.full((7,), torch.nan), "progress": torch.full((7,), torch.nan)}
    settings: dict[str, Any] = {"state_names": ["x", "y", "z"], "action_names": ["dx", "dy"], "cameras": {"top": (SIZE, SIZE)}}
    with DatasetWriter(root, fps=FPS, robot_type="arm", storage=storage, judged=False, **settings) as writer:
        writer.add([replace(episode(i, t=6), **unknown) for i in range(2)])
    dataset = LeRobotDataset("worldsim/interop", root=root)
    assert len(dataset) == 14 and not {"success", "next.success", "progress"} & (dataset[9].keys() | dataset.meta.stats.keys())
    assert torch.equal(dataset[9]["observation.state"], episode(1, t=6).state[2])
    assert all(e.success.isnan().all() and e.progress.isnan().all() for e in Dataset(root).episodes())


def lerobot_reads_what_is_known_of_some_frames(root: Path, storage: Any) -> None:
    known = torch.tensor([torch.nan, 0, 0, torch.nan, 1, 1, 1])
    settings: dict[str, Any] = {"state_names": ["x", "y", "z"], "action_names": ["dx", "dy"], "cameras": {"top": (SIZE, SIZE)}}
    judged = {"success": False, "next.success": False, "progress": False}
    with DatasetWriter(root, fps=FPS, robot_type="arm", storage=storage, judged=judged, **settings) as writer:
        for i in range(2):
            writer.add([replace(episode(i, t=6), success=known, progress=known / 2)])
    dataset = LeRobotDataset("worldsim/interop", root=root)
    assert len(dataset) == 14 and not judged.keys() & dataset.meta.stats.keys()
    for i in range(14):
        row = dataset[i]
        got = torch.stack([row["success"], row["progress"]])
        assert torch.equal(got.nan_to_num(-1), torch.stack([known[i % 7], known[i % 7] / 2]).nan_to_num(-1))


def ours_reads_lerobot(root: Path, storage: Any) -> None:
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
        "observation.images.top": {"dtype": storage, "shape": (SIZE, SIZE, 3), "names": ["height", "width", "channels"]},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "next.success": {"dtype": "bool", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("worldsim/interop", FPS, features, root=root, use_videos=storage == "video")
    episodes = [episode(i, t=6 + i) for i in range(3)]
    for e in episodes:
        for j in range(len(e) + 1):
            k = min(j, len(e) - 1)
            frame = {"observation.state": e.state[j].numpy(), "action": e.action[k].numpy(), "task": e.instruction}
            frame |= {"next.reward": e.reward[k : k + 1].numpy(), "next.success": e.success[k + 1 : k + 2].numpy() == 1}
            dataset.add_frame(frame | {"observation.images.top": e.images["top"][j].numpy()})
        dataset.save_episode()
    dataset.finalize()
    ours = Dataset(root)
    assert ours.num_episodes == 3 and ours.cameras == {"top": (SIZE, SIZE)} and ours.state_names == ("x", "y", "z")
    for got, expected in zip(ours.episodes(), episodes, strict=True):
        assert torch.equal(got.state, expected.state) and torch.equal(got.action, expected.action)
        assert torch.equal(got.reward, expected.reward) and torch.equal(got.success[1:], expected.success[1:])
        assert (got.instruction, got.source) == (expected.instruction, "unknown")
        assert_pixels(got.images["top"], expected.images["top"], storage)
    assert ours.stats["action"]["mean"].shape == (2,) and ours.stats["observation.images.top"]["q99"].shape == (3, 1, 1)
    assert np.allclose(ours.stats["action"]["mean"], ours.read_values()["action"].mean(axis=0), atol=1e-5)


CHECKS = (
    lerobot_reads_ours,
    lerobot_reads_what_nobody_judged,
    lerobot_reads_what_is_known_of_some_frames,
    ours_reads_lerobot,
)


def main() -> None:
    """Run the eight round trips; an AssertionError names the first difference."""
    for storage in ("image", "video"):
        for check in CHECKS:
            with tempfile.TemporaryDirectory() as folder:
                check(Path(folder) / "dataset", storage)
            print(f"{check.__name__} with {storage} storage: equal")


if __name__ == "__main__":
    main()
