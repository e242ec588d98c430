"""The shorter verbs of the `worldsim` command, one function each: a resolved configuration in, files out.

They only put parts together; read the parts themselves: `collect.py`, `evaluate.py`, `export.py`, `serving.py` and `report.py` of
`worldsim`. The longer verbs live in `training/fit.py`, `training/demo.py` and `training/bench.py`."""

import json
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from hydra.utils import instantiate
from rich.progress import track

from worldsim import checkpoint, video
from worldsim.bundle import sha256
from worldsim.collect import PlayActor, PolicyActor
from worldsim.collect import collect as record_episodes
from worldsim.data.lerobot import Dataset, DatasetWriter
from worldsim.device import precision
from worldsim.doctor import print_report
from worldsim.evaluate import Outcomes, Player, actor_of, imagine_outcomes
from worldsim.evaluate import evaluate as play_episodes
from worldsim.export import export_policy, load_bundle
from worldsim.files import write_json
from worldsim.interfaces import Policy, Reflector, World, WorldModel
from worldsim.metrics import confusion, paired_difference, success_rate
from worldsim.report import write_report
from worldsim.robot.reliability import FEWEST, fit_reference
from worldsim.serving import TorchPolicy
from worldsim.types import Observation
from worldsim.world_model_quality import dream_along, quality, record

Config = dict[str, Any]


def collect(cfg: Config) -> None:
    """Record episodes of an actor; an interrupted dataset is continued, and counted physics steps are kept beside it.

    With `capture=orbit` the scene is photographed instead.
    """
    if cfg["capture"]:
        scene = cfg["world"].get("scene")
        if scene is None:
            raise ValueError(f"a capture needs a world with a scene, such as world=push_block, got {cfg['world']['_target_']}")
        print(instantiate(cfg["capture"], root=cfg["root"], scene=scene, _convert_="all"))
        return
    world = instantiate(cfg["world"], _convert_="all")
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
) -> list[Any]:
    images: Any = world.single_observation_space["images"]
    counter = root / "meta" / "physics_steps.json"
    before = json.loads(counter.read_text())["physics_steps"] if counter.is_file() else 0
    done = []
    with DatasetWriter(
        root,
        fps=world.fps,
        robot_type=world.robot_type,
        state_names=world.state_names,
        action_names=world.action_names,
        cameras={world.camera: images[world.camera].shape[:2]},
        storage=storage,
    ) as writer:
        # A resumed recording goes on with starts that the interrupted one has not reached.
        stream = record_episodes(world, actor, seed=seed + writer.num_episodes, n_action_steps=n_action_steps)
        missing = range(writer.num_episodes, episodes)
        for first in track(range(0, len(missing), world.num_envs), description=f"collect {root.name}"):
            batch = list(islice(stream, min(world.num_envs, len(missing) - first)))
            writer.add(batch)
            write_json(counter, {"physics_steps": before + world.physics_steps})
            done += batch
    rate = sum(bool(episode.success[-1]) for episode in done) / max(1, len(done))
    steps = before + world.physics_steps
    print(f"{root}: {episodes} episodes, {len(done)} new with {100 * rate:.0f} % success, {steps} physics steps")
    return done


def convert(cfg: Config) -> None:
    """A run of `ns-train` as a field that `world.fields=[...]` shows; nothing that is written in it is executed."""
    from models.renderers.foreign import convert as convert_run  # needs the extra nerf, which no other verb here does

    print(convert_run(Path(cfg["run"]), Path(cfg["out"])))


