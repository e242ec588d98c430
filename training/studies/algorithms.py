"""`worldsim bench algorithms`: every learner, chain and advantage on one task, for the same wall-clock time, measured in physics.

All cells of a seed start from one behaviour-cloned policy and one learned world; each gets the same seconds on the same threads, in
imagination or (one cell) in the simulator itself. Cells are plain `worldsim fit` commands; see `configs/study/algorithms.yaml`.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import json
from pathlib import Path
from typing import Any

import matplotlib

from training.app.stages import Stage
from training.studies.cells import fitting, gain_text, mean_over_seeds, outcomes_of, run_stages
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.core.seeds import check_choosing
from worldsim.measure.metrics import paired_difference, success_rate
from worldsim.report.page import described

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402


def run_algorithms(cfg: dict[str, Any]) -> None:
    """Calibrate the cells, train them, evaluate them on the same held-out starts, and write table, plot and JSON.

    Raises:
        ValueError: if `only` names no cell, a stage failed, a calibration saw fewer than two iterations, or the starts are not
            those that choose.
    """
    check_choosing(cfg["evaluation_seed"], cfg["episodes"])
    if unknown := {*cfg["only"]} - {*cfg["cells"]}:
        raise ValueError(f"only names {min(unknown)}, which is none of the cells {', '.join(cfg['cells'])}")
    cfg = cfg | {"cells": {cell: cfg["cells"][cell] for cell in cfg["only"] or cfg["cells"]}}
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    jobs = cfg["jobs"]
    if diffuse(cfg):
        run_stages([base(cfg, seed) for seed in cfg["seeds"]], out, jobs)
    run_stages([calibration(cfg, cell) for cell in cfg["cells"]], out, jobs)
    iterations = {cell: max(4, fitting(Path(cfg["out"]) / "pace" / cell, cfg["seconds"])) for cell in cfg["cells"]}
    todo = [training(cfg, cell, seed, iterations[cell]) for seed in cfg["seeds"] for cell in cfg["cells"]]
    run_stages([*todo, *(evaluation(cfg, seed) for seed in cfg["seeds"])], out, jobs)
    rows = summarise(cfg)
    about = {"circumstances": _evaluation(cfg, cfg["seeds"][0])["circumstances"]}
    write_json(out / "algorithms.json", {"seconds": cfg["seconds"], "seeds": cfg["seeds"], **about, "rows": rows})
    (out / "algorithms.md").write_text(table(cfg, rows))
    plot(cfg, rows, out / "algorithms.png")
    print(f"{out / 'algorithms.md'}: {len(rows)} cells, best learner per minute: {rows[0]['cell']}")


def diffuse(cfg: dict[str, Any]) -> bool:
    """Whether a cell starts from a diffusion policy."""
    return any(cell in cfg["diffusion_cells"] for cell in cfg["cells"])


def base(cfg: dict[str, Any], seed: int) -> Stage:
    """What a seed needs besides its demo run: a behaviour-cloned diffusion policy on the same demonstrations."""
    run = cfg["runs"][seed]
    command = (
        *("fit", "experiment=push_policy", "model/policy=diffusion_vla", "name=diffusion"),
        *(f"run_dir={cfg['out']}/diffusion_{seed}", f"data.roots=[{run}/data/demos]"),
        *(f"seed_everything={seed}", f"data.seed={seed}", "resume=true", f"trainer.max_steps={cfg['policy_steps']}"),
    )
    return Stage(f"diffusion_{seed}", command)


def learner_command(cfg: dict[str, Any], cell: str, seed: int, folder: str, *more: str) -> tuple[str, ...]:
    """The `worldsim fit` command of one cell."""
    run, overrides = cfg["runs"][seed], cfg["cells"][cell]
    dream = () if "arena=physics" in overrides else ("world_model", "reflector")
    place = "model.arena" if any(part.startswith("learner=") for part in overrides) else "model"
    roots = ",".join(f"{run}/data/{name}" for name in cfg["data"])
    return (
        *("fit", "experiment=post_train", "augmentation=push_block", *overrides, f"name={cell}", f"run_dir={folder}"),
        *(f"model.policy.folder={policy(cfg, cell, seed)}", *(f"{place}.{name}.folder={run}/{cfg[name]}" for name in dream)),
        *(f"data.roots=[{roots}]", f"seed_everything={seed}", f"data.seed={seed}"),
        *("+trainer.callbacks.pace._target_=training.studies.cells.Pace", *more),
    )


def policy(cfg: dict[str, Any], cell: str, seed: int) -> str:
    """The starting policy of a cell: of the diffusion family where the cell is named after it."""
    return f"{cfg['out']}/diffusion_{seed}" if cell in cfg["diffusion_cells"] else f"{cfg['runs'][seed]}/policy"


def calibration(cfg: dict[str, Any], cell: str) -> Stage:
    """A few seconds of a cell, to know how many iterations fit into the time."""
    limit = f"+trainer.max_time={{seconds: {cfg['calibration_seconds']}}}"
    folder = f"{cfg['out']}/pace/{cell}"
    return Stage(f"pace_{cell}", learner_command(cfg, cell, cfg["seeds"][0], folder, limit, "trainer.limit_train_batches=100000"))


def training(cfg: dict[str, Any], cell: str, seed: int, iterations: int) -> Stage:
    """One cell for the given number of iterations."""
    folder = f"{cfg['out']}/{cell}_{seed}"
    return Stage(
        f"{cell}_{seed}", learner_command(cfg, cell, seed, folder, f"trainer.limit_train_batches={iterations}", "resume=true")
    )


def evaluation(cfg: dict[str, Any], seed: int) -> Stage:
    """All policies of a seed on the same held-out starts, once nothing trains."""
    cells = [*cfg["cells"], *(["diffusion"] if diffuse(cfg) else [])]
    others = [f"+others.{cell}={cfg['out']}/{cell}_{seed}" for cell in cells]
    return Stage(
        f"evaluate_{seed}",
        (
            *("evaluate", f"policy={cfg['runs'][seed]}/policy", *others, f"episodes={cfg['episodes']}"),
            *(f"seed={cfg['evaluation_seed']}", f"world.num_envs={cfg['envs']}", "world.phrasings=eval"),
            *(f"n_action_steps={cfg['n_action_steps'] or 'null'}", f"out={cfg['out']}/evaluation_{seed}"),
        ),
        tuple(f"{cell}_{every}" for every in cfg["seeds"] for cell in cfg["cells"]),
    )


def summarise(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per cell, best gain per minute first. Gains are paired by start within a seed; their interval is over seeds."""
    rows = []
    for cell in cfg["cells"]:
        before, after, seconds, per_seed, steps = [], [], [], [], []
        for seed in cfg["seeds"]:
            results = _evaluation(cfg, seed)["policies"]
            start = results["diffusion" if cell in cfg["diffusion_cells"] else "policy"]
            before.append(outcomes_of(start))
            after.append(outcomes_of(results[cell]))
            folder = Path(cfg["out"]) / f"{cell}_{seed}"
            pace = json.loads((folder / "pace.json").read_text())
            steps.append(json.loads((folder / "physics_steps.json").read_text())["physics_steps"])
            seconds.append(pace["seconds"])
            per_seed.append(paired_difference(before[-1], after[-1]))
        gain = mean_over_seeds([gain["points"] for gain in per_seed], per_seed[0]["ci95"])
        minutes = max(sum(seconds) / len(seconds), 1.0) / 60  # an alarm may end a run in its first iteration
        rows.append(
            {
                "cell": cell,
                "before": mean_over_seeds([rate["rate"] for rate in map(success_rate, before)], success_rate(before[0])["ci95"]),
                "after": mean_over_seeds([rate["rate"] for rate in map(success_rate, after)], success_rate(after[0])["ci95"]),
                "gain": gain,
                "gain_per_seed": per_seed,
                "seconds": 60 * minutes,
                "iterations": pace["iterations"],
                "points_per_minute": gain["mean"] / minutes,
                "physics_steps": sum(steps) // len(steps),
            }
        )
    return sorted(rows, key=lambda row: -row["points_per_minute"])


