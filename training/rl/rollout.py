"""Collect what policy-gradient learners eat: trajectories of decisions with their denoising chains and log-probabilities.

Read `chains.py` and `estimators.py` for what goes in, and `sampling.py` for how rollouts are saved."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from training.rl.chains import Chain
from training.rl.estimators import Advantage
from training.rl.math.advantages import first_success_mask
from training.rl.sampling import EarlyStop
from worldsim.core.interfaces import FlowPolicy
from worldsim.core.noise import Noise
from worldsim.core.sizes import join
from worldsim.core.types import Features, Observation, Rollout, stack_times
from worldsim.core.world import ChunkResult, Divisible, World


@torch.no_grad()
def collect_rollout(
    policy: FlowPolicy,
    chain: Chain,
    advantage: Advantage,
    world: World,
    obs: Observation,
    *,
    chunks: int,
    group: Tensor,
    seed: int,
    early_stop: EarlyStop | None = None,
    whole_features: bool = False,
) -> Rollout:
    """Play `chunks` decisions in every environment; what follows an episode's end is marked invalid.

    Args:
        policy: acts through `chain`.
        chain: how it explores.
        advantage: whose critic, if it has one, values every observation.
        world: just reset.
        obs: its observation.
        chunks: t, decisions per trajectory.
        group: number of each environment's start, [b], on the policy's device, where the rollout will lie; the world may be
            elsewhere.
        seed: of all noise; a trajectory's depends on its row and the number of the decision, never on which others still play.
        early_stop: in a `Divisible` world: leaves finished and hopeless environments out of the computation. A hopeless one is
            truncated, so its last value stands for the rest.
        whole_features: keep all that the policy made of each observation, for updates that do not encode it again, and not the
            vector alone: a transformer's keys and values take megabytes.
    """
    joined, device = join(policy, world.spec), group.device
    b, noise = world.num_envs, Noise.rows(seed, world.num_envs, device)
    instruction, rows = obs.instruction, torch.arange(b, device=device)
    final_value, ended, success = torch.zeros(b, device=device), *torch.zeros(2, b, dtype=torch.bool, device=device)
    log: dict[str, list[Tensor]] = {}
    kept: list[Features] = []

    def spread(value: Tensor) -> Tensor:
        """In the rows that are played, zeros elsewhere."""
        whole = value.new_zeros(b, *value.shape[1:])
        whole[rows] = value
        return whole

    def store(**values: Tensor) -> None:
        for name, value in values.items():
            log.setdefault(name, []).append(spread(value))

    def critic(seen: Observation) -> Tensor:
        return advantage.value(seen.images, seen.instruction, policy.encode(joined.seen(seen)))

    for t in range(chunks):
        obs = joined.seen(obs.to(device))
        features = policy.encode(obs)
        steps, logprob, stochastic = chain.sample(policy, features, noise[rows].at(t))
        value = advantage.value(obs.images, obs.instruction, features)
        result: ChunkResult = world.step_chunk(joined.done(policy.action_units.native(steps[:, -1]))).to(device)
        kept.append((features if whole_features else Features(features.vector)).each(spread))
        store(state=obs.state, chain=steps, value=value)
        store(**{f"camera {name}": frames for name, frames in obs.images.items()})
        store(stochastic=stochastic, logprob=logprob)
        store(reward=result.reward, terminated=result.terminated, done=result.terminated | result.truncated)
        store(played=~ended[rows])
        stops = result.done if early_stop is None else result.done | early_stop.hopeless(value[:, 0], t)
        stops = (stops | (t + 1 == chunks)) & ~ended[rows]
        goes_on = (stops & ~result.terminated.any(dim=1)).nonzero().flatten()  # only of these is the rest worth anything
        if len(goes_on):
            final_value[rows[goes_on]] = critic(result.final_obs[goes_on])[:, 0]
        success[rows] |= result.done & result.is_success & ~ended[rows]
        ended[rows] |= stops
        obs = result.obs
        if ended.all():
            break
        if early_stop is not None and early_stop.worth_dropping(ended[rows]):
            keep, divisible = ~ended[rows], world.require(Divisible, "early_stop", "set model.early_stop=null")
            world, obs, rows = divisible.take(keep), obs[keep], rows[keep]

    stacked = {name: torch.stack(values, dim=1) for name, values in log.items()}
    played, done = stacked.pop("played"), stacked.pop("done")
    images = {name: stacked.pop(f"camera {name}") for name in obs.images}
    valid = first_success_mask(done.flatten(1)).view_as(done) & played[..., None]
    stacked["reward"] = stacked["reward"] * valid
    stacked["terminated"] = stacked["terminated"] & valid
    outcome = {"valid": valid, "success": success, "final_value": final_value}
    return Rollout(images, **stacked, **outcome, features=stack_times(kept), instruction=instruction, group=group)


def paid(rollout: Rollout, reward: Float[Tensor, "b t"]) -> Rollout:
    """The same rollout with another reward: each decision's comes with its last action that was executed."""
    last = rollout.valid & ~rollout.valid.roll(-1, dims=2)
    last[..., -1] = rollout.valid[..., -1]
    return replace(rollout, reward=torch.where(last, reward[..., None], 0.0))
