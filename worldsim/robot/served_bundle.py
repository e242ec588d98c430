"""A robot bundle as the policy of a `Server`: observations of openpi's clients in, chunks of actions out.

A bundle's graph has a fixed batch of one, so observations are answered one by one; a server of one should have `max_batch=1`.
Read `server.py` next, and `worldsim/deploy/serving.py` for a policy that has not been exported and answers a batch at once.
"""

from typing import Any

import numpy as np

from worldsim.robot.bundle import Bundle
from worldsim.robot.observation import Sizes


class BundlePolicy:
    """Acts with a bundle.

    Args:
        bundle: from `worldsim.robot.bundle.load_bundle`.
        seed: of the noise of observations that bring none.

    Attributes:
        metadata: what the server tells a client first.
    """

    def __init__(self, bundle: Bundle, *, seed: int = 0):
        state, noise = (bundle.shapes[name][1:] for name in ("state", "noise"))
        self.bundle, self.sizes = bundle, Sizes(bundle.description["views"], state, noise)
        self.generator = np.random.default_rng(seed)
        names = {name: bundle.description.get(name) for name in ("policy", "fps", "state_names", "action_names", "spec")}
        self.metadata: dict[str, Any] = {"server": "worldsim", **names, **self.sizes.metadata()}

    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        """Actions in native units, float32 [ah, ad] each, of observations as `Sizes.read` takes them.

        Raises:
            ValueError: if an observation does not fit the bundle.
        """
        return [self._act(observation) for observation in observations]

    def _act(self, observation: dict[str, Any]) -> np.ndarray:
        request = self.sizes.read(observation)
        noise = self.bundle.noise(self.generator) if request.noise is None else request.noise
        return self.bundle(request.image, request.state, request.prompt, noise)
