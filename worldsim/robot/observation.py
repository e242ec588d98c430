"""Observations as robots send them, checked before a policy sees them: cameras, the state, a sentence, perhaps the noise.

The keys are those of openpi's clients. Whatever is wrong is said in one line, because the one who reads it stands beside a robot
and not beside the server. Read `worldsim/core/views.py` for what becomes of the pictures, then `served_bundle.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from worldsim.core.views import Views, check_cameras, mosaic

MAX_PROMPT = 1000  # characters; a tokenizer keeps far fewer
MAX_SIDE = 4096  # pixels

IMAGE, IMAGES, STATE, PROMPT, NOISE = "observation/image", "observation/images/", "observation/state", "prompt", "noise"


@dataclass(frozen=True)
class Request:
    """A checked observation.

    Attributes:
        image: the mosaic of the cameras, RGB uint8 [h, w, 3].
        state: proprioception in native units, float32 [s].
        prompt: the instruction.
        noise: standard normal, float32 [ah, ad]; None where the client leaves it to the server.
    """

    image: np.ndarray
    state: np.ndarray
    prompt: str
    noise: np.ndarray | None


@dataclass(frozen=True)
class Sizes:
    """What a policy expects.

    Attributes:
        views: the cameras and the sizes at which it sees them; pictures may come in any size.
        state: (s,).
        actions: (ah, ad).
        takes_noise: a client may send the noise, of the shape of the actions, that the policy makes them of.
    """

    views: Views
    state: tuple[int, ...]
    actions: tuple[int, ...]
    takes_noise: bool = True

    def metadata(self) -> dict[str, Any]:
        """What clients want to know, in types that travel."""
        return {
            "views": {name: list(size) for name, size in self.views.items()},
            "state_dim": self.state[0],
            "action_horizon": self.actions[0],
            "action_dim": self.actions[1],
        } | ({"noise_shape": list(self.actions)} if self.takes_noise else {})

    def read(self, observation: dict[str, Any]) -> Request:
        """Check an observation. Keys that no policy of ours reads are ignored, as openpi's servers do.

        Args:
            observation: ``observation/images/<camera>`` of each view (uint8 [h, w, 3], sides of 1 to 4,096 pixels), which may be
                ``observation/image`` where there is one view, ``observation/state`` (any float), ``prompt`` and, where the client
                wants to decide it, ``noise`` (any float).

        Raises:
            ValueError: if one is missing, of another shape or dtype, not finite or too long.
        """
        keys = {name: IMAGES + name for name in self.views}
        if len(keys) == 1 and IMAGE in observation and not observation.keys() & set(keys.values()):
            keys = dict.fromkeys(keys, IMAGE)
        images = {name: _picture(key, observation.get(key)) for name, key in keys.items()}
        image = mosaic(images, self.views).copy()  # torch wants to own it
        prompt = observation.get(PROMPT)
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            got = f"{len(prompt)} characters" if isinstance(prompt, str) else f"a {type(prompt).__name__}"
            raise ValueError(f"{PROMPT} must be a sentence of at most {MAX_PROMPT} characters, got {got}; send the instruction")
        if NOISE in observation and not self.takes_noise:
            raise ValueError(f"{NOISE} is nothing that this policy takes, it draws what it needs itself; leave it out")
        noise = _floats(observation, NOISE, self.actions) if NOISE in observation else None
        return Request(image, _floats(observation, STATE, self.state), prompt, noise)


def _floats(observation: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = _array(observation, key, shape).astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{key} must be finite, got NaN, infinity or a number beyond float32; check the sensor")
    return values


def _array(observation: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    value = observation.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.shape != shape:
        raise ValueError(f"{key} must be a float array of shape {shape}, got {_described(value)}; convert it in the client")
    return value


def picture_of(images: Mapping[str, np.ndarray], views: Views) -> np.ndarray:
    """What a policy sees of a robot's cameras, uint8 [h, w, 3].

    Raises:
        ValueError: if a camera is missing, or its picture is not uint8 [h, w, 3] with sides of 1 to 4,096 pixels.
    """
    check_cameras(views, images, "the policy", "the robot has")
    return mosaic({name: _picture(f"camera {name}", images[name]) for name in views}, views)


def _picture(key: str, value: object) -> np.ndarray:
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != np.uint8
        or value.ndim != 3
        or value.shape[2] != 3
        or not 1 <= min(value.shape) <= max(value.shape) <= MAX_SIDE
    ):
        expected = f"a picture, uint8 [height, width, 3] with sides of 1 to {MAX_SIDE}"
        raise ValueError(f"{key} must be {expected}, got {_described(value)}; convert it")
    return value


def _described(value: object) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return "nothing" if value is None else f"a {type(value).__name__}"
