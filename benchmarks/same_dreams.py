"""Whether dreams are the same, to the bit, as those of another checkout: hashes of four chunks with restarts, float32, one thread.

.venv/bin/python benchmarks/same_dreams.py > here.txt
PYTHONPATH=OTHER_CHECKOUT .venv/bin/python benchmarks/same_dreams.py | diff here.txt -

Networks are random and seeded. Hashes of another processor differ: its matrix products round otherwise.
"""

import hashlib

import torch
from torch import Tensor

from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from worldsim.worlds.dream import DreamWorld, Starts

MOMENTS, DREAMS = 24, 16
SENTENCES = ("push the red block onto the green disc", "push the red block onto the blue disc", "go") * (MOMENTS // 3)


def hashed(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, judge = LatentFlowWorldModel(channels=(32, 96)), InstantReflector()
    for values, spread in (
        (model.codec.encoder, 0.3),
        (model.codec.decoder, 0.1),
        (model.net.last.weight, 0.6),
        (judge.head[-1].weight, 2),
    ):
        values.data.normal_(std=spread)
    model.codec.mean.fill_(0.5)
    judge.threshold.fill_(0.6)  # some dreams succeed within a chunk, and begin again
    pictures = torch.randint(0, 256, (MOMENTS, 2, 64, 64, 3), dtype=torch.uint8)
    starts = Starts({"front": pictures}, torch.randn(MOMENTS, 2, 4), SENTENCES)
    for limit in (40, 6):
        world = DreamWorld(model.eval(), judge.eval(), starts, DREAMS, limit)
        world.reset(seed=5)
        for number, length in enumerate((4, 4, 4, 6)):
            result = world.step_chunk(2 * torch.rand(DREAMS, length, 2) - 1)
            ends = (result.reward, result.terminated, result.truncated, result.valid)
            seen = (result.obs.images["front"], result.obs.state, result.final_obs.images["front"])
            judged = (result.final_judge.progress, result.final_judge.success)
            print(f"limit {limit}, chunk {number}: {hashed(*ends, *seen, *judged)}, {int(result.done.sum())} ended")


if __name__ == "__main__":
    main()
