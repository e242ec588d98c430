"""What the store of frames costs: memory of windows from 40 GB, and batches per second against frames in memory.

.venv/bin/python benchmarks/store.py memory [GB] [BATCHES]
.venv/bin/python benchmarks/store.py speed DATASET ... [--rounds N]
"""

import argparse
import resource
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.supervised.augmentation import Augmentation
from training.supervised.data import DemonstrationData, ReflectorData, TableData, WorldModelData
from worldsim.core.spec import Channel, Spec
from worldsim.data.frame_cache import FrameFile
from worldsim.data.store import Frames, FrameStore
from worldsim.data.windows import Mirror

SIZE, EPISODE, FILES = (64, 64), 1000, 8
LIMIT = 3_000_000_000  # bytes of memory that are a process's own


def sparse_store(folder: Path, size_bytes: float) -> FrameStore:
    """Files that are holes but for the first bytes of each episode, which are its number; they take next to no disk."""
    row = SIZE[0] * SIZE[1] * 3
    episodes = max(1, round(size_bytes / FILES / row / EPISODE))
    parts = []
    for number in range(FILES):
        path = folder / f"{number}.rgb"
        with path.open("wb") as file:
            file.truncate(episodes * EPISODE * row)
            for episode in range(episodes):
                file.seek(episode * EPISODE * row)
                file.write(np.int64(number * episodes + episode).tobytes())
        parts.append((FrameFile(path, episodes * EPISODE, SIZE), range(episodes * EPISODE)))
    n = FILES * episodes
    first = (EPISODE * torch.arange(n)).repeat_interleave(EPISODE)
    unknown = torch.full((len(first),), torch.nan)
    return FrameStore(
        images={"front": Frames(tuple(parts))},
        spec=Spec({}, 30, "sparse", tuple(map(Channel, "abcdefghi")), tuple(map(Channel, "abcdefg"))),
        state=torch.zeros(len(first), 9),
        action=torch.zeros(len(first), 7),
        success=unknown,
        progress=unknown,
        first=first,
        last=first + EPISODE - 1,
        episode=torch.arange(n).repeat_interleave(EPISODE),
        instruction=("push",) * n,
        source=("robot",) * n,
        origin=tuple(("sparse", episode) for episode in range(n)),
    )


def memory(gb: float, batches: int) -> None:
    """Random windows, in a process that may have `LIMIT` bytes of its own, and what it had at most."""
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    with tempfile.TemporaryDirectory() as scratch:
        store, generator, most, began = sparse_store(Path(scratch), 1e9 * gb), torch.Generator().manual_seed(0), 0, time.monotonic()
        held = sum(Path(file.path).stat().st_size for file, _ in store.frames.parts)
        taken = sum(512 * Path(file.path).stat().st_blocks for file, _ in store.frames.parts)
        for _ in range(batches):
            rows = torch.randint(len(store.first), (64,), generator=generator)
            rows[:8] = store.first[rows[:8]]
            window = store.window(rows, context=2, horizon=8)
            numbers = window["images"]["front"][:8, 1].reshape(8, -1)[:, :8].contiguous().view(torch.int64).flatten()
            assert torch.equal(numbers, store.episode[rows[:8]])
            most = max(most, anonymous())
        seconds = time.monotonic() - began
    print(f"{held / 1e9:.1f} GB in {FILES} files, which take {taken / 1e6:.1f} MB of disk; {batches} batches of 64 x 10 frames")
    print(f"anonymous memory at most {most / 1e9:.2f} GB, under a limit of {LIMIT / 1e9:.0f} GB; {batches / seconds:.0f} batches/s")


def anonymous() -> int:
    """Bytes of this process that no file backs."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line.split()[1] for line in status.splitlines() if line.startswith("RssAnon:")))


@dataclass(frozen=True)
class InMemory:
    """What a store's frames were before: one tensor."""

    frames: Tensor

    @property
    def shape(self) -> torch.Size:
        return self.frames.shape

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, rows: Tensor) -> Tensor:
        return self.frames.index_select(0, rows.flatten()).unflatten(0, rows.shape)


def speed(roots: list[str], rounds: int) -> None:
    """Memory of a store and of the same frames as a tensor, and batches per second of each data module, the two taking turns."""
    before, began = anonymous(), time.monotonic()
    store = FrameStore.read(roots, {"front": None})
    opened, alone = time.monotonic() - began, anonymous()
    whole = store.frames[:]
    sizes = [f"{amount / 1e6:.0f} MB" for amount in (before, alone - before, anonymous() - alone)]
    print(f"{len(store.instruction)} episodes, {len(whole)} frames of {whole.shape[1]}x{whole.shape[2]}, opened in {opened:.1f} s")
    print(f"anonymous memory: Python and torch {sizes[0]}, the store {sizes[1]}, its frames as a tensor {sizes[2]}")
    del whole
    settings: Any = {"augmentation": Augmentation(Mirror(state=(-1, 1, -1, 1), action=(-1, 1)))}
    modules: dict[str, TableData] = {
        "world model": WorldModelData(roots, **settings),
        "reflector": ReflectorData(roots, **settings),
        "policy": DemonstrationData(roots, **settings),
    }
    learner = torch.nn.Module()
    learner.world_model, learner.policy, learner.reflector = LatentFlowWorldModel(), FlowVLA(), InstantReflector()
    for name, data in modules.items():
        data.trainer = SimpleNamespace(lightning_module=learner)  # pyright: ignore
        began = time.monotonic()
        data.setup("fit")
        opened, stored = time.monotonic() - began, data.table
        tables = {"memory": replace(stored, images={"front": InMemory(stored.frames[:])}), "store": stored}
        seconds: dict[str, list[float]] = {key: [] for key in tables}
        for number in range(20 * rounds):
            for key in sorted(tables, reverse=bool(number % 2)):
                data.table, began = tables[key], time.process_time()
                data.draw(torch.Generator().manual_seed(number))
                seconds[key].append(time.process_time() - began)
        rates = {key: len(values) / sum(values) for key, values in seconds.items()}
        paired = median(a / b for a, b in zip(seconds["memory"], seconds["store"], strict=True))
        said = ", ".join(f"{key} {rate:.0f} batches/s" for key, rate in rates.items())
        print(f"{name}: opened in {opened:.1f} s; {said}; store / memory {paired:.2f}")


if __name__ == "__main__":
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = words.add_subparsers(dest="what")
    first = what.add_parser("memory")
    first.add_argument("gb", type=float, nargs="?", default=40)
    first.add_argument("batches", type=int, nargs="?", default=500)
    second = what.add_parser("speed")
    second.add_argument("roots", nargs="+")
    second.add_argument("--rounds", type=int, default=15)
    asked = words.parse_args(sys.argv[1:] or ["memory"])
    memory(asked.gb, asked.batches) if asked.what == "memory" else speed(asked.roots, asked.rounds)
