"""What every Genesis scene here has in common: how the simulator is started, how a scene is lit, and the bodies that never move.

It exists so that a world (`world.py`) and a photographer (`capture.py`) show the same things. Read `world.py` next.
"""

import os
import weakref
from typing import Any

import torch

from worldsim.worlds.genesis.quick_import import gs, quick_frames


def init_genesis() -> None:
    """Start Genesis on the CPU once per process, and leave torch's thread count as it was."""
    if not gs._initialized:
        # Mesa's own threads cost more than they bring on small pictures.
        os.environ.setdefault("LP_NUM_THREADS", "0")
        threads = torch.get_num_threads()
        with quick_frames():  # it imports its solvers
            gs.init(
                backend=gs.cpu,  # pyright: ignore[reportAttributeAccessIssue] - set by `import genesis` at run time
                logging_level="error",
                precision="32",
            )
        torch.set_num_threads(threads)


def new_scene(owner: object, **options: Any) -> Any:
    """An empty `gs.Scene` that is destroyed with its owner, whoever forgets to close it.

    Left to the garbage collector, its renderer may go before it, and then its finalizer raises in whatever runs at that moment.
    """
    with quick_frames():  # the first scene imports sensors and more
        scene = gs.Scene(show_viewer=False, **options)
    weakref.finalize(owner, scene.destroy).atexit = False  # at the exit Genesis destroys what is left itself
    return scene


def vis_options(data: dict[str, Any], **more: Any) -> Any:
    """How a scene is lit and rendered; one picture per environment. `more` are options of Genesis."""
    light = data["light"]
    return gs.options.VisOptions(
        split_envs=True,
        shadow=False,
        plane_reflection=False,
        ambient_light=(light["ambient"],) * 3,
        lights=[{"type": "directional", "dir": light["direction"], "color": (1.0, 1.0, 1.0), "intensity": light["intensity"]}],
        **more,
    )


def add_static(scene: Any, data: dict[str, Any], *, visible: bool = True) -> None:
    """The bodies of a scene that never move: its table or floor, and boxes around or on it."""
    table = data["table"]
    for box in [{**table, "pos": (0, 0, -table["size"][2] / 2)}, *data.get("furniture", [])]:
        scene.add_entity(
            gs.morphs.Box(size=box["size"], pos=box["pos"], fixed=True, visualization=visible),
            surface=gs.surfaces.Rough(color=tuple(box["color"])),
        )


def add_obstacles(scene: Any, file: str) -> None:
    """A mesh [m, z up] that is bumped into and not seen."""
    scene.add_entity(gs.morphs.Mesh(file=file, fixed=True, visualization=False, file_meshes_are_zup=True))
