"""Guards against the exploitation of a learned world, as Lightning callbacks: `guard=...` on the command line chooses one.

A policy that learns in a dream finds the dream's mistakes: imagined success rises while real success falls (measured for reward
models by Gao et al. 2023, arXiv:2210.10760). An `Alarm` reads what a learner logs and what a held-out judge says (`judges.py`),
and `Guard` stops the run and ships the last good weights. Read `post_training.py` for what is shipped.
"""

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from training.chains import Chain
from training.judges import Judge, Verdict
from training.post_training import PostTraining
from training.ppo import PPOPostTraining
from worldsim.device import circumstances
from worldsim.files import write_json
from worldsim.interfaces import Policy

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
                "does not move; use training.guards.SpreadCollapse"
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


class Guard(Callback):
    """Stops a run that goes wrong and ships its last good weights; writes `alarm.json`, and a judge's verdicts to `guard.json`.

    Good are the best judged weights so far, or without a judge those at the latest interval without an alarm; at first the starting
    policy's. Until it objects, a run learns and ships bit for bit what it would without a guard. For runs of one process.

    Args:
        alarms: checked after every iteration, at most one of a class.
        judge: measures the policy at the start, after every interval and at the end; null for none.
        every: iterations of an interval.
        margin: at the end the best judged weights are shipped if the last ones are judged worse by more than this.
    """

    def __init__(self, alarms: list[Alarm], judge: Judge | None = None, every: int = 50, margin: float = 0.03):
        if every < 1:
            raise ValueError(f"every must be at least 1 iteration, got {every}; 50 is usual")
        self.alarms, self.judge, self.every, self.margin = alarms, judge, every, margin
        self.history: list[Verdict] = []
        self.good: dict[str, Any] = {}  # weights, step, judged
        self.fired = self.ended = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep and measure the starting policy, unless the run is resumed."""
        if not isinstance(pl_module, PostTraining):
            raise ValueError(f"a guard needs a PostTraining, got a {type(pl_module).__name__}; set trainer.callbacks.guard=null")
        for alarm in self.alarms:
            alarm.begin(pl_module)
        if not self.good:
            (Path(trainer.default_root_dir) / "alarm.json").unlink(missing_ok=True)  # of an earlier run in this folder
            self._keep(trainer, pl_module, self._measure(trainer, pl_module))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Forget what the last iteration told; a run that goes on after an alarm is a new attempt from the shipped weights."""
        assert isinstance(pl_module, PostTraining)
        pl_module.told.clear()
        if self.fired:
            self.fired = False
            (Path(trainer.default_root_dir) / "alarm.json").unlink(missing_ok=True)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure if it is time, check the alarms, and keep the weights if it is time and all is well."""
        assert isinstance(pl_module, PostTraining)
        metrics = {name: float(value) for name, value in pl_module.told.items()}
        metrics[WEIGHTS] = sum_of_squares(pl_module.policy)
        due = pl_module.iteration % self.every == 0 and math.isfinite(metrics[WEIGHTS])
        verdict = self._measure(trainer, pl_module) if due else None
        for alarm in self.alarms:
            message = alarm.check(metrics, self.history)
            if message is not None:
                return self._stop(trainer, pl_module, alarm, message)
        if due and (self.judge is None or (verdict is not None and verdict.judged > self.good["judged"])):
            self._keep(trainer, pl_module, verdict)
        return None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ship the best judged weights if the last ones are clearly worse, and never any that are not finite."""
        assert isinstance(pl_module, PostTraining)
        self.ended = True
        if self.fired:
            return
        finite = math.isfinite(sum_of_squares(pl_module.policy))
        if finite and self.history and self.history[-1].step != pl_module.iteration:
            self._measure(trainer, pl_module)
        worse = bool(self.history) and self.history[-1].judged < self.good["judged"] - self.margin
        if worse or not finite:
            pl_module.roll_back(self.good["weights"])
            reason = f"judged worse by more than {self.margin}" if finite else "not finite"
            print(f"guard: the last weights are {reason}; those of iteration {self.good['step']} are shipped", flush=True)
        self._record(trainer, shipped=self.good["step"] if worse or not finite else pl_module.iteration)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As at the end of training, which Lightning skips when a run is resumed after its last iteration; see `LastCheckpoint`."""
        if trainer.ckpt_path is not None and not self.ended:
            self.on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs to go on as if nothing had happened."""
        return {
            "history": [asdict(verdict) for verdict in self.history],
            "good": self.good,
            "fired": self.fired,
            "physics_steps": self.judge.physics_steps if self.judge else 0,
            "alarms": {type(alarm).__name__: alarm.memory for alarm in self.alarms},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on; an alarm that is new to the run starts afresh."""
        self.history = [Verdict(**verdict) for verdict in state_dict["history"]]
        self.good, self.fired = state_dict["good"], state_dict["fired"]
        for alarm in self.alarms:
            alarm.memory = dict(state_dict["alarms"].get(type(alarm).__name__, {}))
        if self.judge is not None:
            self.judge.physics_steps = state_dict["physics_steps"]

    def _keep(self, trainer: Trainer, pl_module: PostTraining, verdict: Verdict | None) -> None:
        judged = -math.inf if verdict is None else verdict.judged
        self.good = {"weights": pl_module.shipped(), "step": pl_module.iteration, "judged": judged}

    def _measure(self, trainer: Trainer, pl_module: PostTraining) -> Verdict | None:
        if self.judge is None:
            return None
        policy = copy.deepcopy(pl_module.policy).cpu().eval()
        policy.load_state_dict(pl_module.shipped())
        with torch.no_grad(), trainer.precision_plugin.forward_context():
            verdict = self.judge.measure(policy)
        if verdict is not None:
            verdict = replace(verdict, step=pl_module.iteration)
            self.history.append(verdict)
            gap = verdict.imagined - verdict.judged
            for logger in trainer.loggers:
                scalars = {"judge/imagined": verdict.imagined, "judge/success": verdict.judged, "judge/gap": gap}
                logger.log_metrics(scalars, step=verdict.step)
            self._record(trainer, shipped=None)
        return verdict

    def _record(self, trainer: Trainer, shipped: int | None) -> None:
        if self.judge is not None:
            record: dict[str, Any] = {"verdicts": [asdict(verdict) for verdict in self.history], "shipped_iteration": shipped}
            on_cpu = trainer.strategy.root_device.type == "cpu"  # where judges judge: a GPU's autocast does not reach them
            conditions = circumstances(str(trainer.precision) if on_cpu else "32-true", self.judge.num_envs)
            record |= {"spent": self.judge.spent, "circumstances": conditions}
            write_json(Path(trainer.default_root_dir) / "guard.json", record)

    def _stop(self, trainer: Trainer, pl_module: PostTraining, alarm: Alarm, message: str) -> None:
        name, now, back = type(alarm).__name__, pl_module.iteration, self.good["step"]
        pl_module.roll_back(self.good["weights"])
        trainer.should_stop = self.fired = True
        record = {"alarm": name, "message": message, "advice": alarm.advice, "iteration": now, "rolled_back_to": back}
        write_json(Path(trainer.default_root_dir) / "alarm.json", record)
        self._record(trainer, shipped=back)
        print(f"guard: {name} at iteration {now}: {message}; iteration {back} is shipped. Try {alarm.advice}.", flush=True)
        self.history = [verdict for verdict in self.history if verdict.step <= back]
        for each in self.alarms:
            each.memory = {}


def sum_of_squares(policy: Policy) -> float:
    """Of all weights, in single precision."""
    return float(torch.stack([parameter.detach().float().square().sum() for parameter in policy.parameters()]).sum())
