"""A tiny policy and observations of it, for the tests of exports."""

from pathlib import Path

import torch
from toy_spec import toy_spec

from models.policies.flow_vla import FlowVLA
from worldsim.core import checkpoint
from worldsim.core.types import Observation
from worldsim.core.views import Views

FORMATS = ("onnx", "torch")
WRIST = {"wrist": (64, 64)}
INSTRUCTIONS = ("Push the green block to the left", "push the red block", "stop")


def write_policy(folder: Path, views: Views = WRIST) -> FlowVLA:
    """A policy from a checkpoint. Random weights everywhere make its actions depend on every input."""
    torch.manual_seed(0)
    policy = FlowVLA(width=16, channels=8, blocks=1, num_steps=3, views=views)
    torch.nn.init.normal_(policy.trunk.blocks[0].second.weight, std=0.1)
    torch.nn.init.normal_(policy.trunk.out[-1].weight, std=3)
    torch.nn.init.normal_(policy.expert[-1].weight, std=0.5)
    middle, spread = torch.tensor([0.5, -0.5, 1.0, 0.0]), torch.tensor([0.1, 0.2, 2.0, 1.0])
    policy.fit_statistics(toy_spec(torch.stack([middle - spread, middle + spread])))
    return checkpoint.load(checkpoint.save(policy, folder), FlowVLA)


def make_observation() -> Observation:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return Observation(
        {"wrist": images}, torch.tensor([[0.5, -0.4, 1.0, 0.1], [0.4, -0.5, 2.0, 0.0], [0.6, -0.6, 0.0, 1.0]]), INSTRUCTIONS
    )


def recorded_observation(n: int = 8) -> Observation:
    generator = torch.Generator().manual_seed(4)
    images = torch.randint(0, 256, (n, 64, 64, 3), generator=generator, dtype=torch.uint8)
    return Observation({"wrist": images}, 0.5 * torch.randn(n, 4, generator=generator), ("stop", "push the red block") * (n // 2))
