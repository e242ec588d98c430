"""One HTML page that tells what a run achieved, what it cost and how far its imagination can be trusted.

The page carries its own pictures, videos and curves, so that it opens offline, on a phone and from an e-mail years later.
It reads only files (`summary.json`, `stages/*/metrics.csv`, `media/`, `config.yaml`), never models; whatever is missing is
left out. The layout of the page is `report.html.j2`; the numbers come from `worldsim/measure/metrics.py`.
"""

import base64
import csv
import io
import json
import math
import mimetypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import matplotlib as mpl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

_MAX_POINTS = 400  # of a curve; more would only make the page heavy
_INK, _ACCENT = "#0a0b0c", "#0a0b0d"  # placeholders in a figure, replaced by the page's colours, which follow light and dark

# A summary's key -> (label, format of the value). Unknown keys get a readable label and three significant digits.
_FACTS = {
    "frames_per_s": ("Speed", "{:,.0f} frames/s"),
    "psnr": ("PSNR", "{:.1f} dB"),
    "block_error_m": ("Block position error", "{:.3f} m"),
    "auc_real": ("AUC on real frames", "{:.3f}"),
    "auc_imagined": ("AUC on imagined frames", "{:.3f}"),
    "f1": ("F1", "{:.3f}"),
    "threshold": ("Success threshold", "{:.3f}"),
    "frame_threshold": ("Success threshold of single frames", "{:.3f}"),
    "ece": ("Expected calibration error", "{:.3f}"),
    "calibration_episodes": ("Episodes to calibrate on", "{:,.0f}"),
    "calibration_frames": ("Frames to calibrate on", "{:,.0f}"),
    "report_episodes": ("Episodes that these figures are of", "{:,.0f}"),
    "report_frames": ("Frames that these figures are of", "{:,.0f}"),
}
_NAMES = {
    "analytic": "Analytic gradient",
    "ppo": "PPO",
    "final": "After, with fresh data",
}


def write_report(run: Path) -> Path:
    """Write `run/report.html` from a run directory and return its path; a former report is replaced in one step.

    Args:
        run: holds `summary.json`; optionally `stages/<stage>/metrics.csv` (Lightning's CSVLogger), `media/*.mp4`,
            `media/*.png` with `media/captions.json` ({file name: caption}), and `config.yaml`.

    Raises:
        FileNotFoundError: if `run` has no summary.json.
    """
    summary_path = run / "summary.json"
    if not summary_path.is_file():
        raise FileNotFoundError(f"{summary_path} is missing; write_report needs the run directory of a finished `worldsim demo`")
    summary = json.loads(summary_path.read_text())
    config = run / "config.yaml"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.ChainableUndefined,  # a key that a summary lacks renders as a dash
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": _formatter("{:.1f} %", scale=100),
        "percent_ci": _interval("{:.1f} – {:.1f} %", scale=100),
        "points": _formatter("{:+.1f}"),
        "points_ci": _interval("{:+.1f} … {:+.1f}"),
        "score": _formatter("{:.3f}"),
        "score_ci": _interval("{:.2f} – {:.2f}"),
        "whole": _formatter("{:,.0f}"),
        "seconds": _formatter("{:,.1f} s"),
        "name": _name,
    }
    steps = summary.get("physics_steps", {})
    page = environment.get_template("report.html.j2").render(
        learning_steps=sum(n for key, n in steps.items() if key.startswith("post_train")),
        fresh_steps=sum(n for key, n in steps.items() if key.startswith("collect_policy")),
        s=summary,
        results=_results(summary),
        world_model=_facts(summary.get("world_model", {})),
        reflector=_facts(summary.get("reflector", {})),
        judge=_facts(summary.get("judge", {})),
        psnr_curve=_psnr_curve(summary.get("world_model", {}).get("psnr_by_step", [])),
        calibration_curve=_calibration_curve(summary.get("imagination", {}).get("calibration", {}).get("curve", [])),
        circumstances=described(summary["circumstances"]) if "circumstances" in summary else "",
        media=_media(run / "media"),
        stages=_stages(run / "stages"),
        config=config.read_text() if config.is_file() else "",
    )
    path = run / "report.html"
    partial = run / f".report.html.{os.getpid()}.tmp"
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, path)
    return path


def described(circumstances: dict[str, str | int]) -> str:
    """`worldsim.core.precision.circumstances` in words."""
    return "precision {precision} on the {device}, {num_envs} environments, {threads} threads".format(**circumstances)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _formatter(template: str, scale: float = 1):
    """A template filter that formats a number; a dash where there is none (missing, NaN)."""
    return lambda value: template.format(scale * value) if _number(value) else "–"


def _interval(template: str, scale: float = 1):
    """As `_formatter`, for [low, high]."""

    def render(value: Any) -> str:
        known = isinstance(value, list) and len(value) == 2 and all(map(_number, value))
        return template.format(*(scale * bound for bound in value)) if known else "–"

    return render


def _name(key: str) -> str:
    """A key of a summary as words."""
    return _NAMES.get(key) or key.replace("_", " ").strip().capitalize()


