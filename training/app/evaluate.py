"""`worldsim evaluate`: success in physics with intervals, paired with a baseline, and the same starts imagined beside it.

Every policy is written down as soon as it has been measured, so that nothing is lost if something later fails. Read
`worldsim/measure/evaluate.py` for how episodes are played, `worldsim/measure/metrics.py` for the figures."""

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from training.app.evaluate_models import evaluate_models
from training.app.worlds import build_world
from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.memory import keep_memory
from worldsim.core.precision import autocast, circumstances
from worldsim.core.sight import seen
from worldsim.core.sizes import check_names, check_sizes
from worldsim.core.world import World
from worldsim.measure.collect import PlayActor
from worldsim.measure.dream_quality import check_measurable, dream_along, quality, record
from worldsim.measure.evaluate import Outcomes, Player, actor_of, imagine_outcomes
from worldsim.measure.evaluate import evaluate as play_episodes
from worldsim.measure.metrics import agreement, calibration, confusion, mean_score, paired_difference, percent, success_rate
from worldsim.measure.ranking import FEWEST, NARROW, ranking
from worldsim.report import video
from worldsim.report.plots import draw_ranking
from worldsim.robot.bundle import sha256

Config = dict[str, Any]
Models = tuple[WorldModel, Reflector]
URLS = ("ws://", "wss://")


def evaluate(cfg: Config) -> None:
    """The verb, of whatever it is given: policies in physics, how far dreams agree with it, or models against recorded episodes."""
    keep_memory()
    if cfg["policy"] is None:
        evaluate_models(cfg)
        return
    for name in ("data", "rivals"):
        if cfg[name]:
            raise ValueError(f"{name}= holds models to recorded episodes, which no policy plays; leave out policy= or {name}=")
    earlier = _earlier(Path(cfg["baseline"]), cfg) if str(cfg["baseline"]).endswith(".json") else None
    baseline = earlier["folder"] if earlier else cfg["baseline"]
    folders = {**({"baseline": baseline} if baseline else {}), "policy": cfg["policy"], **cfg["others"]}
    dreams = _dreams(cfg)
    with ExitStack() as stack, autocast(cfg["precision"]):
        policies = {name: _player(where, cfg, stack) for name, where in folders.items()}
        world = build_world(cfg)
        if dreams:
            check_measurable(world)
        for model in (*policies.values(), *(part for models in dreams.values() for part in models)):
            if isinstance(model, nn.Module):  # a server's policy checks what it gets
                check_sizes(model, world.spec, "the world has")
                check_names(model, world.spec)
        result: Config = {
            "policies": {},
            **{name: cfg[name] for name in ("seed", "world", "randomization", "n_action_steps")},
            "judge": type(world.unwrapped).__name__,  # whose word success is: a simulator's truth, or in a dream a reflector's
            "circumstances": circumstances(cfg["precision"], world.num_envs),
        }
        outcomes: dict[str, tuple[Outcomes, Outcomes | None]] = {}
        for name in reversed(folders):  # the baseline last: it may have been played on the starts that the others show
            if name == "baseline" and earlier:
                outcomes[name] = _played(earlier, outcomes["policy"][0])
            else:
                outcomes[name] = play_episodes(world, policies[name], **_settings(cfg)), None
            scored = world.reward is None and not outcomes[name][0].score.isnan().any()  # it pays by a score of its own
            result["policies"][name] = _measured(folders[name], *outcomes[name], scored=scored)
            _write(cfg, result, world)
            if outcomes[name][1] is None and (cfg["repeat"] or dreams):
                outcomes[name] = outcomes[name][0], play_episodes(world, policies[name], **_settings(cfg), stream=1)
                result["policies"][name] = _measured(folders[name], *outcomes[name], scored=scored)
                _write(cfg, result, world)
        result["policies"] = {name: result["policies"][name] for name in folders}
        reference = outcomes[next(iter(folders))][0]
        for name, entry in result["policies"].items():
            outcome = outcomes[name][0]
            if outcome is not reference:
                entry["paired_gain"] = paired_difference(reference.success, outcome.success)
                if "score" in entry and not reference.score.isnan().any():
                    entry["paired_score_gain"] = mean_score(outcome.score - reference.score)
            where = "physics" if world.physics else "a dream"
            print(f"{name}: {percent(entry)} in {where}{_scored(entry)}", flush=True)
            _write(cfg, result, world)
            for key, models in dreams.items():
                entry[key] = _compared(policies[name], models, outcomes[name], world, cfg)
                _write(cfg, result, world)
        if dreams and len(folders) >= FEWEST:
            result["ranking"] = _ranked(result["policies"], Path(cfg["out"]))
            _write(cfg, result, world)
        if dreams:
            result |= _quality(dreams["imagination"], world, Path(cfg["out"]) / "media", policies["policy"], cfg)
            _write(cfg, result, world)