def rollout(cfg: Config) -> None:
    """Play a policy, in a dream unless told otherwise: a video grid, a LeRobot dataset and statistics."""
    policy, out = checkpoint.load(cfg["policy"], Policy), Path(cfg["out"])
    world: World = instantiate(cfg["world"], _convert_="all")
    if cfg["episodes"] % world.num_envs:
        raise ValueError(f"episodes must be a multiple of world.num_envs={world.num_envs}, got {cfg['episodes']}")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"):
        settings = {name: cfg[name] for name in ("episodes", "seed", "n_action_steps")}
        _store(world, PolicyActor(policy, seed=cfg["seed"]), out / "dataset", **settings)
    data = Dataset(out / "dataset")
    episodes = list(data.episodes())
    grid = video.tile([episode.images[world.camera] for episode in episodes], columns=4)
    video.write_mp4(out / "grid.mp4", grid, fps=world.fps)
    success = torch.tensor([bool(episode.success[-1]) for episode in episodes])
    statistics = {
        "success": success_rate(success),
        "mean_length": sum(map(len, episodes)) / len(episodes),
        "judge": type(world).__name__,
    }
    write_json(out / "statistics.json", statistics)
    print(f"{out}: success {100 * statistics['success']['rate']:.1f} % as judged by {statistics['judge']}; see {out / 'grid.mp4'}")


def evaluate(cfg: Config) -> None:
    """Physics success of policies on the same held-out starts, paired with a baseline, and imagined beside it."""
    earlier = _earlier(Path(cfg["baseline"]), cfg) if str(cfg["baseline"]).endswith(".json") else None
    baseline = earlier["folder"] if earlier else cfg["baseline"]
    folders = {**({"baseline": baseline} if baseline else {}), "policy": cfg["policy"], **cfg["others"]}
    policies = {name: _player(where, api_key=cfg["api_key"], timeout_s=cfg["timeout_s"]) for name, where in folders.items()}
    out, settings = Path(cfg["out"]), {name: cfg[name] for name in ("episodes", "seed", "n_action_steps")}
    models = None
    if cfg["world_model"] and cfg["reflector"]:
        models = checkpoint.load(cfg["world_model"], WorldModel), checkpoint.load(cfg["reflector"], Reflector)
    if cfg["judge"] and not models:
        raise ValueError("judge needs the dreams of a world_model and a reflector beside it; give all three")
    judge = checkpoint.load(cfg["judge"], Reflector) if cfg["judge"] else None
    world = instantiate(cfg["world"], _convert_="all")
    with torch.autocast("cpu", torch.bfloat16, enabled=precision() == "bf16-mixed"):
        outcomes: dict[str, Outcomes] = {}
        for name in reversed(policies):  # the baseline last: it may have been played on the starts that the others show
            if name == "baseline" and earlier:
                success = torch.tensor([letter == "1" for letter in earlier["outcomes"]])
                outcomes[name] = replace(outcomes["policy"], success=success)
            else:
                outcomes[name] = play_episodes(world, policies[name], **settings)
        result: Config = {"policies": {}, **{name: cfg[name] for name in ("seed", "world", "n_action_steps")}}
        reference = outcomes[next(iter(policies))]
        for name in policies:
            outcome = outcomes[name]
            entry: Config = {**success_rate(outcome.success), "folder": folders[name]}
            if (weights := Path(folders[name]) / checkpoint.WEIGHTS).is_file():
                entry["weights_sha256"] = sha256(weights)  # so that an export can tell whose success this is
            entry["outcomes"] = "".join("01"[int(success)] for success in outcome.success)  # by start, for other pairings
            if outcome is not reference:
                entry["paired_gain"] = paired_difference(reference.success, outcome.success)
            if models:
                entry |= _imagined(policies[name], models, outcome, world, cfg)
            if models and judge:
                entry["judged_rate"] = _imagined(policies[name], (models[0], judge), outcome, world, cfg)["imagined_rate"]
            result["policies"][name] = entry
            low, high = entry["ci95"]
            print(f"{name}: {100 * entry['rate']:.1f} % [{100 * low:.1f}, {100 * high:.1f}] in physics", flush=True)
        if models:
            result |= _quality(models, world, out / "media", policies["policy"], cfg)
    result["physics_steps"] = world.physics_steps
    write_json(out / "evaluation.json", result)


