"""What randomisation does to pictures: a camera askew, light, a sensor, distractors. Each parameter is a distribution.

`randomized.py` draws the parameters once per episode and applies the effects to any world's frames.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.precision import exact
from worldsim.core.world import World

Frames = Float[Tensor, "b 3 h w"]
Values = dict[str, Float[Tensor, " b"]]


class Distribution(ABC):
    """A random number."""

    @abstractmethod
    def sample(self, noise: Noise, draw: str) -> Float[Tensor, " b"]:
        """One number for each of b environments, drawn under this name."""


@dataclass(frozen=True)
class Uniform(Distribution):
    """Uniform in [low, high]."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ValueError(f"a uniform distribution needs low <= high, got {self.low} and {self.high}")

    def sample(self, noise: Noise, draw: str) -> Float[Tensor, " b"]:
        return self.low + (self.high - self.low) * noise.uniform(draw)


@dataclass(frozen=True)
class LogUniform(Distribution):
    """exp of a uniform number: a factor in [low, high], as often below 1 as above if low = 1 / high."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 < self.low <= self.high:
            raise ValueError(f"a log-uniform distribution needs 0 < low <= high, got {self.low} and {self.high}")

    def sample(self, noise: Noise, draw: str) -> Float[Tensor, " b"]:
        return self.low * (self.high / self.low) ** noise.uniform(draw)


@dataclass(frozen=True)
class Normal(Distribution):
    """Normal with mean and standard deviation."""

    mean: float
    std: float

    def __post_init__(self) -> None:
        if not self.std >= 0:
            raise ValueError(f"a normal distribution needs std >= 0, got {self.std}")

    def sample(self, noise: Noise, draw: str) -> Float[Tensor, " b"]:
        return self.mean + self.std * noise.normal(draw)


def sampled(part: Any, noise: Noise) -> Values:
    """One draw of every field of a dataclass that is a `Distribution`, under the field's name."""
    chosen = {field.name: getattr(part, field.name) for field in fields(part)}
    return {key: value.sample(noise, key) for key, value in chosen.items() if isinstance(value, Distribution)}


class Effect(ABC):
    """Changes pictures; every field that is a `Distribution` is drawn once per episode."""

    @abstractmethod
    def apply(self, frames: Frames, values: Values, noise: Noise) -> Frames:
        """The changed pictures, 0..1 before and after; `noise` is that of the frame, for what changes from frame to frame."""

    def through(self, world: World) -> "Effect":
        """The effect as the camera of `world` shows it.

        Raises:
            ValueError: if the world does not tell what it depends on.
        """
        return self


@dataclass(frozen=True)
class View(Effect):
    """A camera mounted a little askew, with another lens: rotations [degrees] and zoom, exact for a camera that does not move (the
    homography K' R K^-1); what comes into view beyond the border repeats it.

    Attributes:
        pan, tilt, roll: to the right, up and clockwise.
        zoom: factor of the focal length.
        fov: vertical field of view of the world's camera [degrees]; None until `through` a world tells.
    """

    pan: Distribution
    tilt: Distribution
    roll: Distribution
    zoom: Distribution
    fov: float | None = None

    def through(self, world: World) -> "View":
        if self.fov is not None:
            return self
        if not hasattr(world.unwrapped, "fov"):
            raise ValueError(
                f"{type(world).__name__} does not tell its field of view; set effects.view.fov in degrees, or effects.view=null"
            )
        return replace(self, fov=world.unwrapped.fov)  # type: ignore[attr-defined]

    @exact
    def apply(self, frames: Frames, values: Values, noise: Noise) -> Frames:
        height, width = frames.shape[-2:]
        assert self.fov is not None
        edge = math.tan(math.radians(self.fov) / 2)
        y, x = _grid(height, width)
        rays = torch.stack([x * edge * width / height, y * edge, torch.ones_like(x)], dim=-1)  # OpenCV's axes: right, down, ahead
        rays = rays / torch.stack([values["zoom"], values["zoom"], torch.ones_like(values["zoom"])], dim=-1)[:, None, None]
        turned = torch.einsum("bij,bhwj->bhwi", _rotation(*(values[name].deg2rad() for name in ("pan", "tilt", "roll"))), rays)
        seen = turned[..., :2] / turned[..., 2:] / edge / torch.tensor([width / height, 1.0])
        return F.grid_sample(frames, seen, mode="bilinear", padding_mode="border", align_corners=False)


