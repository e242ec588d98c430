"""`meta/stats.json` against the data: networks see numbers normalised by it, so a wrong one teaches something wrong in silence.

Statistics of pictures are not compared, which would take decoding all of them. Read `counters.py` next: it mends what is wrong.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Num

from worldsim.data import lerobot_format as fmt
from worldsim.data.bookkeeping import episode_rows
from worldsim.data.contents import Contents, Fault
from worldsim.data.episode_faults import fault, some
from worldsim.data.lerobot_layout import json_lines
from worldsim.data.stats import NAMES, QUANTILES, Stats, statistics

EPISODE_STATISTICS = "meta/episodes_stats.jsonl"  # of LeRobot v2.1
# Of a channel's range: how far a stored number may lie from the true one. Extremes and means are exact but for rounding; others
# compute spreads from rounded squares, and quantiles as means of those of episodes. Of these networks see q01 and q99 only.
TOLERANCES = {"min": 0.01, "max": 0.01, "mean": 0.02, "std": 0.03, "q01": 0.15, "q99": 0.15}
CHECKED = ("observation.state", "action")


def contradictions(stored: Mapping[str, Any], values: Num[np.ndarray, "n d"]) -> list[str]:
    """Which of the stored statistics of a feature are not those of its values, each with both numbers.

    Raises:
        ValueError: if a stored statistic holds no numbers.
    """
    true, wrong = statistics(values), []
    reach = np.maximum(true["max"] - true["min"], 1e-3 * np.abs(true["mean"]) + 1e-6)
    for name in (name for name in TOLERANCES if name in stored):
        said = _numbers(name, stored[name])
        if said.shape != true[name].shape:
            wrong.append(f"{name} has {said.size} numbers instead of {true[name].size}")
        elif (off := ~(np.abs(said - true[name]) <= TOLERANCES[name] * reach)).any():
            channel = int(off.argmax())
            wrong.append(f"{name} of channel {channel} is {said[channel]:.4g} instead of {true[name][channel]:.4g}")
    return wrong


def disordered(stored: Mapping[str, Any]) -> str:
    """Two neighbours among min, q01 ... q99 and max of which the first is larger; "" if there are none."""
    names = [name for name in ("min", *QUANTILES, "max") if name in stored]
    rows = [_numbers(name, stored[name]) for name in names]
    reach = rows[-1] - rows[0] if len({row.shape for row in rows}) == 1 and rows else np.zeros(1)
    pairs = zip(names, names[1:], rows, rows[1:], strict=False)
    return next((f"{a} > {b}" for a, b, x, y in pairs if x.shape == y.shape and (x > y + 0.01 * np.abs(reach) + 1e-9).any()), "")


def wrong_statistics(contents: Contents) -> Iterator[Fault]:
    """Statistics that are used, and are not those of the data: an error, but a warning where only quantiles are rough."""
    mend = f"worldsim doctor data={contents.root} mend=true computes them again"
    for key, stored, values in _used(contents):
        try:
            wrong, order = contradictions(stored, values), disordered(stored)
        except ValueError as error:
            yield Fault("statistics", "error", f"{fmt.STATS}, {key}: {error}", mend)
            continue
        exact = [text for text in wrong if text.split()[0] not in QUANTILES]
        if exact or order:
            found = f"{fmt.STATS} contradicts the data in {key}: {some(exact) or order}"
            yield Fault("statistics", "error", found, mend)
        elif wrong:
            yield Fault("statistics", "warning", f"{fmt.STATS} has rough quantiles of {key}: {some(wrong)}", mend)


def uncounted_statistics(contents: Contents) -> Iterator[Fault]:
    """Statistics of other frames than there are, as after a merge; worldsim computes its own instead, other readers use them."""
    total, count = contents.info["total_frames"], _count(contents)
    held = sum(episode.length for episode in contents.episodes)
    counted = held == total  # else the check of the counters says so
    if counted and count is not None and count != total:
        found = f"{fmt.STATS} is of {count} frames, there are {total}"
        yield Fault("statistics", "warning", found, f"worldsim doctor data={contents.root} mend=true computes it again")


def bytes_for_colours(contents: Contents) -> Iterator[Fault]:
    """Statistics of pictures that count from 0 to 255, where LeRobot's colours are between 0 and 1."""
    stored = fmt.read_json(contents.root / fmt.STATS) if (contents.root / fmt.STATS).is_file() else {}
    for key in (key for key, feature in contents.features.items() if fmt.is_rgb(feature) and isinstance(stored.get(key), dict)):
        said = np.concatenate([_numbers(name, stored[key].get(name, [])) for name in ("max", "mean")])
        if (said > 1.01).any():
            found = f"{fmt.STATS} has colours of {key} up to {said.max():.4g}, expected between 0 and 1"
            remedy = f"divide min, max, mean, std and quantiles of {key} there by 255, or convert the dataset again"
            yield Fault("statistics", "warning", found, remedy)


