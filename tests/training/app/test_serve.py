"""`worldsim serve` as a process: it says where it is, answers, and ends well."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from openpi import OpenpiClient

from training.app import cli
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy
from worldsim.core.types import Observation
from worldsim.deploy.export import export_policy

ROOT = Path(__file__).resolve().parents[3]


def observation() -> dict:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    noise = np.random.default_rng(1).standard_normal((4, 2), dtype=np.float32)
    return {"observation/image": image, "observation/state": np.zeros(4), "prompt": "push the red block", "noise": noise}


def answer(*arguments: str) -> np.ndarray:
    command = [sys.executable, "-W", "ignore", "-m", "training.app.cli", "serve", "port=0", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        with OpenpiClient(line.split()[-1]) as client:
            assert client.metadata["views"] == {"front": [64, 64]}
            actions = client.infer(observation())["actions"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
        return actions
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_a_policy_and_its_bundle_answer_alike(folders: dict[str, str], tmp_path: Path) -> None:
    fields, policy = observation(), checkpoint.load(folders["policy"], Policy)
    frames, state = torch.from_numpy(fields["observation/image"])[None], torch.zeros(1, 4)
    export_policy(policy, tmp_path / "bundle", observation=Observation({"front": frames}, state, (fields["prompt"],)))
    exported, trained = answer(f"bundle={tmp_path / 'bundle'}"), answer(f"policy={folders['policy']}")
    assert exported.shape == (4, 2)
    np.testing.assert_allclose(exported, trained, rtol=0, atol=1e-4)  # the tolerance of an export


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "serve needs either bundle=FOLDER or policy=FOLDER"),
        (["bundle=a", "policy=b"], "serve needs either bundle=FOLDER or policy=FOLDER"),
        (["bundle=nowhere"], "no robot bundle in nowhere"),
        (["policy=nowhere"], "no exported model in nowhere"),
        (["policy={policy}", "host=0.0.0.0"], "host=0.0.0.0 opens the policy to the network; set an api_key"),
        (["policy={policy}", "port=99999"], "cannot listen on 127.0.0.1:99999"),
    ],
)
def test_a_mistake_is_one_line(
    folders: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.delenv("WORLDSIM_API_KEY", raising=False)
    assert cli.main(["serve", *(argument.format(policy=folders["policy"]) for argument in arguments)]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
