"""`worldsim demo`: the whole loop on the embedded default, as stages in processes of their own.

Every stage is a `worldsim` command that a user could type. Stages run side by side when cores allow and their inputs are
there, and are skipped when the demo is started again. `training/app/stages.py` runs them."""

import json
import shlex
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
import yaml
from hydra.utils import get_object

from training.app.stages import Stage, done_file, execute
from training.studies.estimate import minutes, probe
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.core.seeds import check_training
from worldsim.measure.collect import check_n_action_steps
from worldsim.report.page import write_report

STARTS_PER_SEED = 1_000_000


def collect_command(cfg: dict[str, Any], root: str, actor: str, episodes: int, stream: int, *more: str) -> tuple[str, ...]:
    """`worldsim collect`, with starts of its own for every seed of the demo and each of ten streams."""
    seeds = f"seed={cfg['seed'] * STARTS_PER_SEED + stream * STARTS_PER_SEED // 10}"
    return (
        "collect",
        f"actor={actor}",
        f"root={root}",
        f"episodes={episodes}",
        seeds,
        f"world.num_envs={cfg['size']['envs']}",
        *more,
    )


def fit_command(cfg: dict[str, Any], experiment: str, name: str, *more: str, stream: int = 0) -> tuple[str, ...]:
    """`worldsim fit` into the folder `name` of the run; continues if it was interrupted. Fits of one model on the same data need
    streams of their own, or they would see the same batches."""
    where, seed = (f"experiment={experiment}", f"name={name}", f"run_dir={cfg['run']}/{name}"), cfg["seed"] + 1000 * stream
    return ("fit", "augmentation=push_block", *where, f"seed_everything={seed}", f"data.seed={seed}", "resume=true", *more)


def n_action_steps(cfg: dict[str, Any]) -> str:
    """Override that says how many actions of a chunk are executed, wherever the policy acts outside of its learner's dreams."""
    return f"n_action_steps={'null' if cfg['n_action_steps'] is None else cfg['n_action_steps']}"


def learner_inputs(run: str, policy: str, world_model: str, reflector: str) -> tuple[str, ...]:
    """Overrides that tell the best learner of docs/results/algorithms.md which models of the run it starts from."""
    return (
        "chain=flow_noise",
        f"model.policy.folder={run}/{policy}",
        f"model.world_model.folder={run}/{world_model}",
        f"model.reflector.folder={run}/{reflector}",
    )


def roots(cfg: dict[str, Any], rounds: int, *more: str) -> str:
    """Override that names all data up to a round, and `more` of it."""
    names = ("demos", "play_a", "play_b", *(f"policy_{n}" for n in range(1, rounds + 1)), *more)
    folders = (f"{cfg['run']}/data/{name}" for name in names)
    return f"data.roots=[{','.join(folders)}]"


def evolve_round(cfg: dict[str, Any], number: int) -> list[Stage]:
    """Fresh data of the current policy, then world model and reflector are refitted and the policy learns on (WoVR's PACE,
    arXiv:2602.13977). The physics steps are counted like all others. Before the last round the world model learns on beside the
    policy, and the next round goes on from there."""
    run, evolve = cfg["run"], cfg["evolve"]
    before = names_of_round(number - 1)
    fresh = f"{run}/data/policy_{number}"
    every = roots(cfg, number)
    refit_on = roots(cfg, number, f"policy_{number}")  # what the policy does now counts twice
    names = {key: f"{key}_{number}" for key in ("collect", "world_model", "reflector", "post_train")}
    actor = (f"actor.folder={run}/{before['policy']}", n_action_steps(cfg), "+world.success_steps=4")

    def refit(experiment: str, weights: str, steps: int) -> Stage:
        settings = (refit_on, f"model.weights={run}/{weights}", f"trainer.max_steps={steps}")
        return Stage(names[experiment], fit_command(cfg, experiment, names[experiment], *settings), (names["collect"], weights))

    models = learner_inputs(run, before["policy"], names["world_model"], names["reflector"])
    last, models_ready = number == evolve["rounds"], (names["world_model"], names["reflector"])
    iterations = f"trainer.limit_train_batches={cfg['size']['iterations'] if last else evolve['iterations']}"
    learn = fit_command(cfg, "post_train", names["post_train"], every, *models, iterations)
    goes_on_from = f"{before['world_model']}_more" if number > 1 else before["world_model"]
    collect = collect_command(cfg, fresh, "policy", evolve["episodes"], 2 + number, *actor)
    return [
        Stage(names["collect"], collect, (before["policy"],), alone=True),
        refit("world_model", goes_on_from, evolve["world_model_steps"]),
        refit("reflector", before["reflector"], evolve["reflector_steps"]),
        Stage(names["post_train"], learn, models_ready, alone=last),
        *([] if last else [learn_beside(cfg, names["world_model"], number, evolve["more_steps"], models_ready)]),
    ]


