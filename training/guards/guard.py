"""Guards against the exploitation of a learned world, as Lightning callbacks: `guard=...` on the command line chooses one.

A policy that learns in a dream finds the dream's mistakes: imagined success rises while real success falls (measured for reward
models by Gao et al. 2023, arXiv:2210.10760). An `Alarm` (`alarms.py`) reads what a learner logs and what a held-out judge says
(`held_out.py`), and `Guard` stops the run and ships the last good weights. Read `training/rl/post_training.py` for what is shipped.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from training.guards.alarms import WEIGHTS, Alarm, sum_of_squares
from training.guards.held_out import HeldOut, Verdict
from training.rl.post_training import PostTraining
from worldsim.core.files import write_json
from worldsim.core.precision import circumstances


class Guard(Callback):
    """Stops a run that goes wrong and ships its last good weights; writes `alarm.json`, and a judge's verdicts to `guard.json`.

    Good are the best judged weights so far, or without a judge those at the latest interval without an alarm; at first the starting
    policy's. Until it objects, a run learns and ships bit for bit what it would without a guard. For runs of one process.

    Args:
        alarms: checked after every iteration, at most one of a class.
        verdict_alarms: further ones, which read what the judge says.
        judge: measures the policy at the start, after every interval and at the end; null for none.
        every: iterations of an interval.
        margin: at the end the best judged weights are shipped if the last ones are judged worse by more than this.
    """

    def __init__(
        self,
        alarms: list[Alarm],
        judge: HeldOut | None = None,
        every: int = 50,
        margin: float = 0.03,
        verdict_alarms: Sequence[Alarm] = (),
    ):
        if every < 1:
            raise ValueError(f"every must be at least 1 iteration, got {every}; 50 is usual")
        self.alarms, self.judge, self.every, self.margin = [*alarms, *verdict_alarms], judge, every, margin
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
