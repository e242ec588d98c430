"""The `worldsim` command: ``worldsim <verb> key=value ...``, composed by Hydra from ``configs/<verb>.yaml``.

Hydra alone reads the command line; each verb is a function of the resolved configuration, imported only when it is called.
A user's mistake ends in one line on stderr and exit code 2; `fit.py` shows how a configuration becomes a training run.
"""

import gc
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, HydraException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError, OmegaConfBaseException

from worldsim.core.installation import EXTRAS, add, shipped
from worldsim.core.views import usual_view
from worldsim.data.adoption import views_said
from worldsim.data.dataset_spec import read_spec

CONFIG_DIR = shipped("configs")


def of_data(what: str, roots: Sequence[str]) -> Any:
    """``${of_data:state_dim,${data.roots}}``: what a model must be built for to learn from datasets, as the first one says it.

    Args:
        what: state_dim, action_dim, or views: those that an adopted dataset chooses, or all cameras, at their `usual_view`.
        roots: the datasets.

    Raises:
        ValueError, FileNotFoundError: as `read_spec`.
    """
    if not roots:
        raise ValueError("data.roots is empty; name a dataset to learn from")
    spec = read_spec(Path(roots[0]))
    if what == "views":
        if (said := views_said(Path(roots[0]))) is not None:
            return said
        return {
            name: [*usual_view(camera.height, camera.width)] for name, camera in spec.cameras.items() if camera.kind == "colour"
        }
    return spec.sizes[what]


OmegaConf.register_new_resolver("of_data", of_data, replace=True)

USER_ERRORS = (
    ValueError,
    OSError,  # no such file, no room, no right to write, no connection
    HydraException,
    OmegaConfBaseException,
)

# Keys of verbs that name a file or folder, which Hydra reads as a number if they look like one.
PATHS = {"dataset", "root", "run", "run_dir", "out", "data", "recording", "bundle", "evaluation"}
PATHS |= {"policy", "baseline", "world_model", "reflector", "judge"}


class Verb(NamedTuple):
    """A verb.

    Attributes:
        function: as "module:name".
        help: one line.
        example: of its arguments.
        needs: import names of what it needs with its default configuration, beyond a few small packages, and "gl" to render.
    """

    function: str
    help: str
    example: str
    needs: tuple[str, ...] = ()


LEARN, RENDER = ("torch", "lightning"), ("torch", "genesis", "gl")
VERBS = {
    "adopt": Verb(
        "training.app.adopt:adopt", "look at anybody's dataset and write what it takes to learn from it", "data/my_robot", LEARN
    ),
    "collect": Verb(
        "training.app.verbs:collect", "record demonstrations as a LeRobot v3 dataset", "world=push_block episodes=50", RENDER
    ),
    "fit": Verb("training.app.fit:fit", "train one module with Lightning", "experiment=world_model trainer.max_steps=2000", LEARN),
    "convert": Verb(
        "training.app.convert:convert",
        "merge, cut or clean datasets into a new one, or make a scene of ns-train one that worlds show",
        "data=[data/a,data/b] out=data/c",
        ("torch",),
    ),
    "rollout": Verb(
        "training.app.verbs:rollout", "imagine episodes: video, dataset, statistics", "policy=runs/policy world=dream", ("torch",)
    ),
    "evaluate": Verb(
        "training.app.evaluate:evaluate", "measure success with confidence intervals", "policy=runs/policy world=push_block", RENDER
    ),
    "identify": Verb(
        "training.app.verbs:identify", "find a robot's camera, delay and dynamics", "recording=data/robot seed=0", RENDER
    ),
    "export": Verb(
        "training.app.verbs:export",
        "write a robot bundle and check its parity",
        "policy=runs/policy format=onnx",
        ("torch", "onnx", "onnxscript", "onnxruntime"),
    ),
    "serve": Verb(
        "training.app.verbs:serve",
        "answer robots over a websocket, in openpi's protocol",
        "bundle=runs/bundle port=8000",
        ("websockets", "msgpack", "onnxruntime"),
    ),
    "report": Verb("training.app.verbs:report", "write one self-contained HTML page about a run", "run=runs/demo"),
    "demo": Verb("training.studies.demo:demo", "all of the above on the embedded default", "size=tiny", (*LEARN, *RENDER[1:])),
    "bench": Verb(
        "training.studies.bench:bench",
        "compare learners or world models, or show what guards are for",
        "algorithms seconds=60",
        (*LEARN, *RENDER[1:]),
    ),
    "doctor": Verb(
        "training.app.doctor:doctor", "say what this machine can run, or what is wrong with a dataset", "data=data/demos"
    ),
}


