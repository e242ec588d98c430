"""How far the outcome of a start depends on what else is computed with it, and whether simulator or network is to blame.

.venv/bin/python benchmarks/starts.py POLICY [episodes]

Start and noise are the same whatever the number of environments; what differs is arithmetic. Per precision the policy plays the
same starts with several numbers of environments, and once more with other noise. Then the actions that it took with the most
environments are replayed with the others: outcomes that still differ are the simulator's doing, the rest the network's. Results:
docs/results/starts.md.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor

from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.precision import autocast
from worldsim.core.seeds import CHOOSING
from worldsim.core.types import Episode, Observation
from worldsim.measure.collect import Actor, PolicyActor, collect
from worldsim.measure.evaluate import evaluate
from worldsim.measure.metrics import agreement, paired_difference, percent, success_rate
from worldsim.worlds.genesis.world import GenesisWorld

ENVS, MOST = (16, 64, 128), 128


class Replay(Actor):
    """Does what was recorded, chunk by chunk; zeros after an episode's end.

    Args:
        episodes: of the starts seed, seed + 1, ...
        seed: of the first.
        ah: actions per chunk.
    """

    source = "policy"

    def __init__(self, episodes: list[Episode], seed: int, ah: int):
        self.seed, self.ah = seed, ah
        self.actions = torch.nn.utils.rnn.pad_sequence([episode.action for episode in episodes], batch_first=True)
        self.actions = torch.nn.functional.pad(self.actions, (0, 0, 0, 64))

    def act(self, world: object, obs: Observation, noise: Noise) -> Tensor:
        rows = (noise.seed - self.seed).clamp(max=len(self.actions) - 1)  # environments without a start do anything
        columns = (noise.step[:, None] + torch.arange(self.ah)).clamp(max=self.actions.shape[1] - 1)
        return self.actions[rows[:, None], columns]


def told(what: str, one: Tensor, other: Tensor) -> None:
    result = agreement(one, other)
    low, high = (100 * bound for bound in result["ci95"])
    print(f"{what}: {100 * result['agreement']:.1f} % [{low:.1f}, {high:.1f}], kappa {result['kappa']:.2f}", flush=True)


if __name__ == "__main__":
    folder, number = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 512
    policy = checkpoint.load(folder, Policy)
    worlds = {envs: GenesisWorld(num_envs=envs, phrasings="eval") for envs in ENVS}
    recorded = {}
    for precision in ("32-true", "bf16-mixed"):
        with autocast(precision):
            success = {envs: evaluate(worlds[envs], policy, episodes=number, seed=CHOOSING).success for envs in ENVS}
            again = evaluate(worlds[MOST], policy, episodes=number, seed=CHOOSING).success
            other = evaluate(worlds[MOST], policy, episodes=number, seed=CHOOSING, stream=1).success
            recorded[precision] = list(collect(worlds[MOST], PolicyActor(policy), episodes=number, seed=CHOOSING))
        print(f"\n{precision}, {number} starts from {CHOOSING}")
        for envs, outcome in success.items():
            print(f"  {envs} environments: {percent(success_rate(outcome))}")
        told("  the same again", again, success[MOST])
        for envs in ENVS[:-1]:
            told(f"  {envs} and {MOST} environments", success[envs], success[MOST])
        told(f"  other noise, {MOST} environments", other, success[MOST])
        truth = torch.tensor([bool(episode.success[-1] == 1) for episode in recorded[precision]])
        replay = Replay(recorded[precision], CHOOSING, policy.action_horizon)
        for envs in ENVS:
            told(
                f"  recorded actions of {MOST}, replayed with {envs}",
                evaluate(worlds[envs], replay, episodes=number, seed=CHOOSING).success,
                truth,
            )
    first = [torch.tensor([bool(e.success[-1] == 1) for e in episodes]) for episodes in recorded.values()]
    print()
    told(f"32-true and bf16-mixed, {MOST} environments", *first)
    gain = paired_difference(*first)
    print(f"bf16-mixed - 32-true: {gain['points']:+.1f} points [{gain['ci95'][0]:+.1f}, {gain['ci95'][1]:+.1f}]")
