"""`PointPolicy`: a flow policy of an eye and a small network. Sampling, log-probabilities and learning come from worldsim."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from worldsim.core.interfaces import FlowPolicy
from worldsim.core.precision import exact
from worldsim.core.types import Features, Observation
from worldsim.core.units import Units
from worldsim.nn.layers import mlp, time_embedding
from worldsim_point.eye import Eye


class PointPolicy(FlowPolicy):
    """v(x_t, t, o) from the eye's features and the normalised state.

    Args:
        eye: what it sees through.
        state_dim, action_dim: of the robot.
        action_horizon: actions per chunk.
        num_steps: denoising steps when it acts.
        width: of the hidden layers.
    """

    def __init__(
        self,
        eye: Eye,
        state_dim: int = 4,
        action_dim: int = 2,
        action_horizon: int = 4,
        num_steps: int = 4,
        width: int = 64,
    ):
        super().__init__()
        self.views, self.action_dim, self.action_horizon, self.num_steps = eye.views, action_dim, action_horizon, num_steps
        self.eye, self.feature_dim = eye, eye.arguments["features"] + state_dim
        self.expert = mlp(self.feature_dim + action_horizon * action_dim + 16, width, width, action_horizon * action_dim)
        self.state_units, self.action_units = Units(state_dim), Units(action_dim)

    def encode(self, obs: Observation) -> Features:
        seen = self.eye(obs.images, obs.instruction)
        return Features(torch.cat([seen, self.state_units.network(obs.state)], dim=1))

    def expert_parameters(self) -> list[nn.Parameter]:
        """What learns while the eye is frozen, as learners from rollouts do unless told otherwise."""
        return list(self.expert.parameters())

    @exact  # ratios of probabilities near 1 need more digits than bfloat16 has
    def velocity(self, features: Features, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        hidden = torch.cat([features.vector.float(), x_t.flatten(1), time_embedding(t, 16)], dim=1)
        return self.expert(hidden).unflatten(1, x_t.shape[1:]).float()
