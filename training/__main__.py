"""Stock Lightning CLI syntax over a saved run: ``python -m training fit --config runs/X/config.yaml --trainer.max_steps 10``.

It exists so that a run is reproducible without Hydra. `fit.py` holds the parser, `cli.py` the Hydra front door.
"""

from training.fit import FitCLI

if __name__ == "__main__":
    FitCLI()
