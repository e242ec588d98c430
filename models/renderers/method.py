"""`ns-train worldsim-nerf`: our radiance field as a method of nerfstudio's own trainer, viewer and exporter.

nerfstudio's data parser rescales a capture into a box of +-1, so lengths are its units and not metres. `worldsim fit
experiment=nerf` is the shorter way to a field in metres. Read `nerfstudio.py` for the field.
"""

from dataclasses import dataclass, field

import torch
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManagerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.base_model import Model, ModelConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification
from torch import Tensor

from models.renderers.nerfstudio import RadianceField
from worldsim.measure.metrics import psnr


@dataclass
class WorldsimNerfConfig(ModelConfig):
    """Arguments of `RadianceField`; the box is the data parser's."""

    _target: type = field(default_factory=lambda: WorldsimNerf)
    levels: int = 8
    max_resolution: int = 512
    log2_table: int = 15
    hidden: int = 32
    proposal_samples: int = 64
    samples: int = 32
    implementation: str = "torch"
    """torch, or tcnn where tiny-cuda-nn is installed"""


class WorldsimNerf(Model):
    """nerfstudio's interface to `RadianceField`."""

    config: WorldsimNerfConfig

    def populate_modules(self) -> None:
        """Build the field; no collider, as the field clips rays to its box itself, and no LPIPS, which downloads a network."""
        config = self.config
        low, high = self.scene_box.aabb.tolist()
        self.radiance = RadianceField(
            low,
            high,
            levels=config.levels,
            max_resolution=config.max_resolution,
            log2_table=config.log2_table,
            hidden=config.hidden,
            proposal_samples=config.proposal_samples,
            samples=config.samples,
            implementation=config.implementation,
        )

    def get_param_groups(self) -> dict[str, list[torch.nn.Parameter]]:
        """One group for the optimiser."""
        return {"fields": list(self.radiance.parameters())}

    def get_outputs(self, ray_bundle: RayBundle) -> dict[str, Tensor]:  # type: ignore[override]
        """Colour, distance along the ray and opacity, and while training the regulariser."""
        traced = self.radiance(ray_bundle.origins, ray_bundle.directions)
        outputs = {"rgb": traced.color, "depth": traced.distance[:, None], "accumulation": traced.opacity[:, None]}
        return outputs | ({"regularizer": traced.regularizer} if self.training else {})

    def get_loss_dict(self, outputs, batch, metrics_dict=None) -> dict[str, Tensor]:
        """Squared colour error and the regulariser."""
        color = (outputs["rgb"] - batch["image"][..., :3].to(self.device)).square().mean()
        return {"color": color, **({"regularizer": outputs["regularizer"]} if self.training else {})}

    def get_image_metrics_and_images(self, outputs, batch) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR [dB], and truth beside rendering."""
        truth = batch["image"][..., :3].to(self.device)
        rendered = outputs["rgb"].clamp(0, 1)
        return {"psnr": float(psnr(rendered, truth))}, {"img": torch.cat([truth, rendered], dim=1), "depth": outputs["depth"]}


worldsim_nerf = MethodSpecification(
    TrainerConfig(
        method_name="worldsim-nerf",
        steps_per_eval_batch=500,
        steps_per_save=1000,
        max_num_iterations=5000,
        pipeline=VanillaPipelineConfig(
            datamanager=VanillaDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=1024, eval_num_rays_per_batch=1024
            ),
            model=WorldsimNerfConfig(),
        ),
        optimizers={
            "fields": {
                "optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15),
                "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=5000),
            }
        },
    ),
    description="worldsim's radiance field: small, bounded, torch only.",
)
