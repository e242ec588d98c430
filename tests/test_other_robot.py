"""Another robot than ours goes through everything: two cameras, degrees, a gripper in percent, 9 numbers of state, 30 Hz.

Beyond the dataset nothing is said of it; what is overridden makes models small, runs short and chunks longer.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from training.app.cli import main
from worldsim.core import checkpoint
from worldsim.core.interfaces import Policy, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.spec import Spec
from worldsim.core.types import Episode
from worldsim.core.views import mosaic
from worldsim.data.lerobot import DatasetWriter
from worldsim.data.store import FrameStore
from worldsim.deploy.serving import TorchPolicy
from worldsim.measure.collect import PolicyActor
from worldsim.measure.remote import RemoteActor, RemotePolicies
from worldsim.robot.bundle import load_bundle
from worldsim.robot.drivers import RobotDriver, joined
from worldsim.robot.server import Server
from worldsim.worlds.dream import DreamWorld

SIZE, WRIST, FPS, STEPS, EPISODES = (48, 80), (96, 96), 30, 9, 12
VIEWS = {"front": SIZE, "wrist": WRIST}
JOINTS = tuple(f"{name}.pos" for name in ("pan", "lift", "elbow", "flex", "roll", "yaw", "gripper"))
STATE = (*JOINTS, "load", "current")
OVERLAY = """
action:
  "*": {unit: deg, kind: absolute, limits: [-170, 170]}
  gripper.pos: {unit: percent, kind: absolute, limits: [0, 100]}
state: {load: {unit: Nm}}
"""


def episode(number: int) -> Episode:
    """A bar as long as the gripper is open; joints go where they are told."""
    g = torch.Generator().manual_seed(number)
    goal = torch.tensor([90.0, -40, 60, -120, 30, 15, 80]) + 10 * torch.randn(7, generator=g)
    start = torch.tensor([0.0, 0, 0, -90, 0, 0, 10])
    path = start + (goal - start) * torch.linspace(0, 1, STEPS + 1)[:, None]
    frames = torch.full((STEPS + 1, *SIZE, 3), 30, dtype=torch.uint8)
    for frame, opened in zip(frames, path[:, -1].clamp(1, 79).round().long().tolist(), strict=True):
        frame[20:28, :opened] = 220
    known = torch.linspace(0, 1, STEPS + 1)
    felt = torch.cat([path, 0.01 * torch.randn(STEPS + 1, 2, generator=g)], dim=1)
    wrist = torch.zeros(STEPS + 1, *WRIST, 3, dtype=torch.uint8)
    wrist[:, :, :40, 2] = 90
    words = {"instruction": "open the gripper", "source": "robot"}
    images = {"front": frames, "wrist": wrist}
    return Episode(
        images=images, state=felt, action=path[1:], reward=torch.zeros(STEPS), success=(known == 1).float(), progress=known, **words
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recording, one of a robot that lists its joints the other way round, and one that nobody judged."""
    root = tmp_path_factory.mktemp("arm")
    unknown = torch.full((STEPS + 1,), torch.nan)
    for name in ("data", "turned", "unjudged"):
        names = (STATE[::-1], JOINTS[::-1]) if name == "turned" else (STATE, JOINTS)
        settings = {"fps": FPS, "robot_type": "arm", "cameras": {"front": SIZE, "wrist": WRIST}}
        with DatasetWriter(
            root / name, state_names=names[0], action_names=names[1], judged=name != "unjudged", **settings
        ) as writer:
            episodes = [episode(n) for n in range(EPISODES)]
            if name == "turned":
                episodes = [replace(e, state=e.state.flip(1), action=e.action.flip(1)) for e in episodes]
            if name == "unjudged":
                episodes = [replace(e, success=unknown, progress=unknown) for e in episodes[:3]]
            writer.add(episodes)
        (root / name / "meta/spec.yaml").write_text(OVERLAY)
    return root / "data"


