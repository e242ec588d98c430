"""From a configuration to a world, for every verb that plays one.

The world, what draws it and the conditions that it is met under are chosen apart: `world=push_block renderer=nerf
randomization=moderate`. A renderer names another class of the world; randomisation wraps whatever it is. Read `verbs.py` next.
"""

from typing import Any

from hydra.utils import instantiate

from worldsim.core.world import World


def build_world(cfg: dict[str, Any]) -> World:
    """The world of `cfg["world"]`, under `cfg["randomization"]` if that is not null.

    Raises:
        ValueError: if a renderer is chosen for a dream.
    """
    if {"fields", "world_model"} <= cfg["world"].keys():
        raise ValueError("a dream draws its own pictures; leave renderer out, or choose world=push_block or world=room")
    world: World = instantiate(cfg["world"], _convert_="all")
    return instantiate(cfg["randomization"], _convert_="all")(world) if cfg["randomization"] else world
