"""`worldsim adopt DATASET`: look at somebody's recordings, say what they are, and write what it takes to learn from them.

The recording is not touched. What is written are files to edit: one `spec.yaml`, by which the dataset is known from then on, and an
experiment each for world model, reflector, policy, post-training, dreams and evaluation. What is there already is kept. Read
`worldsim/data/inspection.py` for the guesses, `worldsim/report/adoption.py` for the page.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from rich.console import Console
from rich.markup import escape

from training.app.cli import compose_config
from training.app.costs import Price, price
from worldsim.core.views import usual_view
from worldsim.data import lerobot_format as fmt
from worldsim.data.adoption import CALLED, SPEC, adoption
from worldsim.data.contents import Fault
from worldsim.data.faults import dataset_faults
from worldsim.data.inspection import named
from worldsim.data.lerobot_reader import Dataset
from worldsim.report.adoption import Findings, find, lines, write_page

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
EXPERIMENTS = ("world_model", "reflector", "policy")
SECONDS_OF_CHUNK = 0.4  # as our own demo has it, in 4 actions at 10 Hz


def adopt(cfg: Mapping[str, Any]) -> None:
    """The verb.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if it cannot be learned from, with the first reason; if a hub cannot be reached; if the name is none.
    """
    root = _located(str(cfg["dataset"])).resolve()
    name = str(cfg["name"] or re.sub(r"\W+", "_", Path(str(cfg["dataset"])).expanduser().resolve().name).strip("_").lower())
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"name is {name!r}, expected letters, digits and underscores; choose another one with name=...")
    out, console = Path(cfg["out"]).resolve(), Console()
    folder = out / name
    if (there := adoption(folder)) is not None and there.dataset.resolve() != root:
        raise ValueError(f"{folder} adopts {there.dataset}, not {root}; choose another name with name=...")
    said = yaml.safe_dump(
        {"dataset": str(root), "features": _features(root)}, sort_keys=False, default_flow_style=None, width=10**6
    )
    faults, found = _looked_at(folder if there else None, said, console)
    written = [_kept_or_written(folder / SPEC, said + _spec(found))]
    for experiment, text in _experiments(name, folder, found).items():
        written.append(_kept_or_written(out / "experiment" / name / f"{experiment}.yaml", text))
    found = found._replace(dataset=Dataset(folder))
    prices = {experiment: _price(f"{name}/{experiment}", out) for experiment in EXPERIMENTS}
    page = write_page(folder / "report.html", name, found, faults, prices)
    for line in lines(name, found, faults, prices):
        console.print(escape(line), soft_wrap=True)
    console.print(escape("\n".join(written)), soft_wrap=True)
    at = "" if out == Path("adopted").resolve() else f" --config-dir {out}"
    verbs = [*(f"fit experiment={name}/{e}" for e in (*EXPERIMENTS, "post_train")), f"rollout experiment={name}/dream"]
    verbs += [f"evaluate experiment={name}/evaluate"] if found.measurable else []
    steps = [f"worldsim {verb}{at}" for verb in verbs]
    console.print(escape(f"Read {page}, correct {folder / SPEC}, then:\n" + "\n".join(steps)), soft_wrap=True)
    if not found.measurable:
        console.print(f"{len(found.lengths)} episodes are too few to hold some out and measure a world model on them.")
    _refuse(folder, faults)


def _looked_at(folder: Path | None, said: str, console: Console) -> tuple[list[Fault], Findings]:
    """Faults and findings of a dataset that is adopted in a folder, or by what would be said of it; nothing is written for it."""
    with TemporaryDirectory() as scratch:
        if folder is None:
            folder = Path(scratch)
            (folder / SPEC).write_text(said)
        faults = dataset_faults(folder)
        try:
            return faults, find(Dataset(folder))
        except (ValueError, FileNotFoundError):
            for fault in faults:
                console.print(escape(f"{fault.severity}: {fault.found}; {fault.remedy}"), soft_wrap=True)
            raise


def _kept_or_written(path: Path, text: str) -> str:
    """Write a file that is not there; which of both happened."""
    if path.is_file():
        return f"kept {path}, which was there"
    with fmt.replacing(path) as temporary:
        temporary.write_text(text)
    return f"wrote {path}"


def _refuse(folder: Path, faults: list[Fault]) -> None:
    """Say what must be mended before anything can be learned, after everything that was found is written."""
    if errors := [fault for fault in faults if fault.severity == "error"]:
        raise ValueError(f"{folder} cannot be learned from as it is: {errors[0].found}; {errors[0].remedy}")


def _located(dataset: str) -> Path:
    """The folder, downloaded if it is on the hub."""
    path = Path(dataset).expanduser()
    if path.is_dir() or not HUB_ID.fullmatch(dataset):
        return path
    from huggingface_hub import snapshot_download  # here, as nothing else needs a network
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(dataset, repo_type="dataset"))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, ConnectionError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"there is no folder {dataset}, and the hub does not give it ({reason}); check the name or the network"
        ) from error


def _features(root: Path) -> dict[str, list[str]]:
    """What the dataset calls worldsim's features, as far as that is not the same."""
    if adoption(root) is not None:
        raise ValueError(f"{root} adopts a dataset already; edit its {SPEC}")
    if not (root / fmt.INFO).is_file():
        raise FileNotFoundError(f"no LeRobot dataset at {root}: {fmt.INFO} is missing; check the path")
    features = fmt.read_json(root / fmt.INFO).get("features")
    if not isinstance(features, dict) or {"observation.state", "action"} <= features.keys():
        return {}  # or a reader says what is wrong
    whole = {key: f for key, f in features.items() if isinstance(f, dict) and "dtype" in f and isinstance(f.get("shape"), list)}
    ours = named(whole)
    return {name: keys for name, keys in ours.items() if keys != [CALLED[name]]}