def test_datasets_are_joined_by_the_names_of_their_channels(data: Path):
    alone, both = (FrameStore.read(roots, {"front": None}) for roots in ([data], [data, data.with_name("turned")]))
    assert torch.equal(both.state, torch.cat([alone.state] * 2)) and torch.equal(both.action, torch.cat([alone.action] * 2))
    assert both.spec.action_names == JOINTS and both.spec.action_statistics.mean == pytest.approx(alone.spec.action_statistics.mean)
    turned = FrameStore.read(data.with_name("turned"), {"front": None})
    assert not torch.equal(turned.action, alone.action)
    ordered = turned.ordered(alone.spec, "the policy")
    assert torch.equal(ordered.state, alone.state) and torch.equal(ordered.action, alone.action) and ordered.spec == alone.spec


class Arm:
    """A robot in LeRobot's style that lists its joints as the first recording does, and the policy the other way round."""

    action_features = dict.fromkeys(JOINTS, float)

    def __init__(self, state: dict[str, float]):
        self.state, self.sent = state, {}

    def get_observation(self) -> dict[str, Any]:
        return {name: self.state[name] for name in STATE} | {name: np.zeros((*size, 3), np.uint8) for name, size in VIEWS.items()}

    def send_action(self, action: dict[str, float]) -> None:
        self.sent = dict(action)


def fit(data: Path, run: str, *settings: str) -> None:
    """The policy learns from a robot that lists its joints the other way round."""
    first = data.with_name("turned") if run == "policy" else data
    roots = str(data) if run == "reflector" else f"{first},{data.with_name('unjudged')}"
    common = (f"data.roots=[{roots}]", "data.batch_size=8", f"run_dir={run}", "trainer.accelerator=cpu")
    assert main(["fit", *settings, *common, "logger=[]"]) == 0, run


