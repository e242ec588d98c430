"""Can a world model be believed, and for how long? Figures by horizon with intervals, what is wrong with it, one sentence.

A dream may look right and be of no use. So a model is asked three things of recorded episodes that it never saw (`recorded.py`):
does it beat a picture that stays, does it move as much and as sharply as what was recorded, and do actions count. Read `judging.py`
next: what a reflector says of such dreams.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldsim.measure.metrics import Ratio, ratio_of_sums
from worldsim.measure.recorded import FEWEST, Errors, Held

FROZEN = 0.5  # of the motion that was recorded
BLURRED = 0.5  # of the edges where something moves
BLIND = 0.1  # of the error with another episode's actions
ALIKE = 1e-3  # difference of exchanged actions, in squared standard deviations, below which nobody can tell
# Mean squared change below which a step shows nothing to judge by: of pixels (50 dB), and of states in standard deviations.
STILL, AT_REST = 1e-5, 1e-4


def figures(held: Held, chunk: int) -> dict[str, Any]:
    """What the dreams came to, by camera and of proprioception.

    With sums over all dreams: skill = 1 - own / still after each step, which is 1 for a perfect dream and 0 for a picture that
    stays; motion = sqrt(moved / real_moved) and detail = sqrt(detail / real_detail) over all steps; control = 1 - own / other over
    all steps, each step's errors counted in units of that step's `still`, which is 0 if actions do not count.

    Args:
        held: from `recorded.hold`; steps that fewer than `FEWEST` episodes reach are left out.
        chunk: steps of one call of the model, after which it is asked first: as soon as something has moved then.

    Returns:
        cameras: by name psnr_by_step and still_psnr_by_step [dB], skill_by_step, motion, detail, control; state: skill_by_step and
        control; dreams, episodes, steps; useful_steps: for how long from then on every camera beats a picture that stays, with
        97.5 % confidence at each step; unmoved: cameras that show nothing to judge by; flags: what is wrong; verdict:
        one sentence. Ratios are [value, low, high].

    Raises:
        ValueError: if fewer than `FEWEST` episodes have a step, or no camera shows anything that moves.
    """
    reached = [len(held.episode[column].unique()) for column in held.valid.T]
    steps, moving = sum(number >= FEWEST for number in reached), {}
    if steps:
        held = _cut(held, steps)
        moving = {name: e for name, e in held.pictures.items() if not float(e.still.sum() / held.valid.sum()) <= STILL}
    if not moving:
        raise ValueError(f"nothing moves in {', '.join(held.pictures)}, so any picture that stays would do; record what moves")
    cameras = {name: _of_camera(held, errors) for name, errors in moving.items()}
    moves = held.state is not None and bool((held.state.still > 0).any())
    state = {"skill_by_step": _skill(held, held.state), "control": _control(held, held.state, AT_REST)} if moves else {}  # type: ignore[arg-type]
    told, first = held.exchanged > ALIKE, {name: _first(held, errors, chunk) for name, errors in moving.items()}
    flags = [f"{fault} ({name})" for name, camera in cameras.items() for fault in _faults(camera, first[name], told)]
    useful = min(_lasting(camera["skill_by_step"], first[name]) for name, camera in cameras.items())
    found: dict[str, Any] = {"cameras": cameras, "state": state, "unmoved": [name for name in held.pictures if name not in moving]}
    found |= {"dreams": len(held.valid), "episodes": reached[0], "steps": steps, "useful_steps": useful, "flags": flags}
    return found | {"verdict": verdict(flags, useful, steps, told)}


def verdict(flags: list[str], useful: int, steps: int, told: bool) -> str:
    """One sentence: what is wrong, or for how many of so many steps its pictures are useful, and whether these episodes tell if
    actions count."""
    if flags:
        return f"Do not learn in it: it is {', '.join(flags)}."
    follow = (
        "they follow the actions" if told else "whether they follow actions these episodes do not tell, in which all do the same"
    )
    return f"Its pictures beat one that stays for {useful} of {steps} steps, they move, and {follow}."


def _cut(held: Held, steps: int) -> Held:
    """Its first steps."""
    pictures = {name: Errors(*(value[:, :steps] for value in errors)) for name, errors in held.pictures.items()}
    state = held.state and Errors(*(value[:, :steps] for value in held.state))
    return held._replace(valid=held.valid[:, :steps], shared=held.shared[:, :steps], pictures=pictures, state=state)


def _size(held: Held, errors: Errors) -> Float[Tensor, " t"]:
    """Error of the picture that stays, of each step."""
    return errors.still.sum(0) / held.valid.sum(0)


def _first(held: Held, errors: Errors, chunk: int) -> int:
    """The step at which a camera is asked first: from the end of a chunk on, once it shows something."""
    size = _size(held, errors)
    return next((k for k in range(min(chunk, len(size)) - 1, len(size)) if size[k] > STILL), len(size) - 1)


def _of_camera(held: Held, errors: Errors) -> dict[str, Any]:
    def psnr(values: Tensor) -> list[float]:
        """Mean over dreams, as `metrics.psnr` counts each picture."""
        decibels = torch.where(held.valid, -10 * values.clamp(min=1e-10).log10(), 0)
        return (decibels.sum(0) / held.valid.sum(0)).tolist()

    def root(above: Tensor, below: Tensor) -> list[float]:
        ratio = ratio_of_sums(*(_by_episode(values, held.episode).sum(1) for values in (above, below)))
        return [value**0.5 for value in _plain(ratio)]

    return {
        "psnr_by_step": psnr(errors.own),
        "still_psnr_by_step": psnr(errors.still),
        "skill_by_step": _skill(held, errors),
        "motion": root(errors.moved, errors.real_moved),
        "detail": root(errors.detail, errors.real_detail),
        "control": _control(held, errors, STILL),
    }


def _faults(camera: dict[str, Any], first: int, told: bool) -> list[str]:
    """What is wrong with a camera's dreams, by the bounds of their figures."""
    (_, _, most_motion), (_, _, most_detail), (_, least, most) = (camera[key] for key in ("motion", "detail", "control"))
    _, skill, _ = camera["skill_by_step"][first]
    if any(value != value for value in camera["psnr_by_step"]):
        return ["not a number"]
    found = {"frozen": most_motion < FROZEN, "blurred": most_detail < BLURRED}
    if told and not least > 0:
        found["action-blind" if most < BLIND else "perhaps action-blind: too few episodes to tell"] = True
    named = [name for name, wrong in found.items() if wrong]
    return named or (["no better than a picture that stays"] if not skill > 0 else [])


