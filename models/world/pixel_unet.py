"""`PixelUNetWorldModel`: every frame denoised in pixels by diffusers' `UNet2DModel`, a network of DIAMOND's kind.

DIAMOND (arXiv:2405.12399) predicts one frame at a time from the last four and takes a few denoising steps for each; here
they are steps of the flow that all of worldsim uses. `worldsim bench speed` holds `latent_flow.py` against it. It trains like
that one: `worldsim fit experiment=world_model model/world_model=pixel_unet`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor

from worldsim.core.flow import VelocityField, matching_loss, sample_ode
from worldsim.core.interfaces import WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import apart, mosaic
from worldsim.core.spec import Spec
from worldsim.core.types import TensorBatch, float_image
from worldsim.core.units import Units
from worldsim.core.views import FRONT, views_of
from worldsim.nn.layers import mlp


@dataclass(frozen=True)
class PixelState(TensorBatch):
    """A dream's memory: the last frames of all cameras side by side, in -1..1, and the latest proprioception."""

    frames: Float[Tensor, "b context 3 y x"]
    state: Float[Tensor, "b s"]


class PixelUNetWorldModel(WorldModel):
    """p(next frame | last frames, action) by flow matching, frame after frame.

    Unlike DIAMOND it sees the latest action alone and learns the plain velocity, without EDM's preconditioning.

    Args:
        state_dim, action_dim: s and ad.
        context: real frames at the start, and frames that the network sees.
        action_horizon: frames per call, each of which takes a turn of its own.
        channels: of the U-Net's levels, multiples of 8; each level after the first has half the resolution.
        layers: residual blocks per level.
        sampling_steps: denoising steps per frame.
        state_weight: weight of the proprioception loss.
        views: the cameras that it predicts and the sizes at which it sees them, multiples of 2^(levels - 1).
    """

    differentiable = True
    causal = True

    def __init__(
        self,
        state_dim: int = 4,
        action_dim: int = 2,
        context: int = 4,
        action_horizon: int = 4,
        channels: tuple[int, ...] = (64, 64, 64, 64),
        layers: int = 2,
        sampling_steps: int = 3,
        state_weight: float = 0.1,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        self.views = views_of(views, 2 ** (len(channels) - 1))
        self.context, self.action_horizon, self.action_dim = context, action_horizon, action_dim
        self.sampling_steps, self.state_weight = sampling_steps, state_weight
        self.net = UNet2DModel(
            in_channels=3 * (context + 1),
            out_channels=3,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            layers_per_block=layers,
            norm_num_groups=8,
            add_attention=False,
            class_embed_type="identity",
        )
        self.condition = mlp(state_dim + action_dim, 256, 4 * channels[0])
        self.dynamics = mlp(state_dim + action_dim, 128, 128, state_dim)
        self.state_units, self.action_units = Units(state_dim), Units(action_dim)

    def fit_statistics(self, images: Mapping[str, Shaped[Tensor, "n _ _ 3"]], spec: Spec) -> None:
        super().fit_statistics(images, spec)
        self.state_units.fit(spec, "state")

    def init(
        self,
        images: Mapping[str, Shaped[Tensor, "b context _ _ 3"]],
        state: Float[Tensor, "b context s"],
        instruction: Sequence[str] = (),
    ) -> PixelState:
        frames = self._frames(images)
        if frames.shape[1] != self.context:
            raise ValueError(
                f"a dream starts from {self.context} frames, got {frames.shape[1]}; repeat the first one if there is no more"
            )
        return PixelState(frames, state[:, -1])

    def step(self, state: PixelState, actions: Float[Tensor, "b ah ad"], noise: Noise):
        if not 1 <= actions.shape[1] <= self.action_horizon:
            raise ValueError(f"a call takes 1 to {self.action_horizon} actions, got {actions.shape[1]}; split the chunk")
        frames, states, shape = state.frames, [state.state], state.frames.shape[2:]
        for i in range(actions.shape[1]):
            condition = self._condition(states[-1], actions[:, i])
            velocity = self._velocity(frames[:, -self.context :], condition)
            now = sample_ode(velocity, noise.at(noise.step + i).normal("world_model", *shape), num_steps=self.sampling_steps)
            frames = torch.cat([frames, now[:, None]], dim=1)
            states.append(self._next_state(states[-1], condition))
        pictures = rearrange(frames[:, self.context :], "b t c y x -> b t y x c") / 2 + 0.5
        return PixelState(frames[:, -self.context :], states[-1]), apart(pictures, self.views), torch.stack(states[1:], dim=1)

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Flow matching of each future frame from the real ones before it, and the proprioception error in standard deviations.

        Args:
            batch: a `FrameStore.window` of `action_horizon` future frames.
            generator: draws times and noise.
        """
        frames, n = self._frames(batch["images"]), self.action_horizon
        before = torch.cat([frames[:, i : i + self.context] for i in range(n)])
        clean = torch.cat([frames[:, self.context + i] for i in range(n)])
        felt, coming = (torch.cat([batch["state"][:, self.context + i - back] for i in range(n)]) for back in (1, 0))
        valid = torch.cat([batch["valid"][:, i] for i in range(n)]).float()
        asked = torch.cat([batch["action"][:, i] for i in range(n)])
        condition = self._condition(felt, torch.where(valid[:, None] > 0, asked, self.action_units.shift))
        t = torch.rand(len(clean), generator=generator, device=clean.device).clamp(min=0.02)
        noise = torch.randn(clean.shape, generator=generator, device=clean.device)
        velocity = self._velocity(before, condition)
        image_loss = matching_loss(velocity, clean, noise=noise, t=t, mask=valid[:, None, None, None])
        error = ((self._next_state(felt, condition) - coming) / self.state_units.scale).square().mean(-1)
        state_loss = (error * valid).sum() / valid.sum().clamp(min=1)
        loss = image_loss + self.state_weight * state_loss
        return loss, {"image_loss": image_loss.detach(), "state_loss": state_loss.detach()}

    def _frames(self, images: Mapping[str, Tensor]) -> Float[Tensor, "b t 3 y x"]:
        return rearrange(float_image(mosaic(images, self.views, "the world model")), "b t y x c -> b t c y x") * 2 - 1

    def _condition(self, state: Float[Tensor, "b s"], action: Float[Tensor, "b ad"]) -> Tensor:
        return torch.cat([self.state_units.network(state), self.action_units.network(action)], dim=-1)

    def _velocity(self, frames: Float[Tensor, "b context 3 y x"], condition: Tensor) -> VelocityField:
        seen, label = frames.flatten(1, 2), self.condition(condition)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            return self.net(torch.cat([seen, x], dim=1), 1000 * t, class_labels=label).sample.float()

        return velocity

    def _next_state(self, state: Float[Tensor, "b s"], condition: Tensor) -> Float[Tensor, "b s"]:
        return state + self.dynamics(condition).float() * self.state_units.scale
