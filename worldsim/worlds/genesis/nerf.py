"""`NerfWorld`: Genesis moves the bodies, a radiance field of a captured scene shows everything else.

Only what moves (blocks, discs, robot) is drawn by the simulator; `worldsim/geometry/compositing.py` puts it into the field's
picture by depth, in the capture's colours and with shadows of contact where wanted. The field's picture is rendered anew only
where the camera has moved. Read `capture.py` for how a scene gets into a field, and `drive.py` for a camera on a robot.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core import checkpoint
from worldsim.core.precision import exact
from worldsim.core.renderer import Renderer
from worldsim.core.world import Reward
from worldsim.geometry.alignment import ALIGNMENT, Similarity
from worldsim.geometry.cameras import Intrinsics, Pose, look_at
from worldsim.geometry.compositing import COLORS, Backdrop, ColorFit, Footprints, composite, contact_shadow
from worldsim.worlds.genesis.building import add_obstacles, add_static, vis_options
from worldsim.worlds.genesis.world import GenesisWorld

SOFTNESS = 0.002  # metres
GROUND = 0.03  # so far from z = 0 the field may be and still be the ground [m]


class NerfWorld(GenesisWorld):
    """A `GenesisWorld` whose table, walls and whatever else stands still are pictures of captured scenes.

    Args:
        fields: folders of radiance fields, `worldsim fit experiment=nerf`; an episode shows number (seed + episode) modulo their
            number. A field that is not in the world's metres has its similarity transform beside it, `alignment.json`
            (`worldsim/geometry/alignment.py`), and one whose colours are not the simulator's a fit of them, `colors.json`
            (`ColorFit`).
        bias: bodies so little behind the field's surface are still seen [m], see `worldsim.geometry.compositing.composite`.
        shadow: how dark the ground is where a block touches it, 0 to 1; 0 where the simulator lights the capture, too.
        shadow_reach: how far such shadows fade [m].
        obstacles: a mesh file of what the capture shows besides the table, to bump into (`models/renderers/mesh.py`), or null.
        scene, num_envs, phrasings, seed, success_steps, reward: as for `GenesisWorld`.

    Raises:
        ValueError: if there is no field, or one is damaged.
        FileNotFoundError: if a folder holds no field, or there is no such mesh.
    """

    def __init__(
        self,
        fields: Sequence[str],
        scene: str = "push_block",
        num_envs: int = 64,
        phrasings: str = "train",
        seed: int = 0,
        success_steps: int = 1,
        bias: float = 0.02,
        obstacles: str | None = None,
        shadow: float = 0.0,
        shadow_reach: float = 0.02,
        reward: Reward | None = None,
    ):
        if not fields:
            raise ValueError("a NerfWorld needs at least one radiance field; train one with worldsim fit experiment=nerf")
        self.fields, self.bias, self.obstacles = [Path(folder) for folder in fields], bias, obstacles
        if obstacles is not None and not Path(obstacles).is_file():
            raise FileNotFoundError(
                f"obstacles {obstacles} is no file; make it with models.renderers.mesh.surface(field).export(...)"
            )
        if not (0 <= shadow <= 1 and shadow_reach > 0):
            raise ValueError(f"shadow must be in 0..1 and shadow_reach positive, got {shadow} and {shadow_reach}; 0 for none")
        self.shadow, self.shadow_reach = shadow, shadow_reach
        super().__init__(scene, num_envs, phrasings, seed, success_steps, reward)

    @property
    def backdrop(self) -> Backdrop:
        """What stands behind the bodies, one picture per environment."""
        poses = self.camera_poses().double().numpy()
        seen = [self._look(number, pose.tobytes()) for number, pose in zip(self._shown, poses, strict=True)]
        return Backdrop(*(torch.stack([getattr(b, key) for b in seen]) for key in ("color", "depth", "accumulation")))

    @property
    def _shown(self) -> list[int]:
        """Which field each environment shows."""
        return (self._stream.sum(dim=1) % len(self.fields)).tolist()

    def _build(self) -> None:
        camera = self.scene.data["camera"]
        height, width = camera["size"]
        self._lens = Intrinsics.from_fov(camera["fov"], width=width, height=height)
        self._scenes = [CapturedScene(folder) for folder in self.fields]

        @lru_cache(maxsize=4 * max(self.num_envs, len(self._scenes)))
        def look(number: int, pose: bytes) -> Backdrop:
            return self._scenes[number].look(self._lens, np.frombuffer(pose).reshape(4, 4))

        self._look = look
        super()._build()

    def _looks(self) -> Any:
        # The renderer smooths the bodies' edges against its background, so that had better look like the scene.
        camera = self.scene.data["camera"]
        pose = look_at(camera["pos"], camera["lookat"]).tobytes()
        colors = torch.stack([self._look(number, pose).color for number in range(len(self.fields))])
        return vis_options(self.scene.data, background_color=tuple(colors.mean(dim=(0, 1, 2)).tolist()))

    def _add_static(self) -> None:
        add_static(self._scene, self.scene.data, visible=False)
        if self.obstacles is not None:
            add_obstacles(self._scene, self.obstacles)

    @exact
    def _pixels(self) -> Tensor:
        self._aim()
        rgb, depth = (np.ascontiguousarray(values) for values in self._camera.render(depth=True, force_render=True)[:2])
        shape = (self.num_envs, *self.scene.data["camera"]["size"])
        planar = torch.from_numpy(depth).reshape(shape)
        planar = torch.where(planar < 0.99 * self._camera.far, planar, torch.inf)
        bodies = torch.from_numpy(rgb).reshape(*shape, 3).float() / 255
        bodies = torch.stack([self._scenes[number].colors(body) for number, body in zip(self._shown, bodies, strict=True)])
        backdrop = self.backdrop
        if self.shadow:
            backdrop = replace(backdrop, color=backdrop.color * self._shade(backdrop)[..., None])
        picture, _ = composite(backdrop, bodies, planar, softness=SOFTNESS, bias=self.bias)
        return (picture * 255).round().to(torch.uint8)

    def _shade(self, backdrop: Backdrop) -> Tensor:
        """Contact shadows of the blocks on the ground, the plane z = 0."""
        rays, planar_per_ray = _rays(self._lens)
        poses, distance = self.camera_poses(), backdrop.depth / planar_per_ray.float()
        points = poses[:, None, :3, 3] + (rays @ poses[:, :3, :3].mT) * distance.flatten(1)[..., None]
        points = points.reshape(*distance.shape, 3)
        half = torch.tensor([block["size"] for block in self.scene.data["blocks"].values()]) / 2
        x, y, height, w, _, _, z = self.snapshot().block_pose.unbind(-1)
        size = half[:, :2].expand(*x.shape, 2)
        blocks = Footprints(torch.stack([x, y], dim=-1), 2 * torch.atan2(z, w), size, height - half[:, 2])
        return contact_shadow(points, points[..., 2].abs() < GROUND, blocks, strength=self.shadow, reach=self.shadow_reach)


class CapturedScene:
    """A radiance field and its place in the world.

    Args:
        folder: the field, with `alignment.json` beside it where it is not in the world's metres, and `colors.json` where its
            colours are not the simulator's.

    Raises:
        FileNotFoundError: if there is no field.
        ValueError: if it is damaged.
    """

    def __init__(self, folder: Path):
        self.field = checkpoint.load(folder, Renderer)
        self.colors = ColorFit.load(folder / COLORS) if (folder / COLORS).is_file() else ColorFit(torch.eye(3), torch.zeros(3))
        aligned = (folder / ALIGNMENT).is_file()
        self.to_world = Similarity.load(folder / ALIGNMENT) if aligned else Similarity(1.0, np.eye(3), np.zeros(3))

    @exact
    def look(self, lens: Intrinsics, pose: Pose) -> Backdrop:
        """What a camera of the world sees of it: colour, planar depth [m] and opacity, [h, w] of the lens."""
        inside = torch.from_numpy(self.to_world.inverse().poses(pose)).float()
        rays, planar_per_ray = _rays(lens)
        directions = rays @ inside[:3, :3].T
        color, distance, accumulation = self.field.render(inside[:3, 3].expand_as(directions), directions)
        size = (lens.height, lens.width)
        metres = self.to_world.scale * distance.reshape(size)
        return Backdrop.from_rays(color.reshape(*size, 3), metres, accumulation.reshape(size), planar_per_ray)


@cache
def _rays(lens: Intrinsics) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(lens.directions().reshape(-1, 3)).float(), torch.from_numpy(lens.planar_per_ray()).float()
