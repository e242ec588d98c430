"""Alarms: what they read of a learner's metrics and of a held-out judge's verdicts, and when they say that a run goes wrong.

`guard.py` asks them after every iteration and stops the run.
"""

import math
from abc import ABC, abstractmethod

import torch

from training.guards.held_out import Verdict
from training.rl.chains import Chain
from training.rl.post_training import PostTraining
from training.rl.ppo import PPOPostTraining
from worldsim.core.interfaces import Policy

WEIGHTS = "policy/sum_of_squares"  # beside the learner's metrics; not finite once a weight is not, or is beyond 1e19


class Alarm(ABC):
    """Looks at a run after every iteration; metrics that the learner does not log are ignored.

    Attributes:
        advice: what to try when it has fired.
        memory: all that it keeps between iterations; a resumed run continues with it.
    """

    advice: str

    def __init__(self):
        self.memory: dict[str, float] = {}

    def begin(self, learner: PostTraining) -> None:  # noqa: B027 - most alarms suit every learner
        """Called once, before a run.

        Raises:
            ValueError: if it could never fire for this learner.
        """

    @abstractmethod
    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        """What is wrong, or None; called once per iteration with the latest metrics and `WEIGHTS`, and all verdicts so far."""


class NotFinite(Alarm):
    """A metric of training or a weight of the policy is NaN or infinite."""

    advice = "a lower model.lr or model.clip; the last rows of metrics.csv show what grew first"

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        bad = [name for name, value in metrics.items() if name.startswith(("train/", WEIGHTS)) and not math.isfinite(value)]
        return f"not finite: {', '.join(bad)}" if bad else None


class InARow(Alarm):
    """One metric is `below` or `above` a bound, for `patience` iterations in a row."""

    metric: str

    def __init__(self, patience: int, below: float = -math.inf, above: float = math.inf):
        super().__init__()
        if patience < 1:
            raise ValueError(f"patience of {type(self).__name__} must be at least 1, got {patience}; 1 reacts at once")
        self.patience, self.below, self.above = patience, below, above

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        value = metrics.get(self.metric)
        if value is None:
            return None
        count = self.memory["count"] = self.memory.get("count", 0) + 1 if not self.below <= value <= self.above else 0
        bounds = f"[{self.below}, {self.above}]"
        return f"{self.metric}={value:.3g} is outside {bounds}, {count} in a row" if count >= self.patience else None


class FewUsable(InARow):
    """Hardly a decision carries a gradient, because the dreams of a group all end alike."""

    metric, advice = "train/usable_fraction", "a larger model.advantage.group_size, model.sampling or model.starts"

    def __init__(self, below: float = 0.1, patience: int = 5):
        super().__init__(patience, below=below)


class RatioExplosion(InARow):
    """The policy has left the one that acted so far behind that importance ratios mean nothing."""

    metric, advice = "train/ratio_max", "a lower model.lr, fewer model.epochs or a larger model.minibatch"

    def __init__(self, above: float = 100.0, patience: int = 3):
        super().__init__(patience, above=above)


class KLExplosion(InARow):
    """One iteration moves the policy too far; `above` is in nats."""

    metric, advice = "train/approx_kl", "a lower model.lr, fewer model.epochs, or a larger model.kl or model.anchor"

    def __init__(self, above: float = 0.5, patience: int = 2):
        super().__init__(patience, above=above)


class SpreadCollapse(Alarm):
    """Noise no longer changes what the policy does: its actions lie less than `share` as far apart as at first, for `patience`
    iterations in a row. Looks at `PostTraining.log_spread`, which every learner logs whatever its chain."""

    advice = "a larger model.anchor or a lower model.lr"

    def __init__(self, share: float = 0.1, patience: int = 3):
        super().__init__()
        if not 0 < share < 1 or patience < 1:
            raise ValueError(
                f"share must lie in (0, 1) and patience be at least 1, got {share} and {patience}; 0.1 and 3 are usual"
            )
        self.share, self.patience = share, patience

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        spread = metrics.get("train/action_spread")
        if spread is None:
            return None
        first = self.memory.setdefault("first", spread)
        count = self.memory["count"] = self.memory.get("count", 0) + 1 if spread < self.share * first else 0
        if count < self.patience:
            return None
        return f"train/action_spread={spread:.3g} is less than {self.share:g} of the first, {first:.3g}, {count:g} in a row"


