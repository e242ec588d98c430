"""Whether models have the sizes of the data that they learn from or the world that they act in: said in one line, and at the start.

Sizes stand in two places, a model's constructor and the data or world, because either may come from somebody else. A model says its
own through the arguments that `Configured` records. Read `worldsim/deploy/export.py` next.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from worldsim.core.checkpoint import Configured
from worldsim.core.spec import Spec, match
from worldsim.core.world import World

Sizes = Mapping[str, int | list[int]]

MEANING = {
    "state_dim": "numbers of state",
    "action_dim": "numbers of an action",
    "image": "pixels (height, width)",
}


def world_sizes(world: World) -> Sizes:
    """What a world shows and takes, as `FrameStore.sizes` says it of data."""
    images: Any = world.single_observation_space["images"]
    image = list(images[world.camera].shape[:2])
    return {"state_dim": len(world.state_names), "action_dim": len(world.action_names), "image": image}


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


def check_sizes(module: nn.Module, sizes: Sizes, there: str = "the data have") -> None:
    """ValueError if a model inside `module` was built for another size than there is.

    Args:
        module: whose arguments of these names count, and those of every `Configured` inside it.
        sizes: state_dim, action_dim, and image as [height, width]; see `FrameStore.sizes`.
        there: what has those sizes, as the message says it.
    """
    for model in module.modules():
        for name, size in sizes.items():
            built = model.arguments.get(name) if isinstance(model, Configured) else None
            if built is not None and built != size:
                raise ValueError(
                    f"{there} {size} {MEANING[name]}, {type(model).__name__} was built with {name}={built}; "
                    f"set its {name} to {size}, or use another one"
                )
