"""The one flow kernel: time convention, matching loss and ODE sampler shared by policies and world models.

Time runs from t = 1 (noise) to t = 0 (data), as in openpi: ``x_t = t*noise + (1-t)*data`` and the velocity target is
``v = noise - data``. Nothing else in the repository defines a time direction. Read `training/rl/math/flow_sde.py`
next: it makes this deterministic sampler stochastic without changing its marginals.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

VelocityField = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x_t, t)`` with x_t [b, ...] and t [b] in (0, 1]; returns the velocity, shaped like x_t."""


def expand_time(t: Float[Tensor, " b"], x: Tensor) -> Tensor:
    """t [b] with trailing axes of length one so that it broadcasts against x [b, ...]."""
    return t.reshape(-1, *([1] * (x.ndim - 1)))


def interpolate(data: Tensor, noise: Tensor, t: Float[Tensor, " b"]) -> Tensor:
    """The point x_t = t*noise + (1-t)*data on the straight path (Lipman et al. 2023, arXiv:2210.02747)."""
    t = expand_time(t, data)
    return t * noise + (1 - t) * data


def velocity_target(data: Tensor, noise: Tensor) -> Tensor:
    """The velocity dx_t/dt = noise - data of the straight path."""
    return noise - data


def data_estimate(x_t: Tensor, v: Tensor, t: Float[Tensor, " b"]) -> Tensor:
    """The data end of the path through x_t with velocity v: x_0 = x_t - t*v."""
    return x_t - expand_time(t, x_t) * v


def noise_estimate(x_t: Tensor, v: Tensor, t: Float[Tensor, " b"]) -> Tensor:
    """The noise end of the path through x_t with velocity v: x_1 = x_t + (1-t)*v."""
    return x_t + (1 - expand_time(t, x_t)) * v


def time_grid(num_steps: int) -> list[float]:
    """The num_steps + 1 sampling times 1, 1-1/K, ..., 0.

    Raises:
        ValueError: if num_steps < 1.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}; 4 is a good default for small policies")
    return [1 - k / num_steps for k in range(num_steps)] + [0.0]


def alpha_grid(num_steps: int) -> Tensor:
    """Cumulative alphas [num_steps + 1] of a variance-preserving process at the times of `time_grid`: 0 at noise, 1 at data.

    A point of that process, sqrt(alpha)*data + sqrt(1-alpha)*noise, is a flow point in another scale (`from_alpha`). On this grid
    the DDIM sampler and `sample_ode` make the same steps (arXiv:2010.02502; Salimans and Ho 2022, arXiv:2202.00512).
    """
    t = torch.tensor(time_grid(num_steps), dtype=torch.float64)
    return ((1 - t).square() / ((1 - t).square() + t.square())).float()


def from_alpha(alpha: Float[Tensor, " b"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Flow time t and scale c of a variance-preserving point with cumulative alpha: x_flow = c*x_vp.

    c = 1/(sqrt(alpha) + sqrt(1-alpha)) and t = c*sqrt(1-alpha). The inverse is alpha = (1-t)^2 / ((1-t)^2 + t^2).
    """
    scale = 1 / (alpha.sqrt() + (1 - alpha).sqrt())
    return (1 - alpha).sqrt() * scale, scale


def sample_ode(velocity: VelocityField, noise: Tensor, *, num_steps: int) -> Tensor:
    """Euler integration of dx/dt = v from t = 1 to t = 0: x <- x - v/K. Differentiable in `noise` and `velocity`.

    Args:
        velocity: the field, called num_steps times.
        noise: x_1 ~ N(0, I), [b, ...]; draw it with the caller's generator.
        num_steps: K, the number of equal steps.

    Returns:
        The data sample x_0, shaped like `noise`.
    """
    x = noise
    for t in time_grid(num_steps)[:-1]:
        x = x - velocity(x, torch.full((x.shape[0],), t, device=x.device, dtype=x.dtype)) / num_steps
    return x


def sample_guided(
    velocity: VelocityField,
    noise: Float[Tensor, "b n d"],
    *,
    previous: Float[Tensor, "b n d"],
    weights: Float[Tensor, "b n"],
    num_steps: int,
    strongest: float = 5.0,
) -> Float[Tensor, "b n d"]:
    """`sample_ode` drawn towards a known sample: the guidance of real-time chunking (arXiv:2506.07339, equations 2 to 4).

    x <- x - (v - c g)/K with the data estimate x_0 = x - t*v, g = (d x_0 / d x)^T [w (previous - x_0)] and
    c = min(strongest, ((1-t)^2 + t^2) / (t (1-t))). With w = 0 it is `sample_ode`.

    Args:
        velocity: the field, differentiable in x.
        noise: x_1 ~ N(0, I).
        previous: what the sample should agree with.
        weights: w in [0, 1] of each of its n rows.
        num_steps: K.
        strongest: bound of the guidance; near noise the paper's weight goes to infinity.
    """
    x = noise
    for time in time_grid(num_steps)[:-1]:
        t = torch.full((x.shape[0],), time, device=x.device, dtype=x.dtype)

        def estimate(x: Tensor, t: Tensor = t) -> tuple[Tensor, Tensor]:
            v = velocity(x, t)
            return data_estimate(x, v, t), v

        data, pull_back, v = torch.func.vjp(estimate, x, has_aux=True)  # type: ignore[misc]
        (gradient,) = pull_back(weights[..., None] * (previous - data))
        strength = strongest if time == 1 else min(strongest, ((1 - time) ** 2 + time**2) / (time * (1 - time)))
        x = x - (v - strength * gradient) / num_steps
    return x


def matching_loss(
    velocity: VelocityField, data: Tensor, *, noise: Tensor, t: Float[Tensor, " b"], mask: Tensor | None = None
) -> Tensor:
    """Flow-matching loss E|v(x_t, t) - (noise - data)|^2 (arXiv:2210.02747, equation 23).

    Args:
        velocity: the field under training.
        data: clean samples, [b, ...].
        noise: standard normal, shaped like data.
        t: times in (0, 1], [b].
        mask: weights that broadcast against data; elements with 0 do not count.

    Returns:
        A scalar, the mean over counted elements.
    """
    error = (velocity(interpolate(data, noise, t), t) - velocity_target(data, noise)).square()
    if mask is None:
        return error.mean()
    mask = mask.expand_as(error)
    return (error * mask).sum() / mask.sum().clamp(min=1)
