"""`worldsim bench world_model`: world models by their use, which is what a policy gains in physics after learning in them.

Looks do not tell: a model that kept blocks whole over 40 steps left policies worse than no learning. So every candidate trains for
the same seconds on the same data, the same policy learns in it for the same number of iterations under the same reflector, and
physics says what came of it. Cheap figures stand beside, and how they rank the candidates against that. Read
`worldsim/measure/dream_effects.py` for the one that asks what actions do; cells are in `configs/study/world_model.yaml`.
"""

from worldsim.core import torchvision_remedy  # isort: skip  # noqa: F401 - before Lightning

import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from scipy.stats import spearmanr
from torch import Tensor

from training.app.stages import Stage
from training.studies.cells import fitting, gain_text, mean_over_seeds, outcomes_of, run_stages
from worldsim.core import checkpoint
from worldsim.core.cores import cores
from worldsim.core.files import write_json
from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.seeds import check_choosing
from worldsim.core.sight import seen
from worldsim.measure.collect import PlayActor
from worldsim.measure.dream_effects import Effects, Held, record_effects, sensitivity
from worldsim.measure.dream_quality import Recording, dream_along, feature_distances, quality, record
from worldsim.measure.metrics import paired_difference, success_rate
from worldsim.report.page import described

matplotlib.use("agg")
from matplotlib import pyplot as plt  # noqa: E402

SHOWN = (4, 20, 40)  # steps of the picture
# Figures of the table, and whether more of it is better.
FIGURES = {
    "psnr_at_4": True,
    "psnr_at_40": True,
    "block_error_m_at_4": False,
    "block_error_m_at_20": False,
    "block_error_m_at_40": False,
    "colour_mass_at_40": True,
    "feature_distance_at_4": False,
    "feature_distance_at_40": False,
    "action_slope": True,
    "action_correlation": True,
    "auc_imagined": True,
    "frames_per_s": True,
}


def run_world_models(cfg: dict[str, Any]) -> None:
    """Time and train the candidates, let a policy learn in each, measure all of it, and write table, pictures and JSON.

    What is done is skipped, so seeds and cells may be added later.

    Raises:
        ValueError: if a stage failed, a cell's calibration saw fewer than two steps, or the starts are not those that choose.
    """
    check_choosing(cfg["evaluation_seed"], cfg["episodes"])
    if cfg["baseline"] not in cfg["cells"]:
        raise ValueError(f"baseline={cfg['baseline']} is none of the cells {', '.join(cfg['cells'])}; name one of them")
    out, jobs = Path(cfg["out"]), cfg["jobs"]
    out.mkdir(parents=True, exist_ok=True)
    run_stages([calibration(cfg, cell) for cell in cfg["cells"]], out, jobs)
    steps = {cell: max(2, fitting(out / "pace" / cell, cfg["seconds"])) for cell in cfg["cells"]}
    cells = [(cell, seed) for seed in cfg["seeds"] for cell in cfg["cells"]]
    todo = [[training(cfg, cell, seed, steps[cell]), learning(cfg, cell, seed)] for cell, seed in cells]
    run_stages([*(stage for two in todo for stage in two), *(evaluation(cfg, seed) for seed in cfg["seeds"])], out, jobs)
    measure(cfg)
    rows = summarise(cfg)
    ranks = correlations(rows)
    about = {name: cfg[name] for name in ("seeds", "seconds", "iterations", "episodes", "evaluation_seed", "baseline")}
    about["circumstances"] = _evaluation(cfg, cfg["seeds"][0])["circumstances"]
    write_json(out / "world_model.json", {**about, "steps": steps, "rows": rows, "rank_correlations": ranks})
    (out / "world_model.md").write_text(table(cfg, rows, ranks))
    plot(rows, out / "world_model.png")
    print(f"{out / 'world_model.md'}: {len(rows)} cells, most useful: {rows[0]['cell']}")


def world_model_command(cfg: dict[str, Any], cell: str, seed: int, folder: str, *more: str) -> tuple[str, ...]:
    """The `worldsim fit` command of one candidate."""
    return (
        *("fit", "experiment=world_model", "augmentation=push_block", *cfg["cells"][cell], f"name={cell}", f"run_dir={folder}"),
        *(_roots(cfg, seed), f"seed_everything={seed}", f"data.seed={seed}"),
        *("+trainer.callbacks.pace._target_=training.studies.cells.Pace", "trainer.val_check_interval=null", *more),
    )


