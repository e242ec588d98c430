"""A trained policy as the policy of a `worldsim.robot.server.Server`: many robots, one call.

A bundle answers one observation at a time; a policy that has not been exported takes a batch, so a server can serve a fleet or an
evaluation of 64 environments with it. Read `worldsim/robot/server.py` next, and `worldsim/measure/remote.py` for the other side.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from worldsim.core.interfaces import FlowPolicy, Policy
from worldsim.core.noise import Noise
from worldsim.core.sight import apart
from worldsim.core.types import Observation
from worldsim.deploy.parity import sample
from worldsim.robot.observation import Request, Sizes


class TorchPolicy:
    """Acts in float32, as bundles do, a batch at a time. To a flow policy a client may send the noise.

    Args:
        policy: in evaluation mode, on the CPU.
        state_dim: s.
        seed: of the noise of observations that bring none; they are told apart by their number.

    Attributes:
        metadata: what the server tells a client first.
    """

    def __init__(self, policy: Policy, *, state_dim: int, seed: int = 0):
        self.policy = policy
        shape, self.seed, self.answered = (policy.action_horizon, policy.action_dim), seed, 0
        self.sizes = Sizes(policy.views, (state_dim,), shape, takes_noise=isinstance(policy, FlowPolicy))
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
        cameras = apart(torch.from_numpy(images), self.policy.views)
        return list(self._act(Observation(cameras, torch.from_numpy(states), sentences), requests).numpy())

    def _act(self, obs: Observation, requests: list[Request]) -> Tensor:
        number = torch.arange(self.answered, self.answered + len(requests))
        noise = Noise(torch.full_like(number, self.seed), number, torch.zeros_like(number))
        self.answered += len(requests)
        if not isinstance(self.policy, FlowPolicy):
            return self.policy.act(obs, noise)
        drawn = noise.normal("policy", *self.sizes.actions)
        for row, request in zip(drawn, requests, strict=True):
            if request.noise is not None:
                row.copy_(torch.from_numpy(request.noise))
        return sample(self.policy, self.policy.encode(obs), drawn)
