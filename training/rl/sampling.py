"""Rollout economy: dreams cost time, so play those that teach something. Each object does one thing.

`DynamicSampling` resamples groups that all end alike, `EarlyStop` leaves finished and hopeless dreams, `BetaStarts` chooses starts
of middling difficulty, `SuccessBuffer` keeps what worked. Starts at decisive moments are `training.supervised.data.KeyframeStarts`.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from worldsim.core.interfaces import FlowPolicy
from worldsim.core.types import Observation, Rollout


class DynamicSampling:
    """Resample groups whose dreams all end alike: their advantages vanish (DAPO, arXiv:2503.14476; SimpleVLA-RL, arXiv:2509.09674).

    Args:
        attempts: at most so many rollouts per iteration; the batch is cut into as many parts, so its size is a multiple.
    """

    def __init__(self, attempts: int = 3):
        if attempts < 1:
            raise ValueError(f"attempts must be at least 1, got {attempts}")
        self.attempts = attempts

    @staticmethod
    def usable(rollout: Rollout, tolerance: float = 1e-3) -> Bool[Tensor, " b"]:
        """Trajectories of groups whose returns differ; [b]."""
        returns = rollout.returns
        number = int(rollout.group.max()) + 1
        low = returns.new_full((number,), torch.inf).scatter_reduce(0, rollout.group, returns, "amin")
        high = returns.new_full((number,), -torch.inf).scatter_reduce(0, rollout.group, returns, "amax")
        return (high - low > tolerance)[rollout.group]


class EarlyStop:
    """Leave a dream that has finished, or whose value says that it will not succeed.

    Args:
        value_below: hopeless is what the critic values below this, in units of reward; None stops only finished dreams.
        patience: decisions before a dream may be called hopeless.
        drop_share: the batch shrinks when this share of it has ended; shrinking costs a copy.
    """

    def __init__(self, value_below: float | None = None, patience: int = 3, drop_share: float = 0.25):
        if not 0 < drop_share <= 1:
            raise ValueError(f"drop_share must be in (0, 1], got {drop_share}")
        self.value_below, self.patience, self.drop_share = value_below, patience, drop_share

    def hopeless(self, value: Float[Tensor, " b"], t: int) -> Bool[Tensor, " b"]:
        """Which dreams to give up after decision t."""
        if self.value_below is None or t + 1 < self.patience:
            return torch.zeros_like(value, dtype=torch.bool)
        return value < self.value_below

    def worth_dropping(self, ended: Bool[Tensor, " b"]) -> bool:
        """Whether enough dreams have ended to shrink the batch."""
        return bool(ended.float().mean() >= self.drop_share)


class BetaStarts(nn.Module):
    """Choose starts that succeed about half of the time, by a Beta posterior per start (MoPPS, arXiv:2507.04632).

    Success rates are drawn from the posteriors (Thompson sampling) and the starts nearest to `target` win. Counts of the past
    decay, because the policy changes. The counts are part of the learner's checkpoint.

    Args:
        pool: number of different starts; equal to the data module's `pool`.
        target: wished success rate.
        keep: share of the batch that is played.
        memory: factor on old counts when a start is played again.
    """

    successes: Tensor
    failures: Tensor

    def __init__(self, pool: int, target: float = 0.5, keep: float = 0.5, memory: float = 0.8):
        super().__init__()
        if not 0 < keep <= 1:
            raise ValueError(f"keep must be in (0, 1], got {keep}; 0.5 plays the better half of the candidates")
        self.target, self.keep, self.memory = target, keep, memory
        self.register_buffer("successes", torch.zeros(pool))
        self.register_buffer("failures", torch.zeros(pool))

    def choose(self, ids: Int[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " m"]:
        """Positions in `ids` of the starts to play."""
        wins, losses = self.successes[ids] + 1, self.failures[ids] + 1
        # Beta(a, b) = G_a / (G_a + G_b) with Gamma variables; torch's own sampler takes no generator for Beta.
        g, h = torch._standard_gamma(torch.stack([wins, losses]), generator)  # pyright: ignore[reportPrivateImportUsage]
        order = (g / (g + h) - self.target).abs().argsort()
        return order[: max(1, round(self.keep * len(ids)))].sort().values

    def update(self, ids: Int[Tensor, " n"], success: Bool[Tensor, " n"]) -> None:
        """Learn from played dreams; a start may appear more than once (a group)."""
        played = ids.unique()
        self.successes[played] *= self.memory
        self.failures[played] *= self.memory
        self.successes.index_add_(0, ids, success.float())
        self.failures.index_add_(0, ids, (~success).float())


class SuccessBuffer(nn.Module):
    """The latest decisions of successful dreams, to be imitated beside the policy gradient (self-imitation, arXiv:1806.05635).

    Args:
        capacity: decisions that are kept.
        weight: of the cloning loss.
        batch: decisions per update.
    """

    def __init__(self, capacity: int = 2048, weight: float = 0.1, batch: int = 64):
        super().__init__()
        if min(capacity, batch) < 1:
            raise ValueError(f"capacity and batch must be at least 1, got {capacity} and {batch}")
        self.capacity, self.weight, self.batch = capacity, weight, batch
        self.kept: dict[str, Any] = {}

    def add(self, rollout: Rollout, policy: FlowPolicy) -> None:
        """Keep the decisions of the policy's dreams that succeeded, the newest ones if there are too many."""
        rows, columns = (rollout.decided & rollout.success[:, None]).nonzero(as_tuple=True)
        fresh = {
            **{f"camera {name}": frames[rows, columns] for name, frames in rollout.images.items()},
            "state": rollout.state[rows, columns],
            "action": policy.action_units.native(rollout.chain[rows, columns, -1]),
            "valid": rollout.valid[rows, columns],
        }
        sentences = [rollout.instruction[i] for i in rows.tolist()]
        self.kept = {
            name: (torch.cat([self.kept[name].to(value.device), value]) if self.kept else value)[-self.capacity :]
            for name, value in fresh.items()
        } | {"instruction": (self.kept.get("instruction", []) + sentences)[-self.capacity :]}

    def loss(self, policy: FlowPolicy, generator: torch.Generator) -> Float[Tensor, ""] | None:
        """Weighted cloning loss on a random batch of what is kept; None while the buffer holds nothing."""
        if not self.kept or not self.kept["instruction"]:
            return None
        rows = torch.randint(len(self.kept["instruction"]), (self.batch,), generator=generator, device=generator.device)
        sentences = tuple(self.kept["instruction"][i] for i in rows.tolist())
        images = {name.removeprefix("camera "): value[rows] for name, value in self.kept.items() if name.startswith("camera ")}
        obs = Observation(images, self.kept["state"][rows], sentences)
        kept, valid = self.kept["action"][rows], self.kept["valid"][rows][..., None]
        return self.weight * policy.cloning_loss(policy.encode(obs), kept, valid, generator)

    def get_extra_state(self) -> dict[str, Any]:
        """What is kept, for exact resumption."""
        return self.kept

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Continue with what was kept."""
        self.kept = state