def table(cfg: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    conditions = described(_evaluation(cfg, cfg["seeds"][0])["circumstances"])
    lines = [
        "# Learners compared",
        "",
        f"Seeds {', '.join(map(str, cfg['seeds']))}, {cfg['seconds']} s of learning each on "
        f"{max(1, cores() // cfg['jobs'])} thread(s); {cfg['episodes']} starts per seed, from {cfg['evaluation_seed']:,} on, which "
        "choose and do not report; held-out sentences; gains paired with the policy that a cell started from. 95 % intervals: over "
        f"seeds (Student's t; a single seed's over its starts), and in the last column each seed's own over its starts. "
        f"Measured with {conditions}.",
        "",
        "| cell | physics steps | before | after | gain, points | points per minute | seconds | per seed |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        before, after, gain = row["before"], row["after"], row["gain"]
        lines.append(
            f"| {row['cell']} | {row['physics_steps']} | {100 * before['mean']:.1f} | "
            f"{100 * after['mean']:.1f} [{100 * after['ci95'][0]:.1f}, {100 * after['ci95'][1]:.1f}] | "
            f"{gain['mean']:+.1f} [{gain['ci95'][0]:+.1f}, {gain['ci95'][1]:+.1f}] | {row['points_per_minute']:+.1f} | "
            f"{row['seconds']:.0f} | {', '.join(gain_text(gain) for gain in row['gain_per_seed'])} |"
        )
    lines += ["", *verdict(rows)]
    return "\n".join(lines) + "\n"


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """The best learner per minute, against those that learn in physics."""
    best, low = rows[0], rows[0]["gain"]["ci95"][0]
    lines = [f"Best per minute: {best['cell']}, {best['points_per_minute']:+.1f} points per minute."]
    for row in rows:
        if row["physics_steps"] and row is not best:
            rate, most = row["points_per_minute"], 60 * row["gain"]["ci95"][1] / row["seconds"]
            line = f"{row['cell']} ({row['physics_steps']} steps of physics): {rate:+.1f} points per minute"
            if rate > 0:  # of a loss there is no ratio
                line += f", {best['points_per_minute'] / rate:.1f} times less"
            if rate > 0 and low > 0:
                line += f"; at the unfavourable ends of both intervals {60 * low / best['seconds'] / most:.1f} times"
            lines.append(line + ".")
    return lines


def plot(cfg: dict[str, Any], rows: list[dict[str, Any]], path: Path) -> None:
    """Gains with their intervals, best per minute on top."""
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    for y, row in enumerate(reversed(rows)):
        points, (low, high) = row["gain"]["mean"], row["gain"]["ci95"]
        axes.errorbar(
            points, y, xerr=[[points - low], [high - points]], fmt="o", color="tab:orange" if row["physics_steps"] else "tab:blue"
        )
        axes.scatter([gain["points"] for gain in row["gain_per_seed"]], [y] * len(row["gain_per_seed"]), marker="|", color="grey")
    axes.set_yticks(range(len(rows)), [row["cell"] for row in reversed(rows)])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(f"physics success gained in {cfg['seconds']} s, percentage points (orange: learns in physics; ticks: seeds)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _evaluation(cfg: dict[str, Any], seed: int) -> dict[str, Any]:
    return json.loads((Path(cfg["out"]) / f"evaluation_{seed}" / "evaluation.json").read_text())