@dataclass(frozen=True)
class Light(Effect):
    """Exposure, colour of the light and a gradient of brightness across the picture.

    Attributes:
        exposure: factor of all channels.
        red, blue: further factors of these channels: warmer or colder light.
        slope: difference of brightness between the two ends of the picture, as a share of it.
        direction: of the slope [degrees].
    """

    exposure: Distribution
    red: Distribution
    blue: Distribution
    slope: Distribution
    direction: Distribution

    def apply(self, frames: Frames, values: Values, noise: Noise) -> Frames:
        height, width = frames.shape[-2:]
        y, x = _grid(height, width)
        angle = values["direction"].deg2rad()[:, None, None]
        ramp = 1 + values["slope"][:, None, None] / 2 * (angle.cos() * x + angle.sin() * y)
        tint = torch.stack([values["red"], torch.ones_like(values["red"]), values["blue"]], dim=1)
        return (frames * (values["exposure"][:, None] * tint)[..., None, None] * ramp[:, None]).clamp(0, 1)


@dataclass(frozen=True)
class Sensor(Effect):
    """Contrast, blur and noise of the camera.

    Attributes:
        contrast: factor of the distance from mid-grey.
        blur: standard deviation of a Gaussian [pixels].
        noise: standard deviation of noise that is new in every frame, of 0..1.
    """

    contrast: Distribution
    blur: Distribution
    noise: Distribution

    def apply(self, frames: Frames, values: Values, noise: Noise) -> Frames:
        frames = 0.5 + values["contrast"][:, None, None, None] * (frames - 0.5)
        taps = torch.arange(-3, 4)
        kernel = torch.exp(-0.5 * (taps / values["blur"].clamp(min=1e-3)[:, None]).square())
        kernel = (kernel / kernel.sum(dim=1, keepdim=True)).repeat_interleave(3, dim=0)  # one per environment and channel
        rows = F.pad(frames.flatten(0, 1)[None], (3, 3, 3, 3), mode="replicate")
        rows = F.conv2d(rows, kernel[:, None, None], groups=len(kernel))
        frames = F.conv2d(rows, kernel[:, None, :, None], groups=len(kernel))[0].unflatten(0, (-1, 3))
        if values["noise"].any():
            frames = frames + values["noise"][:, None, None, None] * noise.normal("grain", *frames.shape[1:])
        return frames.clamp(0, 1)


@dataclass(frozen=True)
class Distractors(Effect):
    """Coloured discs that have nothing to do with the task, in places that stay for the episode.

    Attributes:
        number: how many, rounded.
        size: radius as a share of the picture's height.
    """

    number: Distribution
    size: Distribution

    def apply(self, frames: Frames, values: Values, noise: Noise) -> Frames:
        height, width = frames.shape[-2:]
        y, x = _grid(height, width)
        number = values["number"].round()
        most = int(number.max().clamp(min=0))
        drawn = noise.at(0).uniform("discs", most, 5)  # of the episode, not of the frame
        for k in range(most):
            across, down = ((2 * drawn[:, k, i] - 1)[:, None, None] for i in (0, 1))
            inside = ((x - across) * width / height).square() + (y - down).square() < (2 * values["size"][:, None, None]).square()
            inside = inside & (k < number)[:, None, None]
            frames = torch.where(inside[:, None], drawn[:, k, 2:, None, None], frames)
        return frames


def _grid(height: int, width: int) -> tuple[Float[Tensor, "h w"], Float[Tensor, "h w"]]:
    """y and x of the centres of all pixels, between -1 and 1."""
    y, x = ((torch.arange(number) + 0.5) / number * 2 - 1 for number in (height, width))
    return torch.meshgrid(y, x, indexing="ij")  # type: ignore[return-value]


def _rotation(pan: Tensor, tilt: Tensor, roll: Tensor) -> Float[Tensor, "b 3 3"]:
    """Directions of a turned camera in the axes of the straight one (OpenCV's): about y, then x, then z."""
    zero, one = torch.zeros_like(pan), torch.ones_like(pan)

    def matrix(*rows: Sequence[Tensor]) -> Tensor:
        return torch.stack([torch.stack(list(row), dim=-1) for row in rows], dim=-2)

    about_y = matrix((pan.cos(), zero, pan.sin()), (zero, one, zero), (-pan.sin(), zero, pan.cos()))
    about_x = matrix((one, zero, zero), (zero, tilt.cos(), -tilt.sin()), (zero, tilt.sin(), tilt.cos()))
    about_z = matrix((roll.cos(), -roll.sin(), zero), (roll.sin(), roll.cos(), zero), (zero, zero, one))
    return about_y @ about_x @ about_z
