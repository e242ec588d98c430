"""Counting for Prometheus: histograms and the text format that its scraper reads, by hand.

The format is a few lines of text, so the robot needs no client library for it. Read `server.py` next: it counts requests.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/, text format 0.0.4.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence


class Histogram:
    """Numbers of observations up to each bound, their sum and their count.

    Args:
        bounds: upper bounds, ascending; a last bucket without a bound is implied.
    """

    def __init__(self, bounds: Sequence[float]):
        self.bounds, self.counts, self.sum = list(bounds), [0] * (len(bounds) + 1), 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, text: str) -> list[str]:
        """Lines of the text format; buckets are cumulative."""
        lines, total = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
        for bound, count in zip([*map(str, self.bounds), "+Inf"], self.counts, strict=True):
            total += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {total}')
        return [*lines, f"{name}_sum {self.sum}", f"{name}_count {total}"]


def counter(name: str, text: str, values: Mapping[str, float], *, kind: str = "counter") -> list[str]:
    """Lines of a counter or a gauge.

    Args:
        name: of the metric.
        text: of its help.
        values: by label set as it is written, such as ``{kind="busy"}``; the empty string for none.
        kind: "counter" or "gauge".
    """
    return [f"# HELP {name} {text}", f"# TYPE {name} {kind}", *(f"{name}{labels} {value}" for labels, value in values.items())]
