"""The doctor on this machine, and on machines that lack something: the packages, libraries and files it asks for are stand-ins."""

import ctypes.util
import io
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
from rich.console import Console

from training.app.cli import VERBS
from worldsim.core import cores
from worldsim.core.installation import EXTRAS
from worldsim.report import doctor

ROOT = Path(__file__).parents[3]
NEEDS = {name: verb.needs for name, verb in VERBS.items()}


@pytest.fixture
def machine(monkeypatch):
    """A machine with everything; `machine(*names)` takes packages away."""

    def lose(*names: str) -> None:
        monkeypatch.setattr(
            doctor, "find_spec", lambda module: None if module in names else ModuleSpec(module, None, origin="x.py")
        )

    lose("torchvision")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: f"lib{name}.so.1")
    monkeypatch.setattr(cores, "cgroup", lambda name: "")
    return lose


def find(findings: list[doctor.Finding], name: str) -> doctor.Finding:
    return next(finding for finding in findings if finding.name == name)


def text() -> tuple[Console, io.StringIO]:
    stream = io.StringIO()
    return Console(file=stream, width=200), stream


def test_this_machine_is_reported_in_full():
    console, stream = text()
    findings = doctor.print_report(NEEDS, console)
    for name in ("python", "torch", "lightning", "genesis", "diffusers"):
        assert find(findings, name).status == "ok"
        assert find(findings, name).value in stream.getvalue()
    for name in ("CPU kernels", "GPU", "precision of training", "CPU cores", "memory", "disk", "OMP_NUM_THREADS", "torchvision"):
        assert any(finding.name.startswith(name) for finding in findings), name
    assert all(finding.remedy for finding in findings if finding.status in ("absent", "broken", "missing"))


def test_everything_runs_where_nothing_is_missing(machine):
    findings = doctor.diagnose(NEEDS)
    assert {finding.status for finding in findings if finding.section == "Verbs"} == {"ok"}
    assert not [finding for finding in findings if finding.status in ("absent", "broken", "missing")]


def test_absent_optional_packages_are_named_with_their_extra_and_do_not_fail(machine):
    machine("torchvision", *EXTRAS)
    console, stream = text()
    findings = doctor.print_report(NEEDS, console)
    assert find(findings, "nerfstudio").status == "absent"
    assert find(findings, "nerfstudio").remedy == "pip install -c constraints.txt -e '.[nerf]'"
    assert "'.[nerf]'" in stream.getvalue()  # rich would take the brackets for markup
    assert find(findings, "export").value == "can run with format=torch; ONNX needs onnx, onnxscript, onnxruntime"
    assert find(findings, "serve").status == "absent"
    assert find(findings, "fit").status == "ok"


def test_a_missing_requirement_is_one_line_after_the_report(machine):
    machine("torchvision", "genesis", "wandb")
    console, stream = text()
    with pytest.raises(ValueError, match=r"^this installation lacks genesis, wandb; run make setup$"):
        doctor.print_report(NEEDS, console)
    assert "genesis-world is not installed" in stream.getvalue()
    assert find(doctor.diagnose(NEEDS), "evaluate").status == "broken"
    assert find(doctor.diagnose(NEEDS), "fit").status == "ok"


def test_a_report_without_torch(machine, monkeypatch):
    machine("torch", "torchvision")
    findings = doctor.diagnose(NEEDS)
    assert find(findings, "torch").status == "missing"
    assert find(findings, "fit").value == "cannot run without torch"
    assert find(findings, "report").status == "ok"


def test_the_command_answers_without_torch():
    code = "import sys; sys.modules['torch'] = None; from training.app.cli import main; sys.exit(main(['doctor']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    assert done.stderr == "worldsim: this installation lacks torch; run make setup\n"
    assert "cannot run without torch" in done.stdout


def test_a_torch_that_does_not_import(machine, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # makes `import torch` an ImportError
    findings = doctor.diagnose(NEEDS)
    assert find(findings, "torch").status == "missing"
    assert "does not import" in find(findings, "torch").value


def test_missing_graphics_libraries_stop_the_verbs_that_render(machine, monkeypatch):
    monkeypatch.setattr(doctor.platform, "system", lambda: "Linux")
    monkeypatch.setattr(ctypes.util, "find_library", lambda name: None if name == "EGL" else f"lib{name}.so.1")
    findings = doctor.diagnose(NEEDS)
    assert find(findings, "headless rendering").value == "libEGL not found"
    assert find(findings, "collect").value == "cannot run without headless rendering"
    assert find(findings, "rollout").status == "ok"


def test_a_broken_torchvision_is_found_and_explained(machine, monkeypatch):
    machine()
    stderr = "Traceback ...\nRuntimeError: operator torchvision::nms does not exist\n"

    def fails(*but: str):
        def trial(command: list[str], **settings):
            return subprocess.CompletedProcess(command, 0 if any(word in command[-1] for word in but) else 1, "", stderr)

        return trial

    monkeypatch.setattr(subprocess, "run", fails("torchvision_remedy"))
    findings = doctor.diagnose(NEEDS)
    assert find(findings, "torchvision").value.endswith("is of another build than torch: worldsim runs, ns-train does not")
    assert find(findings, "fit").status == "ok"
    monkeypatch.setattr(subprocess, "run", fails())
    findings = doctor.diagnose(NEEDS)
    assert "operator torchvision::nms does not exist" in find(findings, "torchvision").value
    assert "pip uninstall torchvision" in find(findings, "torchvision").remedy
    assert find(findings, "fit").value == "cannot run without lightning"
    assert find(findings, "fit").remedy == "repair torchvision, see above"


def test_a_folder_is_not_a_package(monkeypatch):
    monkeypatch.setattr(doctor, "find_spec", lambda module: ModuleSpec(module, None))  # what a bare folder `wandb/` gives
    assert not doctor._installed("wandb")


def test_container_limits(machine, monkeypatch):
    monkeypatch.setattr(cores, "cgroup", {"cpu.max": "50000 100000", "memory.max": str(3 * 2**30)}.__getitem__)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    findings = doctor.diagnose(NEEDS)
    assert find(findings, "CPU cores").value.endswith("limited to the time of 0.5")  # 50 ms of every 100 ms
    assert find(findings, "memory").value.endswith("limited to 3.0 GiB")
    assert find(findings, "OMP_NUM_THREADS").remedy.startswith("export OMP_NUM_THREADS=1:")
    monkeypatch.setattr(cores, "cgroup", {"cpu.max": "max 100000", "memory.max": "max"}.__getitem__)
    assert "limited" not in find(doctor.diagnose(NEEDS), "CPU cores").value
