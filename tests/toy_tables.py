"""A table of small episodes that tell by their colours which they are, and the data modules as a trainer has them."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from training.supervised.augmentation import Augmentation
from training.supervised.data import DemonstrationData, KeyframeStarts, ReflectorData, StartData, TableData, WorldModelData
from worldsim.core.types import Episode
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.windows import Mirror

VIEWS = {"front": (8, 8)}
EPISODES, HELD_OUT, LENGTH = 10, 0.2, 6
CLASSES = {cls.__name__: cls for cls in (WorldModelData, ReflectorData, DemonstrationData, StartData, KeyframeStarts)}


def attached(data: TableData, views: Any = VIEWS) -> TableData:
    """`data` as a trainer has it, with a module whose models take windows of 2 frames and 4 actions, and chunks of 3."""
    module = torch.nn.Module()
    module.views, module.context, module.policy = views, 2, SimpleNamespace(views=views, action_horizon=3)  # type: ignore[assignment]
    module.world_model = SimpleNamespace(views=views, context=2, horizon=4)  # type: ignore[assignment]
    module.reflector = SimpleNamespace(views=views, context=1)  # type: ignore[assignment]
    place = SimpleNamespace(total_batch_idx=-1)
    rank = {"global_rank": 0, "world_size": 1, "precision_plugin": SimpleNamespace(forward_context=nullcontext)}
    data.trainer = SimpleNamespace(lightning_module=module, fit_loop=place, **rank)  # type: ignore[assignment]
    return data


def episode(number: int) -> Episode:
    """Red tells the episode, green the frame, blue is 200 in the left half, 0 in the right. State and action are positive."""
    frames = torch.zeros(LENGTH + 1, 8, 8, 3, dtype=torch.uint8)
    frames[..., 0] = number
    frames[..., 1] = torch.arange(LENGTH + 1)[:, None, None]
    frames[:, :, :4, 2] = 200
    return Episode(
        images={"front": frames},
        state=torch.full((LENGTH + 1, 2), 1.0 + number),
        action=torch.full((LENGTH, 2), 0.01 * (1 + number)),
        reward=torch.zeros(LENGTH),
        success=(torch.arange(LENGTH + 1) == LENGTH).float(),
        progress=torch.linspace(0, 1, LENGTH + 1),
        instruction=f"sentence {number % 3}",
        source="expert",
    )


def record(path: Path, episodes: int | list[Episode], *, judged: bool = True) -> Path:
    names = {"state_names": ["x", "y"], "action_names": ["dx", "dy"]}
    with DatasetWriter(
        path, fps=10, robot_type="test", cameras={"front": (8, 8)}, storage="image", judged=judged, **names
    ) as writer:
        writer.add([episode(n) for n in range(episodes)] if isinstance(episodes, int) else episodes)
    return path


def build(name: str, root: Path, views: Any = VIEWS, **kwargs: Any) -> TableData:
    known = Augmentation(kwargs.pop("mirror", Mirror(state=(-1, 1), action=(-1, 1))), kwargs.pop("paraphrases", None))
    settings = {"batch_size": 32, "held_out": HELD_OUT, "augmentation": known, **kwargs}
    if name == "ReflectorData":
        settings["max_shift"] = 0
    data = attached(CLASSES[name]([str(root)], **settings), views)
    data.setup("fit")
    return data
