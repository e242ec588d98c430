"""How well a world model dreams, open loop, against physics that executed the same actions.

Pictures are compared by PSNR; positions by tracking the block's colour in both videos, calibrated on real frames with the
ground truth. The reflector's verdicts on the dreamed frames are compared with what happened in physics."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Shaped, UInt8
from torch import Tensor

from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent, seen
from worldsim.core.types import float_image
from worldsim.core.views import check_cameras
from worldsim.core.world import ChunkResult, Sight, World
from worldsim.measure import recorded
from worldsim.measure.collect import Actor, play
from worldsim.measure.metrics import auc, psnr
from worldsim.nn.perception import feature_distance

if TYPE_CHECKING:
    from worldsim.worlds.genesis.world import GenesisWorld  # importing Genesis takes seconds, and most verbs need none


@dataclass(frozen=True)
class Recording:
    """n physical episodes of t actions without an early end, with the ground truth of every frame.

    Attributes:
        images: what each camera showed.
        camera: the one that looks at the block.
        block: where the block is that the instruction names [m].
        color: of that block, RGB 0..1.
    """

    images: dict[str, UInt8[Tensor, "n t1 _ _ 3"]]
    camera: str
    state: Float[Tensor, "n t1 s"]
    action: Float[Tensor, "n t ad"]
    block: Float[Tensor, "n t1 2"]
    success: Bool[Tensor, "n t1"]
    color: Float[Tensor, "n 3"]
    instruction: tuple[str, ...]


def check_measurable(world: World) -> None:
    """Dreams are compared with physics on a table with blocks and discs, where somebody can play and the truth is known.

    Raises:
        ValueError: if the world is another.
    """
    table = world.unwrapped
    if not getattr(table, "goals", torch.zeros(0)).numel():
        raise ValueError(
            f"dreams are compared with physics on a table with discs, got a {type(table).__name__}; choose a world such as "
            "world=push_block, or leave world_model, reflector and judge out"
        )


def record(world: World, actor: Actor, *, seed: int, n_action_steps: int | None = None) -> Recording:
    """One episode of full length in every environment of a world with a table and blocks, successes included.

    Args:
        world: a `GenesisWorld`, or one that wraps it; success ends nothing meanwhile.
        actor: whose chunks are executed as `worldsim.measure.collect.executed` says.
        seed: environment i plays the start seed + i.
        n_action_steps: see `executed`.
    """
    table: GenesisWorld = world.unwrapped  # type: ignore[assignment]
    sights, actions, colors = [], [], []

    def advance(chunk: Tensor) -> tuple[ChunkResult, list[Sight]]:
        colors.append(table.named_colors)
        return world.watch_chunk(chunk)

    with table.endless():
        for turn in play(world, actor, advance, episodes=world.num_envs, seed=seed, n_action_steps=n_action_steps):
            sights += [turn.before, *turn.seen] if not sights else turn.seen
            actions.append(turn.actions)
    t = world.max_episode_steps
    sights = sights[: t + 1]
    return Recording(
        images={name: torch.stack([obs.images[name] for obs, _ in sights], dim=1) for name in sights[0][0].images},
        camera=world.camera,
        state=torch.stack([obs.state for obs, _ in sights], dim=1),
        action=torch.cat(actions, dim=1)[:, :t],
        block=torch.stack([truth.block for _, truth in sights], dim=1),  # type: ignore[attr-defined]
        success=torch.stack([truth.success for _, truth in sights], dim=1),
        color=colors[0],
        instruction=sights[0][0].instruction,
    )


class ColorTracker:
    """Position of a block from the centroid of its colour, by a quadratic map fitted on real frames.

    Args:
        frames: real frames, [n, h, w, 3].
        color: RGB 0..1 of the block that each of them is about, [n, 3].
        position: where that block is [m], [n, 2].
    """

    def __init__(self, frames: Shaped[Tensor, "n h w 3"], color: Float[Tensor, "n 3"], position: Float[Tensor, "n 2"]):
        self.map = torch.linalg.lstsq(self._features(frames, color), position.double()).solution

    def __call__(self, frames: Shaped[Tensor, "n h w 3"], color: Float[Tensor, "n 3"]) -> Float[Tensor, "n 2"]:
        """Positions in metres."""
        return (self._features(frames, color) @ self.map).float()

    def _features(self, frames: Tensor, color: Tensor) -> Tensor:
        weight = likeness(frames, color)
        weight = weight / weight.sum(dim=(1, 2), keepdim=True).clamp(min=1e-6)
        rows, columns = (torch.linspace(-1, 1, size) for size in weight.shape[1:])
        y, x = (weight.sum(2) * rows).sum(1), (weight.sum(1) * columns).sum(1)
        return torch.stack([torch.ones_like(x), x, y, x * y, x * x, y * y], dim=1).double()


def likeness(frames: Shaped[Tensor, "n h w 3"], color: Float[Tensor, "n 3"]) -> Float[Tensor, "n h w"]:
    """How much of a block's colour each pixel shows; 0 below a cosine of 0.9."""
    rgb = float_image(frames).clamp(0, 1)
    similarity = torch.einsum("nhwc,nc->nhw", rgb, color / color.norm(dim=-1, keepdim=True)) / rgb.norm(dim=-1).clamp(min=0.05)
    return (similarity - 0.9).clamp(min=0) * rgb.amax(-1)


