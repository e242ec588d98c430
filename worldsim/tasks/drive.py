"""A scripted driver that knows where everything is, but acts only on what its camera can show: it looks around for the box, then
drives up to it. What it does in a `DriveWorld`, a policy without memory can imitate. Read `worldsim/measure/collect.py` next.
"""

import torch
from jaxtyping import Float
from torch import Tensor


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
