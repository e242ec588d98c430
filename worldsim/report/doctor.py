"""`worldsim doctor`: what this machine can run, what is missing, and what mends it; the same of a dataset or of plug-ins.

It looks packages up without importing them, so that it still answers where one of them is broken. `diagnose` returns the
findings, `print_report` prints them; `worldsim/core/precision.py` decides the precision, `data/faults.py` looks at datasets.
"""

import ctypes.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import psutil
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from worldsim.core import cores
from worldsim.core.installation import CHECKOUT, EXTRAS, INSTALL, add

Status = Literal["ok", "info", "absent", "broken", "missing"]

# Import name -> distribution, of what every installation needs.
REQUIRED = {
    "torch": "torch",
    "lightning": "lightning",
    "genesis": "genesis-world",
    "diffusers": "diffusers",
    "hydra": "hydra-core",
    "omegaconf": "omegaconf",
    "gymnasium": "gymnasium",
    "einops": "einops",
    "jaxtyping": "jaxtyping",
    "safetensors": "safetensors",
    "tokenizers": "tokenizers",
    "torchmetrics": "torchmetrics",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "av": "av",
    "cv2": "opencv-python-headless",
    "matplotlib": "matplotlib",
    "jinja2": "jinja2",
    "yaml": "pyyaml",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
}

