"""A scripted driver that knows where everything is, but acts only on what its camera can show: it looks around for the box, then
drives up to it. It records demonstrations in a `DriveWorld` that a policy without memory can imitate. Read `worldsim/collect.py`
next.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.collect import Actor
from worldsim.types import Observation


def driver_action(
    robot: Float[Tensor, "b 2"], heading: Float[Tensor, " b"], box: Float[Tensor, "b 2"], *, view: float = 0.7
) -> Float[Tensor, "b 2"]:
    """Speeds of the left and right wheel in [-1, 1].

    Always to the left on the spot until the box is in view, then towards it, the slower the more it has to turn.

    Args:
        robot: where it stands on the floor [m].
        box: where it should go [m].
        heading: of the robot, counter-clockwise from x [rad].
        view: bearing to either side up to which the box counts as seen [rad].
    """
    offset = box - robot
    bearing = torch.remainder(torch.atan2(offset[:, 1], offset[:, 0]) - heading + torch.pi, 2 * torch.pi) - torch.pi
    turn = torch.where(bearing.abs() < view, 0.8 * bearing, 0.45)
    ahead = torch.where(bearing.abs() < view, 1 - 1.2 * bearing.abs(), 0.0)
    return torch.stack([ahead - turn, ahead + turn], dim=1).clamp(-1, 1)


class DriverActor(Actor):
    """`driver_action` with white noise: clean demonstrations.

    Args:
        noise: standard deviation of the noise, in units of the action range.
        seed: of the noise.
    """

    source = "expert"

    def __init__(self, noise: float = 0.1, seed: int = 0):
        self.noise = noise
        self.generator = torch.Generator().manual_seed(seed)

    def act(self, world: Any, obs: Observation) -> Tensor:
        truth = world.truth()
        action = driver_action(truth.pusher, world.heading, truth.goal)
        return (action + self.noise * torch.randn(action.shape, generator=self.generator)).clamp(-1, 1)[:, None]
