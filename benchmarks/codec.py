"""A learned codec beside the linear one: pictures at equal latents, and what a frame costs.

`python benchmarks/codec.py DATASET [SECONDS]` fits principal components of patches (`PatchCodec`) and trains two widths of
`diffusers.AutoencoderTiny` for so many seconds each on nine tenths of a dataset's episodes, all with 12 latent channels at a
quarter of the resolution, and prints PSNR on frames of the others with milliseconds per frame.
"""

import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from models.world.latent_flow import PatchCodec
from worldsim.core import torchvision_remedy  # noqa: F401 - before diffusers
from worldsim.core.views import FRONT
from worldsim.data.store import FrameStore
from worldsim.measure.metrics import psnr

from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny  # isort: skip

CHANNELS = 12


def learned(frames: Tensor, width: int, seconds: float) -> AutoencoderTiny:
    """Mean squared error, batches of 16, Adam with a learning rate that falls to nothing."""
    torch.manual_seed(0)
    widths, blocks = (width,) * 3, (1, 1, 1)
    model = AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=blocks,
        num_decoder_blocks=blocks,
        latent_channels=CHANNELS,
    )
    optimizer, began = torch.optim.Adam(model.parameters()), time.monotonic()
    while (spent := (time.monotonic() - began) / seconds) < 1:
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - spent)
        pixels = network(frames[torch.randint(0, len(frames), (16,))])
        optimizer.zero_grad()
        (decode(model, encode(model, pixels)) - pixels).square().mean().backward()
        optimizer.step()
    return model.eval()


def encode(model: AutoencoderTiny, pixels: Tensor) -> Tensor:
    """Latents [n, c, y, x]."""
    return model.encode(pixels, return_dict=False)[0]


def decode(model: AutoencoderTiny, latents: Tensor) -> Tensor:
    """Pixels [n, 3, h, w]."""
    return model.decode(latents, return_dict=False)[0]


def network(frames: Tensor) -> Tensor:
    """uint8 [n, h, w, 3] to [n, 3, h, w] in -1..1."""
    return frames.movedim(-1, 1).float() / 127.5 - 1


def report(name: str, unseen: Tensor, there: Callable[[Tensor], Tensor], back: Callable[[Tensor], Tensor]) -> None:
    """PSNR, and the best of three times."""
    took: list[list[float]] = [[], []]
    for _ in range(3):
        began = time.perf_counter()
        latents = there(unseen)
        between = time.perf_counter()
        shown = back(latents)
        took[0].append(between - began)
        took[1].append(time.perf_counter() - between)
    cost = " and ".join(f"{1000 * min(times) / len(unseen):.2f}" for times in took)
    print(f"{name}: {float(psnr(shown.clamp(0, 1), unseen).mean()):.1f} dB, {cost} ms a frame to encode and decode", flush=True)


@torch.no_grad()
def main(root: str, seconds: float) -> None:
    """All codecs on the frames of the camera `front` at 64x64."""
    table, rest = FrameStore.read(root, FRONT, held_out=0.1), FrameStore.read_held_out(root, FRONT, held_out=0.1)
    if rest is None:
        raise ValueError(f"{root} has too few episodes to hold any out; name ten or more")
    generator = torch.Generator().manual_seed(0)
    seen, unseen = (
        one.images["front"][torch.randperm(len(one.first), generator=generator)[:n]] for one, n in ((table, 6000), (rest, 256))
    )
    linear = PatchCodec(channels=CHANNELS)
    linear.fit(seen[:600])
    report("principal components", unseen, linear.encode, linear.decode)
    for width in (8, 16):
        with torch.enable_grad():
            model = learned(seen, width, seconds)
        count = sum(parameter.numel() for parameter in model.parameters())
        report(
            f"AutoencoderTiny, {width} channels, {count:,} parameters, {seconds:g} s",
            unseen,
            lambda frames, model=model: encode(model, network(frames)),
            lambda latents, model=model: (decode(model, latents).movedim(1, -1) + 1) / 2,
        )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 300)