def wrong_episode_statistics(contents: Contents) -> Iterator[Fault]:
    """Statistics of single episodes that are of other frames; LeRobot merges them when it edits a dataset."""
    for key in CHECKED:
        values, wrong = {episode.index: (episode, rows) for episode, rows in contents.values(key)}, {}
        for index, stored in _of_episodes(contents, key):
            episode, rows = values.get(index, (None, np.empty((0, 0))))
            if episode is None or not np.isfinite(rows).all():
                continue
            exact = {name: value for name, value in stored.items() if name not in QUANTILES}
            try:
                problems = contradictions(exact, rows) + [why for why in [disordered(stored)] if why]
                if "count" in stored and _numbers("count", stored["count"]).tolist() != [len(rows)]:
                    problems.append(f"count is {stored['count']} instead of {len(rows)}")
            except ValueError as error:
                problems = [str(error)]
            if problems:
                wrong[episode] = problems[0]
        if wrong:
            found = f"statistics of {key} that single episodes carry are not theirs in {{}}: {next(iter(wrong.values()))}"
            remedy = "convert the dataset again before LeRobot edits or merges it; worldsim normalises by the whole dataset's"
            yield fault("statistics", "warning", wrong, found, remedy)


def mended_statistics(contents: Contents) -> dict[str, Stats] | None:
    """What `stats.json` should say; None if nothing in it contradicts the data. Cameras keep what is said of them."""
    if not [*wrong_statistics(contents), *uncounted_statistics(contents)]:
        return None
    stored = fmt.read_json(contents.root / fmt.STATS)
    return {**stored, **{key: statistics(values) for key, values in _readable(contents) if key in stored}}


def _used(contents: Contents) -> Iterator[tuple[str, dict[str, Any], np.ndarray]]:
    """Key, stored statistics and values of state and action, if worldsim uses the former, and if all of the latter can be read."""
    stored = fmt.read_statistics(contents.root, contents.info["total_frames"]) or {}
    for key, values in _readable(contents) if stored else ():
        if isinstance(stored.get(key), dict):
            yield key, stored[key], values


def _readable(contents: Contents) -> Iterator[tuple[str, np.ndarray]]:
    """Key and values of state and action, of each if all of it can be read."""
    for key in CHECKED:
        rows = [values for _, values in contents.values(key)]
        whole = sum(map(len, rows)) == contents.info["total_frames"]
        if rows and whole and np.isfinite(values := np.concatenate(rows)).all():
            yield key, values


def _count(contents: Contents) -> int | None:
    """The frames that `stats.json` says it is of; None if it does not."""
    if not (contents.root / fmt.STATS).is_file():
        return None
    stored = fmt.read_json(contents.root / fmt.STATS).get("action")
    count = stored.get("count") if isinstance(stored, dict) else None
    return count[0] if isinstance(count, list) and len(count) == 1 and fmt.is_count(count[0]) else None


def _of_episodes(contents: Contents, key: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and statistics of a feature, of each episode that carries some."""
    names = {f"stats/{key}/{name}": name for name in NAMES}
    for row in episode_rows(contents, [*names]):
        stored = {name: row[column] for column, name in names.items() if row.get(column) is not None}
        if stored:
            yield row["episode_index"], stored
    path = contents.root / EPISODE_STATISTICS
    for row in json_lines(path) if path.is_file() else ():
        stats = row.get("stats")
        if not isinstance(stats, dict) or not isinstance(stats.get(key, {}), dict) or not fmt.is_count(row.get("episode_index")):
            raise ValueError(f"{path} holds {str(row)[:60]}, expected episode_index and stats by feature; copy it again")
        if key in stats:
            yield row["episode_index"], stats[key]


def _numbers(name: str, said: Any) -> np.ndarray:
    try:
        return np.array(said, float).reshape(-1)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} holds no numbers") from error
