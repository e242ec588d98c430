"""The shorter verbs of the `worldsim` command, one function each: a resolved configuration in, files out.

They only put parts together; read the parts themselves: `collect.py`, `export.py`, `serving.py` and `report.py` of `worldsim`. The
longer verbs live in `training/app/convert.py`, `training/app/fit.py`, `training/app/evaluate.py`, `training/studies/demo.py` and
`training/studies/algorithms.py`."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from hydra.utils import instantiate
from rich.progress import track

from training.app.worlds import build_world
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Policy
from worldsim.core.precision import autocast, circumstances
from worldsim.core.seeds import check_training
from worldsim.core.sizes import check_names, check_sizes, join
from worldsim.core.types import Observation
from worldsim.core.world import World
from worldsim.data.dataset_spec import write_overlay
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.deploy.export import export_policy, load_bundle
from worldsim.deploy.serving import TorchPolicy
from worldsim.measure.collect import PolicyActor
from worldsim.measure.collect import collect as record_episodes
from worldsim.measure.metrics import percent, success_rate
from worldsim.measure.parting import STARTS
from worldsim.report import video
from worldsim.report.page import described, write_report
from worldsim.robot.bundle import sha256
from worldsim.robot.reliability import FEWEST, fit_reference

Config = dict[str, Any]
SHOWN = 64  # episodes in a video grid


def collect(cfg: Config) -> None:
    """Record episodes of an actor; an interrupted dataset is continued, and counted physics steps are kept beside it.

    With `capture=orbit` the scene is photographed instead.
    """
    if cfg["capture"]:
        if cfg["randomization"]:
            raise ValueError("a capture photographs the scene as it is; leave randomization out")
        scene = cfg["world"].get("scene")
        if scene is None:
            raise ValueError(f"a capture needs a world with a scene, such as world=push_block, got {cfg['world']['_target_']}")
        print(instantiate(cfg["capture"], root=cfg["root"], scene=scene, _convert_="all"))
        return
    world = build_world(cfg)
    settings = {name: cfg[name] for name in ("episodes", "seed", "storage", "n_action_steps")}
    _store(world, instantiate(cfg["actor"]), Path(cfg["root"]), **settings)


def _store(
    world: World,
    actor: Any,
    root: Path,
    *,
    episodes: int,
    seed: int,
    storage: Literal["image", "video"] = "image",
    n_action_steps: int | None = None,
) -> None:
    """Record the starts seed, ..., seed + episodes - 1; what an interrupted recording has already is not played again."""
    actor.check_starts(seed, episodes)
    if isinstance(actor, PolicyActor):
        check_sizes(actor.policy, world.spec, "the world has")
        check_names(actor.policy, world.spec)
    counter = root / "meta" / "physics_steps.json"
    before = json.loads(counter.read_text())["physics_steps"] if counter.is_file() else 0
    successes: list[bool] = []
    with DatasetWriter(
        root,
        fps=world.fps,
        robot_type=world.robot_type,
        state_names=world.state_names,
        action_names=world.action_names,
        cameras={name: (camera.height, camera.width) for name, camera in world.spec.cameras.items()},
        storage=storage,
    ) as writer:
        had = writer.num_episodes
        if not had:
            write_overlay(root, world.spec)
        if had < episodes:
            settings: Any = {"episodes": episodes - had, "seed": seed + had, "n_action_steps": n_action_steps}
            stream = track(record_episodes(world, actor, **settings), total=episodes - had, description=f"collect {root.name}")
            while batch := list(islice(stream, world.num_envs)):
                writer.add(batch)
                write_json(root / STARTS, {"seeds": actor.seeds(seed, torch.arange(writer.num_episodes)).tolist()})
                write_json(counter, {"physics_steps": before + world.physics_steps})
                successes += [bool(episode.success[-1] == 1) for episode in batch]
    steps = before + world.physics_steps
    rate = f" with {percent(success_rate(torch.tensor(successes)))} success" if successes else ""
    print(f"{root}: {max(had, episodes)} episodes, {len(successes)} new{rate}, {steps} physics steps")


def rollout(cfg: Config) -> None:
    """Play a policy, in a dream unless told otherwise: a video grid, a LeRobot dataset and statistics."""
    policy, out = checkpoint.load(cfg["policy"], Policy), Path(cfg["out"])
    world = build_world(cfg)
    _claim(out, cfg)
    with autocast(cfg["precision"]):
        settings = {name: cfg[name] for name in ("episodes", "seed", "n_action_steps")}
        _store(world, PolicyActor(policy), out / "dataset", **settings)
    episodes = list(Dataset(out / "dataset").episodes())
    grid = video.tile([episode.images[world.camera] for episode in episodes[:SHOWN]], columns=4)
    video.write_mp4(out / "grid.mp4", grid, fps=world.fps)
    success = torch.stack([episode.success[-1] == 1 for episode in episodes])
    statistics = {
        "success": success_rate(success),
        "mean_length": sum(map(len, episodes)) / len(episodes),
        "judge": type(world.unwrapped).__name__,
        "seed": cfg["seed"],
        "circumstances": circumstances(cfg["precision"], world.num_envs),
    }
    write_json(out / "statistics.json", statistics)
    rate = percent(statistics["success"])
    print(f"{out}: success {rate} of {len(episodes)} episodes as judged by {statistics['judge']}; see {out / 'grid.mp4'}")


def _claim(out: Path, cfg: Config) -> None:
    """Note what a rollout is of; an interrupted one goes on, another one in its folder would mix two policies' episodes.

    Raises:
        ValueError: if the folder holds a rollout of something else.
    """
    about = {name: cfg[name] for name in ("world", "randomization", "seed", "episodes", "n_action_steps", "precision")}
    about["weights_sha256"] = sha256(Path(cfg["policy"]) / checkpoint.WEIGHTS)
    file = out / "rollout.json"
    if file.is_file() or (out / "dataset").exists():
        there = json.loads(file.read_text()) if file.is_file() else {}
        if different := [name for name, value in about.items() if there.get(name) != value]:
            raise ValueError(f"{out} holds a rollout with another {', '.join(different)}; choose another folder with out=...")
    write_json(file, about)


def identify(cfg: Config) -> None:
    """What camera, light, delay and dynamics a robot has, from a few recorded episodes whose starts are known."""
    from worldsim.measure.identification import identify as explain  # imports Genesis, which takes seconds
    from worldsim.measure.identification import known_starts

    episodes = list(Dataset(Path(cfg["recording"])).episodes())
    check_training(cfg["seed"], len(episodes))
    world = instantiate(cfg["world"], _convert_="all")
    starts = known_starts(world, episodes, seed=cfg["seed"])
    found = explain(world, episodes, starts, seed=cfg["seed"], generations=cfg["generations"])
    write_json(Path(cfg["out"]), {"found": found, "episodes": len(episodes), "physics_steps": world.physics_steps})
    print("\n".join(f"{name} {value:.3g}" for name, value in found.items()))


def export(cfg: Config) -> None:
    """A robot bundle, verified against the policy."""
    policy = checkpoint.load(cfg["policy"], Policy)
    parts: Config = {"observation": _example(policy)} if cfg["data"] is None else _parts(policy, Dataset(Path(cfg["data"])))
    settings = {name: cfg[name] for name in ("format", "precision", "fps", "limits")}
    evaluation = None if cfg["evaluation"] is None else _earned(Path(cfg["evaluation"]), Path(cfg["policy"]))
    result = export_policy(policy, Path(cfg["out"]), evaluation=evaluation, **settings, **parts)
    print(f"{cfg['out']}: parity {result['parity']}")


def _earned(file: Path, folder: Path) -> Config:
    """The success of the policy in `folder`, from an evaluation of exactly these weights."""
    evaluation = json.loads(file.read_text())
    weights = sha256(folder / checkpoint.WEIGHTS)
    for entry in evaluation.get("policies", {}).values():
        if entry.get("weights_sha256") == weights:
            world = evaluation["world"]
            settings = (f"{name}={value}" for name, value in world.items() if name != "_target_" and not isinstance(value, dict))
            about = {"seed": evaluation["seed"], "world": f"{world['_target_'].rpartition('.')[2]}({', '.join(settings)})"}
            if evaluation.get("n_action_steps"):
                about["n_action_steps"] = evaluation["n_action_steps"]
            if "circumstances" in evaluation:
                about["circumstances"] = described(evaluation["circumstances"])
            return {name: entry[name] for name in ("rate", "ci95", "episodes")} | about
    raise ValueError(f"{file} has no evaluation of the weights in {folder}; write one with worldsim evaluate policy={folder}")


def _example(policy: Policy) -> Observation:
    generator = torch.Generator().manual_seed(0)
    frames = {
        name: torch.randint(0, 256, (1, *size, 3), generator=generator, dtype=torch.uint8) for name, size in policy.views.items()
    }
    state = torch.randn(1, len(policy.state_units.shift), generator=generator)
    return Observation(frames, state, ("push the red block onto the green disc",))


def _parts(policy: Policy, data: Dataset) -> Config:
    """What a bundle has from recorded episodes: 32 observations to compare on, and a description of what training looked like."""
    check_sizes(policy, data.spec)
    felt = join(policy, data.spec, str(data.root)).felt
    indices = np.unique(np.linspace(0, data.num_episodes - 1, 128).round().astype(int)).tolist()
    episodes = [replace(episode, state=episode.state[:, felt]) for episode in data.episodes(indices)]
    frames = [(episode, i) for episode in episodes for i in range(len(episode.state))]
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 32).round().astype(int))]
    images = {name: torch.stack([episode.images[name][i] for episode, i in chosen]) for name in policy.views}
    states = torch.stack([episode.state[i] for episode, i in chosen])
    observation = Observation(images, states, tuple(episode.instruction for episode, _ in chosen))
    parts = {
        "observation": observation,
        "recorded": observation,
    }
    if policy.spec is None:  # otherwise it knows
        parts |= {"state_names": data.state_names, "action_names": data.action_names}
    seen = [({name: episode.images[name].numpy() for name in policy.views}, episode.state.numpy()) for episode in episodes]
    training, held_out = seen[::2], seen[1::2]
    if sum(len(states) for _, states in held_out) < FEWEST:
        print(f"{data.root} has too few episodes to tell a robot what training looked like; it will notice broken cameras only")
        return parts
    return parts | {"reference": fit_reference(training, held_out, policy.views)}


def serve(cfg: Config) -> None:
    """Answer robots in openpi's protocol until SIGINT or SIGTERM."""
    # They need the extra robot, which the other verbs do not.
    from worldsim.robot.served_bundle import BundlePolicy
    from worldsim.robot.server import Server

    if (cfg["bundle"] is None) == (cfg["policy"] is None):
        raise ValueError("serve needs either bundle=FOLDER or policy=FOLDER")
    if cfg["bundle"] is not None:
        served, max_batch = BundlePolicy(load_bundle(cfg["bundle"], threads=cfg["threads"]), seed=cfg["seed"]), 1
    else:
        policy = checkpoint.load(cfg["policy"], Policy)
        served = TorchPolicy(policy, state_dim=len(policy.state_units.shift), seed=cfg["seed"])
        max_batch = cfg["max_batch"]
    api_key = None if cfg["api_key"] is None else str(cfg["api_key"])  # Hydra reads one of digits as a number
    options = {name: cfg[name] for name in ("host", "port", "max_message_bytes", "max_clients", "max_waiting", "max_wait_s")}
    server = Server(served, api_key=api_key, max_batch=max_batch, **options)
    server.run(ready=lambda: print(f"{cfg['bundle'] or cfg['policy']} at {server.url}", flush=True))


def report(cfg: Config) -> None:
    """One self-contained HTML page about a run."""
    print(write_report(Path(cfg["run"])))
