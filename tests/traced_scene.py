"""A scene that can be traced by hand, for the radiance fields: a ball over a floor, in a box [m]."""

from pathlib import Path

import cv2
import numpy as np
import torch

from worldsim.geometry.cameras import Intrinsics, orbit, write_transforms

CENTRE, RADIUS, FLOOR = torch.tensor([0.05, 0.0, 0.1]), 0.1, 0.0
LOW, HIGH = (-0.4, -0.4, -0.04), (0.4, 0.4, 0.28)


def ball_and_floor(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Red ball, green floor; both are opaque within millimetres (400 / m)."""
    ball = torch.sigmoid((RADIUS - (points - CENTRE).norm(dim=1)) / 0.002)
    floor = torch.sigmoid((FLOOR - points[:, 2]) / 0.002)
    nearer = ((points - CENTRE).norm(dim=1) - RADIUS < points[:, 2] - FLOOR)[:, None]
    return 400 * torch.maximum(ball, floor), torch.where(nearer, torch.tensor([1.0, 0, 0]), torch.tensor([0, 1.0, 0]))


def rays(pose, lens: Intrinsics) -> tuple[torch.Tensor, torch.Tensor]:
    directions = torch.from_numpy(lens.directions().reshape(-1, 3) @ pose[:3, :3].T).float()
    return torch.from_numpy(pose[:3, 3]).float().expand_as(directions), directions


def traced(origins: torch.Tensor, directions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Exact distance and what is hit: 0 ball, 1 floor within the box, 2 nothing."""
    offset = origins - CENTRE
    along = (offset * directions).sum(1)
    root = along.square() - offset.square().sum(1) + RADIUS**2
    ball = torch.where(root > 0, -along - root.clamp(min=0).sqrt(), torch.inf)
    floor = (FLOOR - origins[:, 2]) / directions[:, 2]
    place = origins + floor[:, None] * directions
    floor = torch.where((floor > 0) & (place[:, :2].abs() < 0.4).all(1), floor, torch.inf)
    distance = torch.minimum(ball, floor)
    return distance, torch.where(distance.isinf(), 2, (floor < ball).long())


def photographed(folder: Path, number: int, size: int = 40) -> Path:
    """A captured folder of it, in nerfstudio's format with depth; red ball, green floor, blue beyond."""
    lens = Intrinsics.from_fov(50, width=size, height=size)
    poses = orbit(number, target=(0, 0, 0.05), radius=(0.6, 0.9), elevation=(25, 75))
    for name in ("images", "depth"):
        (folder / name).mkdir(parents=True)
    files = [f"images/{i:03d}.png" for i in range(number)]
    for file, pose in zip(files, poses, strict=True):
        distance, what = traced(*rays(pose, lens))
        color = (255 * torch.eye(3)[what]).reshape(size, size, 3).numpy().astype(np.uint8)
        planar = 1000 * distance.reshape(size, size).numpy() * lens.planar_per_ray()
        cv2.imwrite(str(folder / file), color[..., ::-1])
        cv2.imwrite(str(folder / file.replace("images", "depth")), np.where(np.isfinite(planar), planar, 0).astype(np.uint16))
    write_transforms(folder, lens, poses, files, depth=[file.replace("images", "depth") for file in files])
    return folder
