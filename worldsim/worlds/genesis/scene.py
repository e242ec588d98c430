"""A table-top task as data: the YAML files of `sim_assets/scenes`, and how an episode is drawn from one.

A scene names the robot, blocks, goal discs, camera, success radius and phrasings; another task is another file. Nothing
here imports a simulator. Read `world.py` next: it builds a scene in Genesis.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from worldsim.core.installation import shipped

ASSETS = shipped("sim_assets")


@dataclass(frozen=True)
class Layout:
    """One episode's start, all positions in metres on the table plane.

    Attributes:
        blocks: x, y, yaw [rad] of each block, [n_blocks, 3].
        goals: x, y of each disc, [n_goals, 2].
        pusher: x, y of the robot and, where the scene draws one, its heading [rad], [2 or 3].
        block, goal: indices of the block and the disc that the instruction names.
        phrasing: index of the sentence template.
    """

    blocks: np.ndarray
    goals: np.ndarray
    pusher: np.ndarray
    block: int
    goal: int
    phrasing: int


class Scene:
    """A scene file, with the sentences and the start distribution that it defines.

    Args:
        name: file name in `sim_assets/scenes` without ending, or a path to a YAML file.
        phrasings: which sentence templates to speak, "train" or "eval" (kept out of all training data).
        robot_needs: what the scene must say of its robot, for a world to move it.

    Raises:
        FileNotFoundError: if there is no such scene.
        ValueError: if a key is missing, `phrasings` is unknown, or the scene's robot is another world's.
    """

    def __init__(self, name: str, phrasings: str = "train", robot_needs: Sequence[str] = ()):
        path = Path(name) if name.endswith((".yaml", ".yml")) else ASSETS / "scenes" / f"{name}.yaml"
        if not path.is_file():
            known = sorted(p.stem for p in (ASSETS / "scenes").glob("*.yaml"))
            raise FileNotFoundError(f"scene {name!r} not found at {path}; known scenes: {', '.join(known)}")
        self.data: dict[str, Any] = yaml.safe_load(path.read_text())
        if "base" in self.data:  # the scene that this one changes
            self.data = Scene(self.data["base"], phrasings).data | self.data
        missing = {"name", "fps", "robot", "camera", "blocks", "goals", "instructions", "success_radius_m"} - set(self.data)
        if missing:
            raise ValueError(f"scene {path} lacks the keys {sorted(missing)}; compare with sim_assets/scenes/push_block.yaml")
        if phrasings not in self.data["instructions"]:
            raise ValueError(f"phrasings must be one of {sorted(self.data['instructions'])}, got {phrasings!r}")
        if missing := [key for key in robot_needs if key not in self.data["robot"]]:
            raise ValueError(
                f"the robot of scene {self.data['name']} has no {' and no '.join(missing)}, which this world moves it by; "
                "world=room and renderer=nerf_rooms drive through rooms, world=push_block and renderer=nerf push on a table"
            )
        self.templates: list[str] = self.data["instructions"][phrasings]
        self.block_names = tuple(self.data["blocks"])
        self.goal_names = tuple(self.data["goals"])

    def sentence(self, block: int, goal: int, phrasing: int) -> str:
        """The instruction that names this block and disc."""
        return self.templates[phrasing].format(block=self.block_names[block], goal="".join(self.goal_names[goal : goal + 1]))

    def sentences(self) -> list[str]:
        """Every instruction that this scene can speak."""
        indices = product(*(range(max(1, len(x))) for x in (self.block_names, self.goal_names, self.templates)))
        return [self.sentence(*index) for index in indices]

    def draw(self, seed: int, episode: int) -> Layout:
        """Episode number `episode` of the stream `seed`: the same two numbers always give the same start.

        Raises:
            ValueError: if the clearances leave no room after 10,000 draws.
        """
        rng = np.random.default_rng([seed, episode])
        data, clearance = self.data, self.data["clearance_m"]

        def point(box: dict[str, Any]) -> np.ndarray:
            return np.array([rng.uniform(*box["x"]), rng.uniform(*box["y"])])

        def apart(points: list[np.ndarray], others: list[np.ndarray], distance: float) -> bool:
            return all(np.linalg.norm(p - q) >= distance for p in points for q in others if p is not q)

        for _ in range(10_000):
            blocks = [point(box) for box in data["blocks"].values()]
            goals = [point(box) for box in data["goals"].values()]
            pusher = point(data["robot"]["start"])
            if (
                apart(blocks, blocks, clearance["block_block"])
                and apart(goals, goals, clearance["goal_goal"])
                and apart(goals, blocks, clearance["goal_block"])
                and apart([pusher], blocks, clearance["pusher_block"])
            ):
                break
        else:
            raise ValueError(f"scene {data['name']}: no start keeps the clearances {clearance} in 10,000 draws; reduce them")
        yaw = [np.deg2rad(rng.uniform(*box["yaw"])) for box in data["blocks"].values()]
        names = (self.block_names, self.goal_names, self.templates)
        block, goal, phrasing = (int(rng.integers(max(1, len(x)))) for x in names)
        if "yaw" in data["robot"]["start"]:
            pusher = np.append(pusher, np.deg2rad(rng.uniform(*data["robot"]["start"]["yaw"])))
        return Layout(np.column_stack([np.stack(blocks), yaw]), np.reshape(goals, (-1, 2)), pusher, block, goal, phrasing)


class Paraphrases:
    """Says the same in other words: language augmentation with a scene's training sentences.

    Args:
        scene: name or path of the scene, as for `Scene`.
    """

    def __init__(self, scene: str = "push_block"):
        speaker = Scene(scene)
        self.same: dict[str, list[str]] = {}
        for block, goal in product(range(len(speaker.block_names)), range(max(1, len(speaker.goal_names)))):
            group = [speaker.sentence(block, goal, phrasing) for phrasing in range(len(speaker.templates))]
            self.same |= dict.fromkeys(group, group)

    def __call__(self, sentences: Sequence[str], generator: torch.Generator) -> tuple[str, ...]:
        """Each sentence in one of its wordings, drawn uniformly; one that the scene does not speak stays as it is."""
        draws = torch.rand(len(sentences), generator=generator).tolist()
        groups = (self.same.get(sentence, [sentence]) for sentence in sentences)
        return tuple(group[int(draw * len(group))] for group, draw in zip(groups, draws, strict=True))
