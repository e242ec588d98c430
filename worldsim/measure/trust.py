"""Can a world model be believed, and for how long? Figures by horizon with intervals, what is wrong with it, one sentence.

A dream may look right and be of no use. So a model is asked three things of recorded episodes that it never saw (`recorded.py`):
does it beat a picture that stays, does it move as much and as sharply as what was recorded, and do actions count. Each has a
planted fault that it must find: a frozen, a blurred and an action-blind model. Read `judging.py` next: what a reflector says of
such dreams.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldsim.measure.metrics import Ratio, ratio_of_sums
from worldsim.measure.recorded import STILL, Errors, Held

FEWEST = 8  # episodes without which an interval says nothing
FROZEN = 0.5  # of the motion that was recorded
BLURRED = 0.5  # of the edges where something moves


def figures(held: Held, chunk: int) -> dict[str, Any]:
    """What the dreams came to, by camera and of proprioception.

    With sums over all dreams: skill = 1 - own / still after each step, which is 1 for a perfect dream and 0 for a picture that
    stays; motion = moved / still and detail = sqrt(edges / recorded edges) over all steps; control = 1 - own / other, each step's
    errors counted in units of that step's `still`, which is 0 if actions do not count.

    Args:
        held: from `recorded.hold`.
        chunk: steps of one call of the model, after which it is asked first.

    Returns:
        cameras: by name psnr_by_step and still_psnr_by_step [dB], skill_by_step, motion, detail, control; state: skill_by_step and
        control; dreams, episodes, steps; useful_steps: for how long every camera beats a picture that stays, with 97.5 %
        confidence at each step; flags: what is wrong; verdict: one sentence. Ratios are [value, low, high].

    Raises:
        ValueError: if there are fewer than `FEWEST` episodes, or no camera shows anything that moves.
    """
    episodes = len(held.episode.unique())
    if episodes < FEWEST:
        raise ValueError(f"{episodes} episodes are too few to say how far a world model can be believed, {FEWEST} are the fewest")
    moving = {name: e for name, e in held.pictures.items() if float(e.still.sum() / held.valid.sum()) > STILL}
    if not moving:
        raise ValueError(f"nothing moves in {', '.join(held.pictures)}, so any picture that stays would do; record what moves")
    cameras = {name: _of_camera(held, errors) for name, errors in moving.items()}
    state = {"skill_by_step": _skill(held, held.state), "control": _control(held, held.state)} if held.state.still.any() else {}
    steps, first = int(held.valid.any(0).sum()), min(chunk, int(held.valid.any(0).sum())) - 1
    flags = [f"{fault} ({name})" for name, camera in cameras.items() for fault in _faults(camera, first)]
    useful = min(_lasting(camera["skill_by_step"]) for camera in cameras.values())
    found: dict[str, Any] = {"cameras": cameras, "state": state, "unmoved": [*(held.pictures.keys() - moving.keys())]}
    found |= {"dreams": len(held.valid), "episodes": episodes, "steps": steps, "useful_steps": useful, "flags": flags}
    return found | {"verdict": verdict(flags, useful, steps)}


def verdict(flags: list[str], useful: int, steps: int) -> str:
    """One sentence."""
    if flags:
        return f"Do not learn in it: it is {', '.join(flags)}."
    return f"Its pictures beat one that stays for {useful} of {steps} steps, they move and they follow the actions."


def _of_camera(held: Held, errors: Errors) -> dict[str, Any]:
    def by_step(values: Tensor) -> list[float]:
        mean = values.sum(0) / held.valid.sum(0).clamp(min=1)
        return (-10 * mean.clamp(min=1e-10).log10()).tolist()

    def whole(above: Tensor, below: Tensor) -> list[float]:
        return _plain(ratio_of_sums(_by_episode(above, held.episode).sum(1), _by_episode(below, held.episode).sum(1)))

    return {
        "psnr_by_step": by_step(errors.own),
        "still_psnr_by_step": by_step(errors.still),
        "skill_by_step": _skill(held, errors),
        "motion": whole(errors.moved, errors.still),
        "detail": [value**0.5 for value in whole(errors.detail, errors.real_detail)],
        "control": _control(held, errors),
    }


def _faults(camera: dict[str, Any], first: int) -> list[str]:
    """What is wrong with a camera's dreams, by the bounds of their figures."""
    _, _, motion = camera["motion"]
    _, _, detail = camera["detail"]
    _, control, _ = camera["control"]
    _, skill, _ = camera["skill_by_step"][first]
    found = {"frozen": motion < FROZEN, "blurred": detail < BLURRED, "action-blind": not control > 0}
    named = [name for name, wrong in found.items() if wrong]
    return named or (["no better than a picture that stays"] if not skill > 0 else [])


def _skill(held: Held, errors: Errors) -> list[list[float]]:
    ratio = ratio_of_sums(_by_episode(errors.own, held.episode), _by_episode(errors.still, held.episode))
    return torch.stack([1 - ratio.value, 1 - ratio.high, 1 - ratio.low], dim=1).tolist()


def _control(held: Held, errors: Errors) -> list[float]:
    size = errors.still.sum(0) / held.valid.sum(0).clamp(min=1)
    units = torch.where(size > 0, size, torch.inf)
    own, other = (_by_episode(e * held.shared / units, held.episode).sum(1) for e in (errors.own, errors.other))
    value, low, high = _plain(ratio_of_sums(own, other))
    return [1 - value, 1 - high, 1 - low]


def _lasting(skill: list[list[float]]) -> int:
    """Steps up to which the lower bound stays above 0."""
    return next((k for k, (_, low, _) in enumerate(skill) if not low > 0), len(skill))


def _by_episode(values: Float[Tensor, "n t"], episode: Int[Tensor, " n"]) -> Float[Tensor, "e t"]:
    _, place = episode.unique(return_inverse=True)
    return torch.zeros(int(place.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, place, values.double())


def _plain(ratio: Ratio) -> list[float]:
    return [float(x) for x in ratio]
