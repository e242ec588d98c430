"""`worldsim bench rehearsal`: the way to a robot, rehearsed on a stand-in with another camera, light, delay and dynamics.

Three policies clone the same expert in simulation: as the model says, under sim-to-real randomisation, and under the conditions
that `worldsim identify` found in a few episodes of the first policy on the stand-in. All are measured there, on the same starts.
Stages are `worldsim` commands in processes of their own, and only recorded data leaves the stand-in's."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from training.app.stages import Stage, execute
from worldsim.core.files import write_json
from worldsim.core.seeds import check_choosing
from worldsim.measure.metrics import paired_difference, success_rate
from worldsim.report.page import described

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

ROBOT = ("randomization=stand_in",)
CONDITIONS = {"nominal": [], "randomised": ["randomization=moderate"], "identified": ["randomization=identified"]}


def run_rehearsal(cfg: dict[str, Any]) -> None:
    """Train and measure the policies, and write table, plot and JSON.

    Raises:
        ValueError: if a stage failed, or the starts are not those that choose.
    """
    check_choosing(cfg["evaluation_seed"], cfg["episodes"])
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    for name in execute(stages(cfg), out, jobs=cfg["jobs"]):
        print(f"  {name} done", flush=True)
    result = summarise(cfg)
    write_json(out / "rehearsal.json", result)
    (out / "rehearsal.md").write_text(table(cfg, result))
    plot(result, out / "rehearsal.png")
    print(f"{out / 'rehearsal.md'}")


def stages(cfg: dict[str, Any]) -> list[Stage]:
    """Collect, clone, record on the robot, identify, collect, clone, evaluate."""
    out, first = cfg["out"], cfg["seed"] * 1_000_000
    file, recorded = f"{out}/identified.json", cfg["recorded"]
    settings = {**CONDITIONS, "identified": [*CONDITIONS["identified"], f"randomization.file={file}"]}

    def learn(name: str, *needs: str) -> list[Stage]:
        root = f"{out}/data/{name}"
        demos = (
            "collect",
            "actor=expert",
            f"root={root}",
            f"episodes={cfg['demos']}",
            f"seed={first}",
            f"world.num_envs={cfg['envs']}",
        )
        fit = ("fit", "experiment=push_policy", f"name={name}", f"run_dir={out}/{name}", f"data.roots=[{root}]", "resume=true")
        seeds = (f"seed_everything={cfg['seed']}", f"data.seed={cfg['seed']}", f"trainer.max_steps={cfg['policy_steps']}")
        return [Stage(f"collect_{name}", (*demos, *settings[name]), needs), Stage(name, (*fit, *seeds), (f"collect_{name}",))]

    robot = (*ROBOT, f"world.num_envs={recorded}")
    actor = ("actor=policy", f"actor.folder={out}/nominal", "actor.noise=0.2")
    episodes = (f"root={out}/data/robot", f"episodes={recorded}", f"seed={first + 500_000}")
    search = (f"recording={out}/data/robot", f"seed={first + 500_000}", f"generations={cfg['generations']}", f"out={file}")
    measured = (f"policy={out}/identified", f"+others.randomised={out}/randomised", f"baseline={out}/nominal")
    held_out = (f"episodes={cfg['episodes']}", f"seed={cfg['evaluation_seed']}")
    every = cfg["evaluation_envs"]
    there = (*ROBOT, "world.phrasings=eval", f"world.num_envs={every}", f"out={out}/robot")
    here = ("world.phrasings=eval", f"world.num_envs={every}", f"policy={out}/nominal", f"out={out}/model")
    return [
        *learn("nominal"),
        *learn("randomised"),
        Stage("robot", ("collect", *actor, *episodes, *robot), ("nominal",)),
        Stage("identify", ("identify", *search, f"world.num_envs={32 * recorded}"), ("robot",)),
        *learn("identified", "identify"),
        Stage("on_the_model", ("evaluate", *here, *held_out), ("nominal",)),
        Stage("on_the_robot", ("evaluate", *measured, *there, *held_out), ("identified", "randomised")),
    ]


def summarise(cfg: dict[str, Any]) -> dict[str, Any]:
    """Success of each training on the robot, what it gained over the one before, and parameters beside their truth."""
    out = Path(cfg["out"])
    robot, model = (json.loads((out / name / "evaluation.json").read_text()) for name in ("robot", "model"))
    names = {"nominal": "baseline", "randomised": "randomised", "identified": "policy"}
    outcomes = {name: _outcomes(robot["policies"][key]) for name, key in names.items()}
    own = _outcomes(model["policies"]["policy"])
    identified = json.loads((out / "identified.json").read_text())
    truth = _constants(robot["randomization"])
    return {
        "seed": cfg["seed"],
        "on_the_model": success_rate(own),
        "on_the_robot": {name: success_rate(values) for name, values in outcomes.items()},
        "randomised_over_nominal": paired_difference(outcomes["nominal"], outcomes["randomised"]),
        "identified_over_randomised": paired_difference(outcomes["randomised"], outcomes["identified"]),
        "share_of_gap_closed": gap_closed(own, outcomes["randomised"], outcomes["identified"]),
        "parameters": {name: {"truth": truth[name], "found": value} for name, value in identified["found"].items()},
        "robot_episodes": cfg["recorded"],
        "circumstances": robot["circumstances"],
    }


def gap_closed(own: Tensor, before: Tensor, after: Tensor, *, draws: int = 4000) -> dict[str, Any]:
    """(after - before) / (own - before), with a 95 % bootstrap interval over starts; 0 where there is no gap.

    Args:
        own: outcomes of the nominal policy where it was trained, bool [n].
        before: outcomes on the robot without identification, on the same starts.
        after: with it.
        draws: of the bootstrap.
    """
    outcomes = torch.stack([own, before, after]).double()
    rows = torch.randint(outcomes.shape[1], (draws, outcomes.shape[1]), generator=torch.Generator().manual_seed(0))
    own_rate, before_rate, after_rate = outcomes[:, rows].mean(-1)
    shares = (after_rate - before_rate) / (own_rate - before_rate)
    a, b, c = outcomes.mean(1).tolist()
    low, high = shares.nan_to_num().quantile(torch.tensor([0.025, 0.975]).double()).tolist()
    return {"share": (c - b) / (a - b) if a != b else 0.0, "ci95": [low, high]}


def table(cfg: dict[str, Any], result: dict[str, Any]) -> str:
    """The result as Markdown."""

    def interval(entry: dict[str, Any]) -> str:
        return f"{100 * entry['rate']:.1f} [{100 * entry['ci95'][0]:.1f}, {100 * entry['ci95'][1]:.1f}]"

    def gain(entry: dict[str, Any]) -> str:
        return f"{entry['points']:+.1f} [{entry['ci95'][0]:+.1f}, {entry['ci95'][1]:+.1f}]"

    rows = [f"| nominal, measured on the model itself | {interval(result['on_the_model'])} | |"]
    gains = {"randomised": result["randomised_over_nominal"], "identified": result["identified_over_randomised"]}
    for name, entry in result["on_the_robot"].items():
        rows.append(f"| {name} | {interval(entry)} | {gain(gains[name]) if name in gains else ''} |")
    found = [f"| {name} | {value['truth']:.3g} | {value['found']:.3g} |" for name, value in result["parameters"].items()]
    closed = result["share_of_gap_closed"]
    low, high = (100 * bound for bound in closed["ci95"])
    verdict = f"Identification closed {100 * closed['share']:.0f} % of it [{low:.0f}, {high:.0f}]."
    return "\n".join(
        [
            "# Rehearsal: from simulation to a robot that differs from its model",
            "",
            f"`worldsim bench rehearsal seed={cfg['seed']}`: {cfg['demos']} demonstrations, {cfg['policy_steps']} steps, one seed;",
            f"{cfg['episodes']} held-out starts and sentences, 95 % intervals; {cfg['recorded']} episodes for identification. "
            f"Measured with {described(result['circumstances'])}.",
            "",
            "| training | success on the robot, % | against the row above, points |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"The gap is what randomised training lacks to the nominal policy on the model itself. {verdict}",
            "",
            "| parameter | robot | found |",
            "| --- | --- | --- |",
            *found,
            "",
        ]
    )


def plot(result: dict[str, Any], file: Path) -> None:
    """Success with intervals, side by side."""
    entries = {"on the model": result["on_the_model"], **result["on_the_robot"]}
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    rates = [100 * entry["rate"] for entry in entries.values()]
    bounds = [[100 * abs(entry["rate"] - entry["ci95"][side]) for entry in entries.values()] for side in (0, 1)]
    axes.bar(list(entries), rates, yerr=bounds, color=["0.7", "C0", "C1", "C2"], capsize=4)
    axes.set(ylabel="success, %", ylim=(0, 100))
    figure.savefig(file, dpi=150)
    plt.close(figure)


def _outcomes(entry: dict[str, Any]) -> Tensor:
    return torch.tensor([letter == "1" for letter in entry["outcomes"]])


def _constants(conditions: dict[str, Any]) -> dict[str, float]:
    """The robot's parameters, by the names that `RandomizedWorld` gives them."""
    parts = {**conditions["effects"], "latency": conditions["latency"], "dynamics": conditions["dynamics"]}
    return {
        f"{part}.{field}": float(value.get("low", value.get("mean", 0.0)))
        for part, distributions in parts.items()
        for field, value in distributions.items()
        if isinstance(value, dict)
    }
