"""Evaluations through a websocket: the same actions and the same outcomes as without one."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from openpi import foreign_server

from training.app import cli
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy, Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.types import Observation
from worldsim.data.store import FrameStore
from worldsim.deploy.serving import TorchPolicy
from worldsim.measure.collect import PolicyActor
from worldsim.measure.evaluate import evaluate, imagine_outcomes
from worldsim.measure.remote import RemoteActor, RemotePolicies
from worldsim.robot.protocol import pack
from worldsim.robot.server import Server
from worldsim.worlds.dream import DreamWorld, Starts

NOISE = Noise.rows(0, 4)


@pytest.fixture
def policy(folders: dict[str, str]) -> Policy:
    policy: Any = checkpoint.load(folders["policy"], Policy)
    torch.nn.init.normal_(policy.expert[-1].weight, std=0.5)  # a new policy hardly moves
    checkpoint.save(policy, folders["policy"])
    return policy


def dream(folders: dict[str, str], recorded: str, threshold: float = 0.5) -> DreamWorld:
    model, judge = checkpoint.load(folders["world_model"], WorldModel), checkpoint.load(folders["reflector"], Reflector)
    judge.threshold.fill_(threshold)
    starts = Starts.first_frames(FrameStore.read([recorded], {"front": None}), model.context)
    return DreamWorld(model, judge, starts, num_envs=4, max_episode_steps=12)


def served(policy: Policy, **options: Any) -> Server:
    return Server(TorchPolicy(policy, state_dim=4), port=0, max_batch=64, **options)


@pytest.mark.parametrize("connections", [1, 3, 64])
def test_a_remote_actor_acts_as_the_policy(policy: Policy, folders: dict[str, str], recorded: str, connections: int) -> None:
    world = dream(folders, recorded)
    obs, _ = world.reset(seed=3)
    with served(policy) as server, RemotePolicies(server.url, connections=connections) as remote:
        actor, local, noise = RemoteActor(remote), PolicyActor(policy), Noise.rows(5, world.num_envs)
        for step in range(3):
            expected = local.act(world, obs, noise.at(step))
            torch.testing.assert_close(actor.act(world, obs, noise.at(step)), expected, rtol=0, atol=1e-5)
            obs = world.step_chunk(expected).obs
        other = Noise.rows(6, world.num_envs)
        assert not torch.allclose(actor.act(world, obs, other), local.act(world, obs, noise), atol=1e-2)


def test_a_server_of_another_order_is_asked_and_understood_by_name(folders: dict[str, str], recorded: str) -> None:
    world = dream(folders, recorded)
    obs, _ = world.reset(seed=3)
    asked: list[np.ndarray] = []
    spec = replace(world.spec, state=world.spec.state[::-1], action=world.spec.action[::-1])

    class Turned:
        metadata: dict[str, Any] = {"spec": spec.to_json()}

        def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
            asked.extend(observation["observation/state"] for observation in observations)
            return [np.array([[0.25, -0.5]], np.float32)] * len(observations)

    with Server(Turned(), port=0) as server, RemotePolicies(server.url, connections=1) as remote:  # one asks in order
        assert RemoteActor(remote).act(world, obs, NOISE)[:, 0].tolist() == [[-0.5, 0.25]] * 4
    np.testing.assert_array_equal(np.stack(asked), obs.state.flip(1).numpy())
    Turned.metadata = {"spec": replace(spec, action=(replace(spec.action[0], name="thumb"), spec.action[1])).to_json()}
    missing = pytest.raises(ValueError, match="the world's action dy is missing in the server, which has thumb, dx")
    with Server(Turned(), port=0) as server, RemotePolicies(server.url) as remote, missing:
        RemoteActor(remote).act(world, obs, NOISE)


def test_outcomes_are_those_of_the_policy(policy: Policy, folders: dict[str, str], recorded: str) -> None:
    world = dream(folders, recorded, threshold=middle(policy, folders, recorded))
    local = evaluate(world, policy, episodes=16, seed=11)
    assert 0 < local.success.sum() < 16  # or equal outcomes would mean little
    with served(policy) as server, RemotePolicies(server.url) as connections:
        remote = RemoteActor(connections)
        away = evaluate(world, remote, episodes=16, seed=11)
        assert torch.equal(away.success, local.success) and torch.equal(away.length, local.length)
        starts, models = local.starts.with_context(world.world_model.context), (world.world_model, world.reflector)
        size = {"max_episode_steps": 12, "batch": 4, "seed": 11}
        dreamed = [imagine_outcomes(player, *models, starts, **size) for player in (policy, remote)]
        assert torch.equal(dreamed[0].length, dreamed[1].length)


class TwoCameras:
    """As much of a world as an actor asks for."""

    camera, state_names, action_names = "front", ["x", "y"], ["dx", "dy"]
    single_action_space = SimpleNamespace(shape=(2,))

    def clipped(self, actions: torch.Tensor) -> torch.Tensor:
        return actions


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"views": {"wrist": [8, 8]}}, {"observation/images/wrist": (40, 24, 3)}),
        (
            {"views": {"wrist": [8, 8], "front": [8, 8]}},
            {"observation/images/front": (32, 48, 3), "observation/images/wrist": (40, 24, 3)},
        ),
        ({}, {"observation/image": (32, 48, 3), "observation/images/wrist": (40, 24, 3), "observation/images/top": (4, 4, 3)}),
    ],
)
def test_a_server_gets_the_cameras_of_its_views_and_a_foreign_one_all(metadata: dict[str, Any], expected: dict[str, Any]) -> None:
    asked: list[dict[str, Any]] = []

    class Keeping:
        def __init__(self) -> None:
            self.metadata = metadata

        def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
            asked.extend(observations)
            return [np.zeros((1, 2), np.float32)] * len(observations)

    generator = torch.Generator().manual_seed(0)
    sizes = {"front": (32, 48), "wrist": (40, 24), "top": (4, 4)}
    images = {name: torch.randint(0, 256, (2, *size, 3), generator=generator, dtype=torch.uint8) for name, size in sizes.items()}
    RemoteActor(cast(Any, Keeping())).act(TwoCameras(), Observation(images, torch.zeros(2, 2), ("go", "stop")), Noise.rows(0, 2))
    for i, row in enumerate(asked):
        pictures = {key: value for key, value in row.items() if "image" in key}
        assert {key: picture.shape for key, picture in pictures.items()} == expected
        for key, picture in pictures.items():
            name = key.rpartition("/")[2] if "images" in key else "front"
            np.testing.assert_array_equal(picture, images[name][i].numpy())


@torch.no_grad()
def middle(policy: Policy, folders: dict[str, str], recorded: str) -> float:
    """A threshold that some episodes pass."""
    world = dream(folders, recorded, threshold=1.0)
    return float(evaluate(world, policy, episodes=16, seed=11).p_success.median())


def test_requests_of_many_environments_are_not_serial(policy: Policy, folders: dict[str, str], recorded: str) -> None:
    world = dream(folders, recorded)
    obs, _ = world.reset(seed=3)
    sizes: list[int] = []

    class Together:
        metadata: dict[str, Any] = {}

        def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
            sizes.append(len(observations))
            return [np.zeros((2, 2), np.float32)] * len(observations)

    with Server(Together(), port=0, max_batch=4, max_wait_s=0.5) as server, RemotePolicies(server.url) as remote:
        RemoteActor(remote).act(world, obs, NOISE)  # opens the connections
        sizes.clear()
        RemoteActor(remote).act(world, obs, NOISE)
        assert sizes == [4]


@pytest.mark.parametrize(
    ("metadata", "actions", "words"),
    [
        ({}, np.zeros((4, 7)), "must have shape (ah, 2), got [(4, 7)]; it serves another robot"),
        ({}, np.zeros((0, 2)), "must have shape (ah, 2), got [(0, 2)]"),
        ({}, np.zeros(2), "must have shape (ah, 2), got [(2,)]"),
        ({}, np.full((4, 2), np.nan), "actions must be finite"),
        (
            {"views": {"wrist": [9, 9]}},
            np.zeros((4, 2)),
            "the server looks through camera 'wrist', the world shows front; rename one",
        ),
        ({"views": {"front": [9, 9], "a": []}}, np.zeros((4, 2)), "the server looks through camera 'a', the world shows front"),
        ({"views": {}}, np.zeros((4, 2)), "the server's views must be [height, width] by camera, got {}"),
        ({"views": ["front"]}, np.zeros((4, 2)), "the server's views must be [height, width] by camera, got ['front']"),
        (
            {"views": {b"front": [9, 9]}},
            np.zeros((4, 2)),
            "the server's views must be [height, width] by camera, got {b'front': [9, 9]}",
        ),
        ({"noise_shape": [4, 7]}, np.zeros((4, 2)), "noise_shape must be [ah, 2], got [4, 7]"),
        ({"noise_shape": [10**9, 2]}, np.zeros((4, 2)), "noise_shape must be [ah, 2]"),
        ({"noise_shape": "big"}, np.zeros((4, 2)), "noise_shape must be [ah, 2], got 'big'"),
    ],
)
def test_a_server_of_another_robot_is_refused(
    folders: dict[str, str], recorded: str, metadata: dict[str, Any], actions: np.ndarray, words: str
) -> None:
    world = dream(folders, recorded)
    obs, _ = world.reset(seed=3)
    with foreign_server(pack(metadata), *[pack({"actions": actions})] * 4) as url, RemotePolicies(url, connections=1) as remote:
        with pytest.raises(ValueError, match="the server") as error:
            RemoteActor(remote).act(world, obs, NOISE)
        assert words in str(error.value)


def test_the_verb_judges_a_server_as_it_judges_a_folder(
    policy: Policy, folders: dict[str, str], recorded: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLDSIM_API_KEY", "secret")
    where = [f"world.world_model={folders['world_model']}", f"world.reflector={folders['reflector']}", f"world.data=[{recorded}]"]
    size = ["world=dream", "world.num_envs=4", "+world.max_episode_steps=12", "episodes=8", "seed=3"]
    judge = checkpoint.load(folders["reflector"], Reflector)
    judge.threshold.fill_(middle(policy, folders, recorded))
    checkpoint.save(judge, folders["reflector"])
    results = []
    with served(policy, api_key="secret") as server:
        for name in (folders["policy"], server.url):
            assert cli.main(["evaluate", f"policy={name}", *where, *size, f"out={tmp_path / 'out'}"]) == 0
            entry = json.loads((tmp_path / "out" / "evaluation.json").read_text())["policies"]["policy"]
            assert entry.pop("folder") == name
            assert (entry.pop("weights_sha256", None) is None) == (name == server.url)
            assert entry.pop("circumstances", None) == ("those of the server" if name == server.url else None)
            results.append(entry)
    assert results[0] == results[1]
    assert 0 < results[0]["rate"] < 1


def test_no_server_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["evaluate", "policy=ws://127.0.0.1:9", "timeout_s=0.3", "world=dream"]) == 2
    error = capsys.readouterr().err
    assert "worldsim: ws://127.0.0.1:9 gave no answer within 0.3 s" in error and error.count("\n") == 1
