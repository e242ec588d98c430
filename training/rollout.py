"""Collect what policy-gradient learners eat: trajectories of decisions with their denoising chains and log-probabilities."""

import torch
from torch import Tensor

from training.algorithms.flow_sde import sample_chain
from training.imagine import Critic
from worldsim.interfaces import Policy, World
from worldsim.types import Observation, Rollout


@torch.no_grad()
def collect_rollout(
    policy: Policy,
    critic: Critic,
    world: World,
    obs: Observation,
    *,
    chunks: int,
    noise_level: float,
    group: Tensor,
    generator: torch.Generator,
) -> Rollout:
    """Play `chunks` decisions in every environment with Flow-SDE; what follows an episode's end is marked invalid.

    Args:
        policy: acts through `sample_chain`.
        critic: values every observation.
        world: just reset.
        obs: its observation.
        chunks: t, decisions per trajectory.
        noise_level: a of Flow-SDE.
        group: number of each environment's start, [b].
        generator: source of all noise.
    """
    b, camera = world.num_envs, next(iter(obs.images))
    shape = (b, policy.action_horizon, policy.action_dim)
    ended = torch.zeros(b, dtype=torch.bool)
    final_value = torch.zeros(b)
    instruction = obs.instruction
    log: dict[str, list[Tensor]] = {
        k: [] for k in ("images", "state", "chain", "logprob", "reward", "terminated", "truncated", "valid", "value")
    }
    for t in range(chunks):
        features = policy.encode(obs)
        chain, logprob = sample_chain(
            lambda x, t, features=features: policy.velocity(features, x, t),
            torch.randn(shape, generator=generator),
            num_steps=policy.num_steps,
            noise_level=noise_level,
            generator=generator,
        )
        result = world.step_chunk(chain[:, -1].clamp(-1, 1))
        step = {
            "images": obs.images[camera],
            "state": obs.state,
            "chain": chain,
            "logprob": logprob,
            "reward": result.reward.sum(1),
            "terminated": result.terminated.any(1) & ~ended,
            "truncated": result.truncated.any(1) & ~ended,
            "valid": ~ended,
            "value": critic(obs.images[camera], obs.instruction),
        }
        for name, value in step.items():
            log[name].append(value)
        stops = ~ended & (result.done | (t + 1 == chunks))
        if stops.any():
            value = critic(result.final_obs.images[camera], instruction)
            final_value = torch.where(stops, value, final_value)
        ended = ended | result.done
        obs = result.obs
    stacked = {name: torch.stack(values, dim=1) for name, values in log.items()}
    return Rollout(**stacked, instruction=instruction, group=group, final_value=final_value)
