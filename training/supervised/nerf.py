"""Training a radiance field on a captured folder: `worldsim fit experiment=nerf`. The field is in `models/renderers/nerfstudio.py`.

The folder is what `worldsim collect capture=orbit` or nerfstudio's `ns-process-data` writes. Its coordinates become the field's;
align a real capture with the world afterwards (`worldsim/geometry/alignment.py`).
"""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor

from models.renderers.baked import BakedField
from models.renderers.nerfstudio import RadianceField
from training.supervised.batches import Batch, drawn_by_batch
from training.supervised.data import StreamData
from training.supervised.optim import decayed_adamw
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.geometry.cameras import Intrinsics, read_transforms
from worldsim.measure.metrics import psnr


class CaptureData(StreamData):
    """Rays drawn uniformly from all pixels of a captured folder, but for its held-out views.

    Args:
        root: folder with `transforms.json`.
        batch_size: rays per batch.
        every: each `every`-th view is held out.
        seed: of the batches.
    """

    def __init__(self, root: str, batch_size: int = 1024, every: int = 10, seed: int = 0):
        super().__init__(seed)
        if every < 2:
            raise ValueError(f"every must be at least 2, got {every}; 10 holds out every tenth view")
        self.root, self.batch_size, self.every = Path(root), batch_size, every

    def setup(self, stage: str) -> None:
        self.views = Views.read(self.root)
        held_out = torch.arange(len(self.views.color)) % self.every == self.every - 1
        if not held_out.any():
            raise ValueError(f"{self.root} has {len(held_out)} views, so none is held out; capture at least every={self.every}")
        self.held_out = held_out.nonzero().flatten().tolist()
        self._learned = (~held_out).nonzero().flatten()

    def draw(self, generator: torch.Generator) -> Batch:
        _, height, width, _ = self.views.color.shape
        view = self._learned[torch.randint(len(self._learned), (self.batch_size,), generator=generator)]
        row, column = (torch.randint(size, (self.batch_size,), generator=generator) for size in (height, width))
        origins, directions = self.views.rays(view, row, column)
        return {
            "origins": origins,
            "directions": directions,
            "color": self.views.color[view, row, column].float() / 255,
            "distance": self.views.distance[view, row, column],
        }


class Views:
    """Pictures with poses, and with distances along the rays [m] where they were measured (0 where not).

    Args:
        color: uint8 [n, h, w, 3].
        distance: [n, h, w].
        poses: camera-to-world, OpenGL axes, [n, 4, 4].
        lens: of all of them.
    """

    def __init__(self, color: Tensor, distance: Float[Tensor, "n h w"], poses: Float[np.ndarray, "n 4 4"], lens: Intrinsics):
        self.color, self.distance = color, distance
        self.poses = torch.from_numpy(poses).float()
        self._directions = torch.from_numpy(lens.directions()).float()

    @classmethod
    def read(cls, root: Path) -> "Views":
        """From a folder in nerfstudio's format.

        Raises:
            ValueError: if a picture cannot be read or has another size than `transforms.json` says.
        """
        lens, poses, files = read_transforms(root)
        frames = json.loads((root / "transforms.json").read_text())["frames"]
        color = np.stack([_picture(file, lens, cv2.IMREAD_COLOR)[..., ::-1] for file in files])
        planar = np.zeros(color.shape[:3], dtype=np.float32)
        for number, frame in enumerate(frames):
            if "depth_file_path" in frame:
                planar[number] = _picture(root / frame["depth_file_path"], lens, cv2.IMREAD_UNCHANGED) / 1000
        return cls(torch.from_numpy(color), torch.from_numpy(planar / lens.planar_per_ray().astype(np.float32)), poses, lens)

    def rays(self, view: Tensor, row: Tensor, column: Tensor) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """Origins and unit directions of the rays through pixels."""
        directions = (self.poses[view, :3, :3] @ self._directions[row, column][..., None])[..., 0]
        return self.poses[view, :3, 3], directions

    def rays_of(self, view: int) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n 3"]]:
        """All rays of one picture, row by row."""
        directions = self._directions.reshape(-1, 3) @ self.poses[view, :3, :3].T
        return self.poses[view, :3, 3].expand_as(directions), directions