def _dreams(cfg: Config) -> dict[str, Models]:
    """The worlds that are compared with physics: dreams as the reflector judges them, and as a second one does."""
    if not (cfg["world_model"] and cfg["reflector"]):
        if cfg["judge"] or cfg["world_model"] or cfg["reflector"]:
            raise ValueError("imagining needs both world_model and reflector; judge is a second reflector beside them")
        return {}
    model = checkpoint.load(cfg["world_model"], WorldModel)
    judges = {"imagination": cfg["reflector"], "judged": cfg["judge"]}
    return {key: (model, checkpoint.load(folder, Reflector)) for key, folder in judges.items() if folder}


def _player(where: str, cfg: Config, stack: ExitStack) -> Player:
    """The policy of a folder, or the one behind a URL, whose connections are closed with the stack."""
    if not where.startswith(URLS):
        return checkpoint.load(where, Policy)
    from worldsim.measure.remote import RemoteActor, RemotePolicies  # needs the extra robot, which evaluating a folder does not

    return RemoteActor(stack.enter_context(RemotePolicies(where, api_key=cfg["api_key"], timeout_s=cfg["timeout_s"])))


def _settings(cfg: Config) -> Config:
    return {name: cfg[name] for name in ("episodes", "seed", "n_action_steps")}


def _write(cfg: Config, result: Config, world: World) -> None:
    write_json(Path(cfg["out"]) / "evaluation.json", result | {"physics_steps": world.physics_steps})


def _earlier(file: Path, cfg: Config) -> Config:
    """The policy of an earlier evaluation on the same starts.

    Raises:
        ValueError: if the starts, the precision or the weights are others now.
    """
    evaluation = json.loads(file.read_text())
    entry = evaluation.get("policies", {}).get("policy", {})
    if not {"folder", "weights_sha256"} <= entry.keys():
        raise ValueError(f"baseline={file} does not say which weights it measured; give the policy's folder instead")
    weights = sha256(Path(entry["folder"]) / checkpoint.WEIGHTS)
    for what, then, now in (
        ("seed", evaluation["seed"], cfg["seed"]),
        ("world", evaluation["world"], cfg["world"]),
        ("randomization", evaluation.get("randomization"), cfg["randomization"]),
        ("episodes", entry["episodes"], cfg["episodes"]),
        ("n_action_steps", evaluation.get("n_action_steps"), cfg["n_action_steps"]),
        ("precision", evaluation.get("circumstances", {}).get("precision"), cfg["precision"]),
        ("weights", entry["weights_sha256"], weights),
    ):
        if then != now:
            raise ValueError(f"baseline={file} was measured with {what} {then}, this is {now}; give the policy's folder instead")
    return entry


def _played(entry: Config, other: Outcomes) -> tuple[Outcomes, Outcomes | None]:
    """The outcomes in an earlier evaluation, on the starts that another policy has just shown."""
    unknown = torch.full_like(other.score, torch.nan)
    other = replace(other, score=torch.tensor(entry["scores"]) if "scores" in entry else unknown)
    first, second = (
        replace(other, success=_succeeded(entry[key])) if key in entry else None for key in ("outcomes", "outcomes_again")
    )
    assert first is not None
    return first, second


def _measured(where: str, outcome: Outcomes, again: Outcomes | None, *, scored: bool) -> Config:
    """What is known of a policy from physics alone; outcomes by start, for other pairings."""
    entry: Config = {**success_rate(outcome.success), "folder": where}
    if (weights := Path(where) / checkpoint.WEIGHTS).is_file():
        entry["weights_sha256"] = sha256(weights)  # so that an export can tell whose success this is
    if where.startswith(URLS):
        entry["circumstances"] = "those of the server"
    entry["outcomes"] = _letters(outcome)
    if scored:
        entry |= {"score": mean_score(outcome.score), "scores": [round(score, 6) for score in outcome.score.tolist()]}
    if again is not None:
        entry |= {"outcomes_again": _letters(again), "self_agreement": agreement(outcome.success, again.success)}
    return entry