def _earlier(file: Path, cfg: Config) -> Config:
    """The policy of an earlier evaluation on the same starts.

    Raises:
        ValueError: if the starts or the weights are others now.
    """
    evaluation = json.loads(file.read_text())
    entry = evaluation.get("policies", {}).get("policy", {})
    if not {"folder", "weights_sha256"} <= entry.keys():
        raise ValueError(f"baseline={file} does not say which weights it measured; give the policy's folder instead")
    weights = sha256(Path(entry["folder"]) / checkpoint.WEIGHTS)
    for what, then, now in (
        ("seed", evaluation["seed"], cfg["seed"]),
        ("world", evaluation["world"], cfg["world"]),
        ("episodes", entry["episodes"], cfg["episodes"]),
        ("n_action_steps", evaluation.get("n_action_steps"), cfg["n_action_steps"]),
        ("weights", entry["weights_sha256"], weights),
    ):
        if then != now:
            raise ValueError(f"baseline={file} was measured with {what} {then}, this is {now}; give the policy's folder instead")
    return entry


def _player(where: str, **connection: Any) -> Player:
    """The policy of a folder, or the one behind a URL."""
    if not where.startswith(("ws://", "wss://")):
        return checkpoint.load(where, Policy)
    from worldsim.remote import RemotePolicies  # needs the extra robot, which evaluating a folder does not

    return RemotePolicies(where, **connection)


def _imagined(policy: Player, models: tuple[WorldModel, Reflector], outcome: Outcomes, world: World, cfg: Config) -> Config:
    starts = outcome.starts.with_context(models[0].context)
    settings = {name: cfg[name] for name in ("seed", "n_action_steps")}
    imagined = imagine_outcomes(
        policy, *models, starts, max_episode_steps=world.max_episode_steps, batch=world.num_envs, **settings
    )
    frames = len(starts) * world.max_episode_steps
    return {
        "imagined_rate": float(imagined.success.float().mean()),
        "imagination": confusion(imagined.success, outcome.success),
        "frames_per_s": frames / imagined.seconds,
    }


def _quality(models: tuple[WorldModel, Reflector], world: Any, media: Path, policy: Player, cfg: Config) -> Config:
    """Open-loop quality along fresh noisy-expert actions, and videos of the policy's own episodes beside their dream."""
    (world_model, reflector), seed = models, cfg["seed"]
    world.success_steps, ends = 10**9, world.success_steps
    play = record(world, PlayActor(seed=seed), steps=world.max_episode_steps, seed=seed + 500_000)
    own = record(world, actor_of(policy, seed), steps=world.max_episode_steps, seed=seed, n_action_steps=cfg["n_action_steps"])
    world.success_steps = ends
    color = torch.tensor(next(iter(world.scene.data["blocks"].values()))["color"])
    figures, judged, dreamed = quality(world_model, reflector, play, color)
    media.mkdir(parents=True, exist_ok=True)
    captions = {}
    for name, title, recording, dream in (
        (
            "policy",
            "The improved policy in physics (left) and the same actions dreamed (right).",
            own,
            dream_along(world_model, own),
        ),
        ("play", "Noisy play in physics (left) and the same actions dreamed (right).", play, dreamed),
    ):
        # Successes first; a video ends where a physical episode would have ended.
        chosen = recording.success.any(1).long().argsort(descending=True, stable=True)[:6].tolist()
        imagined = (dream * 255).round().to(torch.uint8)
        ends = [int(recording.success[i].long().argmax()) or recording.action.shape[1] for i in chosen]
        real = [recording.frames[i, 1 : end + 1] for i, end in zip(chosen, ends, strict=True)]
        dreams = [imagined[i, :end] for i, end in zip(chosen, ends, strict=True)]
        pairs = [video.side_by_side(r, d) for r, d in zip(real, dreams, strict=True)]
        video.write_mp4(media / f"{name}_real_and_dream.mp4", video.tile(pairs, columns=3), fps=world.fps)
        shown = max(range(len(chosen)), key=lambda k: len(real[k]))
        strips = [video.filmstrip(video.enlarge(frames, 128), 8) for frames in (real[shown], dreams[shown])]
        (media / f"{name}_filmstrip.png").write_bytes(video.png_bytes(np.concatenate(strips)))
        sentence = recording.instruction[chosen[shown]]
        captions[f"{name}_real_and_dream.mp4"] = title
        captions[f"{name}_filmstrip.png"] = f"{sentence}: physics above, dream below, {ends[shown]} steps without correction."
    write_json(media / "captions.json", captions)
    return {"world_model": figures, "reflector": judged}


