"""From a configuration to a world, for every verb that plays one.

The world, what draws it and the conditions that it is met under are chosen apart: `world=push_block renderer=nerf
randomization=moderate`. A renderer names another class of the world; randomisation wraps whatever it is. Read `verbs.py` next.
"""

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from worldsim.core.installation import EXTRAS
from worldsim.core.world import World


def build_world(cfg: dict[str, Any]) -> World:
    """The world of `cfg["world"]`, under `cfg["randomization"]` if that is not null.

    Raises:
        ValueError: if a renderer is chosen for a world that has no scene, and draws its own pictures.
        ModuleNotFoundError: if the world needs an extra that is not installed.
    """
    if "fields" in cfg["world"] and "scene" not in cfg["world"]:
        what = "a dream" if "world_model" in cfg["world"] else "an environment of another package"
        raise ValueError(f"{what} draws its own pictures; leave renderer out, or choose world=push_block or world=room")
    try:
        world: World = instantiate(cfg["world"], _convert_="all")
    except InstantiationException as error:
        reason: BaseException = error
        while reason.__cause__ is not None:
            reason = reason.__cause__
        if isinstance(reason, ModuleNotFoundError) and (reason.name or "").partition(".")[0] in EXTRAS:
            raise reason from error
        raise
    return instantiate(cfg["randomization"], _convert_="all")(world) if cfg["randomization"] else world
