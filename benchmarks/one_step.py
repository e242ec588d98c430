"""A policy update with the whole Flow-SDE chain against hybrid one-step Flow-SDE, side by side in one process.

.venv/bin/python benchmarks/one_step.py

Once for the default policy, whose visual encoder (run once per update either way) is most of the work, and once with the encoder
frozen and its features kept, as pi_RL trains pi0: then the chain is the update.
"""

import time

import torch

from models.policies.flow_vla import FlowVLA
from training.rl.chains import FlowSDE, OneStepFlowSDE
from training.rl.math.denoising import chain_logprob, replay
from training.rl.math.losses import ppo_clip
from worldsim.core.noise import Noise
from worldsim.core.precision import precision
from worldsim.core.types import Observation

BATCH, REPEATS, K = 256, 20, 4


def update(policy: FlowVLA, optimizer, obs: Observation, features, chain, old, mask) -> float:
    """Seconds of one PPO step."""
    began = time.monotonic()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"):
        seen = policy.encode(obs) if features is None else features
        steps = replay(FlowSDE().transition(policy, seen), chain, stochastic=mask)
        logprob = chain_logprob(steps, chain).sum(-1)
        loss, _ = ppo_clip(logprob, old, torch.ones_like(logprob), mask=mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.monotonic() - began


if __name__ == "__main__":
    torch.manual_seed(0)
    frames = torch.randint(0, 256, (BATCH, 64, 64, 3), dtype=torch.uint8)
    obs = Observation({"front": frames}, torch.randn(BATCH, 4), ("push the red block onto the green disc",) * BATCH)
    for name, kept in (("default policy", False), ("encoder frozen, features kept", True)):
        policy = FlowVLA(num_steps=K).eval()
        optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)
        with torch.no_grad():
            features = policy.encode(obs)
            noise, chains = Noise.rows(0, BATCH), {"whole chain": FlowSDE(), "one step": OneStepFlowSDE()}
            played = {kind: chain.sample(policy, features, noise) for kind, chain in chains.items()}
        times: dict[str, list[float]] = {kind: [] for kind in played}
        for repeat in range(REPEATS + 2):  # alternating, so that both see the same machine
            for kind, (chain, logprob, mask) in played.items():
                seconds = update(policy, optimizer, obs, features if kept else None, chain, logprob.sum(-1), mask)
                if repeat >= 2:
                    times[kind].append(seconds)
        median = {kind: sorted(values)[REPEATS // 2] for kind, values in times.items()}
        print(
            f"{name}: whole chain {1e3 * median['whole chain']:.1f} ms, one step {1e3 * median['one step']:.1f} ms, "
            f"{median['whole chain'] / median['one step']:.2f}x faster ({torch.get_num_threads()} threads, batch {BATCH}, K={K})"
        )
