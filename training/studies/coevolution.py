"""`worldsim bench coevolution`: which fresh episodes bring a policy most, those that come or those around the dream's mistakes.

All arms share a few episodes of the cloned policy. One arm then records as many again from starts as they come, one goes back to
where the demo's first world model left those episodes (`worldsim/measure/parting.py`), one records three times as many.
Each refits world model and reflector as a round of the demo does, and the cloned policy learns in that for the same number of
iterations. Physics says what came of it. Read `training/studies/demo.py` for a round.
"""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from training.app.stages import Stage
from training.studies.cells import gain_text, mean_over_seeds, outcomes_of, run_stages
from training.studies.demo import STARTS_PER_SEED
from worldsim.core.files import write_json
from worldsim.core.seeds import check_choosing
from worldsim.measure.metrics import paired_difference, success_rate
from worldsim.report.page import described

Config = dict[str, Any]
STREAMS = {"first": 5, "uniform": 6, "uniform_b": 7}  # of a seed's starts; the demo takes 0 to 4


def run_coevolution(cfg: Config) -> None:
    """Record, refit, learn and evaluate for every arm and seed, then write table and JSON.

    Raises:
        ValueError: if a stage failed, the baseline is no arm, or the starts are not those that choose.
    """
    check_choosing(cfg["evaluation_seed"], cfg["episodes"])
    if cfg["baseline"] not in cfg["arms"]:
        raise ValueError(f"baseline={cfg['baseline']} is none of the arms {', '.join(cfg['arms'])}; name one of them")
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    run_stages([stage for seed in cfg["seeds"] for stage in stages(cfg, seed)], out, cfg["jobs"])
    rows = summarise(cfg)
    about = {
        name: cfg[name] for name in ("seeds", "first", "more", "iterations", "episodes", "evaluation_seed", "baseline", "arms")
    }
    write_json(
        out / "coevolution.json", {**about, "circumstances": _evaluation(cfg, cfg["seeds"][0])["circumstances"], "rows": rows}
    )
    (out / "coevolution.md").write_text(table(cfg, rows))
    print(f"{out / 'coevolution.md'}: {len(rows)} arms, most useful: {rows[0]['arm']}")


