"""Captured scenes against Genesis's own pictures of them: composites, silhouettes, occlusion, and frames per second.

.venv/bin/python benchmarks/nerf_world.py

Captures two scenes and trains their fields first, where `runs/nerf` and `runs/nerf_gate` are not there (four minutes each; extra
`nerf`): the plain table, and the table under a gate that hides bodies. 100 random states: the same states in `GenesisWorld` and in
`NerfWorld`, through the task's camera. A body's silhouette is where the depth of the whole scene differs from that of the scene
without bodies.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from models.renderers.baked import BakedField
from worldsim.core import checkpoint
from worldsim.core.renderer import Renderer
from worldsim.geometry.cameras import Intrinsics, look_at, orbit
from worldsim.geometry.compositing import composite
from worldsim.measure.metrics import psnr
from worldsim.worlds.genesis.capture import photograph
from worldsim.worlds.genesis.nerf import SOFTNESS, NerfWorld
from worldsim.worlds.genesis.world import GenesisWorld

STATES, SEED, CHUNKS, MOVING = 100, 980_000_000, 10, 256
SCENES = {"push_block": ("runs/nerf", "0.1"), "push_block_gate": ("runs/nerf_gate", "0.2")}  # field, and height of its box [m]


def learn(scene: str, run: str, high: str) -> None:
    """Photograph a scene and learn its field, unless that is there."""
    data = f"data/captured_{scene}"
    if not Path(run).is_dir():
        for command in (
            f"collect world=push_block world.scene={scene} capture=orbit root={data}",
            f"fit experiment=nerf data.root={data} model.field.high=[0.45,0.45,{high}] run_dir={run}",
        ):
            subprocess.run([sys.executable, "-W", "ignore", "-m", "training.app.cli", *command.split()], check=True)
    quality = json.loads((Path(run) / "nerf.json").read_text())
    for name in ("field", "baked"):
        level, error = (quality[name][key] for key in ("psnr_db", "depth_error_m"))
        print(f"{scene}, {quality['held_out_views']} held-out views, {name}: {level:.1f} dB, depth {1000 * error:.1f} mm")


def depth_of(world: GenesisWorld) -> np.ndarray:
    """Planar depth [m] of what the simulator draws, infinite where that is nothing."""
    depth = np.asarray(world._camera.render(depth=True, force_render=True)[1]).reshape(world.num_envs, 64, 64)
    return np.where(depth < 0.99 * world._camera.far, depth, np.inf)


def rate(world: GenesisWorld) -> float:
    """Control steps per second of all environments, pictures after every chunk of 4."""
    world.reset(seed=SEED)
    actions = torch.rand(world.num_envs, 4, 2) * 2 - 1
    world.step_chunk(actions)
    began = time.monotonic()
    for _ in range(CHUNKS):
        world.step_chunk(actions)
    return 4 * CHUNKS * world.num_envs / (time.monotonic() - began)


def compare(scene: str, run: str) -> np.ndarray:
    """Print what the composite differs in, and how fast it is; a picture of four states."""
    whole, nerf = GenesisWorld(scene, num_envs=STATES), NerfWorld([run], scene, num_envs=STATES)
    true, seen = (world.reset(seed=SEED)[0].images["front"] for world in (whole, nerf))
    level = psnr(seen, true)
    print(f"{scene}, composite against Genesis, {STATES} states: PSNR mean {level.mean():.1f} dB, least {level.min():.1f} dB")

    camera = whole.scene.data["camera"]
    lens, pose = Intrinsics.from_fov(camera["fov"], width=64, height=64), look_at(camera["pos"], camera["lookat"])
    _, empty = photograph(scene, pose[None], lens)
    depth, bodies = depth_of(whole), depth_of(nerf)
    silhouette = torch.from_numpy(np.abs(depth - empty) > 5e-4)
    backdrop = nerf.backdrop
    _, share = composite(backdrop, seen.float() / 255, torch.from_numpy(bodies).float(), softness=SOFTNESS, bias=nerf.bias)
    iou = ((share > 0.5) & silhouette).sum() / ((share > 0.5) | silhouette).sum()
    # Genesis samples depth some .4 pixels beside a pixel's centre; of a picture five times as large that is less than a tenth.
    large = Intrinsics.from_fov(camera["fov"], width=320, height=320)
    centre = photograph(scene, pose[None], large)[1][:, 2::5, 2::5]
    both = torch.from_numpy(np.isfinite(bodies) & np.isfinite(centre))
    in_front = torch.from_numpy(bodies < centre)
    order = ((share > 0.5) == in_front)[both].float().mean()
    hidden = int((both & ~in_front).sum())
    print(f"{scene}, silhouettes: IoU {iou:.3f}; order right in {100 * order:.2f} % of {int(both.sum())} pixels where both are")
    print(f"{scene}: the body is hidden in {hidden} of them")
    fixed, plain = rate(nerf), rate(whole)
    print(f"{scene}, fixed camera: {fixed:.0f} steps/s, GenesisWorld {plain:.0f} steps/s, {100 * fixed / plain:.0f} %")

    rows = [torch.cat(list(images[:4]), dim=1).numpy() for images in (true, backdrop.color.mul(255).byte(), seen)]
    edges = [cv2.Canny(np.uint8(255 * np.clip(part.numpy() - 0.5, 0, 0.5)), 20, 60) for part in backdrop.depth[:4]]
    rows.append(np.repeat(np.concatenate(edges, axis=1)[..., None], 3, axis=2))
    whole.close()
    nerf.close()
    return np.concatenate(rows)


def moving(run: str) -> None:
    """Pictures per second where the camera is elsewhere every time."""
    lens = Intrinsics.from_fov(50, width=64, height=64)
    rays = torch.from_numpy(lens.directions().reshape(-1, 3)).float()
    for name, path in (("field", run), ("baked copy", f"{run}/baked")):
        model = checkpoint.load(path, Renderer)
        number = MOVING if isinstance(model, BakedField) else 8
        poses = orbit(number, target=(0, 0, 0), radius=(0.6, 1.0), elevation=(25, 75), seed=1)
        began = time.monotonic()
        for turned in torch.from_numpy(poses).float():
            directions = rays @ turned[:3, :3].T
            model.render(turned[:3, 3].expand_as(directions), directions)
        print(f"{run}, moving camera, {name}: {number / (time.monotonic() - began):.1f} pictures/s of 64x64")


if __name__ == "__main__":
    pictures = []
    for scene, (run, high) in SCENES.items():
        learn(scene, run, high)
        pictures.append(compare(scene, run))
        moving(run)
    picture = Path("docs/media/nerf_world.png")
    stacked = np.kron(np.concatenate(pictures), np.ones((3, 3, 1), dtype=np.uint8))
    picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), stacked[..., ::-1])
    print(f"{torch.get_num_threads()} threads, seed {SEED}; {picture}: Genesis, field, composite, edges of the field's depth")
