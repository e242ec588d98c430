"""Policies that learn before captured scenes, in pictures they never saw. Extra `nerf`; resumable.

.venv/bin/python benchmarks/nerf_policies.py

The default task: demonstrations before the captured table, with and without randomisation, then Genesis's own pictures. The room:
demonstrations in three captured rooms, then a captured room and Genesis's own pictures of it, both never seen; and PPO in the
captured rooms after a handful of demonstrations. All worlds of one task give the same starts and unheard sentences. Results:
`runs/nerf_policies/results.json`; a stage or an evaluation whose output exists is skipped.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from hydra.utils import instantiate

from training.app.cli import compose_config
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Policy
from worldsim.measure.evaluate import evaluate
from worldsim.measure.metrics import paired_difference, psnr, success_rate
from worldsim.worlds.genesis.drive import DriveWorld, NerfDriveWorld

OUT = Path("runs/nerf_policies")
EPISODES, SEED, DEMONSTRATIONS, HANDFUL = 512, 940_000_000, 384, 32
ROOMS, UNSEEN = ("room_oak", "room_slate", "room_brick"), "room"


def stage(target: Path, *command: str) -> None:
    """Run a verb of worldsim that makes `target`, unless that is there."""
    if not target.exists():
        subprocess.run([sys.executable, "-W", "ignore", "-m", "training.app.cli", *command], check=True)


def field(scene: str, capture: str, experiment: str, name: str) -> None:
    """Photograph a scene and learn its radiance field."""
    data, run = OUT / "data" / name, OUT / name
    stage(
        data,
        "collect",
        f"world={'push_block' if name == 'table' else 'room'}",
        f"world.scene={scene}",
        f"capture={capture}",
        f"root={data}",
    )
    stage(run / "nerf.json", "fit", f"experiment={experiment}", f"data.root={data}", f"run_dir={run}")
    quality = json.loads((run / "nerf.json").read_text())
    print(name, {key: {k: round(v, 4) for k, v in quality[key].items()} for key in ("field", "baked")}, flush=True)


def look(picture: Path) -> None:
    """What the robot's camera sees at the same places: Genesis above, bodies before the captured room below, a column per room."""
    columns = []
    for room in (*ROOMS, UNSEEN):
        whole, nerf = DriveWorld(room, num_envs=64), NerfDriveWorld([f"{OUT}/{room}/baked"], room, num_envs=64)
        true, seen = (world.reset(seed=SEED)[0].images["front"] for world in (whole, nerf))
        print(f"{room}: {len(true)} pictures of the robot's camera, PSNR mean {psnr(seen, true).mean():.1f} dB", flush=True)
        columns.append(torch.cat([torch.cat(list(images[:2]), dim=1) for images in (true, seen)]))
        whole.close()
        nerf.close()
    pixels = np.kron(torch.cat(columns, dim=1).numpy(), np.ones((2, 2, 1), dtype=np.uint8))
    cv2.imwrite(str(picture), pixels[..., ::-1])


def clone(name: str, experiment: str, episodes: int, *collect: str) -> Path:
    """Record demonstrations and clone them."""
    data, run = OUT / "data" / name, OUT / name
    stage(run / "model.safetensors", "collect", *collect, f"root={data}", f"episodes={episodes}", "seed=5000")
    stage(run / "model.safetensors", "fit", f"experiment={experiment}", f"data.roots=[{data}]", f"run_dir={run}")
    return run


def success(policy: Path, place: str, world: str, *options: str) -> torch.Tensor:
    """Of every held-out start."""
    file = OUT / "evaluations" / f"{policy.name}, {place}.json"
    if not file.exists():
        config: Any = compose_config(
            "evaluate", [f"world={world}", f"policy={policy}", "world.phrasings=eval", "world.num_envs=64", *options]
        )
        built = instantiate(config.world, _convert_="all")
        outcome = evaluate(built, checkpoint.load(policy, Policy), episodes=EPISODES, seed=SEED)
        built.close()
        write_json(file, outcome.success.tolist())
    return torch.tensor(json.loads(file.read_text()))


def compare(policy: Path, worlds: dict[str, tuple[str, ...]], start: Path | None = None) -> dict[str, Any]:
    """Success in each world; on the same starts what is lost against the first world, and gained on the policy that learning began
    with."""
    rows, first = {}, None
    for place, options in worlds.items():
        outcome = success(policy, place, *options)
        first = outcome if first is None else first
        row = dict(success_rate(outcome)) | {"change": paired_difference(first, outcome)}
        if start is not None:
            row["gain"] = paired_difference(success(start, place, *options), outcome)
        low, high = row["ci95"]
        more = f", gain {row['gain']}" if start else ""
        print(
            f"{policy.name}, {place}: {100 * row['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}], change {row['change']}{more}",
            flush=True,
        )
        rows[place] = row
    return rows


if __name__ == "__main__":
    field("push_block", "orbit", "nerf", "table")
    captured = [f"{OUT}/{room}/baked" for room in ROOMS]
    for room in (*ROOMS, UNSEEN):
        field(room, "around", "nerf_room", room)
    look(Path("docs/media/rooms.png"))
    results = {}
    tables = {"captured table": ("push_block", "renderer=nerf", f"world.fields=[{OUT}/table]"), "Genesis": ("push_block",)}
    rooms = {
        "captured rooms": ("room", "renderer=nerf_rooms", f"world.fields=[{','.join(captured)}]"),
        "captured room never seen": ("room", "renderer=nerf_rooms", f"world.fields=[{OUT}/{UNSEEN}/baked]"),
        "Genesis, room never seen": ("room",),
    }
    conditions = {"plain": [], "randomised": ["randomization=moderate"]}
    for name, chosen in conditions.items():
        table = ("world=push_block", "renderer=nerf", f"world.fields=[{OUT}/table]")
        policy = clone(f"table_{name}", "push_policy", DEMONSTRATIONS, *table, *chosen)
        results[policy.name] = compare(policy, tables)
    where = f"world.fields=[{','.join(captured)}]"
    few = clone("rooms_few", "policy_room", HANDFUL, "world=room", "renderer=nerf_rooms", where, "actor.noise=0.1")
    results[few.name] = compare(few, rooms)
    better = OUT / "rooms_reinforced"
    stage(
        better / "model.safetensors",
        "fit",
        "experiment=post_train_room",
        f"model.policy.folder={few}",
        f"model.arena.{where}",
        f"data.roots=[{OUT}/data/rooms_few]",
        f"run_dir={better}",
    )
    results[better.name] = compare(better, rooms, few)
    for name, chosen in conditions.items():
        scenes = ("world=room", "renderer=nerf_rooms", where, *chosen)
        policy = clone(f"rooms_{name}", "policy_room", DEMONSTRATIONS, *scenes, "actor.noise=0.1")
        results[policy.name] = compare(policy, rooms)
    write_json(
        OUT / "results.json", {"episodes": EPISODES, "seed": SEED, "demonstrations": DEMONSTRATIONS, "handful": HANDFUL, **results}
    )
