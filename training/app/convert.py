"""`worldsim convert`: what others made, or what is to be made better, as what worldsim takes: scenes, and datasets.

Read `models/renderers/foreign.py` for scenes and `worldsim/data/editing.py` for datasets.
"""

from pathlib import Path
from typing import Any

from worldsim.data.editing import Edits, convert_datasets


def convert(cfg: dict[str, Any]) -> None:
    """A run of `ns-train` as a field that `world.fields=[...]` shows, or one or several datasets as a new one; never in place."""
    if (cfg["run"] is None) == (cfg["data"] is None):
        raise ValueError("convert needs either data=DATASET (or several: data=[A,B]) or run=FOLDER of ns-train")
    if cfg["run"] is not None:
        from models.renderers.foreign import convert as convert_run  # needs the extra nerf, which datasets do not

        print(convert_run(Path(cfg["run"]), Path(cfg["out"] or "runs/scene")))
        return
    if cfg["out"] is None:
        raise ValueError("out has no value; pass out=FOLDER of the new dataset")
    roots = [cfg["data"]] if isinstance(cfg["data"], str) else cfg["data"]
    edits = Edits(**{name: cfg[name] for name in ("drop", "keep", "split", "relabel") if cfg[name] is not None})
    data, new = convert_datasets(roots, cfg["out"], edits=edits, storage=cfg["storage"])
    print(f"{data.root}: {data.num_episodes} episodes with {data.num_frames} frames, {new} new")
