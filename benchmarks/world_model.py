"""Our latent U-Net against `diffusers.UNet2DModel` of about the same size: one training step, side by side in one process.

.venv/bin/python benchmarks/world_model.py
"""

import time

import torch
from diffusers import UNet2DModel

from models.world.latent_flow import LatentUNet
from worldsim.core.precision import precision

BATCH, REPEATS = 48, 5


def seconds(step) -> float:
    step()
    began = time.monotonic()
    for _ in range(REPEATS):
        step()
    return (time.monotonic() - began) / REPEATS


if __name__ == "__main__":
    torch.manual_seed(0)
    x, condition, t = torch.randn(BATCH, 72, 16, 16), torch.randn(BATCH, 256), torch.full((BATCH,), 1000.0)
    ours = LatentUNet(72, 48, (64, 160), (1, 4), 256)
    theirs = UNet2DModel(
        in_channels=72,
        out_channels=48,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
        class_embed_type="identity",
    )

    def run(network) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"):
            y = network(x, condition) if network is ours else network(x, t, class_labels=condition).sample
        y.float().square().mean().backward()

    results = {}
    for name, network in (("LatentUNet", ours), ("diffusers.UNet2DModel", theirs)):
        results[name] = seconds(lambda network=network: run(network))
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        print(f"{name:22s} {millions:.2f} M parameters  {1000 * results[name]:.0f} ms per training step of {BATCH}")
    ratio = results["diffusers.UNet2DModel"] / results["LatentUNet"]
    print(f"ratio {ratio:.2f} with {torch.get_num_threads()} threads, {precision()}")