def _facts(values: dict[str, Any]) -> list[tuple[str, str]]:
    """(label, value with unit) of every number; `psnr_at_40` becomes "PSNR after 40 steps"."""
    facts = []
    for key, value in values.items():
        stem, _, step = key.partition("_at_")
        label, template = _FACTS.get(stem, (_name(stem), "{:.3g}"))
        if not isinstance(value, list | dict):
            facts.append((f"{label} after {step} steps" if step else label, _formatter(template)(value)))
    return facts


def _results(summary: dict[str, Any]) -> list[dict[str, Any]]:
    """The policies compared in physics: before, then every learner; `after` too, unless it is one of the learners."""
    physics, learners = summary.get("physics_success", {}), summary.get("learners", {})
    results = {"before": physics.get("before", {})}
    if physics.get("after", {}).get("rate") not in {learner.get("rate") for learner in learners.values()}:
        results["after"] = {"paired_gain": physics.get("paired_gain", {})} | physics.get("after", {})
    return [{"name": _name(key)} | result for key, result in (results | learners).items() if _number(result.get("rate"))]


def _media(folder: Path) -> list[dict[str, Any]]:
    """Pictures and videos with captions, as data URIs: those with a caption first, in its file's order."""
    captions_path = folder / "captions.json"
    captions = json.loads(captions_path.read_text()) if captions_path.is_file() else {}
    order = {name: index for index, name in enumerate(captions)}
    files = sorted(
        (path for path in folder.glob("*") if path.suffix in {".mp4", ".png"} and not path.name.startswith(".")),
        key=lambda path: (order.get(path.name, len(order)), path.name),
    )
    return [
        {
            "video": path.suffix == ".mp4",
            "caption": captions.get(path.name, _name(path.stem)),
            "uri": f"data:{mimetypes.guess_type(path.name)[0]};base64,{base64.b64encode(path.read_bytes()).decode()}",
        }
        for path in files
    ]


def _stages(folder: Path) -> list[dict[str, Any]]:
    """Training curves of every stage, in the order in which the stages ended."""
    paths = sorted(folder.glob("*/metrics.csv"), key=lambda path: (path.stat().st_mtime, path.parent.name))
    stages = [{"name": _name(path.parent.name), "charts": _charts(path)} for path in paths]
    return [stage for stage in stages if stage["charts"]]


def _charts(path: Path) -> list[Markup]:
    """One small chart per column of a CSVLogger file, whose rows fill only some columns each."""
    curves: dict[str, list[tuple[float, float]]] = {}
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for column, cell in row.items():
                if column not in {"step", "epoch"} and cell and row["step"] and math.isfinite(float(cell)):
                    curves.setdefault(column, []).append((float(row["step"]), float(cell)))
    return [_chart(points, column, "step") for column, points in curves.items() if len(points) > 1]


def _psnr_curve(values: list[float]) -> Markup | None:
    points = [(float(step), float(value)) for step, value in enumerate(values, start=1) if _number(value)]
    return _chart(points, "PSNR by imagined step (dB)", "imagined step") if len(points) > 1 else None


def _calibration_curve(bins: list[dict[str, Any]]) -> Markup | None:
    """Observed against predicted success, with intervals, beside the diagonal."""
    if not bins:
        return None

    def draw(axes: Any) -> None:
        predicted, observed = ([entry[key] for entry in bins] for key in ("predicted", "observed"))
        low, high = ([abs(entry["ci95"][side] - entry["observed"]) for entry in bins] for side in (0, 1))
        axes.plot([0, 1], [0, 1], color=_INK, linewidth=0.6)
        axes.errorbar(predicted, observed, yerr=[low, high], fmt="o", color=_ACCENT, markersize=3, linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1))

    return _figure(draw, "share that succeeded in physics", "largest success probability in the dream")


def _chart(points: list[tuple[float, float]], title: str, xlabel: str) -> Markup:
    """A line chart; a log axis for a positive range beyond 100."""
    stride = math.ceil(len(points) / _MAX_POINTS)
    x, y = zip(*(points[:-1:stride] + points[-1:]), strict=True)

    def draw(axes: Any) -> None:
        axes.plot(x, y, color=_ACCENT, linewidth=1.4)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        if min(y) > 0 and max(y) / min(y) > 100:
            axes.set_yscale("log")

    return _figure(draw, title, xlabel)


def _figure(draw: Callable[[Any], None], title: str, xlabel: str) -> Markup:
    """A small figure as inline SVG in the page's own colours and font."""
    ink: dict[Any, Any] = dict.fromkeys(
        ["text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"], _INK
    )
    style: dict[Any, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "worldsim",
        "font.size": 8,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    rc: Any = style | ink | {"axes.linewidth": 0.6, "xtick.major.width": 0.6, "ytick.major.width": 0.6}
    with mpl.rc_context(rc):
        figure = Figure(figsize=(3.0, 1.8), layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.set_title(title, loc="left", fontsize=8.5, parse_math=False)
        axes.set_xlabel(xlabel)
        axes.grid(axis="y", alpha=0.12, linewidth=0.6)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    svg = file.getvalue()
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML needs no namespaces, and they look like links
    return Markup(svg.replace(_ACCENT, "var(--accent)").replace(_INK, "currentColor"))  # matplotlib escapes its texts