def identify(cfg: Config) -> None:
    """What camera, light, delay and dynamics a robot has, from a few recorded episodes whose starts are known."""
    from worldsim.identification import identify as explain  # imports Genesis, which takes seconds
    from worldsim.identification import known_starts

    world = instantiate(cfg["world"], _convert_="all")
    episodes = list(Dataset(Path(cfg["recording"])).episodes())
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
            return {name: entry[name] for name in ("rate", "ci95", "episodes")} | about
    raise ValueError(f"{file} has no evaluation of the weights in {folder}; write one with worldsim evaluate policy={folder}")


def _example(policy: Policy) -> Observation:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (1, 64, 64, 3), generator=generator, dtype=torch.uint8)
    state = torch.randn(1, policy.arguments["state_dim"], generator=generator)
    return Observation({policy.arguments["camera"]: frames}, state, ("push the red block onto the green disc",))


def _parts(policy: Policy, data: Dataset) -> Config:
    """What a bundle has from recorded episodes: 32 observations to compare on, and a description of what training looked like."""
    if policy.camera not in data.cameras:
        raise ValueError(
            f"the policy looks through camera {policy.camera!r}, {data.root} has {sorted(data.cameras)}; give its own data"
        )
    indices = np.unique(np.linspace(0, data.num_episodes - 1, 128).round().astype(int)).tolist()
    episodes = list(data.episodes(indices))
    frames = [(episode, i) for episode in episodes for i in range(len(episode.state))]
    chosen = [frames[i] for i in np.unique(np.linspace(0, len(frames) - 1, 32).round().astype(int))]
    images = {name: torch.stack([episode.images[name][i] for episode, i in chosen]) for name in data.cameras}
    states = torch.stack([episode.state[i] for episode, i in chosen])
    observation = Observation(images, states, tuple(episode.instruction for episode, _ in chosen))
    parts = {
        "observation": observation,
        "recorded": observation,
        "state_names": data.state_names,
        "action_names": data.action_names,
    }
    seen = [(episode.images[policy.camera].numpy(), episode.state.numpy()) for episode in episodes]
    training, held_out = seen[::2], seen[1::2]
    if sum(len(states) for _, states in held_out) < FEWEST:
        print(f"{data.root} has too few episodes to tell a robot what training looked like; it will notice broken cameras only")
        return parts
    return parts | {"reference": fit_reference(training, held_out)}


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
        served = TorchPolicy(policy, image=tuple(cfg["image"]), state_dim=policy.arguments["state_dim"], seed=cfg["seed"])
        max_batch = cfg["max_batch"]
    api_key = None if cfg["api_key"] is None else str(cfg["api_key"])  # Hydra reads one of digits as a number
    options = {name: cfg[name] for name in ("host", "port", "max_message_bytes", "max_clients", "max_waiting", "max_wait_s")}
    server = Server(served, api_key=api_key, max_batch=max_batch, **options)
    server.run(ready=lambda: print(f"{cfg['bundle'] or cfg['policy']} at {server.url}", flush=True))


def report(cfg: Config) -> None:
    """One self-contained HTML page about a run."""
    print(write_report(Path(cfg["run"])))


def doctor(cfg: Config) -> None:
    """What this machine can run, and what is missing."""
    print_report()