FIRST = {"adopt": "dataset", "bench": "study"}  # what a first word without a key is
ADOPTED = Path("adopted")  # where `worldsim adopt` leaves experiments, which are found from here


class UsageError(ValueError):
    """The command line itself is wrong; the message is for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb.

    Args:
        argv: arguments after the program's name; `sys.argv[1:]` if None.

    Returns:
        The exit code: 0 success, 2 a user's mistake, 130 interrupted. Errors that are not the user's propagate.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    try:
        _run([arg for arg in args if arg != "--debug"])
    except KeyboardInterrupt:
        return _fail("interrupted", code=130, debug=debug)
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns an interrupt into exit(1)
            return _fail("interrupted", code=130, debug=debug)
        if not error.code:
            return 0
        return _fail(f"stopped: {error.code}", code=2, debug=debug)
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module not in EXTRAS:
            raise
        return _fail(f"{error.name} is not installed; run: {add(module)}", code=2, debug=debug)
    except USER_ERRORS as error:
        return _fail(_describe(error), code=2, debug=debug)
    return 0


def _run(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help"):
        print(_usage())
        return
    verb, *rest = args
    if verb not in VERBS:
        raise UsageError(f"unknown verb '{verb}'; one of {', '.join(VERBS)}{_suggest(verb, VERBS)}")
    if "-h" in rest or "--help" in rest:
        print(_verb_usage(verb))
        return
    if verb in FIRST and rest and "=" not in rest[0] and not rest[0].startswith("-"):  # worldsim bench algorithms
        rest = [f"{FIRST[verb]}={rest[0]}", *rest[1:]]
    overrides, search_dir = _split(verb, rest)
    optional = {f"{group}=null" for group, choice in _groups(_load(verb)) if choice is None}
    overrides = [override for override in overrides if override not in optional]  # which Hydra refuses, although it is the default
    composed = compose_config(verb, overrides, search_dir)
    written = OmegaConf.to_container(composed, resolve=False)
    assert isinstance(written, dict)
    for key in PATHS & written.keys():
        if isinstance(value := written[key], int | float):
            raise UsageError(f"{key} is {value!r}, expected a path; {key}=./{value} is one of that name")
    config = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(config, dict)
    gc.set_threshold(20_000)  # imports make objects to keep, and collecting among them takes time
    module, _, function = VERBS[verb].function.partition(":")
    getattr(import_module(module), function)(config)


def compose_config(verb: str, overrides: Sequence[str] = (), search_dir: str | None = None) -> DictConfig:
    """The configuration of a verb: ``configs/<verb>.yaml`` with Hydra overrides.

    Args:
        verb: name of the primary configuration.
        overrides: Hydra overrides, ``key=value``.
        search_dir: a further folder of config groups, such as one's own ``experiment/``.

    Raises:
        UsageError: if an override names no key or option; it suggests the nearest.
        HydraException: if the configuration cannot be composed for another reason.
    """
    places = [Path(place).resolve() for place in (search_dir, ADOPTED if ADOPTED.is_dir() else None) if place]
    quoted = ["'file://{}'".format(str(place).replace("\\", "\\\\").replace("'", "\\'")) for place in places]
    extra = [f"hydra.searchpath=[{','.join(quoted)}]"] if places else []
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        try:
            return compose(verb, overrides=[*overrides, *extra])
        except MissingConfigException as error:
            if not error.options:
                raise
            group, _, option = str(error.missing_cfg_file).rpartition("/")
            options = ", ".join(error.options)
            raise UsageError(f"no '{option}' in {group}; one of {options}{_suggest(option, error.options)}") from error
        except ConfigCompositionException as error:
            match = re.search(r"Could not override '([^']+)'", str(error))
            if match is None:
                raise
            key = match.group(1)
            others = [override for override in overrides if key not in override.partition("=")[0]]
            raise UsageError(f"no key '{key}' in the configuration of {verb}{_remedy(verb, key, [*others, *extra])}") from error


def _remedy(verb: str, key: str, overrides: list[str]) -> str:
    """How to name what was meant: with a plus, if only the constructor knows this argument, or the nearest key there is."""
    try:
        config = compose(verb, overrides=overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException):  # a second mistake; suggest from the first one's file alone
        return _suggest(key, _top_level(verb))
    groups = [key for key in config.hydra.runtime.choices if not str(key).startswith("hydra/")]
    with_hydra = OmegaConf.to_container(config, resolve=False)
    assert isinstance(with_hydra, dict)
    known = groups + [key for key in _dotted(with_hydra) if not key.startswith("hydra")]
    parent, _, name = key.rpartition(".")
    node: Any = with_hydra
    for part in filter(None, parent.split(".")):
        node = node.get(part) if isinstance(node, dict) else None
    target, takes = str(node.get("_target_", "") if isinstance(node, dict) else ""), []
    with suppress(ImportError):  # there is no such class, which is another mistake
        takes = import_module("training.app.fit").parameters(get_object(target)) if target else []
    if name in takes:
        return f"; {target.rpartition('.')[2]} takes it all the same: write +{key}=..."
    return _suggest(key, [*known, *(f"+{parent}.{one}" for one in takes if f"{parent}.{one}" not in known)])


def _dotted(node: dict[Any, Any], prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")


def _split(verb: str, args: list[str]) -> tuple[list[str], str | None]:
    """Hydra overrides and the value of ``--config-dir``."""
    overrides: list[str] = []
    search_dir = None
    rest = iter(args)
    for arg in rest:
        if arg == "--config-dir":
            search_dir = next(rest, None)
            if search_dir is None or not Path(search_dir).is_dir():
                raise UsageError(f"--config-dir needs an existing folder, got {search_dir!r}")
        elif arg.startswith("-"):
            raise UsageError(f"unknown flag '{arg}'; options are written key=value, see 'worldsim {verb} --help'")
        elif "=" not in arg and not arg.startswith("~"):
            raise UsageError(f"expected key=value, got '{arg}'; see 'worldsim {verb} --help'")
        else:
            overrides.append(arg)
    return overrides, search_dir


def _suggest(word: str, known: Sequence[str] | dict[str, Any]) -> str:
    close = get_close_matches(word, list(known), n=1)
    return f". Did you mean '{close[0]}'?" if close else ""


def _describe(error: BaseException) -> str:
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return f"{' '.join(str(error).splitlines()[0].split())} {_describe(error.__cause__)}"
    if isinstance(error, InterpolationResolutionError) and isinstance(error.__context__, ValueError | OSError):
        return _describe(error.__context__)  # what a resolver said
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if isinstance(error, OmegaConfBaseException) and missing:
        return f"{missing.group(1)} has no value; pass {missing.group(1)}=..."
    return " ".join(str(error).split()) or type(error).__name__


def _fail(message: str, *, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"worldsim: {message}", file=sys.stderr)
    return code


def _usage() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.help}" for name, verb in VERBS.items())
    return f"usage: worldsim <verb> [key=value ...]\n\n{verbs}\n\n'worldsim <verb> --help' lists a verb's keys."


def _verb_usage(verb: str) -> str:
    entry = VERBS[verb]
    lines = [f"usage: worldsim {verb} [key=value ...] [--config-dir DIR] [--debug]", "", f"  {entry.help}"]
    lines += ["", f"example: worldsim {verb} {entry.example}".rstrip(), "", "keys:"]
    raw = _load(verb)
    for group, choice in _groups(raw):
        files = sorted((CONFIG_DIR / group).glob("*.yaml"))
        shown = {"???": "<required>", None: "null"}.get(choice, choice)
        lines.append(f"  {group}={shown}    one of: {', '.join(path.stem for path in files)}")
        if choice == "???":
            lines += [f"      {path.stem}: {about}" for path in files if (about := _about(path))]
    groups = {group for group, _ in _groups(raw)}
    for key, value in raw.items():
        if key not in ("defaults", *groups):
            text = "<required>" if value == "???" else "..." if isinstance(value, (dict, list)) else value
            lines.append(f"  {key}={'null' if text is None else text}")
    return "\n".join(lines)


def _about(path: Path) -> str:
    """What an option is, by the comment that its file begins with."""
    comments = (line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("# "))
    return next((line for line in comments if not line.startswith("@package")), "")


def _load(verb: str) -> dict[str, Any]:
    path = CONFIG_DIR / f"{verb}.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; install worldsim again, or restore it with git checkout configs")
    raw = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    assert isinstance(raw, dict)
    return {str(key): value for key, value in raw.items()}


def _groups(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for entry in raw.get("defaults", []):
        if isinstance(entry, dict):
            for group, choice in entry.items():
                yield re.sub(r"^(override |optional )+", "", str(group)).partition("@")[0].strip("/"), choice


def _top_level(verb: str) -> list[str]:
    raw = _load(verb)
    return [group for group, _ in _groups(raw)] + [key for key in raw if key != "defaults"]


if __name__ == "__main__":
    sys.exit(main())
