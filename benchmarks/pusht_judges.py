"""How well do judges of pixels know where people's PushT stands? Against the coverage that its physics gives for the recorded pose.

    python benchmarks/pusht_judges.py DATA TRUTH.npz NAME=REFLECTOR_FOLDER ...

Judged are the frames of the last tenth of the episodes, which a reflector that learned from these did not see. Rows: reflectors,
one with random weights, time alone, and a constant. Spearman of progress with coverage and AUC of the probability of success
for coverage > .8, with 95 % bootstrap intervals over episodes. The truth, which the recording lacks, is for measuring alone.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import gym_pusht  # noqa: F401  registers the environment
import gymnasium as gym
import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from reflectors.instant import InstantReflector
from worldsim.core import checkpoint
from worldsim.core.interfaces import Reflector
from worldsim.data.store import FrameStore
from worldsim.measure.metrics import tails

ENOUGH, DRAWS, HELD_OUT = 0.8, 500, 0.1


def coverage(pose: np.ndarray) -> np.ndarray:
    """Share of the goal that the T covers in each recorded pose, [n, 3] in pixels and radians."""
    env = gym.make("gym_pusht/PushT-v0", disable_env_checker=True).unwrapped
    env.reset(seed=0)
    found = []
    for x, y, angle in pose.tolist():
        env.block.angle, env.block.position = angle, (x, y)
        found.append(env._get_coverage())
    return np.array(found)


def auc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive is scored above a negative, ties halved."""
    p, n = int(positive.sum()), int((~positive).sum())
    return float((rankdata(score)[positive].sum() - p * (p + 1) / 2) / (p * n)) if p and n else float("nan")


def interval(of: Callable[[np.ndarray], float], episode: np.ndarray) -> str:
    """A figure of frames with its interval over episodes."""
    rows = [np.flatnonzero(episode == e) for e in np.unique(episode)]
    draw = np.random.default_rng(0)
    drawn = [of(np.concatenate([rows[i] for i in draw.integers(len(rows), size=len(rows))])) for _ in range(DRAWS)]
    low, high = torch.tensor(drawn, dtype=torch.float64).nanquantile(tails(0.95)).tolist()
    return f"{of(np.arange(len(episode))):.3f} [{low:.3f}, {high:.3f}]"


@torch.no_grad()
def judged(reflector: Reflector, table: FrameStore, rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Progress and probability of success of each row."""
    parts = []
    for part in rows.split(256):
        clips = table.window(part, context=reflector.context, horizon=0)["images"]
        parts.append(reflector.judge({name: frames for name, frames in clips.items()}, table.sentences(part)))
    return tuple(torch.cat([getattr(p, name) for p in parts]).numpy() for name in ("progress", "p_success"))  # type: ignore[return-value]


def main(data: str, truth: str, *named: str) -> None:
    views = {"image": (96, 96)}
    table, before = FrameStore.read_held_out(data, views, held_out=HELD_OUT), FrameStore.read(data, views, held_out=HELD_OUT)
    assert table is not None
    covered = coverage(np.load(truth)["block_pose"])
    ends = np.append(before.last.unique().numpy(), len(before.last) + table.last.unique().numpy())
    shares = ", ".join(f"{100 * (covered[ends] > c).mean():.1f} % above {c}" for c in (0.8, 0.9, 0.95))
    print(f"Coverage in the last frame of {len(ends)} episodes: {np.median(covered[ends]):.3f} in the median, {shares}.\n")
    covered, rows = covered[len(before.last) :], torch.arange(len(table.last))
    episode, done = table.episode.numpy(), covered > ENOUGH
    elapsed = (rows - table.first).numpy() / float((before.last - before.first).max())
    torch.manual_seed(0)
    judges = {
        name: judged(checkpoint.load(Path(folder), Reflector), table, rows) for name, _, folder in (n.partition("=") for n in named)
    }
    judges |= {
        "random weights": judged(InstantReflector(views=views).eval(), table, rows),
        "time alone": (elapsed, elapsed),
        "a constant": (np.zeros(len(rows)), np.zeros(len(rows))),
    }
    print(f"{len(rows)} frames of {len(np.unique(episode))} episodes, {100 * done.mean():.1f} % of them above {ENOUGH}.\n")
    print("| judge | Spearman of progress with coverage | AUC of success for coverage > .8 | AUC of progress for that |")
    print("| --- | --- | --- | --- |")
    for name, (progress, p) in judges.items():
        rank = interval(
            lambda i, x=progress: float(np.nan_to_num(spearmanr(x[i], covered[i])[0])) if np.ptp(x[i]) else 0.0, episode
        )
        scores = (interval(lambda i, x=x: auc(x[i], done[i]), episode) for x in (p, progress))
        print(f"| {name} | {rank} | {' | '.join(scores)} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
