"""Is this bundle whole, does it act here as it did where it was trained, and how fast: `python -m worldsim.robot.check BUNDLE`.

A copy may be damaged, and another processor or runtime may round differently, so a robot checks before it moves. Read
`worldsim/robot/bundle.py` for what a bundle is and `worldsim/deploy/export.py` for who wrote the recorded observations.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldsim.robot.bundle import Bundle, load_bundle
from worldsim.robot.loop import percentiles

OBSERVATIONS = "observations"
ARRAYS = ("images", "states", "noises", "actions")
INSTRUCTIONS = "instructions.json"
TOLERANCE = 1e-4  # of actions in network units, where the bundle names no other
WARM_UP = 3


@dataclass(frozen=True, eq=False)
class Recorded:
    """Real observations, and what the policy did with them in PyTorch.

    Attributes:
        images: mosaics of the bundle's views, uint8 [n, h, w, 3].
        states: float32 [n, s].
        noises: float32 [n, ah, ad].
        actions: float32 [n, ah, ad].
        instructions: n sentences.
    """

    images: np.ndarray
    states: np.ndarray
    noises: np.ndarray
    actions: np.ndarray
    instructions: tuple[str, ...]


def write_recorded(recorded: Recorded, folder: Path) -> list[str]:
    """Write the folder `observations` of a bundle; returns the names of its files."""
    (folder / OBSERVATIONS).mkdir()
    for name in ARRAYS:
        np.save(folder / OBSERVATIONS / f"{name}.npy", getattr(recorded, name), allow_pickle=False)
    (folder / OBSERVATIONS / INSTRUCTIONS).write_text(json.dumps(recorded.instructions, indent=2) + "\n")
    return [f"{OBSERVATIONS}/{name}" for name in (*(f"{name}.npy" for name in ARRAYS), INSTRUCTIONS)]


def read_recorded(folder: Path) -> Recorded | None:
    """What `write_recorded` wrote, or None if the bundle has none.

    Raises:
        ValueError: if the parts do not fit together.
    """
    if not (folder / OBSERVATIONS).is_dir():
        return None
    arrays = {name: np.load(folder / OBSERVATIONS / f"{name}.npy", allow_pickle=False) for name in ARRAYS}
    instructions = json.loads((folder / OBSERVATIONS / INSTRUCTIONS).read_text())
    if not instructions or {len(array) for array in arrays.values()} != {len(instructions)}:
        raise ValueError(f"the parts of {folder / OBSERVATIONS} have different lengths; export the policy again")
    return Recorded(**arrays, instructions=tuple(instructions))


def replay(bundle: Bundle, recorded: Recorded) -> float:
    """Largest difference between the bundle's actions and the recorded ones, in network units; NaN if one of them is."""
    cases = zip(recorded.images, recorded.states, recorded.instructions, recorded.noises, strict=True)
    actual, scale = np.stack([bundle(*case) for case in cases]), bundle.description["outputs"][0]["scale"]
    return largest_difference(actual, recorded.actions, np.array(scale))


def largest_difference(actual: np.ndarray, expected: np.ndarray, scale: np.ndarray) -> float:
    """Between actions in native units, float32 [..., ad], in network units; NaN if one of them is.

    Two units in the last place are no difference: of an angle of 90 degrees that moves by a hundredth they alone would be too much.

    Args:
        actual: actions of the bundle.
        expected: those of the policy.
        scale: native units of one of the network's, [ad].
    """
    beyond = np.abs(actual - expected) - 2 * np.spacing(np.abs(expected))
    return float((np.maximum(beyond, 0) / scale).max())


def latency_ms(bundle: Bundle, image: np.ndarray, state: np.ndarray, instruction: str, seconds: float) -> dict[str, float]:
    """Percentiles of the time of a decision, measured for about that long, after a warm-up."""
    noise = bundle.noise(np.random.default_rng(0))
    times, end = [], time.perf_counter() + seconds
    while len(times) < WARM_UP + 1 or time.perf_counter() < end:
        began = time.perf_counter()
        bundle(image, state, instruction, noise)
        times.append(1e3 * (time.perf_counter() - began))
    return {**percentiles(times[WARM_UP:]), "decisions": len(times) - WARM_UP}


def check(folder: Path, *, seconds: float, threads: int) -> dict[str, object]:
    """Load, replay and time a bundle; the report has "ok", false if the actions differ by more than the tolerance.

    Raises:
        FileNotFoundError: if there is no bundle.
        ValueError: if it is damaged or altered.
    """
    bundle = load_bundle(folder, threads=threads)
    recorded = read_recorded(folder)
    tolerance = (bundle.description.get("parity") or {}).get("tolerance", TOLERANCE)
    if recorded is None:
        example = np.zeros(bundle.shapes["image"][1:], np.uint8), np.zeros(bundle.shapes["state"][1:], np.float32), ""
        difference = None
    else:
        example = recorded.images[0], recorded.states[0], recorded.instructions[0]
        difference = replay(bundle, recorded)
    return {
        "bundle": str(folder),
        "policy": bundle.description["policy"],
        "observations": 0 if recorded is None else len(recorded.instructions),
        "max_abs_difference": difference,
        "tolerance": tolerance,
        "ok": difference is None or difference <= tolerance,
        "latency_ms": latency_ms(bundle, *example, seconds),
    }


def main(arguments: list[str] | None = None) -> int:
    """0 if all is well, 1 if the actions differ, 2 if the bundle is missing or damaged."""
    parser = argparse.ArgumentParser(prog="python -m worldsim.robot.check", description="Verify a robot bundle on this machine.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=2.0, help="how long to measure latency")
    parser.add_argument("--threads", type=int, default=0, help="of onnxruntime; 0 lets it decide")
    options = parser.parse_args(arguments)
    try:
        report = check(options.bundle, seconds=options.seconds, threads=options.threads)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {error}; a robot needs numpy, tokenizers and onnxruntime, and torch for the torch format", file=sys.stderr)
        return 2
    print(json.dumps(report, indent=2))
    if report["ok"]:
        return 0
    difference, tolerance = report["max_abs_difference"], report["tolerance"]
    print(
        f"error: the actions differ from the recorded ones by {difference:.1e}, at most {tolerance:.0e} is allowed; do not use it",
        file=sys.stderr,
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