def _scored(entry: Config) -> str:
    """The score of a world that pays by one, and the gain in it."""
    if "score" not in entry:
        return ""
    told = [(", score", entry["score"])] + ([(", gain in it", entry["paired_score_gain"])] if "paired_score_gain" in entry else [])
    return "".join("{} {:.3f} [{:.3f}, {:.3f}]".format(name, said["mean"], *said["ci95"]) for name, said in told)


def _letters(outcome: Outcomes) -> str:
    return "".join("01"[int(success)] for success in outcome.success)


def _succeeded(letters: str) -> torch.Tensor:
    return torch.tensor([letter == "1" for letter in letters])


def _compared(policy: Player, models: Models, played: tuple[Outcomes, Outcomes | None], world: World, cfg: Config) -> Config:
    """Dreams of the same starts against physics, and beside that what each of them agrees on with itself under other noise.

    "rate" and its interval are of imagined success, "frames_per_s" of dreamed frames, with the policy that acts and the reflector
    that judges in them.
    """
    (real, again), settings = played, {name: cfg[name] for name in ("seed", "n_action_steps")}
    assert again is not None
    starts, size = real.starts.with_context(models[0].context), {"max_episode_steps": world.max_episode_steps}
    imagined, second = (
        imagine_outcomes(policy, *models, starts, batch=world.num_envs, stream=stream, **size, **settings) for stream in (0, 1)
    )
    always = torch.ones_like(real.success)
    return {
        **success_rate(imagined.success),
        "error_points": 100 * float(imagined.success.float().mean() - real.success.float().mean()),
        "against_physics": {**confusion(imagined.success, real.success), **agreement(imagined.success, real.success)},
        "self_agreement": {
            "physics": agreement(real.success, again.success),
            "dream": agreement(imagined.success, second.success),
        },
        "always_success": {**confusion(always, real.success), **agreement(always, real.success)},
        "calibration": calibration(imagined.p_success.clamp(0, 1), real.success),
        "frames_per_s": int(imagined.length.sum()) / imagined.seconds,
        "outcomes": _letters(imagined),
        "outcomes_again": _letters(second),
    }


def _ranked(policies: Config, out: Path) -> Config:
    """Whether the dream ranks the policies as the world does, printed and drawn."""
    real = {name: _succeeded(entry["outcomes"]) for name, entry in policies.items()}
    found = ranking(real, {name: _succeeded(entry["imagination"]["outcomes"]) for name, entry in policies.items()})
    sets = [(f"{len(real)} policies", found)]
    if narrow := found.get("narrow"):
        sets.append((f"the {len(narrow['policies'])} of them within {100 * NARROW:.0f} points", narrow))
    for which, figures in sets:
        words = ", ".join("{} {:.2f} [{:.2f}, {:.2f}]".format(key, *figures[key]) for key in ("pearson", "spearman", "mmrv"))
        print(f"dream and physics rank {which}: {words}", flush=True)
    draw_ranking(policies, out / "ranking.png")
    return found


def _quality(models: Models, world: World, media: Path, policy: Player, cfg: Config) -> Config:
    """Open-loop quality along fresh noisy-expert actions, and videos of the policy's own episodes beside their dream."""
    (world_model, reflector), seed = models, cfg["seed"]
    play = record(world, PlayActor(), seed=seed + 500_000)
    own = record(world, actor_of(policy), seed=seed, n_action_steps=cfg["n_action_steps"])
    figures, judged, dreamed = quality(world_model, reflector, play)
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
        imagined = (dream[recording.camera] * 255).round().to(torch.uint8)
        physical = seen(recording.images, world_model.views, "the world model")[recording.camera]
        ends = [int(recording.success[i].long().argmax()) or recording.action.shape[1] for i in chosen]
        real = [physical[i, 1 : end + 1] for i, end in zip(chosen, ends, strict=True)]
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