def colour_mass(dreamed: Float[Tensor, "n t h w 3"], real: Shaped[Tensor, "n t1 h w 3"], recording: Recording) -> dict[str, float]:
    """Share of a block's colour that dreams keep, after as many steps as `quality` reports: dreams melt."""
    n, t = dreamed.shape[:2]
    color = recording.color[:, None].expand(n, t, 3).flatten(0, 1)
    kept, there = (
        likeness(frames.flatten(0, 1), color).sum(dim=(1, 2)).unflatten(0, (n, t)).sum(0) for frames in (dreamed, real[:, 1:])
    )
    return {f"colour_mass_at_{k}": float(kept[k - 1] / there[k - 1].clamp(min=1e-6)) for k in _steps(t)}


@torch.no_grad()
def feature_distances(dreamed: Float[Tensor, "n t h w 3"], real: Shaped[Tensor, "n t1 h w 3"], batch: int = 32) -> dict[str, float]:
    """How different dreams look to a network that knows photographs, after as many steps as `quality` reports; as bytes, which both
    are to whoever looks at them."""
    found, shown = {}, (255 * dreamed).round() / 255
    for k in _steps(dreamed.shape[1]):
        pairs = zip(shown[:, k - 1].split(batch), float_image(real[:, k]).split(batch), strict=True)
        found[f"feature_distance_at_{k}"] = float(torch.cat([feature_distance()(a, b) for a, b in pairs]).mean())
    return found


def _steps(t: int) -> list[int]:
    """After which steps figures are reported: 4, half of the episode and all of it."""
    return sorted({min(4, t), max(1, t // 2), t})


@torch.no_grad()
def dream_along(world_model: WorldModel, recording: Recording, *, seed: int = 0) -> dict[str, Float[Tensor, "n t _ _ 3"]]:
    """The recording's actions dreamed open loop from its first frame, as each camera of the world model sees it."""
    context, n = world_model.context, len(recording.state)
    first = {name: recent(frames[:, :1], context) for name, frames in recording.images.items()}
    start = {"images": first, "state": recent(recording.state[:, :1], context), "instruction": recording.instruction}
    parts = [frames for _, frames, _ in recorded.dreamed(world_model, start, recording.action, Noise.rows(seed, n))]
    return {name: torch.cat([frames[name] for frames in parts], dim=1) for name in world_model.views}


@torch.no_grad()
def quality(
    world_model: WorldModel, reflector: Reflector, recording: Recording
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Float[Tensor, "n t _ _ 3"]]]:
    """Figures about the world model, figures about the reflector on these frames, and the dreamed video of each camera.

    Pictures and positions are those of the recording's camera, at the size of the world model's view.

    Returns:
        world model: psnr_by_step [dB] and block_error_m_by_step; psnr_at_k and block_error_m_at_k after 4 steps, half of the
        episode and all of it; tracker_error_m on real frames, and unmoved_block_error_m_at_k of "nothing moves" for comparison.
        Reflector: auc on the real and on the imagined frames, both against the physical truth.
    """
    check_cameras({recording.camera: (1, 1)}, world_model.views, "the comparison", "the world model dreams")
    dreams, shown = dream_along(world_model, recording), seen(recording.images, world_model.views, "the world model")
    dreamed, whole = dreams[recording.camera], shown[recording.camera]
    real, block = whole[:, 1:], recording.block[:, 1:]
    n, t = real.shape[:2]
    every = recording.color[:, None].expand(n, t + 1, 3)
    fit = slice(None, None, 3)
    tracker = ColorTracker(*(x.flatten(0, 1)[fit] for x in (whole, every, recording.block)))

    def distance(frames: Tensor) -> Tensor:
        return (tracker(frames.flatten(0, 1), every[:, 1:].flatten(0, 1)).unflatten(0, (n, t)) - block).norm(dim=-1).mean(0)

    psnr_by_step, error = psnr(dreamed, real).mean(0), distance(dreamed)
    still = (recording.block[:, :1] - block).norm(dim=-1).mean(0)
    figures: dict[str, Any] = {}
    for k in _steps(t):
        figures |= {f"psnr_at_{k}": float(psnr_by_step[k - 1]), f"block_error_m_at_{k}": float(error[k - 1])}
    figures |= colour_mass(dreamed, whole, recording)
    figures |= {
        f"unmoved_block_error_m_at_{t}": float(still[-1]),
        "tracker_error_m": float(distance(real).mean()),
        "psnr_by_step": psnr_by_step.tolist(),
        "block_error_m_by_step": error.tolist(),
        "episodes": n,
    }
    label = recording.success[:, 1:].flatten()
    videos = {name: torch.cat([float_image(shown[name][:, :1]), frames], dim=1) for name, frames in dreams.items()}
    p_real, p_imagined = (_judge(reflector, frames, recording.instruction) for frames in (shown, videos))
    return figures, {"auc_real": auc(p_real, label), "auc_imagined": auc(p_imagined, label)}, dreams


def _judge(reflector: Reflector, videos: dict[str, Tensor], instruction: tuple[str, ...], batch: int = 256) -> Tensor:
    """Success probabilities [n * t] of the frames of n videos of t + 1, the first of them left out."""
    n, t = len(instruction), next(iter(videos.values())).shape[1] - 1
    past = reflector.context
    seen = {name: clips(recent(frames, t + past), past)[:, 1:].flatten(0, 1) for name, frames in videos.items()}
    sentences = tuple(sentence for sentence in instruction for _ in range(t))
    parts = (slice(first, first + batch) for first in range(0, n * t, batch))
    judged = (reflector.judge({name: frames[part] for name, frames in seen.items()}, sentences[part]) for part in parts)
    return torch.cat([reflection.p_success.float() for reflection in judged])
