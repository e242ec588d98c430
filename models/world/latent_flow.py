"""`LatentFlowWorldModel`: a video world model that predicts four frames per call in the space of a linear patch codec.

Frames become 16x16 latents by principal components of 4x4 patches (fitted in a second), and a small U-Net
conditioned on actions, proprioception and two context frames predicts the next chunk of latents by flow matching. Trained
on its own predictions as well (self-forcing), one sampling step is enough. Read `worldsim/worlds/dream.py` next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from worldsim.core.flow import expand_time, interpolate, time_grid
from worldsim.core.interfaces import Encoder, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.precision import exact
from worldsim.core.sight import apart, mosaic
from worldsim.core.spec import Spec
from worldsim.core.types import TensorBatch, float_image
from worldsim.core.units import Units
from worldsim.core.views import FRONT, canvas, views_of
from worldsim.nn.layers import ResidualBlock, mlp, time_embedding


class PatchCodec(nn.Module):
    """Linear autoencoder: principal components of image patches, scaled by std^0.5 so that fine detail is not drowned.

    Args:
        patch: side of a patch in pixels.
        channels: kept components.
    """

    mean: Tensor
    encoder: Tensor
    decoder: Tensor

    def __init__(self, patch: int = 4, channels: int = 12):
        super().__init__()
        self.patch, self.channels = patch, channels
        size = 3 * patch * patch
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("encoder", torch.zeros(size, channels))
        self.register_buffer("decoder", torch.zeros(channels, size))

    def fit(self, frames: Shaped[Tensor, "n h w 3"]) -> None:
        """Principal components of all patches of n frames (a few hundred are enough)."""
        patches = self._patches(float_image(frames)).reshape(-1, len(self.mean)).double()
        mean = patches.mean(0)
        values, vectors = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        values, vectors = values.flip(0)[: self.channels].clamp(min=1e-8), vectors.flip(1)[:, : self.channels]
        spread = values**0.25
        spread = spread * (values.sqrt() / spread).square().mean().sqrt()  # unit variance on average
        self.mean.copy_(mean)
        self.encoder.copy_(vectors / spread)
        self.decoder.copy_((vectors * spread).T)

    @exact
    def encode(self, frames: Shaped[Tensor, "*b h w 3"]) -> Float[Tensor, "*b c y x"]:
        """Frames (uint8 or float 0..1) to latents: a convolution over patches, in single precision."""
        kernel = rearrange(self.encoder, "(p q k) c -> c k p q", p=self.patch, q=self.patch)
        pixels = rearrange(float_image(frames), "... y x k -> (...) k y x")
        latents = nn.functional.conv2d(pixels.to(kernel.dtype), kernel, -(self.mean @ self.encoder), stride=self.patch)
        return latents.unflatten(0, frames.shape[:-3])

    @exact
    def decode(self, latents: Float[Tensor, "*b c y x"]) -> Float[Tensor, "*b h w 3"]:
        """Latents to float frames, not clamped, so that gradients pass; in single precision, as a picture has 8 bits."""
        patches = torch.einsum("...cyx,cp->...yxp", latents.to(self.decoder.dtype), self.decoder).add_(self.mean)
        return rearrange(patches, "... y x (p q c) -> ... (y p) (x q) c", p=self.patch, q=self.patch)

    def _patches(self, frames: Tensor) -> Tensor:
        return rearrange(frames, "... (y p) (x q) c -> ... y x (p q c)", p=self.patch, q=self.patch)


class LatentUNet(nn.Module):
    """Two-level U-Net of residual blocks with FiLM, without normalisation layers: 1.5 times as fast on a CPU in a dream as
    `diffusers.UNet2DModel` of about its size, 1.8 times in training (`worldsim bench speed`).

    Args:
        inputs, outputs: channels.
        channels: widths at full and half resolution.
        layers: residual blocks on each side of the full resolution, and at half resolution.
        condition: size of the conditioning vector.
    """

    def __init__(self, inputs: int, outputs: int, channels: tuple[int, int], layers: tuple[int, int], condition: int):
        super().__init__()
        full, half = channels
        self.first = nn.Conv2d(inputs, full, 3, padding=1)
        self.before = nn.ModuleList(ResidualBlock(full, condition) for _ in range(layers[0]))
        self.down = nn.Conv2d(full, half, 2, stride=2)
        self.middle = nn.ModuleList(ResidualBlock(half, condition) for _ in range(layers[1]))
        self.up = nn.ConvTranspose2d(half, full, 2, stride=2)
        self.after = nn.ModuleList(ResidualBlock(full, condition) for _ in range(layers[0]))
        self.last = nn.Conv2d(full, outputs, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, x: Float[Tensor, "b inputs y x"], condition: Float[Tensor, "b n"]) -> Float[Tensor, "b outputs y x"]:
        condition = nn.functional.silu(condition)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        for block in self.before:
            x = block(x, condition)
        hidden = self.down(x)
        for block in self.middle:
            hidden = block(hidden, condition)
        x = x + self.up(hidden)
        for block in self.after:
            x = block(x, condition)
        return self.last(nn.functional.silu(x))


@dataclass(frozen=True)
class LatentState(TensorBatch):
    """A dream's memory: the last frames as latents, their proprioception, and the real frame it set out from, if one is kept."""

    latents: Float[Tensor, "b context c y x"]
    state: Float[Tensor, "b context s"]
    reference: Float[Tensor, "b references c y x"]


