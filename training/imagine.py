"""A short differentiable dream: policy -> world model -> reflector, chunk after chunk, with the gradient of the reward.

`analytic.py` differentiates it; nothing here steps an environment. The critic that values what lies behind its horizon is
here as well, since every learner in a dream needs one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from worldsim.blocks import VisualTrunk, mlp
from worldsim.checkpoint import Configured
from worldsim.flow import sample_ode
from worldsim.interfaces import Policy, Reflector, WorldModel
from worldsim.types import Observation, TensorBatch


class Critic(Configured):
    """V(frame, instruction): expected discounted return, in units of reward.

    Args:
        features, channels, blocks: of its visual trunk; equal to the reflector's, whose weights it starts from.
    """

    def __init__(self, features: int = 256, channels: int = 64, blocks: int = 2):
        super().__init__()
        self.trunk = VisualTrunk(features, channels, blocks)
        self.head = mlp(features, features, 1)

    def forward(self, frames: Shaped[Tensor, "b h w 3"], instruction: Sequence[str]) -> Float[Tensor, " b"]:
        return self.head(self.trunk(frames, instruction)).float().squeeze(-1)


@dataclass(frozen=True)
class Dream:
    """A dream of h chunks; time runs along the second axis.

    Attributes:
        actions: as the sampler gave them, not clamped, [b, h, ah, ad].
        frames: the frame before each chunk and the last one, [b, h+1, height, width, 3].
        obs: the observation before each chunk.
        noise: x_1 of each chunk, [b, h, ah, ad].
        reward: of each chunk, [b, h].
        p_success: largest success probability within each chunk, [b, h].
    """

    actions: Tensor
    frames: Tensor
    obs: list[Observation]
    noise: Tensor
    reward: Tensor
    p_success: Tensor


def imagine(
    policy: Policy,
    world_model: WorldModel,
    reflector: Reflector,
    start: TensorBatch,
    frame: Float[Tensor, "b h w 3"],
    proprioception: Float[Tensor, "b s"],
    instruction: tuple[str, ...],
    *,
    chunks: int,
    exploration: Float[Tensor, "b 1 1"],
    progress_weight: float,
    judged: Sequence[int],
    generator: torch.Generator,
) -> Dream:
    """Dream `chunks` chunks; the reward of each is progress_weight * (progress gained) + (largest success probability).

    The gradient flows reward <- reflector <- world model <- action <- sampler, and through the world model's state from chunk to
    chunk; the policy's own observations are cut off, so that it learns to act and not to shape what it sees.

    Args:
        policy: the only one whose parameters should require gradients.
        world_model: frozen.
        reflector: frozen.
        start: the world model's state.
        frame: what the camera sees now, float 0..1.
        proprioception: the present state.
        instruction: one sentence per dream.
        chunks: h.
        exploration: standard deviation of noise on the executed actions, per dream.
        progress_weight: scale of the progress reward.
        judged: which frames of a chunk the reflector looks at; must include the last.
        generator: source of the samplers' noise.
    """
    b = len(instruction)
    device = frame.device
    progress = reflector.judge(frame, instruction).progress.detach()
    state, actions, frames, observations, noises, rewards, successes = start, [], [frame], [], [], [], []
    for _ in range(chunks):
        obs = Observation({world_model.camera: frame.detach()}, proprioception.detach().float(), instruction)
        features = policy.encode(obs)
        noise = torch.randn(b, policy.action_horizon, policy.action_dim, generator=generator, device=device)
        action = sample_ode(lambda x, t, features=features: policy.velocity(features, x, t), noise, num_steps=policy.num_steps)
        jitter = torch.randn(action.shape, generator=generator, device=device)
        executed = (action + exploration * jitter).clamp(-1, 1)
        state, predicted, proprioceptions = world_model.step(state, executed, world_model.noise(b, generator))
        seen = predicted[:, list(judged)].clamp(0, 1)
        reflection = reflector.judge(seen.flatten(0, 1), tuple(s for s in instruction for _ in judged))
        p_success = reflection.p_success.unflatten(0, (b, len(judged))).amax(dim=1)
        reached = reflection.progress.unflatten(0, (b, len(judged)))[:, -1]
        frame, proprioception = seen[:, -1], proprioceptions[:, -1]
        rewards.append(progress_weight * (reached - progress) + p_success)
        observations.append(obs)
        for values, value in ((actions, action), (frames, frame), (noises, noise), (successes, p_success)):
            values.append(value)
        progress = reached
    return Dream(
        actions=torch.stack(actions, dim=1),
        frames=torch.stack(frames, dim=1),
        obs=observations,
        noise=torch.stack(noises, dim=1),
        reward=torch.stack(rewards, dim=1),
        p_success=torch.stack(successes, dim=1),
    )
