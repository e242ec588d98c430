"""`KeyedWorld`: a Gymnasium environment that a configuration describes: its id, which key is which camera, the state and success.

Environments whose observations are dictionaries of pictures and numbers, as LeRobot's are, and those that are drawn by `render`
need no code. For any other write an `Adapter`, see `worldsim/worlds/gym.py`. Read `docs/your_world.md` next.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float, UInt8

from worldsim.core.installation import EXTRAS, add
from worldsim.core.spec import Channel
from worldsim.core.world import Reward
from worldsim.worlds.gym import Adapter, GymWorld, display

RENDER = "render"  # the camera that is no key, but what `render()` gives


def make(env: str, **settings: Any) -> gym.Env:
    """An environment by its id, without Gymnasium's time limit.

    Args:
        env: such as Pendulum-v1, gym_aloha/AlohaInsertion-v0, whose package has the name of the namespace, or package:id.
        settings: arguments of its constructor.

    Raises:
        ValueError: if there is no such environment, its package is not installed, it does not take an argument, or it cannot draw.
    """
    if sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # else MuJoCo looks for a display, and fails when it draws
    package, colon, name = env.rpartition(":")
    package = package or name.rpartition("/")[0]
    if package and (colon or name not in gym.registry):
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            missing = str(error.name).partition(".")[0]
            remedy = (
                add(missing) if missing in EXTRAS else f"install {missing}, or name the package that has it: env=PACKAGE:{name}"
            )
            raise ValueError(f"environment {env} needs {missing}, which is not installed; {remedy}") from error
    if name not in gym.registry:
        near = get_close_matches(name, gym.registry, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "name the package that has it: env=PACKAGE:ID"
        raise ValueError(f"Gymnasium knows no environment {name}; {hint}")
    try:
        with display(env):
            return gym.make(name, max_episode_steps=-1, disable_env_checker=True, **settings)
    except (gym.error.Error, TypeError) as error:
        raise ValueError(f"environment {env} cannot be made with {settings}: {' '.join(str(error).split())}") from error


def look_up(tree: Any, key: str, what: str) -> Any:
    """`tree["a"]["b"]` for the key a.b, or `tree["a.b"]` where that is a key.

    Raises:
        ValueError: if it is not there; it names what is.
    """
    if isinstance(tree, Mapping) and key in tree:
        return tree[key]
    for part in key.split("."):
        if not isinstance(tree, Mapping) or part not in tree:
            found = (
                f"the keys {', '.join(map(str, tree))}" if isinstance(tree, Mapping) and tree else f"no keys, {type(tree).__name__}"
            )
            raise ValueError(f"{what} has no {key}: where {part} should be are {found}; name what is there, or null")
        tree = tree[part]
    return tree


class KeyedAdapter(Adapter):
    """One environment, by the keys of its observations and infos; a.b is the key b of what stands under a.

    Args:
        env: as for `make`.
        instruction: what there is to do, one sentence.
        cameras: where each camera's pictures lie in observations, by its name; `render` is what the environment's `render()` gives.
        state: where the state lies in observations; null if they are nothing else.
        success: where infos say that the task is done, from the first step on; null if nobody says it.
        settings: arguments of the environment's constructor.
        fps: control steps per second; null is what the environment's metadata say.
        max_episode_steps: null is the environment's own limit.
        names: of the numbers of the state, then of the action; null counts them.
        robot_type: what moves.
        repeats: see `Adapter`.

    Raises:
        ValueError: if the environment cannot be made, its actions are not one row of numbers, a key is not there, or it has no rate
            or limit and none is given.
    """

    def __init__(
        self,
        env: str,
        instruction: str,
        cameras: Mapping[str, str],
        state: str | None,
        success: str | None,
        settings: Mapping[str, Any],
        fps: int | None,
        max_episode_steps: int | None,
        names: tuple[Sequence[str] | None, Sequence[str] | None],
        robot_type: str,
        repeats: bool,
    ):
        drawn = {"render_mode": "rgb_array"} if RENDER in cameras.values() else {}
        super().__init__(make(env, **drawn | dict(settings)))
        spec, space = self.env.spec, self.env.action_space
        assert spec is not None
        rate, limit = fps or self.env.metadata.get("render_fps"), max_episode_steps or gym.spec(spec.id).max_episode_steps
        for name, value, meaning in (("fps", rate, "control rate in Hz"), ("max_episode_steps", limit, "longest episode")):
            if value is None:
                raise ValueError(f"environment {env} does not say its {meaning}; give {name}")
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(
                f"environment {env} takes actions of {space}, expected a Box of one row; write an Adapter that makes them"
            )
        if not cameras:
            raise ValueError(f"environment {env} has no camera; name where its pictures lie, such as cameras={{front: {RENDER}}}")
        if round(rate) < 1:  # type: ignore[arg-type]
            raise ValueError(f"fps is {rate}, expected 1 or more; a world has whole steps per second")
        self.fps, self.max_episode_steps, self.robot_type, self.repeats = round(rate), limit, robot_type, repeats  # type: ignore[arg-type]
        self._sentence, self._cameras, self._key, self._success_key = instruction, cameras, state, success
        self.reset(0)
        self.state_channels = tuple(Channel(name) for name in _named("state", names[0], self.state().shape[0]))
        bounds = zip(_named("action", names[1], space.shape[0]), space.low.tolist(), space.high.tolist(), strict=True)
        self.action_channels = tuple(Channel(name, low=low, high=high) for name, low, high in bounds)

    def reset(self, seed: int) -> None:
        super().reset(seed)
        self._succeeded = False

    def step(self, action: Float[np.ndarray, " ad"]) -> tuple[float, bool, bool]:
        result = super().step(action)
        if self._success_key is not None:
            self._succeeded = bool(look_up(self.info, self._success_key, f"what {self.env.spec.id} says of a step"))  # type: ignore[union-attr]
        return result

    def images(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        return {camera: self._picture(key) for camera, key in self._cameras.items()}

    def _picture(self, key: str) -> UInt8[np.ndarray, "h w 3"]:
        if key != RENDER:
            return np.asarray(look_up(self.seen, key, "an observation"))
        viewer = getattr(getattr(self.env.unwrapped, "mujoco_renderer", None), "viewer", None)
        if viewer is not None:
            viewer.make_context_current()  # Gymnasium's viewers draw with whichever was made last
        with display(str(self.env)):
            return np.asarray(self.env.render())

    def state(self) -> Float[np.ndarray, " s"]:
        found = self.seen if self._key is None else look_up(self.seen, self._key, "an observation")
        if isinstance(found, Mapping):
            raise ValueError(f"an observation has the keys {', '.join(map(str, found))}; name the one that is the state")
        return np.atleast_1d(np.asarray(found, np.float32)).ravel()

    def instruction(self) -> str:
        return self._sentence

    def success(self) -> bool:
        return self._succeeded


def _named(feature: str, names: Sequence[str] | None, number: int) -> Sequence[str]:
    """The names, or counted ones."""
    if names is None:
        return [f"{feature}_{i}" for i in range(number)]
    if len(names) != number:
        raise ValueError(f"{feature}_names has {len(names)} names, the environment {number} numbers; name each of them")
    return names


class KeyedWorld(GymWorld):
    """`num_envs` environments that a configuration describes; the arguments are those of `KeyedAdapter` and of `GymWorld`."""

    def __init__(
        self,
        env: str,
        instruction: str,
        cameras: Mapping[str, str],
        state: str | None = None,
        success: str | None = "is_success",
        settings: Mapping[str, Any] | None = None,
        fps: int | None = None,
        max_episode_steps: int | None = None,
        state_names: Sequence[str] | None = None,
        action_names: Sequence[str] | None = None,
        robot_type: str = "unknown",
        repeats: bool = True,
        num_envs: int = 16,
        seed: int = 0,
        reward: Reward | None = None,
    ):
        described = (settings or {}, fps, max_episode_steps, (state_names, action_names), robot_type, repeats)
        super().__init__(partial(KeyedAdapter, env, instruction, cameras, state, success, *described), num_envs, seed, reward)
