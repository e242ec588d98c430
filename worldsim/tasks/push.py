"""A scripted pusher that sees the ground truth: it walks around the block and pushes it to a disc.

It records demonstrations and, with noise and changing minds, the failures and near-successes that a world model must have
seen (DECISIONS.md, 9). Read `worldsim/measure/collect.py` next.
"""

import torch
from jaxtyping import Float
from torch import Tensor

CONTACT_M = 0.062  # centre distance at which the pusher's rim touches a face of the 7 cm block, with some slack
ORBIT_M = 0.088  # radius of the walk around the block, clear of its corners


def expert_action(
    block: Float[Tensor, "b 2"],
    goal: Float[Tensor, "b 2"],
    pusher: Float[Tensor, "b 2"],
    *,
    max_delta_m: float,
    offset_m: Float[Tensor, " b"] | float = 0.0,
) -> Float[Tensor, "b 2"]:
    """The action in [-1, 1]^2 that brings the block nearer to the goal.

    Behind the block (seen from the goal) it pushes along the line to the goal and corrects its lateral offset; elsewhere it
    orbits the block the shorter way round.

    Args:
        block: position on the table plane [m].
        goal: where the block should go [m].
        pusher: position of the robot [m].
        max_delta_m: displacement of an action of length 1 [m].
        offset_m: pushes that far to the left of the block's centre, seen towards the goal: clumsy pushes that turn the block.
    """
    to_goal = goal - block
    distance = to_goal.norm(dim=-1, keepdim=True)
    ahead = to_goal / distance.clamp(min=1e-6)
    left = torch.stack([-ahead[:, 1], ahead[:, 0]], dim=-1)
    offset = pusher - block
    along = (offset * ahead).sum(-1, keepdim=True)
    lateral = (offset * left).sum(-1, keepdim=True) - torch.as_tensor(offset_m).reshape(-1, 1)

    push = ahead * distance.clamp(max=1.4 * max_delta_m).clamp(min=0.5 * max_delta_m) - 0.9 * lateral * left

    angle = torch.atan2(offset[:, 1], offset[:, 0])
    wanted = torch.atan2(-ahead[:, 1], -ahead[:, 0])
    turn = torch.remainder(wanted - angle + torch.pi, 2 * torch.pi) - torch.pi
    radius = offset.norm(dim=-1)
    near_angle = angle + turn.clamp(-0.5, 0.5)
    orbit_radius = torch.where(turn.abs() < 0.35, torch.full_like(radius, CONTACT_M + 0.008), torch.full_like(radius, ORBIT_M))
    orbit = block + orbit_radius[:, None] * torch.stack([near_angle.cos(), near_angle.sin()], dim=-1) - pusher

    behind = (along < -0.04) & (lateral.abs() < 0.02)
    delta = torch.where(behind, push, orbit)
    length = delta.norm(dim=-1, keepdim=True)
    return delta / length.clamp(min=max_delta_m)