class LatentFlowWorldModel(WorldModel, Encoder):
    """p(next ah frames and states | 2 context frames and states, ah actions) by flow matching with data prediction.

    The network sees x_t (noisy future latents), t, the context and the actions, and predicts the change from the last context
    latent to the clean future: x_0 = z_last + network(...), the velocity is (x_t - x_0)/t. Half of the training is at t = 1, so
    that one step from pure noise is well trained; it comes out the same whatever the noise, so none is drawn then. In chunks of
    fewer actions those that are missing are masked.

    Args:
        state_dim, action_dim: s and ad.
        context: real frames at the start.
        action_horizon: frames per call.
        latent_channels: of the patch codec.
        channels: U-Net widths at 16x16 and 8x8.
        layers: residual blocks on each side at 16x16, and at 8x8.
        sampling_steps: denoising steps per call.
        unroll: chunks per training window; from the second on the context is the model's own prediction.
        state_weight: weight of the proprioception loss.
        context_noise: while training, noise of a standard deviation drawn from [0, context_noise] is added to the context latents,
            so that a long dream is not thrown off by its own small errors (GameNGen, arXiv:2408.14837).
        references: 1 keeps the oldest real frame of a dream's start as further, undisturbed conditioning for all of it; 0 none. In
            training it is at most a window old, in a dream as old as the dream.
        views: the cameras that it predicts and the sizes at which it sees them, multiples of 8. They are one picture to it, side
            by side (`mosaic`), so that what one camera shows may tell what comes in another.
    """

    differentiable = True

    def __init__(
        self,
        state_dim: int = 4,
        action_dim: int = 2,
        context: int = 2,
        action_horizon: int = 4,
        latent_channels: int = 12,
        channels: tuple[int, int] = (32, 96),
        layers: tuple[int, int] = (1, 4),
        sampling_steps: int = 1,
        unroll: int = 2,
        state_weight: float = 0.1,
        context_noise: float = 0.3,
        references: int = 0,
        views: Mapping[str, tuple[int, int]] = FRONT,
    ):
        super().__init__()
        if references not in (0, 1):
            raise ValueError(f"references must be 0 or 1, got {references}; a dream keeps its first frame or none")
        self.views = views_of(views, 8)
        self.context, self.action_horizon, self.action_dim = context, action_horizon, action_dim
        self.sampling_steps, self.unroll, self.state_weight = sampling_steps, unroll, state_weight
        self.context_noise, self.references = context_noise, references
        self.codec = PatchCodec(channels=latent_channels)
        self.grid = tuple(side // self.codec.patch for side in canvas(self.views))
        condition = context * state_dim + action_horizon * (action_dim + 1)
        self.condition = mlp(condition + 32, 256, 256)
        self.dynamics = mlp(condition, 128, 128, action_horizon * state_dim)
        frames, predicted = references + context + action_horizon, action_horizon * latent_channels
        self.net = LatentUNet(frames * latent_channels, predicted, channels, layers, 256)
        self.state_units, self.action_units = Units(state_dim), Units(action_dim)

    @property
    def horizon(self) -> int:
        return self.unroll * self.action_horizon

    def fit_statistics(self, images: Mapping[str, Shaped[Tensor, "n _ _ 3"]], spec: Spec) -> None:
        """Fit the codec, and normalise states and actions by `spec`; once, before training."""
        self.codec.fit(self._mosaic(images))
        self.state_units.fit(spec, "state")
        self.action_units.fit(spec, "action")
        self.spec = spec

    def encode(self, clip: Mapping[str, Shaped[Tensor, "*b _ _ 3"]]) -> Float[Tensor, "*b c y x"]:
        """Latents of the codec, of all cameras side by side."""
        return self.codec.encode(self._mosaic(clip))

    def init(
        self,
        images: Mapping[str, Shaped[Tensor, "b context _ _ 3"]],
        state: Float[Tensor, "b context s"],
        instruction: Sequence[str] = (),
    ) -> LatentState:
        latents = self.encode(images)
        if latents.shape[1] != self.context:
            raise ValueError(
                f"a dream starts from {self.context} frames, got {latents.shape[1]}; repeat the first one if there is no more"
            )
        return LatentState(latents, state, latents[:, : self.references])

    def step(self, state: LatentState, actions: Float[Tensor, "b ah ad"], noise: Noise):
        horizon, given = self.action_horizon, actions.shape[1]
        if not 1 <= given <= horizon:
            raise ValueError(f"a call takes 1 to {horizon} actions, got {given}; split the chunk")
        actions = nn.functional.pad(actions, (0, 0, 0, horizon - given))
        known = (torch.arange(horizon, device=actions.device) < given).expand(len(actions), -1)
        condition = self._condition(state, actions, known)
        shape = (horizon * self.codec.channels, *self.grid)
        # At t = 1 the network sees x_t * sqrt(1 - t) = 0.
        x = noise.normal("world_model", *shape) if self.sampling_steps > 1 else state.latents.new_zeros(len(actions), *shape)
        times = time_grid(self.sampling_steps)
        for t, next_t in zip(times[:-1], times[1:], strict=True):
            clean = self._clean(x, torch.full_like(x[:, 0, 0, 0], t), state, condition)
            x = clean + (next_t / t) * (x - clean)
        latents = rearrange(x, "b (t c) y x -> b t c y x", t=horizon)[:, :given]
        states = self._next_states(state, condition)[:, :given]
        following = LatentState(
            torch.cat([state.latents, latents], dim=1)[:, -self.context :],
            torch.cat([state.state, states], dim=1)[:, -self.context :],
            state.reference,
        )
        return following, apart(self.codec.decode(latents), self.views), states

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean over the unrolled chunks of |x_0 - z|^2 and the proprioception error in standard deviations.

        Args:
            batch: a `FrameStore.window` of `unroll * action_horizon` future frames.
            generator: draws t, the noise and the masks of unknown actions.
        """
        horizon, b = self.action_horizon, len(batch["action"])
        latents = self.encode(batch["images"])
        context = latents[:, : self.context]
        spread = self.context_noise * torch.rand(b, 1, 1, 1, 1, generator=generator, device=latents.device)
        disturbed = context + spread * torch.randn(context.shape, generator=generator, device=latents.device)
        state = LatentState(disturbed, batch["state"][:, : self.context], context[:, : self.references])
        image_loss, state_loss = latents.new_zeros(()), latents.new_zeros(())
        for chunk in range(self.unroll):
            span = slice(chunk * horizon, (chunk + 1) * horizon)
            future = slice(self.context + chunk * horizon, self.context + (chunk + 1) * horizon)
            uniform = torch.rand(3, b, generator=generator, device=latents.device)
            t = torch.where(uniform[0] < 0.5, 1.0, uniform[1].clamp(min=0.02))
            length = torch.where(uniform[2] < 0.8, horizon, 1 + (uniform[2] - 0.8) * 5 * horizon).long()
            known = torch.arange(horizon, device=latents.device) < length[:, None]
            weight = (batch["valid"][:, span] & known).float()
            clean = rearrange(latents[:, future], "b t c y x -> b (t c) y x")
            actions = torch.where(batch["valid"][:, span, None], batch["action"][:, span], self.action_units.shift)
            condition = self._condition(state, actions, known)
            noise = torch.randn(clean.shape, generator=generator, device=clean.device)
            predicted = self._clean(interpolate(clean, noise, t), t, state, condition).float()
            error = rearrange((predicted - clean).square(), "b (t c) y x -> b t (c y x)", t=horizon).mean(-1)
            image_loss = image_loss + (error * weight).sum() / weight.sum().clamp(min=1) / self.unroll
            states = self._next_states(state, condition)
            error = ((states - batch["state"][:, future]) / self.state_units.scale).square().mean(-1)
            state_loss = state_loss + (error * weight).sum() / weight.sum().clamp(min=1) / self.unroll
            if chunk + 1 < self.unroll:
                # Self-forcing (arXiv:2506.08009): go on from the model's own prediction, without a gradient through it.
                whole = known.all(dim=1)[:, None, None, None, None]
                own = rearrange(predicted.detach(), "b (t c) y x -> b t c y x", t=horizon)[:, -self.context :]
                real = latents[:, future][:, -self.context :]
                own_states, real_states = states.detach()[:, -self.context :], batch["state"][:, future][:, -self.context :]
                states = torch.where(whole[..., 0, 0], own_states, real_states)
                state = LatentState(torch.where(whole, own, real), states, state.reference)
        loss = image_loss + self.state_weight * state_loss
        return loss, {"image_loss": image_loss.detach(), "state_loss": state_loss.detach()}

    def _mosaic(self, images: Mapping[str, Tensor]) -> Tensor:
        return mosaic(images, self.views, "the world model")

    def _condition(self, state: LatentState, actions: Tensor, known: Tensor) -> Tensor:
        felt, asked = self.state_units.network(state.state), self.action_units.network(actions) * known[..., None]
        return torch.cat([felt.flatten(1), asked.flatten(1), known.float()], dim=1)

    def _clean(self, x_t: Tensor, t: Tensor, state: LatentState, condition: Tensor) -> Tensor:
        shown = rearrange(torch.cat([state.reference, state.latents], dim=1), "b t c y x -> b (t c) y x")
        inputs = torch.cat([shown, x_t * (1 - expand_time(t, x_t)).sqrt()], dim=1)
        change = self.net(inputs, self.condition(torch.cat([condition, time_embedding(t, 32)], dim=1)))
        return state.latents[:, -1].repeat(1, self.action_horizon, 1, 1) + change

    def _next_states(self, state: LatentState, condition: Tensor) -> Tensor:
        change = self.dynamics(condition).float().unflatten(-1, (self.action_horizon, -1))
        return state.state[:, -1:] + change * self.state_units.scale
