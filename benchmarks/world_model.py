"""World models side by side in one process: imagined frames per second, and training steps of networks of about the same size.

.venv/bin/python benchmarks/world_model.py       on a GPU if there is one, and there with a large batch as well

`as in DIAMOND` is a network of that kind and cost in the parts of diffusers, untrained: a U-Net on pixels of four levels with 64
channels and two blocks each, which denoises every frame of 64x64 in three steps (arXiv:2405.12399). How *useful* a dream is, a
benchmark of time does not say: `worldsim bench world_model`.
"""

import time
from collections.abc import Callable

import torch
from diffusers import UNet2DModel

from models.world.latent_flow import LatentFlowWorldModel, LatentUNet
from worldsim.core.noise import Noise
from worldsim.core.precision import precision

REPEATS = 5
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCHES = (48, 1024) if DEVICE.type == "cuda" else (48,)
TODAY, BEFORE = (32, 96), (64, 160)  # channels of the demo's world model


def seconds(*steps: Callable[[], object]) -> list[float]:
    """Of each step the least of some repeats, taken in turn, so that a slow moment of the machine is nobody's."""
    best = [float("inf")] * len(steps)
    for _ in range(1 + REPEATS):
        for i, step in enumerate(steps):
            began = time.monotonic()
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=precision() == "bf16-mixed"):
                step()
            if DEVICE.type == "cuda":
                torch.cuda.synchronize()
            best[i] = min(best[i], time.monotonic() - began)
    return best


def unet(inputs: int, outputs: int, channels: tuple[int, ...], layers: int) -> UNet2DModel:
    kinds = {"down_block_types": ("DownBlock2D",) * len(channels), "up_block_types": ("UpBlock2D",) * len(channels)}
    more = {"layers_per_block": layers, "norm_num_groups": 8, "add_attention": False, "class_embed_type": "identity"}
    return UNet2DModel(in_channels=inputs, out_channels=outputs, block_out_channels=channels, **kinds, **more)


def millions(network: torch.nn.Module) -> str:
    return f"{sum(p.numel() for p in network.parameters()) / 1e6:.2f} M parameters"


@torch.no_grad()
def imagine(batch: int) -> None:
    """Four frames of each dream."""
    models = {name: LatentFlowWorldModel(channels=size).eval() for name, size in (("today", TODAY), ("before", BEFORE))}
    clip, state, actions = torch.rand(batch, 2, 64, 64, 3), torch.randn(batch, 2, 4), torch.rand(batch, 4, 2)
    noise = Noise.rows(0, batch, DEVICE)
    diamond = unet(3 * 5, 3, (64,) * 4, 2).eval()
    pixels, condition, t = torch.rand(batch, 15, 64, 64), torch.randn(batch, 256), torch.full((batch,), 500.0)

    def dream(model: LatentFlowWorldModel) -> Callable[[], object]:
        begun = model.init({"front": clip}, state)
        return lambda: model.step(begun, actions, noise)

    def denoise() -> None:
        for _ in range(4 * 3):
            diamond(pixels, t, class_labels=condition)

    took = seconds(*(dream(model) for model in models.values()), denoise)
    for name, network, one in zip((*models, "as in DIAMOND"), (*models.values(), diamond), took, strict=True):
        print(f"{name:24s} {millions(network)}  {4 * batch / one:9,.0f} frames/s  {took[1] / one:.3f} of before")


def train(batch: int) -> None:
    """One step of the network before, and of diffusers' of its size."""
    x, condition, t = torch.randn(batch, 72, 16, 16), torch.randn(batch, 256), torch.full((batch,), 1000.0)
    today, before = (LatentUNet(72, 48, size, (1, 4), 256) for size in (TODAY, BEFORE))
    theirs = unet(72, 48, (64, 128), 1)
    took = seconds(
        lambda: today(x, condition).float().square().mean().backward(),
        lambda: before(x, condition).float().square().mean().backward(),
        lambda: theirs(x, t, class_labels=condition).sample.float().square().mean().backward(),
    )
    for name, network, one in zip(("today", "before", "diffusers.UNet2DModel"), (today, before, theirs), took, strict=True):
        print(f"{name:24s} {millions(network)}  {1000 * one:.1f} ms per training step of {batch}")


if __name__ == "__main__":
    torch.manual_seed(0)
    with DEVICE:  # where networks and numbers are made
        for size in BATCHES:
            print(f"{size} dreams at a time")
            imagine(size)
            train(size)
    hardware = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"on {hardware}, {precision()}")