def calibration(cfg: dict[str, Any], cell: str) -> Stage:
    """A few seconds of a candidate's training, to know how many steps fit into the time."""
    limit = f"+trainer.max_time={{seconds: {cfg['calibration_seconds']}}}"
    folder = f"{cfg['out']}/pace/{cell}"
    return Stage(f"pace_{cell}", world_model_command(cfg, cell, cfg["seeds"][0], folder, limit, "trainer.max_steps=100000"))


def training(cfg: dict[str, Any], cell: str, seed: int, steps: int) -> Stage:
    """One candidate for the given number of steps."""
    folder = f"{cfg['out']}/{cell}_{seed}"
    return Stage(f"{cell}_{seed}", world_model_command(cfg, cell, seed, folder, f"trainer.max_steps={steps}", "resume=true"))


def learning(cfg: dict[str, Any], cell: str, seed: int) -> Stage:
    """The cloned policy of the seed's run learns in one candidate, under the run's reflector."""
    run, name = cfg["runs"][seed], f"learned_in_{cell}_{seed}"
    folders = {"policy": f"{run}/policy", "world_model": f"{cfg['out']}/{cell}_{seed}", "reflector": f"{run}/{cfg['reflector']}"}
    command = (
        *("fit", "experiment=post_train", "augmentation=push_block", *cfg["learner"]),
        *(f"name={name}", f"run_dir={cfg['out']}/{name}"),
        *(f"model.{part}.folder={folder}" for part, folder in folders.items()),
        *(_roots(cfg, seed), f"seed_everything={seed}", f"data.seed={seed}", "resume=true"),
        f"trainer.limit_train_batches={cfg['iterations']}",
    )
    return Stage(name, command, needs=(f"{cell}_{seed}",))


def evaluation(cfg: dict[str, Any], seed: int) -> Stage:
    """All learned policies of a seed and the cloned one on the same held-out starts, once nothing trains."""
    first, *rest = cfg["cells"]
    others = [f"+others.{cell}={cfg['out']}/learned_in_{cell}_{seed}" for cell in rest]
    starts = (f"episodes={cfg['episodes']}", f"seed={cfg['evaluation_seed']}", f"world.num_envs={cfg['envs']}")
    where = (*starts, "world.phrasings=eval", f"out={cfg['out']}/evaluation_{seed}")
    policies = (f"policy={cfg['out']}/learned_in_{first}_{seed}", f"baseline={cfg['runs'][seed]}/policy", *others)
    learned = tuple(f"learned_in_{cell}_{every}" for every in cfg["seeds"] for cell in cfg["cells"])
    return Stage(f"evaluate_{seed}", ("evaluate", *policies, *where), learned, alone=True)


def measure(cfg: dict[str, Any]) -> None:
    """Cheap figures of every candidate, on play of all seeds' one recording; those that stand on disk already are kept, if they are
    the same figures of the same model."""
    files = {(cell, seed): Path(cfg["out"]) / f"figures_{cell}_{seed}.json" for cell in cfg["cells"] for seed in cfg["seeds"]}
    todo = {(cell, seed): file for (cell, seed), file in files.items() if not _measured(file, Path(cfg["out"]) / f"{cell}_{seed}")}
    if not todo:
        return
    recording, effects = recordings(cfg)
    for (cell, seed), file in todo.items():
        model = checkpoint.load(f"{cfg['out']}/{cell}_{seed}", WorldModel)
        reflector = checkpoint.load(f"{cfg['runs'][seed]}/{cfg['reflector']}", Reflector)
        figures, judged, dreams = quality(model, reflector, recording)
        real = seen(recording.images, model.views, "the world model")[recording.camera]
        figures |= feature_distances(dreams[recording.camera], real)
        effect = sensitivity(model, effects, recording.camera)
        kept = {name: value for name, value in figures.items() if not name.endswith("by_step")} | judged
        kept |= {"action_slope": effect.slope, "action_correlation": effect.correlation, "contact_moments": effect.moments}
        kept |= {
            "figures": [*FIGURES],
            "frames_per_s": frames_per_s(model, recording),
            "parameters": sum(p.numel() for p in model.parameters()),
        }
        write_json(file, kept)
    first = {cell: checkpoint.load(f"{cfg['out']}/{cell}_{cfg['seeds'][0]}", WorldModel) for cell in cfg["cells"]}
    shown = {cell: dream_along(model, recording)[recording.camera] for cell, model in first.items()}
    picture(shown, recording, Path(cfg["out"]) / "dreams.png")