def learn_beside(cfg: dict[str, Any], world_model: str, number: int, steps: int, needs: tuple[str, ...]) -> Stage:
    """The world model learns on from the data so far, on the core that the policy's learner leaves free."""
    settings = (roots(cfg, number), f"model.weights={cfg['run']}/{world_model}", f"trainer.max_steps={steps}")
    return Stage(f"{world_model}_more", fit_command(cfg, "world_model", f"{world_model}_more", *settings, stream=1), needs)


def stages(cfg: dict[str, Any]) -> list[Stage]:
    """The loop: collect, learn, post-train in imagination, evaluate in physics."""
    run, size = cfg["run"], cfg["size"]
    demos, play = f"{run}/data/demos", [f"{run}/data/play_a", f"{run}/data/play_b"]
    every = roots(cfg, 0)

    both = ("collect_play_a", "collect_play_b")

    def collect(root: str, actor: str, episodes: int, stream: int, *more: str) -> tuple[str, ...]:
        return collect_command(cfg, root, actor, episodes, stream, *more)

    def fit(experiment: str, *more: str) -> tuple[str, ...]:
        return fit_command(cfg, experiment, experiment, *more)

    cloning = (f"data.roots=[{demos}]", f"trainer.max_steps={size['policy_steps']}")
    loop = [
        Stage("collect_demos", collect(demos, "expert", size["demos"], 0)),
        # Play goes on for a moment after a success, so that the reflector also sees blocks well inside a disc.
        Stage("collect_play_b", collect(play[1], "play", size["play_b"], 2, "+world.success_steps=4")),
        Stage("collect_play_a", collect(play[0], "play", size["play_a"], 1, "+world.success_steps=4"), ("collect_demos",)),
        Stage("world_model", fit("world_model", every, f"trainer.max_steps={size['world_model_steps']}"), both),
        Stage("policy", fit_command(cfg, "push_policy", "policy", *cloning), ("collect_demos",)),
        Stage("reflector", fit("reflector", every, f"trainer.max_steps={size['reflector_steps']}"), both),
    ]
    for number in range(1, cfg["evolve"]["rounds"] + 1):
        loop += evolve_round(cfg, number)
    if not cfg["evolve"]["rounds"]:
        models = learner_inputs(run, "policy", "world_model", "reflector")
        learn = fit("post_train", every, *models, f"trainer.limit_train_batches={size['iterations']}")
        loop.append(Stage("post_train", learn, ("world_model", "policy", "reflector"), alone=True))
    loop.insert(-1, judge(cfg))
    last = final_names(cfg)
    starts = (
        f"episodes={size['episodes']}",
        f"world.num_envs={size['evaluation_envs']}",
        "world.phrasings=eval",
        n_action_steps(cfg),
    )
    evaluation = (
        f"policy={run}/{last['policy']}",
        f"baseline={run}/baseline/evaluation.json",
        f"world_model={run}/{last['world_model']}",
        f"reflector={run}/judge",
        f"out={run}",
    )
    # The first policy is measured while one core waits for the world model, if there is such a time.
    waits = ("policy", "collect_1") if cfg["evolve"]["rounds"] else ("policy",)
    loop.append(Stage("baseline", ("evaluate", f"policy={run}/policy", f"out={run}/baseline", "repeat=true", *starts), waits))
    return [*loop, Stage("evaluate", ("evaluate", *evaluation, *starts), (last["policy"], "judge", "baseline"), alone=True)]


