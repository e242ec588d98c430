"""`FlowVLA`: a small vision-language-action policy that generates action chunks by flow matching.

Pixels, proprioception and an instruction go in; a velocity field over chunks of actions comes out. It has the interface of
the large flow VLAs (pi0, SmolVLA) at a thousandth of the size. Read `training/supervised/bc.py` next: it learns from
demonstrations.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from worldsim.core.interfaces import FlowPolicy
from worldsim.core.precision import exact
from worldsim.core.types import Features, Observation
from worldsim.core.units import Units
from worldsim.core.views import FRONT
from worldsim.nn.layers import VisualTrunk, mlp, time_embedding


class FlowVLA(FlowPolicy):
    """v(x_t, t, o) from a visual trunk with instruction FiLM and an MLP action expert.

    Args:
        state_dim: s, size of the proprioceptive state.
        action_dim: ad.
        action_horizon: ah, actions per chunk.
        num_steps: K, denoising steps when it acts.
        width: hidden size of the action expert.
        channels, blocks: size of the visual trunk.
        state_used: which dimensions of the state it reads; null means all. Without the absolute position, which the camera shows
            anyway, training may move the image about (`DemonstrationData.max_shift`), and few demonstrations go much further.
        views: the cameras and the sizes at which it sees them, multiples of 8.

    Raises:
        ValueError: if a dimension of `state_used` is not one of the state's, or a view has another size than that.
    """

    def __init__(
        self,
        state_dim: int = 4,
        action_dim: int = 2,
        action_horizon: int = 4,
        num_steps: int = 4,
        width: int = 256,
        channels: int = 64,
        blocks: int = 2,
        state_used: tuple[int, ...] | None = None,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        if wrong := [i for i in state_used or () if not 0 <= i < state_dim]:
            raise ValueError(f"state_used must lie in 0..{state_dim - 1}, as the state has {state_dim} numbers, got {wrong[0]}")
        self.state_used = list(range(state_dim) if state_used is None else state_used)
        self.action_dim, self.action_horizon, self.num_steps = action_dim, action_horizon, num_steps
        self.feature_dim = width + len(self.state_used)
        self.trunk = VisualTrunk(width, channels, blocks, views=views)
        self.views = self.trunk.views
        self.expert_in = nn.Linear(self.feature_dim + action_horizon * action_dim + 32, width)
        self.expert = mlp(width, width, width, action_horizon * action_dim)
        self.state_units, self.action_units = Units(state_dim), Units(action_dim)

    def encode(self, obs: Observation) -> Features:
        """Visual features and normalised proprioception."""
        return self._join(self.trunk(obs.images, obs.instruction, "the policy"), obs.state)

    def encode_tokens(
        self, picture: Shaped[Tensor, "b h w 3"], state: Float[Tensor, "b s"], tokens: Int[Tensor, "b n"]
    ) -> Features:
        """`encode` of tensors alone, a mosaic and the `tokenize`d instruction: what `worldsim.deploy.export` traces."""
        return self._join(self.trunk.see(picture, self.trunk.text.pool(tokens)), state)

    def expert_parameters(self) -> list[nn.Parameter]:
        return [*self.expert_in.parameters(), *self.expert.parameters()]

    def _join(self, seen: Tensor, state: Tensor) -> Features:
        return Features(torch.cat([seen.float(), self.state_units.network(state)[:, self.state_used]], dim=-1))

    def velocity(self, features: Features, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        return self.predict(features, x_t, t)

    @exact
    def predict(self, features: Features, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        """The network's output at a noisy chunk and a time in (0, 1]: here the velocity."""
        hidden = self.expert_in(torch.cat([features.vector, x_t.flatten(1), time_embedding(t, 32)], dim=-1))
        return self.expert(nn.functional.silu(hidden)).unflatten(-1, x_t.shape[1:]).float()
