"""A dataset by reference: a folder with one `spec.yaml` that names somebody's dataset and says what its numbers mean.

Real datasets lie where nobody may write, and call things as they like. `worldsim adopt` writes this file, people edit it, and what
takes a dataset takes the folder: the recording stays as it is. Read `dataset_spec.py` next: what may stand there besides.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from worldsim.core.spec import OVERLAY
from worldsim.core.strict import Node
from worldsim.data import lerobot_format as fmt

SPEC = Path("spec.yaml")
OURS = ("dataset", "features", "views")  # what stands there beside an overlay
# What worldsim calls a feature that a dataset may call otherwise, and what `features:` calls it.
CALLED = {
    "state": "observation.state",
    "action": "action",
    "reward": "next.reward",
    "success": "success",
    "progress": "progress",
}


class Adoption(NamedTuple):
    """What a folder's `spec.yaml` says.

    Attributes:
        dataset: the folder with the recording.
        features: features of the recording that make up one of worldsim's, in their order, by worldsim's name.
        views: camera and the height and width at which models see it; None if it says nothing.
        overlay: what the numbers mean, as in `meta/spec.yaml`.
    """

    dataset: Path
    features: dict[str, list[str]]
    views: dict[str, list[int]] | None
    overlay: dict[str, Any]


def adoption(root: Path) -> Adoption | None:
    """What the folder of an adopted dataset says; None if `root` is none.

    Raises:
        ValueError: if its `spec.yaml` is damaged, names no dataset or says what has no meaning, in one line.
    """
    path = root / SPEC
    if not path.is_file() or (root / fmt.INFO).exists():
        return None
    said = Node(str(path), "", read_yaml(path)).entries((*OURS, *OVERLAY), needed=("dataset",))
    dataset = Path(said["dataset"].text()).expanduser()
    features = {
        CALLED[name]: [item.text() for item in node.items()] if isinstance(node.value, list) else [node.text()]
        for name, node in (said["features"].entries(tuple(CALLED)) if "features" in said else {}).items()
    }
    if empty := [name for name, parts in features.items() if not parts and name != CALLED["state"]]:
        raise ValueError(f"{path}: {empty[0]} has no feature; name one, only a state may be missing ([])")
    for name in (name for name in ("next.reward", "success", "progress") if name in features):
        if len(features[name]) != 1 or features[name] == ["next.success"]:
            found = ", ".join(features[name])
            raise ValueError(
                f"{path}: {name} is {found}, expected one feature that is of the frame itself; next.success is read as it is"
            )
    views = None
    if "views" in said:
        views = {name: [side.count() for side in node.items()] for name, node in said["views"].entries().items()}
    overlay = {name: node.value for name, node in said.items() if name in OVERLAY}
    return Adoption(dataset if dataset.is_absolute() else root / dataset, features, views, overlay)


def open_info(root: Path) -> tuple[Path, dict[str, Any]]:
    """Where the files of a dataset lie, and its `info.json` with features by the names that worldsim has for them.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if `spec.yaml` or `info.json` is damaged, or lacks what every dataset has.
    """
    adopted = adoption(root)
    return (root, fmt.read_info(root)) if adopted is None else (adopted.dataset, fmt.read_info(adopted.dataset, adopted.features))


def read_yaml(path: Path) -> Any:
    """The contents of a YAML file, an empty mapping if there are none; ValueError in one line if it is not valid."""
    try:
        content = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, AttributeError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}; correct it there") from error
    return {} if content is None else content


def views_said(root: Path) -> Mapping[str, list[int]] | None:
    """Cameras and sizes that the `spec.yaml` of an adopted dataset chooses, or None."""
    adopted = adoption(root)
    return None if adopted is None else adopted.views
