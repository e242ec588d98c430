"""A trained policy as the policy of a `worldsim.robot.server.Server`: many robots, one call.

A bundle answers one observation at a time; a policy that has not been exported takes a batch, so a server can serve a fleet or an
evaluation of 64 environments with it. Read `worldsim/robot/server.py` next, and `worldsim/measure/remote.py` for the other side.
"""

from typing import Any

import numpy as np
import torch

from worldsim.core.interfaces import Policy
from worldsim.core.sight import apart
from worldsim.core.types import Observation
from worldsim.robot.observation import Request, Sizes


class TorchPolicy:
    """Samples a flow policy with its ODE in float32, as bundles do, a batch at a time.

    Args:
        policy: in evaluation mode, on the CPU.
        state_dim: s.
        seed: of the noise of observations that bring none.

    Attributes:
        metadata: what the server tells a client first.
    """

    def __init__(self, policy: Policy, *, state_dim: int, seed: int = 0):
        self.policy = policy
        self.sizes = Sizes(policy.views, (state_dim,), (policy.action_horizon, policy.action_dim))
        self.generator = torch.Generator().manual_seed(seed)
        name = f"{type(policy).__module__}.{type(policy).__qualname__}"
        spec = None if policy.spec is None else policy.spec.to_json()
        self.metadata: dict[str, Any] = {"server": "worldsim", "policy": name, "spec": spec, **self.sizes.metadata()}

    @torch.no_grad()
    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        """Actions in native units, float32 [ah, ad] each, of observations as `Sizes.read` takes them.

        Raises:
            ValueError: if an observation does not fit the policy.
        """
        requests = [self.sizes.read(observation) for observation in observations]
        images, states = (np.stack([getattr(request, name) for request in requests]) for name in ("image", "state"))
        sentences = tuple(request.prompt for request in requests)
        noise = torch.stack([self._noise(request) for request in requests])
        cameras = apart(torch.from_numpy(images), self.policy.views)
        features = self.policy.encode(Observation(cameras, torch.from_numpy(states), sentences))
        return list(self.policy.action_units.native(self.policy.sample(features, noise)).numpy())

    def _noise(self, request: Request) -> torch.Tensor:
        if request.noise is None:
            return torch.randn(self.sizes.noise, generator=self.generator)
        return torch.from_numpy(request.noise)