def _spec(found: Findings) -> str:
    """What is to be looked at and corrected: units and kinds with what the guesses rest on, and how large cameras are seen."""
    text = "\n# Cameras that models look through, and the height and width at which they do, in multiples of 8 pixels.\n"
    text += "views:\n" if found.cameras else "views: {}\n"
    for camera, size in found.cameras.items():
        text += f"  {_quoted(camera)}: {[*usual_view(*size)]}    # recorded {size[0]} x {size[1]}\n"
    text += f"\nrobot_type: {_quoted(found.robot)}\n"
    for feature, guesses in (("state", found.state), ("action", found.action)):
        text += "\n# unit: rad, deg, m, percent ...; kind: absolute, delta, velocity, binary, angle.\n"
        text += f"# Add limits: [low, high] where it may not go further.\n{feature}:\n"
        for guess in guesses:
            text += f"  {_quoted(guess.name)}: {{unit: {_quoted(guess.unit)}, kind: {guess.kind}}}    # {guess.why}\n"
    return text


def _quoted(word: str) -> str:
    """A word as YAML reads it, whatever it is."""
    return word if re.fullmatch(r"[A-Za-z_][\w.-]*", word) and yaml.safe_load(word) == word else json.dumps(word)


def _experiments(name: str, folder: Path, found: Findings) -> dict[str, str]:
    """The text of each experiment, by its name."""
    horizon = min(16, max(4, round(SECONDS_OF_CHUNK * found.fps)))
    held_out = found.held_out
    label = f"  - override /label: {found.label}\n" if found.label != "outcome" else ""
    longest = f"label:\n  horizon_s: {(max(found.lengths) - 1) / found.fps:.4g}\n" if found.label == "time_to_go" else ""
    models = {part: f"runs/{name}/{part}" for part in EXPERIMENTS}
    dream = min(10 * horizon, found.longest)
    data = f"data:\n  roots: [{_quoted(str(folder))}]\n"

    def text(base: str, more: str, override: str = "") -> str:
        head = f"# @package _global_\n# Of {folder}: written by worldsim adopt, to be edited.\n"
        return f"{head}defaults:\n  - /experiment/{base}\n{override}  - _self_\nname: {name}/{base}\n{more}"

    chunk = f"    action_horizon: {horizon}    # {horizon / found.fps:.2g} s\n"
    judged = f"  label: {found.label}\n" if found.label != "outcome" else ""
    both = "".join(f"  {part}:\n    folder: {where}\n" for part, where in models.items())
    verb = f"# @package _global_\n# Of {folder}: written by worldsim adopt, to be edited.\n"
    return {
        "world_model": text("world_model", f"model:\n  world_model:\n{chunk}{data}  held_out: {held_out}\n"),
        "reflector": text("reflector", f"{longest}{data}  held_out: {held_out}\n", label),
        "policy": text("policy", f"model:\n  policy:\n{chunk}{data}"),
        "post_train": text("post_train", f"{longest}model:\n{both}{data}", label),
        "dream": f"""{verb}policy: {models["policy"]}
world:
  world_model: {models["world_model"]}
  reflector: {models["reflector"]}
  data: [{_quoted(str(folder))}]
  max_episode_steps: {dream}
out: runs/{name}/dream
""",
        "evaluate": verb
        + (f"defaults:\n  - override /label: {found.label}\n  - _self_\n" if judged else "")
        + longest
        + f"""world_model: {models["world_model"]}
reflector: {models["reflector"]}
data: {_quoted(str(folder))}
held_out: {held_out}
horizon: {dream}
out: runs/{name}/evaluation
""",
    }


def _price(experiment: str, out: Path) -> Price:
    return price(compose_config("fit", [f"experiment={experiment}"], str(out)))
