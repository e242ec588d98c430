"""A world model of a world with real chance: does a dream throw the dice as the world does, and none where there is none?

    python benchmarks/chance.py [STEPS] [SEEDS]

A square in the middle of a picture jumps and stays. Told one thing it goes to the right with probability .25, told another with
.75, else to the left; told a third it always goes up. One training, then dreams with more and more sampling steps.
"""

import sys
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from models.world.latent_flow import LatentFlowWorldModel
from worldsim.core.noise import Noise
from worldsim.core.spec import Channel, Spec

RIGHT = (0.0, 0.25, 0.75)  # probability by what it was told; the first goes up
SIZE, AHEAD = 16, 4


def jumps(n: int, generator: torch.Generator) -> tuple[dict[str, Any], Int[Tensor, " n"]]:
    """A batch as `WorldModel.loss` takes it, and what each square was told."""
    told = torch.randint(0, 3, (n,), generator=generator)
    right = torch.rand(n, generator=generator) < torch.tensor(RIGHT)[told]
    across = torch.where(told == 0, 6, torch.where(right, 11, 1))
    frames = torch.zeros(n, 2 + AHEAD, SIZE, SIZE, 3, dtype=torch.uint8)
    frames[:, :2, 6:10, 6:10] = 255
    for i, (left, top) in enumerate(zip(across.tolist(), torch.where(told == 0, 1, 6).tolist(), strict=True)):
        frames[i, 2:, top : top + 4, left : left + 4] = 255
    action = torch.tensor([[0.0, 1.0], [-1.0, 0.0], [1.0, 0.0]])[told][:, None].expand(-1, AHEAD, -1)
    batch = {"images": {"front": frames}, "state": torch.zeros(n, 2 + AHEAD, 1), "action": action}
    return batch | {"valid": torch.ones(n, AHEAD, dtype=torch.bool)}, told


def trained(steps: int, seed: int = 0) -> LatentFlowWorldModel:
    """A tiny model after so many steps of 64 jumps."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    small: dict[str, Any] = {"channels": (16, 32), "layers": (1, 1), "views": {"front": (SIZE, SIZE)}, "state_dim": 1}
    model = LatentFlowWorldModel(**small, unroll=1, context_noise=0.0)
    model.fit_statistics({"front": jumps(256, generator)[0]["images"]["front"].flatten(0, 1)}, spec())
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss(jumps(64, generator)[0], generator)[0].backward()
        optimizer.step()
        schedule.step()
    return model.eval()


@torch.no_grad()
def dreamt(model: LatentFlowWorldModel, sampling_steps: int, n: int = 1024, seed: int = 1) -> dict[str, Any]:
    """What n dreams show after one step, brightness 0..1.

    Returns:
        right, of each chance: the share of dreams that are brighter at the right; bright and dark, means of the brighter and of the
        darker side; error, the mean square of the pictures of those that always go up.
    """
    model.sampling_steps = sampling_steps
    batch, told = jumps(n, torch.Generator().manual_seed(seed))
    start = model.init({"front": batch["images"]["front"][:, :2]}, batch["state"][:, :2])
    frames = model.step(start, batch["action"], Noise.rows(seed, n))[1]["front"]
    sides = torch.stack([frames[:, 0, 6:10, left : left + 4].mean((1, 2, 3)) for left in (1, 11)])
    chance = told > 0
    right = [float((sides[1] > sides[0])[told == k].float().mean()) for k in (1, 2)]
    up = (frames - batch["images"]["front"][:, 2:] / 255)[~chance].square().mean()
    bright, dark = (float(side[chance].mean()) for side in (sides.amax(0), sides.amin(0)))
    return {"right": right, "bright": bright, "dark": dark, "error": float(up)}


def spec() -> Spec:
    """One number that is felt and does not matter, and two that are told, as they are."""
    felt, told = Channel("felt", normalisation="mean_std"), (Channel("across", low=-1, high=1), Channel("up", low=-1, high=1))
    return Spec({}, 10, "dice", (felt,), told).fitted(torch.tensor([[-1.0], [1.0]]).numpy(), torch.zeros(2, 2).numpy())


if __name__ == "__main__":
    steps, seeds = (int(sys.argv[i]) if len(sys.argv) > i else default for i, default in ((1, 3000), (2, 3)))
    models = [trained(steps, seed) for seed in range(seeds)]
    for k in (1, 2, 4, 8, 16, 32, 64):
        for seed, model in enumerate(models):
            print(f"{k} sampling steps, seed {seed}: {dreamt(model, k)}", flush=True)