class EntropyCollapse(Alarm):
    """The chain explores less and less: of the entropy that it can lose, more than `share` is gone since the first iteration.

    Only for a chain whose standard deviation is learned (Flow-Noise): that of the others never changes, so they are refused.
    """

    advice = "a larger model.entropy, or a higher floor of the noise (model.chain.low)"

    def __init__(self, share: float = 0.8):
        super().__init__()
        if not 0 < share < 1:
            raise ValueError(f"share of EntropyCollapse must lie in (0, 1), got {share}; 0.8 fires near the floor of the noise")
        self.share, self.lowest = share, -math.inf

    def begin(self, learner: PostTraining) -> None:
        chain: Chain | None = getattr(learner, "chain", None)
        lowest = None if chain is None or not isinstance(learner, PPOPostTraining) else chain.lowest_entropy(learner.policy)
        if lowest is None:
            raise ValueError(
                f"EntropyCollapse never fires for a {type(learner).__name__} with {type(chain).__name__}, whose entropy learning "
                "does not move; use training.guards.alarms.SpreadCollapse"
            )
        self.lowest = lowest

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        entropy = metrics.get("train/entropy")
        if entropy is None:
            return None
        first = self.memory.setdefault("first", entropy)
        lost = (first - entropy) / max(first - self.lowest, 1e-6)
        return (
            f"train/entropy={entropy:.3g} has lost {lost:.2f} of its way from {first:.3g} to the floor"
            if lost > self.share
            else None
        )


class JudgeFalls(Alarm):
    """In each of the last `patience` checks judged success was more than `margin` below its best, while imagined success is no
    lower than at that best. Rates are fractions of episodes; one standard error of 64 episodes is up to 0.06."""

    advice = "fewer iterations, a larger model.anchor, or world model and reflector trained on fresh data of this policy"

    def __init__(self, margin: float = 0.05, patience: int = 2):
        super().__init__()
        self.margin, self.patience = margin, patience

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        best, recent = max(history, key=lambda verdict: verdict.judged, default=None), history[-self.patience :]
        if best is None or recent[-1].imagined < best.imagined:
            return None
        fell = all(verdict.judged < best.judged - self.margin for verdict in recent)
        return f"judged success fell from {best.judged:.3f} to {recent[-1].judged:.3f}, imagined success did not" if fell else None


class NoLongerRises(Alarm):
    """None of the last `patience` checks exceeded what had been judged before them: further iterations cost and gain nothing. All
    checks are of the same episodes, so the lower bound of judged success rises when its rate does."""

    advice = "nothing, if it has learned enough; else world model and reflector trained on fresh data of this policy"

    def __init__(self, patience: int = 3):
        super().__init__()
        if patience < 1:
            raise ValueError(f"patience of NoLongerRises must be 1 check or more, got {patience}; 3 is usual")
        self.patience = patience

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        before, recent = history[: -self.patience], history[-self.patience :]
        if not before:
            return None
        best, now = (max(verdict.judged for verdict in verdicts) for verdicts in (before, recent))
        return f"judged success has not risen above {best:.3f} in {self.patience} checks" if now <= best else None


class GapTooWide(Alarm):
    """Imagined success exceeded judged success by more than `max_gap` in each of the last `patience` checks."""

    advice = "a stricter reflector, or world model and reflector trained on fresh data of this policy"

    def __init__(self, max_gap: float = 0.10, patience: int = 2):
        super().__init__()
        self.max_gap, self.patience = max_gap, patience

    def check(self, metrics: dict[str, float], history: list[Verdict]) -> str | None:
        gaps = [verdict.imagined - verdict.judged for verdict in history[-self.patience :]]
        wide = len(gaps) == self.patience and min(gaps) > self.max_gap
        return f"imagined exceeds judged success by {gaps[-1]:.3f}, more than {self.max_gap}" if wide else None


def sum_of_squares(policy: Policy) -> float:
    """Of all weights, in single precision."""
    return float(torch.stack([parameter.detach().float().square().sum() for parameter in policy.parameters()]).sum())
