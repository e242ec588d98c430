"""Stock Lightning CLI syntax over a saved run: ``python -m training fit --config runs/X/config.yaml --trainer.max_steps 10``.

It exists so that a run is reproducible without Hydra. The repetition is written to ``runs/X/again``, so that the run itself stays
as it is. `training/app/fit.py` holds the parser, `training/app/cli.py` the Hydra front door.
"""

from typing import Any

from training.app.fit import FitCLI


class RepeatCLI(FitCLI):
    """Writes below ``<default_root_dir>/again`` whatever the saved configuration writes below ``<default_root_dir>``."""

    def before_instantiate_classes(self) -> None:
        """Redirect the trainer's folder, its checkpoints and its logs."""
        trainer = self.config[self.config.subcommand].trainer
        folder = trainer.default_root_dir
        if folder:
            _redirect(trainer, folder, f"{folder}/again")


def _redirect(node: Any, old: str, new: str) -> None:
    """Replace the folder `old` by `new` at the start of every string in a parsed configuration."""
    items = enumerate(node) if isinstance(node, list) else vars(node).items() if hasattr(node, "__dict__") else node.items()
    for key, value in list(items):
        if isinstance(value, str):
            if value == old or value.startswith(f"{old}/"):
                node[key] = new + value[len(old) :]
        elif isinstance(value, (list, dict)) or hasattr(value, "__dict__"):
            _redirect(value, old, new)


if __name__ == "__main__":
    RepeatCLI()