def judge(cfg: dict[str, Any]) -> Stage:
    """The last reflector, taught with dreams, for the evaluation. Policies do not learn from it. With rounds it dreams in the world
    model before the last, so that it learns while that one does, and the last recording sets its threshold."""
    run, rounds = cfg["run"], cfg["evolve"]["rounds"]
    reflector, before = final_names(cfg)["reflector"], names_of_round(max(0, rounds - 1))
    world_model = f"{before['world_model']}_more" if rounds > 1 else "world_model"
    threshold = "trainer.callbacks.threshold"
    recorded = (
        f"{threshold}.policy.folder={run}/{before['policy']}",
        f"{threshold}.recording={run}/data/policy_{rounds}",
        f"{threshold}.{n_action_steps(cfg)}",
    )
    settings = (
        roots(cfg, rounds),
        f"data.world_model.folder={run}/{world_model}",
        f"model.weights={run}/{reflector}",
        f"trainer.max_steps={cfg['size']['judge_steps']}",
        f"data.dreams={cfg['size']['judge_dreams']}",
        *(recorded if rounds else (f"{threshold}=null",)),
    )
    return Stage("judge", fit_command(cfg, "judge", "judge", *settings), (world_model, reflector))


def names_of_round(number: int) -> dict[str, str]:
    """Stages whose models a round leaves behind; round 0 is what was learned from demonstrations and play."""
    if number == 0:
        return {name: name for name in ("policy", "world_model", "reflector")}
    return {"policy": f"post_train_{number}", "world_model": f"world_model_{number}", "reflector": f"reflector_{number}"}


def final_names(cfg: dict[str, Any]) -> dict[str, str]:
    """Stages whose models are evaluated: those of the last round."""
    rounds = cfg["evolve"]["rounds"]
    return names_of_round(rounds) if rounds else {**names_of_round(0), "policy": "post_train"}


def demo(cfg: dict[str, Any]) -> None:
    """The verb: the demo of a task, which its file in `configs/task/` names."""
    get_object(cfg.pop("demo"))(cfg)


def run_demo(cfg: dict[str, Any]) -> None:
    """Run what has not run yet, then write `summary.json` and `report.html`.

    Raises:
        ValueError: if a stage failed, `n_action_steps` is not a positive integer, the run was made with another configuration, or
            the seed's starts belong to evaluations.
    """
    check_training(cfg["seed"] * STARTS_PER_SEED, STARTS_PER_SEED)
    check_n_action_steps(cfg["n_action_steps"])
    run = begun(cfg)
    began, clock = time.monotonic(), run / "loop.json"
    earlier = json.loads(clock.read_text())["loop_s"] if clock.is_file() else 0.0
    done = execute(stages(cfg), run, jobs=cfg["jobs"])  # refuses at once what could never run
    say_how_long(cfg)
    for name in done:
        write_json(clock, {"loop_s": earlier + time.monotonic() - began})
        print(f"  {name} done in {_done(run, name)['wall_s']:.0f} s", flush=True)
    summary = summarise(cfg)
    write_json(run / "summary.json", summary)
    page = write_report(run)
    before, after = summary["physics_success"]["before"], summary["physics_success"]["after"]
    gain = summary["physics_success"]["paired_gain"]
    interval = f"95 % interval {gain['ci95'][0]:.1f} to {gain['ci95'][1]:.1f}"
    print(f"physics success {100 * before['rate']:.1f} % -> {100 * after['rate']:.1f} % on {after['episodes']} held-out starts")
    print(
        f"gain {gain['points']:.1f} points ({interval}); learning took {_total(summary, 'post_train')} physics steps, "
        f"recording fresh data {_total(summary, 'collect_policy')}"
    )
    print(f"Read {page}")