def _measured(figures: Path, model: Path) -> bool:
    """Whether all figures stand on disk, taken after the model was trained."""
    if not figures.is_file() or figures.stat().st_mtime < (model / checkpoint.WEIGHTS).stat().st_mtime:
        return False
    return json.loads(figures.read_text()).get("figures") == [*FIGURES]


def recordings(cfg: dict[str, Any]) -> tuple[Recording, Effects]:
    """Play in physics, of starts that choose: whole episodes, and moments with what changed actions lead to."""
    from worldsim.worlds.genesis.world import GenesisWorld  # takes seconds, and finished figures need none

    world = GenesisWorld(scene=cfg["scene"], num_envs=cfg["measured"], phrasings="eval")
    seed = cfg["evaluation_seed"] + cfg["episodes"]
    return record(world, PlayActor(), seed=seed), record_effects(world, Held(PlayActor(), 4), context=2, seed=seed)


def frames_per_s(model: WorldModel, recording: Recording, batch: int = 64, calls: int = 5) -> float:
    """Frames of all cameras together that `batch` dreams predict in a second, on all cores."""
    rows = torch.arange(batch) % len(recording.state)
    first = {name: frames[rows][:, :1].repeat(1, model.context, 1, 1, 1) for name, frames in recording.images.items()}
    sentences = tuple(recording.instruction[i] for i in rows.tolist())
    actions = recording.action[rows][:, : model.action_horizon]
    with torch.no_grad():
        state = model.init(first, recording.state[rows][:, :1].repeat(1, model.context, 1), sentences)
        noise = Noise.rows(0, batch)
        model.step(state, actions, noise)
        began = time.monotonic()
        for _ in range(calls):
            model.step(state, actions, noise)
    return batch * model.action_horizon * calls / (time.monotonic() - began)


