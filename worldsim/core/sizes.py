"""Whether models have the sizes of the data that they learn from or the world that they act in: said in one line, and at the start.

Sizes stand in two places, a model's constructor and the data or world, because either may come from somebody else. A model says its
own through the arguments that `Configured` records. Read `worldsim/deploy/export.py` next.
"""

from torch import nn

from worldsim.core.checkpoint import Configured
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.spec import Spec, match
from worldsim.core.views import check_cameras

MEANING = {"state_dim": "numbers of state", "action_dim": "numbers of an action"}


def check_names(module: nn.Module, spec: Spec, there: str = "the world") -> None:
    """ValueError if a model inside `module` learned other channels than there are, in another unit, of another kind or order."""
    for model in (part for part in module.modules() if isinstance(part, Configured) and part.spec is not None):
        for feature in ("state", "action"):
            wanted, found = (getattr(one, feature) for one in (model.spec, spec))
            who = f"the {type(model).__name__}"
            order = match(wanted, found, what=feature, who=who, where=there, exact=True)
            if order != tuple(range(len(wanted))):
                names = [", ".join(channel.name for channel in channels) for channels in (wanted, found)]
                raise ValueError(
                    f"{who} has {feature} channels in the order {names[0]}, {there} in the order {names[1]}; list them alike"
                )


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
