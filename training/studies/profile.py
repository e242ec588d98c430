"""`worldsim bench profile`: where an iteration of a learner spends its time, setting by setting, side by side.

Cells are plain `worldsim fit` commands, as in `algorithms.py`, and take turns, so that a slow moment of the machine is nobody's.
Within an iteration the parts are timed where learners call them: the contracts' own methods, whoever wrote the models.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import json
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback

from training.app.stages import Stage
from training.rl.rollout_learner import RolloutLearner
from training.studies.algorithms import learner_command
from training.studies.cells import run_stages
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.worlds.dream import DreamWorld

FIRST = 5  # iterations that compile kernels and fill caches, and in which only a critic learns


class Parts(Callback):
    """Seconds of each part of an iteration, without those of parts that it calls, in `<default_root_dir>/parts.json`.

    What no part claims is the "rest" of the iteration: bookkeeping, optimisers, chains. On a GPU every part waits for it to finish,
    so the sum is more than an iteration takes without this.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.iterations = 0
        self._inner = [0.0]  # seconds of the parts within the one that runs now, by depth
        self._began = 0.0
        self._watched: list[tuple[Any, str, Callable[..., Any]]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch what the learner is made of.

        Raises:
            ValueError: if it does not learn from rollouts, or its policy learns too late.
        """
        if not isinstance(pl_module, RolloutLearner):
            raise ValueError(f"parts are known of learners from rollouts, got {type(pl_module).__name__}; choose learner=ppo")
        if pl_module.warmup > FIRST:
            raise ValueError(
                f"the first {FIRST} iterations are not timed, the policy waits for {pl_module.warmup}; lower the warm-up"
            )
        arena: Any = pl_module.arena
        for policy in {pl_module.actor, pl_module.policy}:  # that of `nft` which plays is a slow copy
            self._watch(policy, "encode", "policy, encoder")
            self._watch(policy, "velocity", "policy, expert")
        self._watch(pl_module.reference, "encode", "starting policy")
        self._watch(pl_module.reference, "velocity", "starting policy")
        self._watch(pl_module.advantage, "value", "critic")
        self._watch(pl_module, "manual_backward", "backward")
        self._watch(arena, "begin", "world, the rest")
        for name, part in (("world_model", "world model"), ("reflector", "reflector")):
            for method in ("init", "step", "judge"):
                if hasattr(getattr(arena, name, None), method):
                    self._watch(getattr(arena, name), method, part)
        for kind in (DreamWorld, *({type(arena.world)} if hasattr(arena, "world") else ())):
            self._watch(kind, "step_chunk", "world, the rest")  # of the class: worlds are made anew, and divided

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at the clock; the first iterations do not count."""
        if batch_idx == FIRST:
            self.seconds.clear()
            self.iterations = 0
        self._inner, self._began = [0.0], _now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """What no part claimed."""
        self.seconds["rest"] += _now() - self._began - self._inner[0]
        self.iterations += 1

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file, and watch no longer."""
        for owner, method, called in self._watched:
            if isinstance(owner, type):
                setattr(owner, method, called)
            else:
                delattr(owner, method)
        each = {part: seconds / self.iterations for part, seconds in self.seconds.items()}
        write_json(Path(trainer.default_root_dir) / "parts.json", {"iterations": self.iterations, "seconds": each})

    def _watch(self, owner: Any, method: str, part: str) -> None:
        """Have a method of this object timed."""
        called: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **kwargs: Any) -> Any:
            began = _now()
            self._inner.append(0.0)
            try:
                return called(*args, **kwargs)
            finally:
                took, inner = _now() - began, self._inner.pop()
                self.seconds[part] += took - inner
                self._inner[-1] += took

        setattr(owner, method, timed)
        self._watched.append((owner, method, called))


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def run_profile(cfg: dict[str, Any]) -> None:
    """Time the cells in turns, and write table and JSON.

    Raises:
        ValueError: if a stage failed, a cell is compared with none, or an iteration would not be timed.
    """
    if unknown := {*cfg["against"], *cfg["against"].values()} - {*cfg["cells"]}:
        raise ValueError(f"against compares {min(unknown)}, which is none of the cells {', '.join(cfg['cells'])}; name one of them")
    if cfg["iterations"] < 1 or cfg["turns"] < 1:
        raise ValueError(f"iterations and turns must be at least 1, got {cfg['iterations']} and {cfg['turns']}")
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    run_stages([timing(cfg, cell, turn) for turn in range(cfg["turns"]) for cell in cfg["cells"]], out, jobs=1)
    found = {cell: parts(cfg, cell) for cell in cfg["cells"]}
    about = {name: cfg[name] for name in ("cells", "against", "iterations", "turns")} | {"threads": cores()}
    write_json(out / "profile.json", {**about, "seconds": found})
    (out / "profile.md").write_text(table(cfg, found))
    print((out / "profile.md").read_text(), end="")


def timing(cfg: dict[str, Any], cell: str, turn: int) -> Stage:
    """Some iterations of a cell."""
    name = f"{cell}_{turn}"
    limit = f"trainer.limit_train_batches={FIRST + cfg['iterations']}"
    watch = f"+trainer.callbacks.parts._target_={Parts.__module__}.Parts"
    return Stage(name, learner_command(cfg, cell, cfg["seed"], f"{cfg['out']}/{name}", limit, watch))


def parts(cfg: dict[str, Any], cell: str) -> dict[str, float]:
    """Seconds of each part of an iteration, in the turn in which all of them together took least."""
    turns = [json.loads((Path(cfg["out"]) / f"{cell}_{turn}" / "parts.json").read_text()) for turn in range(cfg["turns"])]
    return min((turn["seconds"] for turn in turns), key=lambda seconds: sum(seconds.values()))


def table(cfg: dict[str, Any], found: dict[str, dict[str, float]]) -> str:
    """The results as Markdown."""
    most = {part: max(seconds.get(part, 0) for seconds in found.values()) for each in found.values() for part in each}
    names = sorted(most, key=lambda part: -most[part])
    pairs = ", ".join(f"{cell} than {other}" for cell, other in cfg["against"].items())
    lines = [
        "# Where an iteration goes",
        "",
        f"`worldsim bench profile`: ms of an iteration, mean of {cfg['iterations']}, in the fastest of {cfg['turns']} turns that "
        f"the cells take in alternation; {cores()} threads. Times faster: {pairs}.",
        "",
        f"| part | {' | '.join(found)} |",
        f"| --- |{' --- |' * len(found)}",
    ]
    lines += [f"| {part} | {' | '.join(f'{1000 * seconds.get(part, 0):.0f}' for seconds in found.values())} |" for part in names]
    total = {cell: sum(seconds.values()) for cell, seconds in found.items()}
    faster = [f"{total[cfg['against'][cell]] / whole:.2f}" if cell in cfg["against"] else "" for cell, whole in total.items()]
    lines.append(f"| an iteration | {' | '.join(f'{1000 * whole:.0f}' for whole in total.values())} |")
    lines.append(f"| times faster | {' | '.join(faster)} |")
    return "\n".join(lines) + "\n"
