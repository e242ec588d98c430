"""Posed pictures of a scene without its movable bodies: what a NeRF of it is trained on, in nerfstudio's format.

A captured folder holds `transforms.json`, `images/` and `depth/` (planar depth in millimetres, 16 bit), as nerfstudio reads them.
`ns-process-data` makes the same of a real scene from photographs or a video. Read `worldsim/geometry/cameras.py` for poses and
lenses."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from worldsim.geometry.cameras import Intrinsics, around, orbit, write_transforms
from worldsim.worlds.genesis.building import add_static, init_genesis, vis_options
from worldsim.worlds.genesis.quick_import import gs
from worldsim.worlds.genesis.scene import Scene

FAR = 20.0  # metres


def photograph(
    scene: str, poses: Float[np.ndarray, "n 4 4"], lens: Intrinsics
) -> tuple[UInt8[np.ndarray, "n h w 3"], Float[np.ndarray, "n h w"]]:
    """Pictures and planar depth [m] (infinite where there is nothing) of a scene's static bodies. Genesis gives the depth of the
    first of a pixel's multisamples, some .4 pixels beside its centre.

    Args:
        scene: name or path, as for `Scene`.
        poses: camera-to-world, OpenGL axes.
        lens: square pixels, the axis in the middle, no distortion: what Genesis renders.

    Raises:
        ValueError: for another lens.
    """
    fov = math.degrees(2 * math.atan(lens.height / 2 / lens.fy))
    plain = Intrinsics.from_fov(fov, width=lens.width, height=lens.height)
    if not np.allclose([*lens.distortion, lens.fx, lens.cx, lens.cy], [0, 0, 0, 0, plain.fx, plain.cx, plain.cy]):
        raise ValueError(f"Genesis renders undistorted square pixels around the middle only, got {lens}; use Intrinsics.from_fov")
    init_genesis()
    data = Scene(scene).data
    copies = gs.Scene(vis_options=vis_options(data), show_viewer=False)  # one environment per pose
    try:
        add_static(copies, data)
        camera = copies.add_camera(res=(lens.width, lens.height), fov=fov, far=FAR, GUI=False)  # type: ignore[arg-type]
        copies.build(n_envs=len(poses), env_spacing=(0, 0))
        camera.set_pose(transform=np.asarray(poses, dtype=np.float32))
        size = (len(poses), lens.height, lens.width)  # Genesis drops the axis of a single environment
        frames, depth = (np.asarray(values).reshape(*size, -1) for values in camera.render(depth=True, force_render=True)[:2])
        depth = depth[..., 0]
    finally:
        copies.destroy()
    return frames, np.where(depth < 0.99 * FAR, depth, np.inf)


def capture(root: Path, scene: str, poses: Float[np.ndarray, "n 4 4"], lens: Intrinsics) -> Path:
    """Photograph a scene into a new folder and return its `transforms.json`.

    Raises:
        FileExistsError: if the folder is there already.
    """
    if root.exists():
        raise FileExistsError(f"{root} exists; a capture does not overwrite: choose another root or delete it")
    frames, depth = photograph(scene, poses, lens)
    partial = root.with_name(f".{root.name}.{os.getpid()}.tmp")
    for name in ("images", "depth"):
        (partial / name).mkdir(parents=True)
    files = [f"images/{number:04d}.png" for number in range(len(poses))]
    for file, frame, metres in zip(files, frames, depth, strict=True):
        millimetres = np.where(np.isfinite(metres), np.round(1000 * metres), 0).astype(np.uint16)  # 0: nothing measured
        cv2.imwrite(str(partial / file), frame[..., ::-1])
        cv2.imwrite(str(partial / file.replace("images", "depth")), millimetres)
    write_transforms(partial, lens, poses, files, depth=[file.replace("images", "depth") for file in files])
    os.replace(partial, root)
    return root / "transforms.json"


def capture_orbit(
    root: str,
    scene: str,
    number: int = 100,
    target: Sequence[float] = (0.0, 0.0, 0.0),
    radius: Sequence[float] = (0.6, 1.0),
    elevation: Sequence[float] = (25.0, 75.0),
    fov: float = 50.0,
    size: Sequence[int] = (128, 128),
    seed: int = 0,
) -> Path:
    """`capture` from poses around a target, see `worldsim.geometry.cameras.orbit`; fov [degrees] is vertical, size is height and
    width."""
    poses = orbit(number, target=target, radius=(radius[0], radius[1]), elevation=(elevation[0], elevation[1]), seed=seed)
    return capture(Path(root), scene, poses, Intrinsics.from_fov(fov, height=size[0], width=size[1]))


def capture_around(
    root: str,
    scene: str,
    number: int = 200,
    low: Sequence[float] = (-0.9, -0.9, 0.1),
    high: Sequence[float] = (0.9, 0.9, 0.5),
    tilt: Sequence[float] = (-35.0, 5.0),
    fov: float = 90.0,
    size: Sequence[int] = (96, 96),
    seed: int = 0,
) -> Path:
    """`capture` from within a room, see `worldsim.geometry.cameras.around`; fov [degrees] is vertical, size is height and width."""
    poses = around(number, low=low, high=high, tilt=(tilt[0], tilt[1]), seed=seed)
    return capture(Path(root), scene, poses, Intrinsics.from_fov(fov, height=size[0], width=size[1]))
