"""Diffusion chains: DDPM and DDIM steps as a policy's actions (DPPO, arXiv:2409.00588), for diffusion and flow policies alike.

A variance-preserving point is a rescaled flow point (`worldsim.core.flow.from_alpha`), so a policy that offers a velocity offers a
noise prediction too, and the other way round. Read `advantages.py` and `losses.py` next: they turn chains into a policy update.
"""

from jaxtyping import Float
from torch import Tensor

from training.rl.math.denoising import Step, Transition
from worldsim.core.flow import VelocityField, data_estimate, expand_time, from_alpha, noise_estimate


def diffusion(velocity: VelocityField, alphas_cumprod: Float[Tensor, " k1"], *, eta: float, min_std: float) -> Transition:
    """The transition of DDIM (arXiv:2010.02502, equation 12) between two noise levels; eta = 1 is DDPM's ancestral step.

    x_{k+1} ~ N(sqrt(b)*x0 + sqrt(1-b-s^2)*eps, max(s, min_std)^2) with s = eta*sqrt((1-b)/(1-a))*sqrt(1-a/b), a and b the
    cumulative alphas of this step and the next, and x0, eps the network's estimates. The floor keeps exploring where the schedule
    has no noise left (DPPO, section 4.3). The plain step is eta = 0.

    Args:
        velocity: the policy's field at flow time; cast to the dtype of x_t.
        alphas_cumprod: of the K + 1 points of the chain in the order of denoising, rising to 1 at the action; for a scheduler of
            diffusers its ``alphas_cumprod[timesteps]`` and a final 1.
        eta: share of DDPM's noise, in [0, 1].
        min_std: least standard deviation while exploring, about 0.1.
    """

    def transition(x: Float[Tensor, "b ah ad"], step: Tensor) -> Step:
        alphas = alphas_cumprod.to(x)
        now, following = alphas[step], alphas[step + 1]
        t, scale = from_alpha(now)
        x_flow = x * expand_time(scale, x)
        v = velocity(x_flow, t).to(x.dtype)
        clean, eps = data_estimate(x_flow, v, t), noise_estimate(x_flow, v, t)
        a, b = expand_time(now, x), expand_time(following, x)
        variance = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        mean = b.sqrt() * clean + (1 - b - variance).clamp(min=0).sqrt() * eps
        return Step(mean, variance.sqrt().clamp(min=min_std), b.sqrt() * clean + (1 - b).sqrt() * eps)

    return transition