def summarise(cfg: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per cell, the most useful first. Gains are paired by start with the cloned policy, and differences with the baseline
    cell; intervals are over seeds, of a single seed over its starts."""
    rows = []
    for cell in cfg["cells"]:
        after, gains, over, figures = [], [], [], []
        for seed in cfg["seeds"]:
            policies = _evaluation(cfg, seed)["policies"]
            learned, reference = (_learned(cfg, policies, name) for name in (cell, cfg["baseline"]))
            after.append(learned)
            gains.append(paired_difference(outcomes_of(policies["baseline"]), learned))
            over.append(paired_difference(reference, learned))
            figures.append(json.loads((Path(cfg["out"]) / f"figures_{cell}_{seed}.json").read_text()))
        rates = [success_rate(one) for one in after]
        rows.append(
            {
                "cell": cell,
                "after": mean_over_seeds([rate["rate"] for rate in rates], rates[0]["ci95"]),
                "gain": mean_over_seeds([gain["points"] for gain in gains], gains[0]["ci95"]),
                "over_baseline": mean_over_seeds([gain["points"] for gain in over], over[0]["ci95"]),
                "gain_per_seed": gains,
                "figures": {name: sum(f[name] for f in figures) / len(figures) for name in FIGURES if name in figures[0]},
            }
        )
    return sorted(rows, key=lambda row: -row["gain"]["mean"])


def correlations(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Spearman's rank correlation of each figure with the gain, over the candidates; positive where the better side gains."""
    gains = [row["gain"]["mean"] for row in rows]
    found = {}
    for name in rows[0]["figures"]:
        values = [row["figures"][name] for row in rows]
        if len(set(values)) > 1 and len(set(gains)) > 1:  # else there is nothing to rank
            statistic: Any = spearmanr(values, gains)[0]
            found[name] = (1 if FIGURES[name] else -1) * float(statistic)
    return found


def table(cfg: dict[str, Any], rows: list[dict[str, Any]], ranks: dict[str, float]) -> str:
    """The results as Markdown."""
    names = list(rows[0]["figures"])
    lines = [
        "# World models compared",
        "",
        f"`worldsim bench world_model`: seeds {', '.join(map(str, cfg['seeds']))}, {cfg['seconds']} s of training each on "
        f"{max(1, cores() // cfg['jobs'])} thread(s), then {cfg['iterations']} iterations ({' '.join(cfg['learner'])}) of the "
        f"cloned policy in it; {cfg['episodes']} starts per seed from {cfg['evaluation_seed']:,} on, which choose and do not "
        "report; held-out sentences. Gains are paired with the cloned policy, differences with the baseline cell. 95 % intervals: "
        "over seeds (Student's t; a single seed's over its starts). Figures are of play in physics and the same actions dreamed. "
        f"Measured with {described(_evaluation(cfg, cfg['seeds'][0])['circumstances'])}.",
        "",
        f"| cell | after, % | gain, points | over {cfg['baseline']} | per seed | {' | '.join(names)} |",
        "| --- " * (5 + len(names)) + "|",
    ]
    for row in rows:
        after, gain, over = row["after"], row["gain"], row["over_baseline"]
        lines.append(
            f"| {row['cell']} | {100 * after['mean']:.1f} [{100 * after['ci95'][0]:.1f}, {100 * after['ci95'][1]:.1f}] | "
            f"{gain['mean']:+.1f} [{gain['ci95'][0]:+.1f}, {gain['ci95'][1]:+.1f}] | "
            f"{over['mean']:+.1f} [{over['ci95'][0]:+.1f}, {over['ci95'][1]:+.1f}] | "
            f"{', '.join(gain_text(one) for one in row['gain_per_seed'])} | "
            f"{' | '.join(format(row['figures'][name], '.3g') for name in names)} |"
        )
    shown = ", ".join(f"{name} {rank:+.2f}" for name, rank in sorted(ranks.items(), key=lambda pair: -pair[1]))
    lines += ["", f"Rank correlation with the gain over {len(rows)} candidates, positive where the better side gains: {shown}."]
    return "\n".join(lines) + "\n"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Gains with their intervals, the most useful on top."""
    figure, axes = plt.subplots(figsize=(8, 0.35 * len(rows) + 1.2), layout="constrained")
    for y, row in enumerate(reversed(rows)):
        points, (low, high) = row["gain"]["mean"], row["gain"]["ci95"]
        axes.errorbar(points, y, xerr=[[points - low], [high - points]], fmt="o", color="tab:blue")
        axes.scatter([gain["points"] for gain in row["gain_per_seed"]], [y] * len(row["gain_per_seed"]), marker="|", color="grey")
    axes.set_yticks(range(len(rows)), [row["cell"] for row in reversed(rows)])
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel("physics success gained by learning in it, percentage points (ticks: seeds)")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def picture(dreams: dict[str, Tensor], recording: Recording, path: Path) -> None:
    """Truth and dreams after some steps, of the episode whose block moves most."""
    moved = (recording.block[:, -1] - recording.block[:, 0]).norm(dim=-1)
    row, steps = int(moved.argmax()), [step for step in SHOWN if step <= recording.action.shape[1]]
    lines = {"physics": recording.images[recording.camera][row, 1:], **{cell: frames[row] for cell, frames in dreams.items()}}
    figure, panels = plt.subplots(len(lines), len(steps), figsize=(1.7 * len(steps) + 1, 1.7 * len(lines)), squeeze=False)
    for line, (name, frames) in zip(panels, lines.items(), strict=True):
        for axes, step in zip(line, steps, strict=True):
            axes.imshow(frames[step - 1].numpy())
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_title(f"{name}, step {step}", fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _learned(cfg: dict[str, Any], policies: dict[str, Any], cell: str) -> Tensor:
    return outcomes_of(policies["policy" if cell == next(iter(cfg["cells"])) else cell])


def _roots(cfg: dict[str, Any], seed: int) -> str:
    folders = (f"{cfg['runs'][seed]}/data/{name}" for name in cfg["data"])
    return f"data.roots=[{','.join(folders)}]"


def _evaluation(cfg: dict[str, Any], seed: int) -> dict[str, Any]:
    return json.loads((Path(cfg["out"]) / f"evaluation_{seed}" / "evaluation.json").read_text())