class NerfTraining(LightningModule):
    """Squared colour error, the proposal network's loss, and where depth was measured its absolute error.

    At the end the field and a baked copy (in `baked/`) are judged on the held-out views: `nerf.json`, `views.png`.

    Args:
        field: the model.
        lr: peak learning rate.
        depth_weight: of the depth error, per metre; 0 learns from colour alone.
        voxel: side of a voxel of the baked copy [m].
    """

    def __init__(self, field: RadianceField, lr: float = 1e-2, depth_weight: float = 0.1, voxel: float = 0.01):
        super().__init__()
        self.field, self.lr, self.depth_weight, self.voxel = field, lr, depth_weight, voxel

    @drawn_by_batch
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        traced = self.field(batch["origins"], batch["directions"])
        color = (traced.color - batch["color"]).square().mean()
        measured = batch["distance"] > 0
        depth = (measured * (traced.expected - batch["distance"]).abs()).mean()
        self.log("train/psnr", -10 * color.detach().log10(), prog_bar=True)
        self.log_dict({"train/regularizer": traced.regularizer, "train/depth_error": depth}, prog_bar=True)
        return color + traced.regularizer + self.depth_weight * depth

    def on_train_end(self) -> None:
        """Ship the field and its baked copy with their quality."""
        self.field.eval()
        folder = Path(self.trainer.default_root_dir)
        data: CaptureData = self.trainer.datamodule  # type: ignore[attr-defined]
        checkpoint.save(self.field, folder)
        low, high = self.field.bounds.tolist()
        block, size = 4, self.field.bounds.diff(dim=0)[0] / self.voxel
        resolution = tuple(block * max(1, round(float(n) / block)) for n in size)
        baked = BakedField(low, high, resolution, block, background=self.field.background.tolist())  # type: ignore[arg-type]
        checkpoint.save(baked.to(self.device).bake(self.field.query), folder / "baked")
        views, held_out = data.views, data.held_out
        quality, pictures = {}, [torch.cat([views.color[i] for i in held_out[:4]], dim=1)]
        for name, model in (("field", self.field), ("baked", baked)):
            quality[name], picture = judge(model, views, held_out)
            pictures.append(torch.cat(picture[:4], dim=1))
        write_json(folder / "nerf.json", {**quality, "held_out_views": len(held_out), "root": str(data.root)})
        cv2.imwrite(str(folder / "views.png"), torch.cat(pictures).numpy()[..., ::-1])

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer, schedule = decayed_adamw(
            self.field.parameters(), lr=self.lr, total_steps=int(self.trainer.estimated_stepping_batches), weight_decay=0.0
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def judge(field: RadianceField | BakedField, views: Views, numbers: list[int]) -> tuple[dict[str, float], list[Tensor]]:
    """Mean PSNR [dB] of views, median error of the distance [m] where it was measured (NaN where nowhere), and the pictures."""
    _, height, width, _ = views.color.shape
    device = field.background.device
    pictures, errors = [], []
    for number in numbers:
        origins, directions = (part.to(device) for part in views.rays_of(number))
        color, distance, _ = field.render(origins, directions)
        pictures.append((color.reshape(height, width, 3) * 255).round().to(torch.uint8).cpu())
        true = views.distance[number].flatten()
        errors.append((distance.cpu() - true).abs()[true > 0])
    level = psnr(torch.stack(pictures), views.color[numbers]).mean()
    return {"psnr_db": float(level), "depth_error_m": float(torch.cat(errors).nanmedian())}, pictures


def _picture(file: Path, lens: Intrinsics, mode: int) -> np.ndarray:
    picture = cv2.imread(str(file), mode)
    if picture is None or picture.shape[:2] != (lens.height, lens.width):
        found = "nothing readable" if picture is None else f"{picture.shape[1]}x{picture.shape[0]}"
        raise ValueError(f"{file} should be a picture of {lens.width}x{lens.height} pixels, found {found}; capture it again")
    return picture
