"""Observations as robots send them, checked before a policy sees them: one camera, the state, a sentence, perhaps the noise.

The keys are those of openpi's clients. Whatever is wrong is said in one line, because the one who reads it stands beside a robot
and not beside the server. Read `served_bundle.py` next.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

MAX_PROMPT = 1000  # characters; a tokenizer keeps far fewer

IMAGE, STATE, PROMPT, NOISE = "observation/image", "observation/state", "prompt", "noise"


@dataclass(frozen=True)
class Request:
    """A checked observation.

    Attributes:
        image: RGB uint8 [h, w, 3].
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
        camera: its name.
        image: (h, w, 3).
        state: (s,).
        noise: (ah, ad), the shape of its actions.
    """

    camera: str
    image: tuple[int, ...]
    state: tuple[int, ...]
    noise: tuple[int, ...]

    def metadata(self) -> dict[str, Any]:
        """What clients want to know, in types that travel."""
        return {
            "camera": self.camera,
            "image_shape": list(self.image),
            "state_dim": self.state[0],
            "noise_shape": list(self.noise),
            "action_horizon": self.noise[0],
            "action_dim": self.noise[1],
        }

    def read(self, observation: dict[str, Any]) -> Request:
        """Check an observation. Keys that no policy of ours reads are ignored, as openpi's servers do.

        Args:
            observation: ``observation/images/<camera>`` or ``observation/image`` (uint8), ``observation/state`` (any float),
                ``prompt`` and, where the client wants to decide it, ``noise`` (any float).

        Raises:
            ValueError: if one is missing, of another shape or dtype, not finite or too long.
        """
        named = f"observation/images/{self.camera}"
        image = _array(observation, named if named in observation else IMAGE, self.image, "uint8").copy()  # torch wants to own it
        prompt = observation.get(PROMPT)
        if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
            got = f"{len(prompt)} characters" if isinstance(prompt, str) else f"a {type(prompt).__name__}"
            raise ValueError(f"{PROMPT} must be a sentence of at most {MAX_PROMPT} characters, got {got}; send the instruction")
        noise = _floats(observation, NOISE, self.noise) if NOISE in observation else None
        return Request(image, _floats(observation, STATE, self.state), prompt, noise)


def _floats(observation: dict[str, Any], key: str, shape: tuple[int, ...]) -> np.ndarray:
    with np.errstate(over="ignore"):
        values = _array(observation, key, shape, "a float").astype(np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{key} must be finite, got NaN, infinity or a number beyond float32; check the sensor")
    return values


def _array(observation: dict[str, Any], key: str, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    value = observation.get(key)
    if not isinstance(value, np.ndarray):
        got = "nothing" if key not in observation else f"a {type(value).__name__}"
        raise ValueError(f"{key} must be an array of {dtype} and shape {shape}, got {got}; send it as an ndarray")
    fits = value.dtype == np.uint8 if dtype == "uint8" else value.dtype.kind == "f"
    if not fits or value.shape != shape:
        raise ValueError(f"{key} must be {dtype} of shape {shape}, got {value.dtype} {value.shape}; convert it in the client")
    return value