def stages(cfg: Config, seed: int) -> list[Stage]:
    """Of one seed."""
    out, run = Path(cfg["out"]), cfg["runs"][seed]
    actor = (f"actor.folder={run}/policy", f"n_action_steps={cfg['n_action_steps']}", "+world.success_steps=4")

    def record(name: str, episodes: int, start: int, kind: str, *more: str) -> Stage:
        where = (f"root={data(cfg, name, seed)}", f"episodes={episodes}", f"seed={start}", f"world.num_envs={cfg['envs']}")
        needs = ("partings_" + str(seed),) if kind == "revisit" else ()
        return Stage(f"collect_{name}_{seed}", ("collect", f"actor={kind}", *where, *actor, *more), needs)

    starts = {name: seed * STARTS_PER_SEED + stream * STARTS_PER_SEED // 10 for name, stream in STREAMS.items()}
    todo = [record(name, numbers(cfg)[name], starts[name], "policy") for name in STREAMS]
    where = (f"data={data(cfg, 'first', seed)}", "held_out=1", f"out={out}/partings_{seed}")
    todo.append(Stage(f"partings_{seed}", ("evaluate", f"world_model={run}/world_model", *where), (f"collect_first_{seed}",)))
    todo.append(record("revisited", cfg["more"], 0, "revisit", f"actor.file={out}/partings_{seed}/partings.json"))
    for arm in cfg["arms"]:
        todo += learning(cfg, arm, seed)
    first, *others = cfg["arms"]
    policies = (f"policy={out}/policy_{first}_{seed}", *(f"+others.{arm}={out}/policy_{arm}_{seed}" for arm in others))
    exam = (
        f"baseline={run}/policy",
        f"episodes={cfg['episodes']}",
        f"seed={cfg['evaluation_seed']}",
        f"world.num_envs={cfg['envs']}",
    )
    asked = (*exam, "world.phrasings=eval", f"n_action_steps={cfg['n_action_steps']}", f"out={out}/evaluation_{seed}")
    learned = tuple(f"policy_{arm}_{seed}" for arm in cfg["arms"])
    return [*todo, Stage(f"evaluate_{seed}", ("evaluate", *policies, *asked), learned)]


def learning(cfg: Config, arm: str, seed: int) -> list[Stage]:
    """Refit both models on an arm's data, in which the fresh episodes count twice, and let the cloned policy learn in them."""
    out, run = cfg["out"], cfg["runs"][seed]
    fresh = [str(data(cfg, name, seed)) for name in cfg["arms"][arm]]
    before = [f"{run}/data/{name}" for name in cfg["data"]]
    recorded = tuple(f"collect_{name}_{seed}" for name in cfg["arms"][arm])

    def fit(what: str, roots: list[str], needs: tuple[str, ...], *more: str) -> Stage:
        name = f"{'policy' if what == 'post_train' else what}_{arm}_{seed}"
        settings = (f"name={name}", f"run_dir={out}/{name}", f"seed_everything={seed}", f"data.seed={seed}", "resume=true")
        return Stage(
            name,
            ("fit", f"experiment={what}", "augmentation=push_block", *settings, f"data.roots=[{','.join(roots)}]", *more),
            needs,
        )

    def refit(what: str) -> Stage:
        steps = f"trainer.max_steps={cfg[what + '_steps']}"
        return fit(what, [*before, *fresh, *fresh], recorded, f"model.weights={run}/{what}", steps)

    models = tuple(f"model.{what}.folder={out}/{what}_{arm}_{seed}" for what in ("world_model", "reflector"))
    limit = f"trainer.limit_train_batches={cfg['iterations']}"
    learn = (*cfg["learner"], f"model.policy.folder={run}/policy", *models, limit)
    needs = tuple(f"{what}_{arm}_{seed}" for what in ("world_model", "reflector"))
    return [refit("world_model"), refit("reflector"), fit("post_train", [*before, *fresh], needs, *learn)]


def numbers(cfg: Config) -> dict[str, int]:
    """Episodes of every recording."""
    more = cfg["more"]
    return {"first": cfg["first"], "uniform": more, "uniform_b": 2 * more, "revisited": more}


def data(cfg: Config, name: str, seed: int) -> Path:
    """Folder of a recording."""
    return Path(cfg["out"]) / f"data_{seed}" / name


def summarise(cfg: Config) -> list[dict[str, Any]]:
    """One row per arm, the most useful first: what it recorded, and its policy paired by start with the cloned one and with that of
    the baseline arm. Intervals are over seeds, of a single seed over its starts."""
    rows = []
    for arm, recordings in cfg["arms"].items():
        after, gains, over = [], [], []
        for seed in cfg["seeds"]:
            policies = _evaluation(cfg, seed)["policies"]
            learned, reference = (_learned(cfg, policies, name) for name in (arm, cfg["baseline"]))
            after.append(success_rate(learned))
            gains.append(paired_difference(outcomes_of(policies["baseline"]), learned))
            over.append(paired_difference(reference, learned))
        steps = [sum(_steps(data(cfg, name, seed)) for name in recordings) for seed in cfg["seeds"]]
        rows.append(
            {
                "arm": arm,
                "episodes": sum(numbers(cfg)[name] for name in recordings),
                "physics_steps": sum(steps) / len(steps),
                "after": mean_over_seeds([rate["rate"] for rate in after], after[0]["ci95"]),
                "gain": mean_over_seeds([gain["points"] for gain in gains], gains[0]["ci95"]),
                "over_baseline": mean_over_seeds([gain["points"] for gain in over], over[0]["ci95"]),
                "gain_per_seed": gains,
                "over_per_seed": over,
            }
        )
    return sorted(rows, key=lambda row: -row["gain"]["mean"])


def table(cfg: Config, rows: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    lines = [
        "# Fresh episodes compared",
        "",
        f"`worldsim bench coevolution`: seeds {', '.join(map(str, cfg['seeds']))}; the cloned policy learns for "
        f"{cfg['iterations']} iterations ({' '.join(cfg['learner'])}) in models refitted to an arm's episodes; "
        f"{cfg['episodes']} starts per seed from {cfg['evaluation_seed']:,} on, which choose and do not report; held-out "
        f"sentences. Gains are paired with the cloned policy, differences with {cfg['baseline']}. 95 % intervals: over seeds "
        "(Student's t; a single seed's over its starts). "
        f"Measured with {described(_evaluation(cfg, cfg['seeds'][0])['circumstances'])}.",
        "",
        f"| arm | fresh episodes | physics steps | after, % | gain, points | over {cfg['baseline']} | per seed |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        after, gain, over = row["after"], row["gain"], row["over_baseline"]
        lines.append(
            f"| {row['arm']} | {row['episodes']} | {row['physics_steps']:.0f} | "
            f"{100 * after['mean']:.1f} [{100 * after['ci95'][0]:.1f}, {100 * after['ci95'][1]:.1f}] | "
            f"{gain['mean']:+.1f} [{gain['ci95'][0]:+.1f}, {gain['ci95'][1]:+.1f}] | "
            f"{over['mean']:+.1f} [{over['ci95'][0]:+.1f}, {over['ci95'][1]:+.1f}] | "
            f"{', '.join(gain_text(one) for one in row['over_per_seed'])} |"
        )
    return "\n".join(lines) + "\n"


def _learned(cfg: Config, policies: dict[str, Any], arm: str) -> Tensor:
    return outcomes_of(policies["policy" if arm == next(iter(cfg["arms"])) else arm])


def _steps(root: Path) -> int:
    return json.loads((root / "meta" / "physics_steps.json").read_text())["physics_steps"]


def _evaluation(cfg: Config, seed: int) -> dict[str, Any]:
    return json.loads((Path(cfg["out"]) / f"evaluation_{seed}" / "evaluation.json").read_text())
