"""Figures of evaluations, as PNG files."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def draw_ranking(policies: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Imagined success against true success of every policy of an evaluation, with their intervals."""
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.axline((0, 0), slope=1, color="grey", linewidth=0.8)
    for name, entry in policies.items():
        (x, y), bars = (100 * entry["rate"], 100 * entry["imagination"]["rate"]), []
        for middle, rated in ((x, entry), (y, entry["imagination"])):
            low, high = (100 * bound for bound in rated["ci95"])
            bars.append([[max(0.0, middle - low)], [max(0.0, high - middle)]])
        axes.errorbar(x, y, xerr=bars[0], yerr=bars[1], fmt="o", markersize=4)
        axes.annotate(name, (x, y), textcoords="offset points", xytext=(5, 5), fontsize=8)
    axes.set(xlabel="success, %", ylabel="imagined success, %", xlim=(0, 100), ylim=(0, 100), aspect="equal")
    figure.savefig(path, dpi=120)
