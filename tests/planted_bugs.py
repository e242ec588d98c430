"""Plants known mistakes in the algorithms, one at a time in a copy, and says which tests notice: `python tests/planted_bugs.py`."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
# What goes wrong, the file in training/algorithms, the right text and the wrong one, and the test file that must notice.
BUGS = [
    ("sigma at t = 1 from t = 1 itself", "flow_sde", ".clamp(min=delta)", ".clamp(min=1e-3)", "test_flow_sde"),
    ("noise without sqrt(delta)", "flow_sde", "s * math.sqrt(delta)", "s * delta", "test_flow_sde"),
    ("drift of the SDE with the other sign", "flow_sde", "plain - s.square()", "plain + s.square()", "test_flow_sde"),
    ("log-probability without log std", "chain", ".square() - std.log() -", ".square() -", "test_chain"),
    ("one step index for the whole batch", "chain", "randint(num_steps, (batch, 1)", "randint(num_steps, (1, 1)", "test_flow_sde"),
    ("joint log-probability without the start", "flow_noise", "-0.5 * noise.square()", "-0.0 * noise.square()", "test_chain"),
    ("termination bootstraps", "advantages", "torch.where(terminated, 0, next_value)", "next_value", "test_advantages"),
    ("truncation does not", "advantages", "final_value[:, None])", "torch.zeros_like(value))", "test_advantages"),
    ("groups not centred", "advantages", "shifted - shifted.mean(dim=1, keepdim=True)", "shifted", "test_advantages"),
    ("RLOO with the group's own mean", "advantages", "centred * (n / (n - 1))", "centred", "test_advantages"),
    ("PPO takes the larger surrogate", "losses", "torch.minimum(unclipped", "torch.maximum(unclipped", "test_losses"),
    (
        "PPO's gradient with the wrong sign",
        "losses",
        "return -masked_mean(surrogate",
        "return masked_mean(surrogate",
        "test_bandit",
    ),
    ("no dual clip", "losses", "torch.maximum(surrogate, dual_clip * advantage)", "surrogate", "test_losses"),
    ("value loss takes the smaller", "losses", "torch.maximum(*losses)", "torch.minimum(*losses)", "test_losses"),
    (
        "DiffusionNFT's two policies swapped",
        "losses",
        "(1 - beta) * old_velocity + beta",
        "(1 - beta) * old_velocity - beta",
        "test_bandit",
    ),
    (
        "lambda and 1 - lambda swapped",
        "analytic",
        "(1 - lam) * value_next[:, i] + lam",
        "lam * value_next[:, i] + (1 - lam)",
        "test_analytic",
    ),
]


def noticed(copy: Path, file: str, right: str, wrong: str, test: str) -> list[str]:
    """Names of the tests that fail with this mistake."""
    path = copy / "training" / "algorithms" / f"{file}.py"
    text = path.read_text()
    assert text.count(right) == 1, f"{right!r} must be in {path.name} once"
    path.write_text(text.replace(right, wrong))
    command = [sys.executable, "-m", "pytest", "-q", "--tb=no", f"tests/training/algorithms/{test}.py"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=copy)
    path.write_text(text)
    return sorted(set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.MULTILINE)))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "copy"
        for folder in ("worldsim", "models", "reflectors", "training", "configs", "sim_assets", "tests"):
            shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        missed = 0
        for what, *where in BUGS:
            tests = noticed(copy, *where)
            missed += not tests
            print(f"{what}: {', '.join(tests) or 'NOBODY NOTICED'}", flush=True)
    sys.exit(missed)
