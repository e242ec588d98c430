"""Whether models have the sizes of the data that they learn from or the world that they act in: said in one line, and at the start.

Sizes stand in two places, a model's constructor and the data or world, because either may come from somebody else. A model says its
own through the arguments that `Configured` records. Read `worldsim/deploy/export.py` next.
"""

from dataclasses import replace
from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.spec import Spec, match
from worldsim.core.types import Observation
from worldsim.core.views import check_cameras

MEANING = {"state_dim": "numbers of state", "action_dim": "numbers of an action"}


class Joined(NamedTuple):
    """How a policy and a world, whose channels have the same names in any order, understand each other.

    Attributes:
        felt: the policy's state channels in the world's state.
        asked: the world's action channels in the policy's actions.
    """

    felt: list[int] | slice
    asked: list[int] | slice

    def seen(self, obs: Observation) -> Observation:
        """What the policy sees of the world's observation."""
        return replace(obs, state=obs.state[..., self.felt])

    def done(self, actions: Float[Tensor, "*b ad"]) -> Float[Tensor, "*b ad"]:
        """What the world is asked to do by the policy's actions."""
        return actions[..., self.asked]


def join(policy: Policy, spec: Spec | None, there: str = "the world") -> Joined:
    """By the names of the channels, or in the order in which they stand where policy or world has none.

    Raises:
        ValueError: if a name is missing, or stands for another unit or kind, or if a step there takes another time.
    """
    own = policy.spec
    if own is None or spec is None:
        return Joined(slice(None), slice(None))
    _check_rate(policy, spec, there)
    who = f"the {type(policy).__name__}"
    felt = match(own.state, spec.state, what="state", who=who, where=there, exact=True)
    asked = match(spec.action, own.action, what="action", who=there, where=who, exact=True)
    return Joined([*felt], [*asked])


def check_names(module: nn.Module, spec: Spec, there: str = "the world") -> None:
    """ValueError if a model inside `module` learned other channels than there are, in another unit, of another kind or at another
    rate, or if one that is no policy learned another order: whoever plays a policy joins it by name."""
    for model in (part for part in module.modules() if isinstance(part, Configured) and part.spec is not None):
        _check_rate(model, spec, there)
        for feature in ("state", "action"):
            wanted, found = (getattr(one, feature) for one in (model.spec, spec))
            who = f"the {type(model).__name__}"
            order = match(wanted, found, what=feature, who=who, where=there, exact=True)
            if order != tuple(range(len(wanted))) and not isinstance(model, Policy):
                names = [", ".join(channel.name for channel in channels) for channels in (wanted, found)]
                raise ValueError(
                    f"{who} has {feature} channels in the order {names[0]}, {there} in the order {names[1]}; list them alike"
                )


def _check_rate(model: Configured, spec: Spec, there: str) -> None:
    if model.spec is not None and model.spec.fps != spec.fps:
        rates = f"{model.spec.fps:g} steps a second, {there} has {spec.fps:g}"
        raise ValueError(f"the {type(model).__name__} learned at {rates}; use a model, data and a world of one rate")


def check_sizes(module: nn.Module, spec: Spec, there: str = "the data have") -> None:
    """ValueError if a model inside `module` was built for another size than there is, or looks through a camera that is not there.

    Args:
        module: whose arguments of these names count, and those of every `Configured` inside it.
        spec: whose `Spec.sizes` and cameras there are.
        there: what has those sizes, as the message says it.
    """
    for model in module.modules():
        if isinstance(model, Policy | WorldModel | Reflector):
            check_cameras(model.views, spec.cameras, type(model).__name__, there)
        for name, size in spec.sizes.items():
            built = model.arguments.get(name) if isinstance(model, Configured) else None
            if built is not None and built != size:
                raise ValueError(
                    f"{there} {size} {MEANING[name]}, {type(model).__name__} was built with {name}={built}; "
                    f"set its {name} to {size}, or use another one"
                )
