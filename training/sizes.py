"""Whether a dataset has the sizes of the model that shall learn from it: said in one line, and before training.

Sizes stand in two places, a model's constructor and the data, because either may come from somebody else. A model says its own
through the arguments that `Configured` records. Read `training/batches.py` next.
"""

from torch import nn

from worldsim.checkpoint import Configured
from worldsim.data.windows import FrameTable
from worldsim.interfaces import WorldModel


def check_sizes(module: nn.Module, table: FrameTable) -> None:
    """ValueError if a model inside `module` was built for another size of state, action or picture than `table` holds."""
    there = {"state_dim": table.state.shape[1], "action_dim": table.action.shape[1], "image": list(table.frames.shape[1:3])}
    for model in module.modules():
        for name, size in there.items():
            built = model.arguments.get(name) if isinstance(model, Configured) else None
            if built is not None and built != size:
                what = {"state_dim": "numbers of state", "action_dim": "numbers of an action", "image": "pixels (height, width)"}[
                    name
                ]
                raise ValueError(
                    f"the data have {size} {what}, {type(model).__name__} was built with {name}={built}; "
                    f"set its {name} to {size}, or use other data"
                )


def check_window(module: nn.Module, context: int, horizon: int) -> None:
    """ValueError if windows of `context` frames and `horizon` actions are not what a world model inside `module` takes."""
    for model in module.modules():
        if not isinstance(model, WorldModel):
            continue
        if context != model.context:
            raise ValueError(
                f"data.context is {context}, {type(model).__name__} has context {model.context}: its actions would belong to other "
                f"frames; set data.context={model.context}"
            )
        unroll = model.arguments.get("unroll")
        wanted = model.action_horizon * (unroll or max(1, horizon // model.action_horizon))
        if horizon != wanted:
            product = f"unroll {unroll} x action_horizon" if unroll else "a multiple of action_horizon"
            raise ValueError(
                f"data.horizon is {horizon}, {type(model).__name__} takes {product} {model.action_horizon}; "
                f"set data.horizon={wanted}"
            )
