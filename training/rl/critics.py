"""Critics: the value of an observation under an instruction, on an encoder of their own or on the policy's features.

Read `estimators.py` next: it turns values and rewards into advantages.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.interfaces import FlowPolicy, Reflector
from worldsim.core.types import Features
from worldsim.core.views import FRONT
from worldsim.nn.layers import VisualTrunk, mlp


class Critic(Configured):
    """V(images, instruction): expected discounted return, in units of reward.

    Args:
        features, channels, blocks: of its visual trunk; equal to the reflector's, whose weights it starts from.
        values: 1, or several values per observation.
        views: the cameras that it looks through, and at which size.
    """

    def __init__(
        self,
        features: int = 256,
        channels: int = 64,
        blocks: int = 2,
        values: int = 1,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        self.trunk = VisualTrunk(features, channels, blocks, views=views)
        self.head = mlp(features, features, values)

    @classmethod
    def like(cls, reflector: Reflector, values: int = 1) -> "Critic":
        """A critic whose trunk starts as a copy of the reflector's, if that has one: it knows already what success looks like."""
        trunk = getattr(reflector, "trunk", None)
        if not isinstance(trunk, VisualTrunk):
            return cls(values=values, views=reflector.views)
        critic = cls(**{key: trunk.arguments[key] for key in ("features", "channels", "blocks", "views")}, values=values)
        critic.trunk.load_state_dict(trunk.state_dict())
        return critic

    def values(self, images: Mapping[str, Shaped[Tensor, "b _ _ 3"]], instruction: Sequence[str]) -> Float[Tensor, "b v"]:
        """All values of each observation."""
        return self.head(self.trunk(images, instruction, "the critic")).float()

    def forward(self, images: Mapping[str, Shaped[Tensor, "b _ _ 3"]], instruction: Sequence[str]) -> Float[Tensor, " b"]:
        """The first value of each observation."""
        return self.values(images, instruction)[:, 0]


class ValueHead(nn.Module, ABC):
    """A critic as policy-gradient learners use it, chosen by configuration.

    Args:
        per_action: False gives one value per decision (chunk level), True one per action of the chunk (action level), so that
            credit within a chunk goes to the action that earned it.
    """

    def __init__(self, per_action: bool = False):
        super().__init__()
        self.per_action = per_action

    @abstractmethod
    def build(self, policy: FlowPolicy, reflector: Reflector | None) -> None:
        """Create the networks."""

    @abstractmethod
    def forward(
        self, images: Mapping[str, Shaped[Tensor, "b _ _ 3"]], instruction: Sequence[str], features: Features
    ) -> Float[Tensor, "b v"]:
        """Values before a decision: v = 1, or ah if `per_action`."""


class OwnEncoder(ValueHead):
    """A critic with its own visual trunk, which starts from the reflector's where there is one."""

    def build(self, policy: FlowPolicy, reflector: Reflector | None) -> None:
        values = policy.action_horizon if self.per_action else 1
        self.net = Critic(values=values, views=policy.views) if reflector is None else Critic.like(reflector, values)

    def forward(self, images, instruction, features):
        return self.net.values(images, instruction)


class SharedFeatures(ValueHead):
    """A head on the policy's features, cut off from their gradient (pi_RL, arXiv:2510.25889): cheap, blind to what they omit."""

    def build(self, policy: FlowPolicy, reflector: Reflector | None) -> None:
        self.net = mlp(policy.feature_dim, 256, 256, policy.action_horizon if self.per_action else 1)

    def forward(self, images, instruction, features):
        return self.net(features.vector.detach()).float()