def test_an_arm_in_degrees_goes_through_the_whole_loop(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = [
        f"++model.world_model.{s}" for s in ("channels=[8,8]", "layers=[1,1]", "latent_channels=4", "unroll=1", "action_horizon=8")
    ]
    fit(data, "world_model", "experiment=world_model", "trainer.max_steps=3", "trainer.val_check_interval=3", *model)
    judge = [f"++model.reflector.{s}" for s in ("features=16", "channels=8", "blocks=1")]
    fit(data, "reflector", "experiment=reflector", "trainer.max_steps=3", "trainer.val_check_interval=3", *judge)
    small = [f"++model.policy.{s}" for s in ("width=64", "channels=8", "blocks=1", "action_horizon=8")]
    fit(data, "policy", "experiment=policy", "trainer.max_steps=60", "model.lr=3e-3", *small)

    policy, world_model = checkpoint.load("policy", Policy), checkpoint.load("world_model", WorldModel)
    assert policy.spec is not None and world_model.spec is not None
    assert (policy.spec.state[::-1], policy.spec.action[::-1]) == (world_model.spec.state, world_model.spec.action)
    assert policy.views == world_model.views == VIEWS, "as large as they are, as the dataset says"
    assert (policy.spec.fps, policy.spec.action_names, policy.spec.action[0].high) == (FPS, JOINTS[::-1], 100)
    dream = DreamWorld.from_folders("world_model", "reflector", [str(data)], num_envs=4)
    assert dream.fps == FPS and dream.action_names == JOINTS and dream.spec.action[0].unit == "deg"
    assert dream.single_action_space.high.tolist() == [170] * 6 + [100]
    obs, _ = dream.reset(seed=0)
    assert {name: frames.shape[1:3] for name, frames in obs.images.items()} == VIEWS
    asked = torch.full((4, 1, 7), 500.0)
    assert torch.equal(dream.check_actions(asked, ndim=3)[0, 0], torch.tensor([170.0] * 6 + [100]))

    folders = [f"model.policy.folder={tmp_path / 'policy'}"]
    parts = [f"model.{{}}world_model.folder={tmp_path / 'world_model'}", f"model.{{}}reflector.folder={tmp_path / 'reflector'}"]
    quick = ("trainer.limit_train_batches=2", "trainer.callbacks.guard=null")
    fit(data, "analytic", "experiment=post_train", *folders, *(p.format("") for p in parts), *quick, "+model.critic_warmup=0")
    ppo = ("learner=ppo", "+model.chunks=2", "model.advantage.warmup=0")
    fit(data, "ppo", "experiment=post_train", *ppo, *folders, *(p.format("arena.") for p in parts), *quick)
    for run in ("analytic", "ppo"):
        learned = checkpoint.load(run, Policy)
        assert learned.spec == policy.spec and any(
            not torch.equal(value, old)
            for value, old in zip(learned.state_dict().values(), policy.state_dict().values(), strict=True)
        )

    world = [f"world.{name}={tmp_path / name}" for name in ("world_model", "reflector")]
    play = ["world=dream", *world, f"world.data=[{data}]", "world.num_envs=4", "episodes=4"]
    assert main(["evaluate", f"policy={tmp_path / 'ppo'}", *play, f"out={tmp_path / 'out'}"]) == 0
    learned, noise = checkpoint.load("ppo", Policy), Noise.rows(5, 4)
    with Server(TorchPolicy(learned, state_dim=9), port=0) as server, RemotePolicies(server.url) as remote:
        assert main(["evaluate", f"policy={server.url}", *play, f"out={tmp_path / 'served'}"]) == 0
        here, there = (actor.act(dream, obs, noise) for actor in (PolicyActor(learned), RemoteActor(remote)))
    torch.testing.assert_close(there, here, rtol=0, atol=1e-3)  # degrees
    assert (here.amin(dim=(0, 1))[:6] < -20).any(), "in degrees, and in the order of the dream: the gripper is the last"
    assert main(["export", f"policy={tmp_path / 'policy'}", f"data={data}", f"out={tmp_path / 'bundle'}"]) == 0
    bundle = load_bundle(tmp_path / "bundle")
    assert Spec.from_json(bundle.description["spec"], "bundle") == policy.spec and bundle.description["fps"] == FPS
    assert bundle.description["limits"] == {"measured": list(range(2, 9))}, "of positions where it is stands still, and not 0"
    table = FrameStore.read(data, dict.fromkeys(VIEWS)).ordered(policy.spec, "the policy")
    rows = table.first.unique()
    chunks = np.stack(
        [
            bundle(
                mosaic({name: frames.numpy() for name, frames in table.pictures(r).items()}, VIEWS),
                table.state[r].numpy(),
                "open the gripper",
                np.zeros((8, 7), np.float32),
            )
            for r in rows
        ]
    )
    middle = table.actions(rows, 8)["action"].mean(dim=(0, 1)).numpy()
    spread = table.action.std(dim=0).numpy()
    assert (np.abs(chunks.mean(axis=(0, 1)) - middle) < 1.5 * spread).all(), "in degrees and percent, where the arm was"
    assert np.abs(chunks[..., 1:]).max() > 20, "and not in [-1, 1]"

    arm = Arm(dict(zip(STATE[::-1], table.state[0].tolist(), strict=True)))
    driver = joined(RobotDriver(arm, state_names=STATE, cameras=[*VIEWS], units={"pan.pos": "deg"}), bundle.description)
    np.testing.assert_allclose(driver.observe().state, table.state[0].numpy())
    driver.send(chunks[0, 0])
    assert arm.sent == {name: pytest.approx(value) for name, value in zip(JOINTS[::-1], chunks[0, 0].tolist(), strict=True)}
    with pytest.raises(ValueError, match="action pan.pos is in deg, the robot's in rad"):
        joined(RobotDriver(arm, state_names=STATE, cameras=[*VIEWS], units={"pan.pos": "rad"}), bundle.description)
    capsys.readouterr()
    assert main(["evaluate", f"policy={tmp_path / 'ppo'}", "world=push_block", "world.num_envs=4", "episodes=4", "out=no"]) == 2
    assert "the world has" in capsys.readouterr().err
