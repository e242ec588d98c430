"""`worldsim demo task=pusht data=PATH` and its like: the loop on somebody else's task, from demonstrations to a better policy.

Demonstrations (people's, or a scripted expert's) -> a policy -> counted episodes of it in the environment -> a world model and a
reflector of those -> post-training in the dream -> success and score in the environment, before and after, on the same starts.
`training/studies/demo.py` is the same on our own task, with more of everything; stages are commands that a user could type.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

from training.app.stages import Stage, done_file, execute
from training.studies.demo import STARTS_PER_SEED, begun, n_action_steps
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.core.seeds import check_training
from worldsim.measure.collect import check_n_action_steps
from worldsim.measure.metrics import percent

STREAMS = 10  # of starts within a seed
HELD_OUT = 0.1  # share of the episodes of each recording that world models and reflectors are measured on

Config = dict[str, Any]


def stages(cfg: Config) -> list[Stage]:
    """The loop, by `configs/task/*.yaml`."""
    run, size, rounds = cfg["run"], cfg["size"], cfg["evolve"]["rounds"]
    demos, loop = cfg["data"] or f"{run}/data/demos", []
    if not cfg["data"]:
        loop.append(Stage("collect_demos", _collect(cfg, "demos", ("actor=expert",), size["demos"], 0)))
    chunk = cfg["action_horizon"]
    cloning = (f"+model.policy.action_horizon={chunk}", f"trainer.max_steps={size['policy_steps']}")
    loop.append(Stage("policy", _fit(cfg, cfg["policy"], "policy", [demos], *cloning), ("collect_demos",) * (not cfg["data"])))
    policy, models = "policy", {"world_model": "", "reflector": ""}
    for number in range(1, rounds + 1):
        # Half of the episodes are the policy as it is, half with noise, so that the dream knows what comes of other actions.
        fresh = [f"policy_{number}", f"noisy_{number}"]
        for stream, (root, noise) in enumerate(zip(fresh, (0.0, cfg["noise"]), strict=True)):
            actor = ("actor=policy", f"actor.folder={run}/{policy}", f"actor.noise={noise}", n_action_steps(cfg))
            count, place = cfg["evolve"]["episodes"] // 2, 2 * number + stream - 1
            loop.append(Stage(f"collect_{root}", _collect(cfg, root, actor, count, place), (policy,)))
        seen = [f"{run}/data/{name}_{n}" for n in range(1, number + 1) for name in ("policy", "noisy")]
        # The first dataset says the limits of actions, which people's recordings lack; and these say nothing of success.
        for kind, roots, more in (
            ("world_model", [*seen, demos], (f"+model.world_model.action_horizon={chunk}", f"+data.held_out={HELD_OUT}")),
            ("reflector", seen if cfg["data"] else [*seen, demos], ()),
        ):
            weights = (f"model.weights={run}/{models[kind]}",) if models[kind] else ()
            name = f"{kind}_{number}"
            settings = (*more, *weights, f"trainer.max_steps={size[f'{kind}_steps']}")
            needs = tuple(f"collect_{root}" for root in fresh) + ((models[kind],) if models[kind] else ())
            loop.append(Stage(name, _fit(cfg, kind, name, roots, *settings), needs))
            models[kind] = name
        inputs = {"policy": policy, **models}
        learn = (
            *cfg["learner"],
            *(f"model.{part}.folder={run}/{folder}" for part, folder in inputs.items()),
            f"trainer.limit_train_batches={size['iterations']}",
        )
        policy = f"post_train_{number}"
        loop.append(Stage(policy, _fit(cfg, "post_train", policy, [demos, *seen], *learn), tuple(inputs.values()), alone=True))
    held = (f"world_model={run}/{models['world_model']}", f"reflector={run}/{models['reflector']}")
    recorded = f"data=[{run}/data/policy_{rounds},{run}/data/noisy_{rounds}]"
    loop.append(Stage("models", ("evaluate", *held, recorded, f"held_out={HELD_OUT}", f"out={run}/models"), tuple(models.values())))
    for name, more in cfg["evaluations"].items():
        settings = (f"episodes={size['episodes']}", f"world.num_envs={size['envs']}", n_action_steps(cfg), f"out={run}/{name}")
        both = (f"policy={run}/{policy}", f"baseline={run}/policy")
        loop.append(Stage(f"evaluate_{name}", ("evaluate", *cfg["environment"], *more, *both, *settings), (policy,)))
    return loop


def _collect(cfg: Config, root: str, actor: tuple[str, ...], episodes: int, stream: int) -> tuple[str, ...]:
    """`worldsim collect`, with starts of its own for every seed and stream."""
    seed = cfg["seed"] * STARTS_PER_SEED + stream * STARTS_PER_SEED // STREAMS
    where = (f"root={cfg['run']}/data/{root}", f"episodes={episodes}", f"seed={seed}", f"world.num_envs={cfg['size']['envs']}")
    return ("collect", *cfg["environment"], *actor, *where)


def _fit(cfg: Config, experiment: str, name: str, roots: list[str], *more: str) -> tuple[str, ...]:
    """`worldsim fit` into the folder `name` of the run; continues if it was interrupted."""
    where = (f"experiment={experiment}", f"name={name}", f"run_dir={cfg['run']}/{name}", f"data.roots=[{','.join(roots)}]")
    return ("fit", *cfg["fit"], *where, f"seed_everything={cfg['seed']}", f"data.seed={cfg['seed']}", "resume=true", *more)


def run_demo(cfg: Config) -> None:
    """Run what has not run yet, then write `summary.json` and say what came of it.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if a stage failed, there is no round, or the run was made with another configuration.
    """
    check_training(cfg["seed"] * STARTS_PER_SEED, STARTS_PER_SEED)
    check_n_action_steps(cfg["n_action_steps"])
    if (rounds := cfg["evolve"]["rounds"]) < 1 or 2 * rounds >= STREAMS:
        raise ValueError(
            f"evolve.rounds is {rounds}, expected 1 to {(STREAMS - 1) // 2}: the dream learns from what the policy does"
        )
    if cfg["data"] and not Path(cfg["data"]).is_dir():
        raise FileNotFoundError(f"there is no dataset at data={cfg['data']}; name its folder")
    run = begun(cfg)
    for name in execute(stages(cfg), run, jobs=cfg["jobs"]):
        print(f"  {name} done in {_took(run, name):.0f} s", flush=True)
    summary = summarise(cfg)
    write_json(run / "summary.json", summary)
    for name, found in summary["evaluations"].items():
        gain, score = found["paired_gain"], found.get("paired_score_gain")
        rates = f"success {percent(found['before'])} -> {percent(found['after'])}"
        scores = f"; score {_signed(score['mean'], score['ci95'], 3)}" if score else ""
        print(f"{name}: {rates}, {_signed(gain['points'], gain['ci95'], 1)} points{scores}")
    steps = summary["physics_steps"]
    print(f"{sum(steps.values()):,} physics steps of data, none for learning in the dream; {summary['minutes']:.0f} min of stages")


def summarise(cfg: Config) -> Config:
    """Everything that was measured, for `summary.json`."""
    run, todo = Path(cfg["run"]), stages(cfg)
    evaluations = {}
    for name in cfg["evaluations"]:
        policies = json.loads((run / name / "evaluation.json").read_text())["policies"]
        shown = ("rate", "ci95", "episodes", "score")
        before, after = ({key: policies[who][key] for key in shown if key in policies[who]} for who in ("baseline", "policy"))
        gains = {key: policies["policy"][key] for key in ("paired_gain", "paired_score_gain") if key in policies["policy"]}
        evaluations[name] = {"before": before, "after": after, **gains}
    return {
        "seed": cfg["seed"],
        "evaluations": evaluations,
        "physics_steps": {
            file.parent.parent.name: json.loads(file.read_text())["physics_steps"]
            for file in sorted((run / "data").glob("*/meta/physics_steps.json"))
        },
        "models": json.loads((run / "models/models.json").read_text()),
        "wall_s": {stage.name: round(_took(run, stage.name), 1) for stage in todo},
        "minutes": sum(_took(run, stage.name) for stage in todo) / 60,
        "cores": cores(),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _took(run: Path, name: str) -> float:
    return json.loads(done_file(run, name).read_text())["wall_s"]


def _signed(value: float, interval: list[float], digits: int) -> str:
    low, high = interval
    return f"{value:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
