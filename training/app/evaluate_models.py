"""`worldsim evaluate world_model=M data=X`: a world model, a reflector or both held to recorded episodes, without a simulator.

Writes <out>/models.json, <out>/models.md and pictures. Read `worldsim/measure/recorded.py` for how dreams are compared and
`worldsim/measure/trust.py` for what is made of that."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from rich.console import Console

from worldsim.core import checkpoint
from worldsim.core.files import write_json
from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.precision import autocast, circumstances
from worldsim.core.sizes import check_sizes
from worldsim.core.views import check_cameras
from worldsim.data.labels import Label
from worldsim.data.store import FrameStore
from worldsim.measure import doubt, judging, parting, recorded, trust
from worldsim.report.page import described
from worldsim.robot.bundle import sha256

Config = dict[str, Any]
BATCH = 32  # dreams at a time


def evaluate_models(cfg: Config) -> None:
    """The models that the configuration names, on episodes that they have not learned from.

    Writes what it has after each of them, so that nothing is lost if something later fails.

    Raises:
        ValueError: if nothing is named, or there is too little to say anything by.
    """
    if not (cfg["world_model"] or cfg["reflector"]):
        raise ValueError("nothing to evaluate: name a policy=, or a world_model= or reflector= with data=")
    if beside := [name for name in ("baseline", "others", "judge") if cfg[name]]:
        raise ValueError(f"{beside[0]}= goes with a policy=, which is not given")
    if cfg["rivals"] and not cfg["world_model"]:
        raise ValueError("rivals= says where a world_model= is not to be believed, which is not given")
    if cfg["data"] is None:
        raise ValueError("without a policy, models are held to recorded episodes: name some with data=, or give policy=")
    model = checkpoint.load(cfg["world_model"], WorldModel) if cfg["world_model"] else None
    reflector = checkpoint.load(cfg["reflector"], Reflector) if cfg["reflector"] else None
    named = cfg["rivals"] if isinstance(cfg["rivals"], list) else [cfg["rivals"]]
    rivals = [checkpoint.load(folder, WorldModel) for folder in named]
    if model:
        doubt.check_rivals(model, rivals)
    about = ("data", "held_out", "label", "rivals", "horizon", "dreams", "seed")
    found: Config = {**{name: cfg[name] for name in about}, "circumstances": circumstances(cfg["precision"], BATCH)}
    for name in ("world_model", "reflector"):
        found[f"{name}_folder"] = cfg[name]
        if cfg[name] and (weights := Path(cfg[name]) / checkpoint.WEIGHTS).is_file():
            found[f"{name}_weights_sha256"] = sha256(weights)
    out = Path(cfg["out"])
    out.mkdir(parents=True, exist_ok=True)
    with autocast(cfg["precision"]), Console(stderr=True).status("judging and dreaming along the recorded actions"):
        # What cannot be said is refused before anything takes long.
        table, rows, episodes = _to_dream(cfg, model, reflector) if model else (None, None, None)
        if reflector:  # as it sees recordings, which need not be as large as the world model dreams
            found["reflector"] = judging.frames_judged(reflector, _unseen(cfg, reflector), batch=8 * BATCH)
            _write(found, out)
        if model and table and rows is not None:
            held = recorded.hold(model, table, rows, steps=cfg["horizon"], batch=BATCH, seed=cfg["seed"])
            found["world_model"] = trust.figures(held, model.action_horizon) | {"coverage": recorded.coverage(table, model.spec)}
            show(model, table, rows, held, out / "dreams.png", seed=cfg["seed"])
            _write(found, out)
            _parted(found, held, table, rows, model, cfg)
            _write(found, out)
            if rivals:
                settings = {"steps": cfg["horizon"], "batch": BATCH, "seed": cfg["seed"]}
                found["doubt"] = doubt.trusted(doubt.doubted(model, rivals, table, rows, **settings))
                _write(found, out)
            if reflector and episodes is not None:
                settings = {"steps": cfg["horizon"], "batch": BATCH, "seed": cfg["seed"]}
                found["imagined_success"] = judging.horizon(judging.succeeded(model, reflector, table, episodes, **settings))
                _write(found, out)
    for line in verdicts(found):
        print(line)
    print(f"Read {out / 'models.md'}")


def _to_dream(cfg: Config, model: WorldModel, reflector: Reflector | None) -> tuple[FrameStore, torch.Tensor, torch.Tensor | None]:
    """The episodes, where dreams begin, and those of which a reflector says whether they succeed."""
    if reflector:
        check_cameras(reflector.views, model.views, "the reflector", "the world model dreams")
    table = _unseen(cfg, model)
    episodes = None
    if reflector:
        try:
            episodes = judging.labelled(table, cfg["dreams"])
        except ValueError as error:  # too few; what else there is to say of both models is not lost for that
            print(f"left out: {error}", flush=True)
    return table, recorded.starts(table, cfg["horizon"], cfg["dreams"]), episodes


def _parted(found: Config, held: recorded.Held, table: FrameStore, rows: torch.Tensor, model: WorldModel, cfg: Config) -> None:
    """Where dreams leave the recordings: a file for `collect actor=revisit`, a picture, and how soon that is."""
    out, names = Path(cfg["out"]), parting.named(_roots(cfg), cfg["held_out"])
    apart = parting.partings(held, table, rows, names)
    parting.write(apart, out / "partings.json")
    steps = torch.tensor([one.step for one in apart]).float()
    found["partings"] = {"episodes": len(apart), "step": float(steps.quantile(0.5)) if apart else None}
    if apart:
        parting.show(model, table, apart, names, out / "partings.png", seed=cfg["seed"])


def _write(found: Config, out: Path) -> None:
    write_json(out / "models.json", found)
    (out / "models.md").write_text(page(found))
    curves(found, out / "curves.png")


def _unseen(cfg: Config, model: WorldModel | Reflector) -> FrameStore:
    """The episodes that are held out, each once, as the model knows its channels."""
    if not 0 < cfg["held_out"] <= 1:
        raise ValueError(f"held_out must be in (0, 1], got {cfg['held_out']}; 1 takes all episodes, as none was learned from")
    roots = _roots(cfg)
    if cfg["held_out"] == 1:
        table = FrameStore.read(roots, model.views)
    else:
        table = FrameStore.read_held_out(roots, model.views, held_out=cfg["held_out"])
    if table is None:
        raise ValueError(f"{', '.join(roots)} holds no episode out; held_out=1 takes all, if the models saw none of them")
    check_sizes(model, table.spec)
    label: Label | None = instantiate(cfg["label"])
    table = table if label is None else label(table)
    if model.spec is None:
        return table
    if model.spec.fps != table.spec.fps:
        raise ValueError(
            f"the {type(model).__name__} learned from {model.spec.fps:g} frames a second, {roots[0]} has {table.spec.fps:g}; name "
            "data of its rate"
        )
    return table.ordered(model.spec, f"the {type(model).__name__}")


def _roots(cfg: Config) -> list[str]:
    """The datasets, each once."""
    named = cfg["data"] if isinstance(cfg["data"], list) else [cfg["data"]]
    if not named:
        raise ValueError("data names no dataset; name recorded episodes")
    return list(dict.fromkeys(str(Path(str(root)).resolve()) for root in named))


def verdicts(found: Config) -> list[str]:
    """What the figures say, a sentence each."""
    lines = []
    if model := found.get("world_model"):
        lines.append(f"world model: {model['verdict']}")
    if judge := found.get("reflector"):
        false = 100 * judge["against_labels"]["false_success"]
        quality = f"AUC {judge['auc']:.3f}, Brier {judge['brier']:.3f}"
        lines.append(f"reflector: {quality}; {false:.1f} % of {judge['frames']} frames are false successes.")
    if success := found.get("imagined_success"):
        of_judge, of_model = (_points(success[key]) for key in ("judge_points", "world_model_points"))
        steps = f"{success['trusted_steps']} of {len(success['percent_by_step']['label'])} steps"
        lines.append(
            f"imagined success holds within {judging.MARGIN:g} points for {steps}; at the end the reflector errs by {of_judge}, "
            f"the world model by {of_model}."
        )
    if (apart := found.get("partings")) and apart["episodes"]:
        lines.append(
            f"dream and recording part in {apart['episodes']} episodes, after {apart['step']:g} steps in the median; partings.json "
            "names the frames, from which collect actor=revisit records."
        )
    if doubted := found.get("doubt"):
        right, believed, fixed = (100 * doubted[key][0] for key in ("right", "believed", "believed_fixed"))
        common = f"the best horizon for all, {doubted['fixed_steps']} steps, believes {fixed:.0f} %."
        if doubted["threshold"] is None:
            lines.append(f"no doubt is so small that {100 * doubted['sure']:g} % of the steps are right; {common}")
        else:
            how_sure = f"{believed:.0f} % of the steps are believed, and {right:.0f} % of those are right"
            lines.append(f"doubt up to {doubted['threshold']:.3g}: {how_sure}; {common}")
    return lines


def page(found: Config) -> str:
    """The results as Markdown."""
    lines = ["# World model and reflector against recorded episodes", ""]
    about = {
        name: found[name]
        for name in ("world_model_folder", "rivals", "reflector_folder", "data", "held_out", "horizon", "dreams", "seed")
    }
    shown = ", ".join(f"{name.removesuffix('_folder')}={value}" for name, value in about.items() if value not in (None, []))
    lines += [f"{shown}; {described(found['circumstances'])}.", ""]
    lines += [f"- {line[0].upper()}{line[1:]}" for line in verdicts(found)]
    if model := found.get("world_model"):
        lines += ["", *_world_model(model)]
    if doubted := found.get("doubt"):
        lines += ["", *_doubt(doubted)]
    if judge := found.get("reflector"):
        lines += ["", "## Reflector", "", "| predicted | observed | frames |", "| --- | --- | --- |"]
        for part in judge["curve"]:
            lines.append(f"| {100 * part['predicted']:.1f} % | {100 * part['observed']:.1f} % | {part['frames']} |")
        lines += ["", "| by frame | agreement with labels | kappa | false success | missed success |", "| --- " * 5 + "|"]
        lines += [_row(name, judge[key]) for name, key in (("reflector", "against_labels"), ("always success", "always_success"))]
    if success := found.get("imagined_success"):
        lines += ["", "## Imagined success", "", "| by episode | success, % | agreement with labels | kappa | false | missed |"]
        lines += ["| --- " * 6 + "|", f"| labels | {_rate(success['rates']['label'])} | | | | |"]
        for name, words in (("judged", "reflector, recorded frames"), ("dreamed", "reflector, dreamed frames")):
            lines.append(_row(f"{words} | {_rate(success['rates'][name])}", success["against_labels"][name]))
    return "\n".join(lines) + "\n"


def _world_model(model: Config) -> list[str]:
    steps = sorted({1, min(4, model["steps"]), max(1, model["steps"] // 2), model["steps"]})
    skills = " | ".join(f"skill after {k}" for k in steps)
    lines = [
        "## World model",
        "",
        f"{model['dreams']} dreams of up to {model['steps']} steps in {model['episodes']} episodes; 95 % intervals over episodes. "
        "Skill is 1 - error / error of the picture at the start; control 1 - error / error with another episode's actions, in "
        "units of each step's error of that picture; motion and detail are shares of what was recorded.",
        "",
        f"| camera | motion | detail | control | {skills} | PSNR after {steps[-1]} (still) |",
        "| --- " * (5 + len(steps)) + "|",
    ]
    for name, camera in model["cameras"].items():
        figures = [camera[key] for key in ("motion", "detail", "control")] + [camera["skill_by_step"][k - 1] for k in steps]
        ends = f"{camera['psnr_by_step'][steps[-1] - 1]:.1f} ({camera['still_psnr_by_step'][steps[-1] - 1]:.1f}) dB"
        lines.append(f"| {name} | {' | '.join(map(_interval, figures))} | {ends} |")
    if state := model["state"]:
        figures = [state["control"]] + [state["skill_by_step"][k - 1] for k in steps]
        lines.append(f"| proprioception | | | {' | '.join(map(_interval, figures))} | |")
    if model["unmoved"]:
        lines += ["", f"Nothing moves in {', '.join(model['unmoved'])}, which says nothing."]
    if covered := model["coverage"]:
        worst = "".join(f"; {name} leaves it in {100 * share:.2g} %" for name, share in covered["worst"].items())
        lines += ["", f"{100 * covered['share']:.1f} % of the frames lie within what training saw{worst}."]
    return lines


def _doubt(doubted: Config) -> list[str]:
    """How much disagreement is too much, tried on every second episode."""
    steps, ranks = len(doubted["rank_by_step"]), doubted["rank_by_step"]
    ranked = ", ".join(f"{ranks[k - 1]:.2f} after {k}" for k in sorted({min(4, steps), max(1, steps // 2), steps}))
    rows = (
        ("doubt", "", f"median of {doubted['believed_steps']:g}"),
        ("one horizon for all", "_fixed", f"{doubted['fixed_steps']}"),
    )
    return [
        "## Doubt",
        "",
        f"Right is an error of at most {doubted['tolerated']:g} of how far pictures get from where they began; the largest "
        f"threshold with which {100 * doubted['sure']:g} % of the believed steps are right on one half of "
        f"{doubted['episodes']} episodes, tried on the other. Rank correlation of doubt and error: {ranked} steps.",
        "",
        "| by | steps of a dream | believed, share of steps | right, of those |",
        "| --- | --- | --- | --- |",
        *(
            f"| {name} | {last} | {_interval(doubted[f'believed{key}'])} | {_interval(doubted[f'right{key}'])} |"
            for name, key, last in rows
        ),
        f"| doubted | | | {_interval(doubted['right_doubted'])} |",
    ]


def curves(found: Config, path: Path) -> None:
    """Skill and imagined success by step, and how often the reflector is right when it is so sure."""
    cameras = found.get("world_model", {}).get("cameras", {})
    success, judge = found.get("imagined_success", {}).get("percent_by_step", {}), found.get("reflector", {}).get("curve", [])
    figure = Figure(figsize=(5 * sum(map(bool, (cameras, success, judge))), 3.4), layout="constrained")
    panels = iter(figure.subplots(1, sum(map(bool, (cameras, success, judge))), squeeze=False)[0])
    if cameras:
        axes = next(panels)
        for name, camera in cameras.items():
            value, low, high = torch.tensor(camera["skill_by_step"]).T.tolist()
            steps = range(1, len(value) + 1)
            axes.plot(steps, value, label=name)
            axes.fill_between(steps, low, high, alpha=0.2)
        axes.set(title="skill: 1 perfect, 0 a picture that stays", xlabel="steps", ylim=(-0.5, 1))
        axes.axhline(0, color="black", linewidth=0.8)
        axes.legend(fontsize=8)
    if success:
        axes = next(panels)
        words = {"label": "labels", "judged": "reflector, recorded", "dreamed": "reflector, dreamed"}
        for name, values in success.items():
            axes.plot(range(1, len(values) + 1), values, label=words[name])
        axes.set(title="succeeded by then, % of episodes", xlabel="steps")
        axes.legend(fontsize=8)
    if judge:
        axes = next(panels)
        axes.plot([0, 100], [0, 100], color="grey", linewidth=0.8)
        axes.plot(*([100 * part[key] for part in judge] for key in ("predicted", "observed")), marker="o", markersize=4)
        axes.set(title="reflector, recorded frames", xlabel="says success, %", ylabel="is a success, %")
    figure.savefig(path, dpi=120)


@torch.no_grad()
def show(
    model: WorldModel, table: FrameStore, rows: torch.Tensor, held: recorded.Held, path: Path, *, seed: int, frames: int = 6
) -> None:
    """Truth above the dream of each camera, in the dream whose pictures move most among those that last longest."""
    lasting = held.valid.sum(1)
    moved = sum((errors.still.sum(1) for errors in held.pictures.values()), torch.zeros(len(rows)))
    row = rows[int(torch.where(lasting == lasting.max(), moved, -1).argmax())][None]
    steps = int(lasting.max())
    window = recorded.filled(model, table.window(row, context=model.context, horizon=steps))
    window["instruction"] = table.sentences(row)
    parts = [shown for _, shown, _ in recorded.dreamed(model, window, window["action"], Noise.rows(seed, 1))]
    chosen = torch.linspace(1, steps, min(frames, steps)).round().long().tolist()
    lines: list[tuple[str, torch.Tensor]] = []
    for name in model.views:
        real, dream = window["images"][name][0, model.context :], torch.cat([part[name][0] for part in parts])
        lines += [(f"{name}", real), (f"{name}, dreamed", dream)]
    figure = Figure(figsize=(1.6 * len(chosen), 1.7 * len(lines)))
    panels = figure.subplots(len(lines), len(chosen), squeeze=False)
    for panel_row, (title, shown) in zip(panels, lines, strict=True):
        for axes, step in zip(panel_row, chosen, strict=True):
            axes.imshow(shown[step - 1].numpy())
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"{title}, {step}", fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _interval(figure: list[float]) -> str:
    value, low, high = figure
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


def _points(gain: Mapping[str, Any]) -> str:
    low, high = gain["ci95"]
    return f"{gain['points']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _rate(rate: Mapping[str, Any]) -> str:
    low, high = (100 * bound for bound in rate["ci95"])
    return f"{100 * rate['rate']:.1f} [{low:.1f}, {high:.1f}]"


def _row(name: str, said: Mapping[str, Any]) -> str:
    shares = " | ".join(f"{100 * said[key]:.1f} %" for key in ("false_success", "missed_success"))
    return f"| {name} | {100 * said['agreement']:.1f} % | {said['kappa']:.2f} | {shares} |"
