"""A captured scene against Genesis's own picture of it: composites, silhouettes, occlusion, and frames per second.

.venv/bin/python benchmarks/nerf_world.py

Captures the default scene and trains its field first, if `runs/nerf` is not there (about four minutes; extra `nerf`). 100 random
states of the default task: the same states in `GenesisWorld` and in `NerfWorld`, through the task's camera. A body's silhouette is
where the depth of the whole scene differs from that of the scene without bodies.
"""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

from models.renderers.baked import BakedField
from worldsim import checkpoint
from worldsim.cameras import Intrinsics, look_at, orbit
from worldsim.compositing import composite
from worldsim.metrics import psnr
from worldsim.sim.capture import photograph
from worldsim.sim.genesis import GenesisWorld
from worldsim.sim.nerf import SOFTNESS, NerfWorld

STATES, SEED, CHUNKS, MOVING = 100, 980_000_000, 10, 256


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


if __name__ == "__main__":
    folder, picture = Path("runs/nerf"), Path("docs/media/nerf_world.png")
    if not folder.is_dir():
        for command in ("collect world=push_block capture=orbit root=data/scene", "fit experiment=nerf"):
            subprocess.run([sys.executable, "-W", "ignore", "-m", "training.cli", *command.split()], check=True)
    whole, nerf = GenesisWorld(num_envs=STATES), NerfWorld([str(folder)], num_envs=STATES)
    true, seen = (world.reset(seed=SEED)[0].images["front"] for world in (whole, nerf))
    level = psnr(seen, true)
    print(f"composite against Genesis, {STATES} states: PSNR mean {level.mean():.1f} dB, least {level.min():.1f} dB")

    camera = whole.scene.data["camera"]
    lens, pose = Intrinsics.from_fov(camera["fov"], width=64, height=64), look_at(camera["pos"], camera["lookat"])
    _, empty = photograph("push_block", pose[None], lens)
    depth, bodies = depth_of(whole), depth_of(nerf)
    silhouette = torch.from_numpy(np.abs(depth - empty) > 5e-4)
    _, share = composite(nerf.backdrop, seen.float() / 255, torch.from_numpy(bodies).float(), softness=SOFTNESS, bias=nerf.bias)
    iou = ((share > 0.5) & silhouette).sum() / ((share > 0.5) | silhouette).sum()
    both = torch.from_numpy(np.isfinite(bodies) & np.isfinite(empty))
    in_front = torch.from_numpy(bodies < empty)
    order = ((share > 0.5) == in_front)[both].float().mean()
    print(f"silhouettes: IoU {iou:.3f}; order right in {100 * order:.2f} % of {int(both.sum())} pixels where both are")

    rows = [torch.cat(list(images[:4]), dim=1).numpy() for images in (true, nerf.backdrop.color.mul(255).byte(), seen)]
    edges = [cv2.Canny(np.uint8(255 * np.clip(nerf.backdrop.depth[i].numpy() - 0.5, 0, 0.5)), 20, 60) for i in range(4)]
    rows.append(np.repeat(np.concatenate(edges, axis=1)[..., None], 3, axis=2))
    stacked = np.kron(np.concatenate(rows), np.ones((3, 3, 1), dtype=np.uint8))
    picture.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(picture), stacked[..., ::-1])

    fixed, plain = rate(nerf), rate(whole)
    print(f"fixed camera: {fixed:.0f} steps/s, GenesisWorld {plain:.0f} steps/s, {100 * fixed / plain:.0f} %")
    for name, path in (("field", folder), ("baked copy", folder / "baked")):
        model = checkpoint.load(path)
        number = MOVING if isinstance(model, BakedField) else 8
        poses = orbit(number, target=(0, 0, 0), radius=(0.6, 1.0), elevation=(25, 75), seed=1)
        rays = torch.from_numpy(lens.directions().reshape(-1, 3)).float()
        began = time.monotonic()
        for turned in torch.from_numpy(poses).float():
            directions = rays @ turned[:3, :3].T
            model.render(turned[:3, 3].expand_as(directions), directions)
        print(f"moving camera, {name}: {number / (time.monotonic() - began):.1f} pictures/s of 64x64")
    print(f"{torch.get_num_threads()} threads, seed {SEED}; {picture}: Genesis, field, composite, edges of the field's depth")
