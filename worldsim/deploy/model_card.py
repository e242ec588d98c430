"""The README of a robot bundle: what the policy is, what it expects, what it was measured to do. `export.py` writes it."""

from typing import Any

from worldsim.measure.metrics import percent


def model_card(description: dict[str, Any]) -> str:
    """Markdown for people and for model hubs.

    Args:
        description: contents of `bundle.json`.
    """
    (actions,), parity, evaluation = description["outputs"], description["parity"], description["evaluation"]
    made = f"{description['versions']['worldsim']} ({description['format']}, {description['precision']})"
    difference = f"{parity['max_abs_difference']:.1e} in {parity['cases']} cases, at most {parity['tolerance']:.0e}"
    names = {key: ", ".join(description[key] or ["unnamed"]) for key in ("state_names", "action_names")}
    limits = ", ".join(f"{low:g} to {high:g}" for low, high in zip(actions["low"], actions["high"], strict=True))
    views = ", ".join(f"{name} {height} x {width}" for name, (height, width) in description["views"].items())
    rate = "unknown" if description["fps"] is None else f"{description['fps']} Hz"
    lines = [
        "---",
        "library_name: worldsim",
        "pipeline_tag: robotics",
        "---",
        "",
        f"# {description['policy'].rpartition('.')[2]}",
        "",
        f"A policy exported by worldsim {made}.",
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {e['name']} | {e['dtype']} {e['shape']} |" for e in description["inputs"]),
        f"| actions | {actions['dtype']} {actions['shape']}, {limits} |",
        f"| cameras, side by side | {views} |",
        f"| state | {names['state_names']} (native units; the graph normalises) |",
        f"| action | {names['action_names']} |",
        f"| control rate | {rate} |",
        f"| denoising steps | {description['num_steps']} |",
        "",
        "## Measured",
        "",
        f"- Largest difference to PyTorch: {difference} is allowed.",
        f"- {_earned(evaluation)}",
        "",
        "## Use",
        "",
        "`python -m worldsim.robot.check FOLDER` verifies it, `python -m worldsim.robot.run FOLDER` runs it; `bundle.json` has",
        "the limits and the hash of every file.",
    ]
    return "\n".join(lines) + "\n"


def _earned(evaluation: dict[str, Any] | None) -> str:
    if evaluation is None:
        return "Success: no evaluation was given to the export."
    steps = evaluation.get("n_action_steps")
    executed = f", {steps} actions of each chunk executed" if steps else ""
    measured = f", measured with {evaluation['circumstances']}" if "circumstances" in evaluation else ""
    return (
        f"Success of the policy before its export: {percent(evaluation)} of "
        f"{evaluation['episodes']} episodes (95 % interval), starts from seed {evaluation['seed']} on, in `{evaluation['world']}`"
        f"{executed}{measured}."
    )
