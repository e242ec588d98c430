"""A robot bundle that needs no torch and a robot in a process of its own, made once; a policy that never outlives its test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from openpi import Doubling
from toy_robot import RobotProcess, robot_process


@pytest.fixture(scope="session")
def toy_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only; copy it before you break it."""
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from toy_bundle import make_bundle

    return make_bundle(tmp_path_factory.mktemp("toy") / "bundle")


@pytest.fixture(scope="session")
def shared_robot(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RobotProcess]:
    with robot_process(tmp_path_factory.mktemp("robot") / "log") as process:
        yield process


@pytest.fixture
def robot(shared_robot: RobotProcess) -> RobotProcess:
    """Whole again. Do not kill it: that takes one of your own."""
    shared_robot.forget()
    return shared_robot


@pytest.fixture
def mortal_robot(tmp_path: Path) -> Iterator[RobotProcess]:
    with robot_process(tmp_path / "robot.log") as process:
        yield process


@pytest.fixture
def policy() -> Iterator[Doubling]:
    policy = Doubling()
    yield policy
    policy.gate.set()