GL_LIBRARIES = ("EGL", "GL", "GLU", "X11")
_GL_REMEDY = (
    "run .ci/system_libraries --install as root, or .ci/system_libraries to see the command"
    if CHECKOUT
    else "on Debian or Ubuntu: apt-get install libegl1 libgl1 libglu1-mesa libx11-6"
)


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        section: heading under which it is printed.
        name: what was looked at.
        status: "ok"; "info" for plain facts; "absent" if optional and not there; "broken" if it hinders; "missing" if required.
        value: what was found.
        remedy: what to do about it; empty if nothing.
    """

    section: str
    name: str
    status: Status
    value: str
    remedy: str = ""


def diagnose(needs: Mapping[str, Sequence[str]]) -> list[Finding]:
    """Everything `worldsim doctor` knows about this machine. Imports torch if it can and runs `import torchvision` elsewhere.

    Args:
        needs: of each verb the import names of what it cannot do without, and "gl" if it renders.
    """
    torch_findings, torch_works = _torch()
    findings = [_python(), *torch_findings, *_packages(), *_machine(), *_graphics(), *_torchvision(), *_extras()]
    return [*findings, *_verbs(needs, findings, torch_works)]


def print_report(needs: Mapping[str, Sequence[str]], console: Console | None = None) -> list[Finding]:
    """Print `diagnose(needs)` as tables.

    Args:
        needs: of each verb.
        console: where to; the terminal by default.

    Raises:
        ValueError: if something is missing that every installation needs, after the report.
    """
    findings = diagnose(needs)
    print_findings(findings, console)
    missing = [finding for finding in findings if finding.status == "missing"]
    if missing:
        names = ", ".join(finding.name for finding in missing)
        remedies = "; ".join(dict.fromkeys(finding.remedy for finding in missing))
        raise ValueError(f"this installation lacks {names}; {remedies}")
    return findings


def print_findings(findings: list[Finding], console: Console | None = None) -> None:
    """One table per section, on the terminal by default."""
    console = console or Console()
    colours = {"ok": "green", "info": "default", "absent": "yellow", "broken": "red", "missing": "bold red"}
    for section in dict.fromkeys(finding.section for finding in findings):
        table = Table(title=section, title_justify="left", show_header=False, box=None, padding=(0, 2, 0, 0))
        for finding in (f for f in findings if f.section == section):
            colour = colours[finding.status]
            text = escape(finding.value) + (f"\n[dim]-> {escape(finding.remedy)}[/]" if finding.remedy else "")
            table.add_row(escape(finding.name), f"[{colour}]{finding.status if finding.status != 'info' else ''}[/]", text)
        console.print(table)
        console.print()


def examine(
    data: str | Path | None,
    *,
    mend: bool,
    needs: Mapping[str, Sequence[str]],
    check: str | None = None,
    out: str | Path | None = None,
) -> None:
    """The verb: report on the machine or, if it is given, on the dataset at `data`, or on what `check` names.

    Args:
        data: folder of a dataset, or None.
        mend: first make its `info.json` count what its files hold, and its `stats.json` not contradict them.
        needs: of each verb, for the report on the machine.
        check: one of `CHECKS`, or None.
        out: a new file for what was found in the dataset, as JSON; or None.

    Raises:
        FileNotFoundError: if there is no dataset.
        ValueError: if something is wrong that must be mended first, after the report; if `mend` or `out` is given no dataset; if
            `out` is there already; or if there is no such check.
    """
    if check is not None:
        if check not in [*CHECKS] or data is not None or mend or out is not None:
            raise ValueError(f"check is {check!r}, expected one of {', '.join(CHECKS)}, with neither data, mend nor out beside it")
        print_findings(CHECKS[check]())
        return
    if data is None and mend:
        raise ValueError("mend=true needs the dataset to mend: worldsim doctor data=ROOT mend=true")
    if data is None and out is not None:
        raise ValueError("out=FILE needs the dataset to look at: worldsim doctor data=ROOT out=FILE")
    if data is None:
        print_report(needs)
        return
    from worldsim.data.faults import print_faults  # here, as it needs packages of which the report on a machine says that they lack

    print_faults(Path(data), mend=mend, out=None if out is None else Path(out))


def _plugins() -> list[Finding]:
    """Every class that an installed plug-in lists, and whether it loads and fulfils the contract of its group."""
    from worldsim.core import plugins  # here, as loading one needs torch, of which another report says whether it is there

    findings = []
    for plugin in plugins.installed():
        about = f"{plugin.target}, {plugin.distribution}"
        try:
            plugin.load()
            findings.append(Finding(plugin.entry.group, plugin.entry.name, "ok", about))
        except ValueError as error:
            reason, _, remedy = str(error).rpartition("; ")
            findings.append(Finding(plugin.entry.group, plugin.entry.name, "broken", f"{about}: {reason}", remedy))
    return findings or [Finding("Plug-ins", "none", "info", f"no distribution lists a class under {', '.join(plugins.GROUPS)}")]


def _caches() -> list[Finding]:
    """Every cache of decoded frames below this folder and in the folder for all datasets, and what may be deleted."""
    from worldsim.data.frame_cache import caches, readable  # here, as it needs packages of which another report says that they lack

    section, found = "Caches of decoded frames", caches(Path.cwd())
    findings = [
        Finding(
            f"{section}, {cache.dataset}",
            cache.view,
            "broken" if cache.stale else "ok",
            f"{cache.stale or f'{cache.episodes} episodes'}, {readable(cache.size)}, written {cache.age_s / 86400:.1f} days ago",
            f"rm -r {shlex.quote(str(cache.folder))}" if cache.stale else "",
        )
        for cache in found
    ]
    stale, all_of_it = (readable(sum(cache.size for cache in part)) for part in ([c for c in found if c.stale], found))
    total = (
        f"{all_of_it}, of which {stale} are of no use; any may be deleted while nothing trains, and is decoded again when needed"
    )
    return [*findings, Finding(section, "together", "info", total)]


# What `check=` can name, beside the machine and datasets.
CHECKS: dict[str, Callable[[], list[Finding]]] = {"plugins": _plugins, "cache": _caches}


def _python() -> Finding:
    found = platform.python_version()
    if (3, 10) <= sys.version_info[:2] < (3, 13):
        return Finding("Software", "python", "ok", found)
    return Finding("Software", "python", "missing", f"{found}, worldsim needs 3.10 to 3.12", f"install Python 3.11 and {INSTALL}")


def _packages() -> list[Finding]:
    """Versions of what is named in the design; the other requirements only where they are missing."""
    named = ("lightning", "genesis", "diffusers")
    findings = []
    for module, distribution in REQUIRED.items():
        if module == "torch":
            continue
        if not _installed(module):
            findings.append(Finding("Software", module, "missing", f"{distribution} is not installed", INSTALL))
        elif module in named:
            findings.append(Finding("Software", module, "ok", _version(distribution)))
    return findings


def _torch() -> tuple[list[Finding], bool]:
    if not _installed("torch"):
        return [Finding("Software", "torch", "missing", "torch is not installed", INSTALL)], False
    try:
        import torch  # here, and not at the top: a report is what one wants when this fails

        from worldsim.core import precision as device
    except (ImportError, OSError) as error:  # OSError: a shared library of the wheel does not load
        reason = " ".join(str(error).split())[:200]
        remedy = f"pip uninstall torch, then {INSTALL}" if not CHECKOUT else "reinstall torch: rm -r .venv; make setup"
        return [Finding("Software", "torch", "missing", f"does not import: {reason}", remedy)], False
    findings = [Finding("Software", "torch", "ok", torch.__version__)]
    units = [torch.backends.cpu.get_cpu_capability()]
    units += ["AVX512-bf16"] if device.has_avx512_bf16() else []
    units += ["AMX-bf16"] if device.has_amx() else []
    findings.append(Finding("Machine", "CPU kernels", "info", ", ".join(units)))
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(i)
            capability = f"compute capability {gpu.major}.{gpu.minor}"
            findings.append(Finding("Machine", f"GPU {i}", "ok", f"{gpu.name}, {_gib(gpu.total_memory)}, {capability}"))
    elif shutil.which("nvidia-smi") and not torch.version.cuda:
        findings.append(Finding("Machine", "GPU", "broken", "there is one, but torch is a CPU build", "install torch's CUDA build"))
    elif shutil.which("nvidia-smi"):
        remedy = f"run nvidia-smi; torch was built for CUDA {torch.version.cuda}, the driver must support that"
        findings.append(Finding("Machine", "GPU", "broken", "torch sees none, though an NVIDIA driver is installed", remedy))
    else:
        findings.append(Finding("Machine", "GPU", "info", "none; everything runs on the CPU"))
    findings.append(Finding("Machine", "precision of training", "info", device.precision()))
    return findings, True


def _machine() -> list[Finding]:
    usable, quota = cores.visible(), cores.quota()
    processors = f"{usable} usable of {os.cpu_count()}" + (f", limited to the time of {quota:g}" if quota else "")
    memory = psutil.virtual_memory()
    disk = shutil.disk_usage(Path.cwd())
    threads = os.environ.get("OMP_NUM_THREADS")
    oversubscribed = threads is None and quota is not None and quota < usable
    return [
        Finding("Machine", "CPU cores", "info", processors),
        Finding("Machine", "memory", "info", f"{_gib(memory.available)} available of {_gib(memory.total)}{_memory_limit()}"),
        Finding("Machine", "disk", "info", f"{_gib(disk.free)} free of {_gib(disk.total)} here"),
        Finding(
            "Machine",
            "OMP_NUM_THREADS",
            "broken" if oversubscribed else "info",
            threads or "not set: torch uses every core it sees",
            f"export OMP_NUM_THREADS={cores.cores()}: more threads than the quota slow each other down" if oversubscribed else "",
        ),
    ]


def _graphics() -> list[Finding]:
    if platform.system() != "Linux":
        return []
    lost = [f"lib{name}" for name in GL_LIBRARIES if ctypes.util.find_library(name) is None]
    if lost:
        return [Finding("Machine", "headless rendering", "broken", f"{', '.join(lost)} not found", _GL_REMEDY)]
    return [Finding("Machine", "headless rendering", "ok", ", ".join(f"lib{name}" for name in GL_LIBRARIES))]


def _torchvision() -> list[Finding]:
    """A torchvision of another build than torch breaks `import lightning`, except after `core/torchvision_remedy.py`."""
    if not _installed("torchvision"):
        return [Finding("Optional packages", "torchvision", "info", "not installed, and not needed")]
    found = _version("torchvision")
    reason = _why_not("import torchvision")
    if not reason:
        return [Finding("Optional packages", "torchvision", "ok", found)]
    remedy = "pip uninstall torchvision, or install it from the index that torch came from"
    if not _why_not("import worldsim.core.torchvision_remedy, torchvision"):
        value = f"{found} is of another build than torch: worldsim runs, ns-train does not"
        return [Finding("Optional packages", "torchvision", "info", value, remedy)]
    return [Finding("Optional packages", "torchvision", "broken", f"{found} does not import: {reason[:200]}", remedy)]


def _why_not(code: str) -> str:
    """Last line of what a Python process says of `code`; empty if it runs."""
    try:
        trial = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        return "" if trial.returncode == 0 else (trial.stderr.strip().splitlines() or ["it crashed"])[-1]
    except subprocess.TimeoutExpired:
        return "its import takes longer than two minutes"


def _extras() -> list[Finding]:
    return [
        Finding("Optional packages", module, "ok", _version(module))
        if _installed(module)
        else Finding("Optional packages", module, "absent", "not installed", add(module))
        for module in EXTRAS
    ]


def _verbs(verbs: Mapping[str, Sequence[str]], findings: list[Finding], torch_works: bool) -> list[Finding]:
    rendering = not any(f.name == "headless rendering" and f.status == "broken" for f in findings)
    torchvision = not any(f.name == "torchvision" and f.status == "broken" for f in findings)

    def works(need: str) -> bool:
        if need in ("gl", "torch"):
            return rendering if need == "gl" else torch_works
        return _installed(need) and (torchvision or need != "lightning")

    result = []
    for verb, needs in verbs.items():
        lost = [need for need in needs if not works(need)]
        if not lost:
            result.append(Finding("Verbs", verb, "ok", "can run"))
            continue
        names = ", ".join("headless rendering" if need == "gl" else need for need in lost)
        if verb == "export" and "torch" not in lost:
            result.append(Finding("Verbs", verb, "absent", f"can run with format=torch; ONNX needs {names}", _remedy(lost)))
            continue
        status = "absent" if all(need in EXTRAS for need in lost) else "broken"
        result.append(Finding("Verbs", verb, status, f"cannot run without {names}", _remedy(lost)))
    return result


def _remedy(lost: list[str]) -> str:
    remedies = []
    for need in lost:
        if need == "gl":
            remedies.append(_GL_REMEDY)
        elif need in EXTRAS:
            remedies.append(add(need))
        elif need == "lightning" and _installed(need):
            remedies.append("repair torchvision, see above")
        else:
            remedies.append(INSTALL)
    return "; ".join(dict.fromkeys(remedies))


def _installed(module: str) -> bool:
    spec = find_spec(module)
    return spec is not None and spec.origin is not None  # without an origin it is a mere folder, such as the `wandb/` of a run


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # importable without metadata: a checkout on the path, or a distribution of another name
        return "version unknown"


def _gib(size: float) -> str:
    return f"{size / 2**30:.1f} GiB"


def _memory_limit() -> str:
    limit = cores.cgroup("memory.max")
    return f", limited to {_gib(int(limit))}" if limit.isdigit() else ""