def _skill(held: Held, errors: Errors) -> list[list[float]]:
    ratio = ratio_of_sums(_by_episode(errors.own, held.episode), _by_episode(errors.still, held.episode))
    return torch.stack([1 - ratio.value, 1 - ratio.high, 1 - ratio.low], dim=1).tolist()


def _control(held: Held, errors: Errors, least: float) -> list[float]:
    size = _size(held, errors)
    units = torch.where(size > least, size, torch.inf)
    counted = (torch.where(held.shared, e, 0) / units for e in (errors.own, errors.other))
    own, other = (_by_episode(values, held.episode).sum(1) for values in counted)
    value, low, high = _plain(ratio_of_sums(own, other))
    return [1 - value, 1 - high, 1 - low]


def _lasting(skill: list[list[float]], first: int) -> int:
    """Steps up to which the lower bound stays above 0 from the first chunk's end on."""
    end = next((k for k, (_, low, _) in enumerate(skill) if k >= first and not low > 0), len(skill))
    return 0 if end == first else end


def _by_episode(values: Float[Tensor, "n t"], episode: Int[Tensor, " n"]) -> Float[Tensor, "e t"]:
    _, place = episode.unique(return_inverse=True)
    return torch.zeros(int(place.max()) + 1, values.shape[1], dtype=torch.float64).index_add_(0, place, values.double())


def _plain(ratio: Ratio) -> list[float]:
    return [float(x) for x in ratio]