def begun(cfg: dict[str, Any]) -> Path:
    """The folder of a demo, which is of this configuration from now on.

    Raises:
        ValueError: if it was made with another one.
    """
    run = Path(cfg["run"])
    run.mkdir(parents=True, exist_ok=True)
    saved = run / "config.yaml"
    if saved.is_file() and yaml.safe_load(saved.read_text()) != cfg:
        raise ValueError(f"{run} was made with another configuration ({saved}); choose another folder (run=...) or delete it")
    saved.write_text(yaml.safe_dump(cfg, sort_keys=False))
    print(f"worldsim demo, seed {cfg['seed']}, in {run}: Ctrl-C is safe, finished stages are kept.", flush=True)
    return run


def say_how_long(cfg: dict[str, Any]) -> None:
    """Of the stages that are not done yet, on a machine without a GPU: what one brings is not known."""
    todo = [stage for stage in stages(cfg) if not done_file(Path(cfg["run"]), stage.name).is_file()]
    if not todo or torch.cuda.is_available():
        return
    names = {stage.name for stage in todo}
    left = [replace(stage, needs=tuple(names.intersection(stage.needs))) for stage in todo]
    took = minutes(left, jobs=cfg["jobs"], cores=cores(), probed_s=probe())
    print(f"About {took:.0f} min on this machine, if it has nothing else to do.", flush=True)


def summarise(cfg: dict[str, Any]) -> dict[str, Any]:
    """Everything that was measured, for `summary.json`."""
    run = Path(cfg["run"])
    evaluation, first = (json.loads((run / where / "evaluation.json").read_text()) for where in (".", "baseline"))
    policies = evaluation["policies"]
    done = {stage.name: _done(run, stage.name) for stage in stages(cfg)}
    steps = {f"collect_{root.parent.name}": _steps(root) for root in sorted((run / "data").glob("*/meta"))}
    steps |= {name: _steps(run / name) for name in done if (run / name / "physics_steps.json").is_file()}
    last = final_names(cfg)

    def success(name: str) -> dict[str, Any]:
        return {key: policies[name][key] for key in ("rate", "ci95", "episodes")}

    def learner(name: str, *trained: str) -> dict[str, Any]:
        more = {"paired_gain": policies[name]["paired_gain"], "imagined_rate": policies[name]["imagination"]["rate"]}
        return {**success(name), **more, "wall_s": sum(done[stage]["wall_s"] for stage in trained)}

    learners = {"final": learner("policy", *(stage for stage in done if stage.startswith("post_train")))}
    calibration = {name: json.loads((run / name / "calibration.json").read_text()) for name in (last["reflector"], "judge")}
    return {
        "seed": cfg["seed"],
        "physics_success": {
            "before": success("baseline"),
            "after": success("policy"),
            "paired_gain": policies["policy"]["paired_gain"],
        },
        "learners": learners,
        "physics_steps": {**steps, "evaluate": first["physics_steps"] + evaluation["physics_steps"]},
        "imagination": policies["policy"]["imagination"],
        "imagination_before": policies["baseline"]["imagination"],
        "reflector": calibration[last["reflector"]],
        "judge": {**calibration["judge"], **evaluation["reflector"]},
        "world_model": {"frames_per_s": policies["policy"]["imagination"]["frames_per_s"], **evaluation["world_model"]},
        "circumstances": evaluation["circumstances"],
        "wall_s": {name: round(record["wall_s"], 1) for name, record in done.items()},
        "loop_s": round(json.loads((run / "loop.json").read_text())["loop_s"], 1),
        "peak_rss_mb": max(record["peak_rss_mb"] for record in done.values()),
        "machine": {"cores": cores(), "memory_gb": round(psutil.virtual_memory().total / 2**30, 1)},
        "versions": {
            name: version(name)
            for name in ("worldsim", "torch", "lightning", "genesis-world", "diffusers", "gymnasium", "hydra-core")
        },
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _total(summary: dict[str, Any], stages: str) -> int:
    return sum(steps for name, steps in summary["physics_steps"].items() if name.startswith(stages))


def _done(run: Path, name: str) -> dict[str, float]:
    return json.loads(done_file(run, name).read_text())


def _steps(folder: Path) -> int:
    return json.loads((folder / "physics_steps.json").read_text())["physics_steps"]
