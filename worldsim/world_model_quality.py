"""How well a world model dreams, open loop, against physics that executed the same actions.

Pictures are compared by PSNR; positions by tracking the block's colour in both videos, calibrated on real frames with the
ground truth. The reflector's verdicts on the dreamed frames are compared with what happened in physics."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from worldsim.collect import Actor, executed
from worldsim.interfaces import Reflector, WorldModel
from worldsim.metrics import auc, psnr
from worldsim.types import float_image

if TYPE_CHECKING:
    from worldsim.sim.genesis import GenesisWorld  # importing Genesis takes seconds, and most verbs need none


@dataclass(frozen=True)
class Recording:
    """n physical episodes of t actions without an early end, with the ground truth of every frame."""

    frames: UInt8[Tensor, "n t1 h w 3"]
    state: Float[Tensor, "n t1 s"]
    action: Float[Tensor, "n t ad"]
    block: Float[Tensor, "n t1 2"]
    success: Bool[Tensor, "n t1"]
    instruction: tuple[str, ...]


def record(world: "GenesisWorld", actor: Actor, *, steps: int, seed: int, n_action_steps: int | None = None) -> Recording:
    """Play every environment of a physics world for `steps` control steps, chunks as `worldsim.collect.executed` says; the world
    must not end episodes earlier.

    Raises:
        ValueError: if an episode ended within `steps`.
    """
    obs, _ = world.reset(seed=seed)
    actor.begin(world, torch.ones(world.num_envs, dtype=torch.bool))
    frames, state, actions, truth = [obs.images[world.camera]], [obs.state], [], [world.truth()]
    while len(actions) < steps:
        for action in executed(actor.act(world, obs), n_action_steps)[:, : steps - len(actions)].unbind(1):
            obs, _, terminated, truncated, info = world.step(action)
            if (terminated | truncated).any() and len(actions) + 1 < steps:
                raise ValueError("an episode ended while recording; build the world with a larger success_steps")
            actions.append(action)
            last = info["final_obs"]
            frames.append(last.images[world.camera])
            state.append(last.state)
            truth.append(info["final_judge"])
    return Recording(
        frames=torch.stack(frames, dim=1),
        state=torch.stack(state, dim=1),
        action=torch.stack(actions, dim=1),
        block=torch.stack([t.block for t in truth], dim=1),
        success=torch.stack([t.success for t in truth], dim=1),
        instruction=last.instruction,
    )


class ColorTracker:
    """Position of the block from the centroid of its colour, by a quadratic map fitted on real frames.

    Args:
        color: RGB 0..1 of the block.
        frames: real frames, [n, h, w, 3].
        position: true positions in them [m], [n, 2].
    """

    def __init__(self, color: Float[Tensor, " 3"], frames: Shaped[Tensor, "n h w 3"], position: Float[Tensor, "n 2"]):
        self.color = color / color.norm()
        self.map = torch.linalg.lstsq(self._features(frames), position.double()).solution

    def __call__(self, frames: Shaped[Tensor, "n h w 3"]) -> Float[Tensor, "n 2"]:
        """Positions in metres."""
        return (self._features(frames) @ self.map).float()

    def _features(self, frames: Tensor) -> Tensor:
        rgb = float_image(frames).clamp(0, 1)
        similarity = (rgb @ self.color) / rgb.norm(dim=-1).clamp(min=0.05)
        weight = (similarity - 0.9).clamp(min=0) * rgb.amax(-1)
        weight = weight / weight.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        rows, columns = (torch.linspace(-1, 1, size) for size in rgb.shape[1:3])
        y, x = (weight.sum(2) * rows).sum(1), (weight.sum(1) * columns).sum(1)
        return torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y], dim=1).double()


@torch.no_grad()
def dream_along(world_model: WorldModel, recording: Recording, *, seed: int = 0) -> Float[Tensor, "n t h w 3"]:
    """The recording's actions dreamed open loop from its first frame."""
    generator = torch.Generator().manual_seed(seed)
    first = recording.frames[:, :1].repeat(1, world_model.context, 1, 1, 1)
    state = world_model.init(first, recording.state[:, :1].repeat(1, world_model.context, 1))
    frames = []
    for actions in recording.action.split(world_model.action_horizon, dim=1):
        state, predicted, _ = world_model.step(state, actions, world_model.noise(len(actions), generator))
        frames.append(predicted.float().clamp(0, 1))
    return torch.cat(frames, dim=1)


@torch.no_grad()
def quality(
    world_model: WorldModel, reflector: Reflector, recording: Recording, color: Float[Tensor, " 3"]
) -> tuple[dict, dict, Float[Tensor, "n t h w 3"]]:
    """Figures about the world model, figures about the reflector on these frames, and the dreamed video.

    Returns:
        world model: psnr_by_step [dB] and block_error_m_by_step, psnr_at_40 and block_error_m_at_40 (the last step),
        tracker_error_m on real frames, and the errors of "nothing moves" for comparison. Reflector: auc on the real and on the
        imagined frames, both against the physical truth.
    """
    dreamed = dream_along(world_model, recording)
    real, block = recording.frames[:, 1:], recording.block[:, 1:]
    tracker = ColorTracker(color, recording.frames.flatten(0, 1)[::3], recording.block.flatten(0, 1)[::3])
    n, t = real.shape[:2]

    def distance(frames: Tensor) -> Tensor:
        return (tracker(frames.flatten(0, 1)).unflatten(0, (n, t)) - block).norm(dim=-1).mean(0)

    psnr_by_step = psnr(dreamed, real).mean(0)
    error = distance(dreamed)
    still = (recording.block[:, :1] - block).norm(dim=-1).mean(0)
    figures = {
        f"psnr_at_{t}": float(psnr_by_step[-1]),
        f"block_error_m_at_{t}": float(error[-1]),
        f"unmoved_block_error_m_at_{t}": float(still[-1]),
        "psnr_at_4": float(psnr_by_step[3]),
        "block_error_m_at_4": float(error[3]),
        "block_error_m_at_20": float(error[t // 2 - 1]),
        "tracker_error_m": float(distance(real).mean()),
        "psnr_by_step": psnr_by_step.tolist(),
        "block_error_m_by_step": error.tolist(),
        "episodes": n,
    }
    repeated = tuple(sentence for sentence in recording.instruction for _ in range(t))
    label = recording.success[:, 1:].flatten()
    p_real = _judge(reflector, real.flatten(0, 1), repeated)
    p_imagined = _judge(reflector, dreamed.flatten(0, 1), repeated)
    return figures, {"auc_real": auc(p_real, label), "auc_imagined": auc(p_imagined, label)}, dreamed


def _judge(reflector: Reflector, frames: Tensor, instruction: tuple[str, ...], batch: int = 256) -> Tensor:
    rows = range(0, len(frames), batch)
    return torch.cat([reflector.judge(frames[i : i + batch], instruction[i : i + batch]).p_success.float() for i in rows])
