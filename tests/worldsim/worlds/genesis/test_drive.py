"""`DriveWorld`: wheels move the robot as wheels do, its camera goes with it, its driver arrives; captured rooms stand in place."""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from conditions import watched

from models.renderers.baked import BakedField
from training.app.cli import main
from worldsim.core import checkpoint
from worldsim.core.checks import check_world
from worldsim.core.interfaces import Policy
from worldsim.geometry.cameras import Intrinsics
from worldsim.measure.collect import ExpertActor, PlayActor, collect
from worldsim.tasks.drive import driver_action
from worldsim.worlds.effects import Uniform
from worldsim.worlds.genesis.capture import photograph
from worldsim.worlds.genesis.drive import DriveWorld, NerfDriveWorld
from worldsim.worlds.genesis.scene import ASSETS, Scene
from worldsim.worlds.randomized import Latency, RandomizedWorld

pytestmark = pytest.mark.genesis

ROOMS = sorted(path.stem for path in (ASSETS / "scenes").glob("room*.yaml"))


@pytest.fixture(scope="module")
def world() -> Iterator[DriveWorld]:
    world = DriveWorld("room", num_envs=4)
    yield world
    world.close()


def put(world: DriveWorld, x: float, y: float, heading: float) -> None:
    """All robots at one place at rest, all boxes in a corner behind each other."""
    world.reset(seed=0)
    state = world.snapshot()
    state.pusher[:] = torch.tensor([x, y, heading])
    state.pusher_velocity[:] = 0
    state.block_pose[:, :, :2] = torch.tensor([[-0.9, 0.9], [-0.7, 0.9], [-0.5, 0.9]])
    world.restore(state)


def test_it_keeps_the_contract(world: DriveWorld):
    check_world(world)


def test_equal_wheels_drive_straight_on(world: DriveWorld):
    """Half a second at .6 m/s, less what the motor needs to get there: mass / kv = 5.4 / 100 s. Along the heading."""
    put(world, 0.1, -0.2, math.pi / 6)
    obs = world.step_chunk(torch.ones(4, 5, 2)).obs
    moved = world.truth().pusher[0] - torch.tensor([0.1, -0.2])
    assert moved.norm().item() == pytest.approx(0.6 * (0.5 - 0.054), abs=0.02)
    assert math.atan2(moved[1], moved[0]) == pytest.approx(math.pi / 6, abs=0.02)
    torch.testing.assert_close(obs.state[0], torch.tensor([0.6, 0.0]), atol=0.01, rtol=0)


def test_unequal_wheels_drive_a_circle(world: DriveWorld):
    """Left .15, right .3 m/s: v = .225 m/s, w = .15 / .3 = .5 rad/s, so a circle to the left of radius .45 m."""
    put(world, 0.0, 0.0, 0.0)
    obs = world.step_chunk(torch.tensor([0.25, 0.5]).expand(4, 30, 2)).obs
    torch.testing.assert_close(obs.state[0], torch.tensor([0.225, 0.5]), atol=0.01, rtol=0)
    assert world.heading[0].item() == pytest.approx(1.5, abs=0.05)
    centre = torch.tensor([0.0, 0.45])
    assert (world.truth().pusher[0] - centre).norm().item() == pytest.approx(0.45, abs=0.02)


def test_the_camera_goes_with_the_robot(world: DriveWorld):
    """A red box ahead is in the middle of the picture, wherever the robot looks; one to the left is in its left half."""
    for heading in (0.0, 2.0):
        put(world, 0.0, 0.0, heading)
        state = world.snapshot()
        for row, bearing in enumerate((0.0, 0.5, -0.5, math.pi)):
            angle = heading + bearing
            state.block_pose[row, 0, :2] = 0.7 * torch.tensor([math.cos(angle), math.sin(angle)])
        red = world.restore(state).images["front"].int()
        seen = (red[..., 0] > 110) & (red[..., 1] < 70)
        columns = [float(np.mean(np.nonzero(picture.any(0).numpy())[0])) if picture.any() else None for picture in seen]
        # 32 pixels are a unit of tan(bearing): the lens has 90 degrees; the camera sits .11 m ahead of the centre.
        ahead, left = 0.7 * math.cos(0.5) - 0.11, 0.7 * math.sin(0.5)
        assert columns[0] == pytest.approx(31.5, abs=1.5)
        assert columns[1] == pytest.approx(31.5 - 32 * left / ahead, abs=3)
        assert columns[2] == pytest.approx(31.5 + 32 * left / ahead, abs=3)
        assert columns[3] is None


def test_the_driver_arrives_at_the_box_that_is_named():
    world = DriveWorld("room", num_envs=32)
    episodes = list(collect(world, ExpertActor(noise=0.1), episodes=64, seed=20))
    assert np.mean([episode.success[-1] == 1 for episode in episodes]) > 0.9
    assert {word for episode in episodes for word in ("red", "green", "blue") if word in episode.instruction} == {
        "red",
        "green",
        "blue",
    }
    world.close()


def test_conditions_are_randomised_while_the_expert_drives(world: DriveWorld):
    """Recording under randomisation asks the wrapped world's expert; play, which pushes blocks to discs, says that it cannot."""
    randomised = RandomizedWorld(world, {}, Latency(Uniform(0.01, 0.05), Uniform(0, 0)))
    episode = next(collect(randomised, ExpertActor(noise=0.0), episodes=1, seed=3))
    assert len(episode) > 3 and episode.source == "expert"
    with pytest.raises(ValueError, match="needs a GenesisWorld with discs, got RandomizedWorld"):
        next(collect(randomised, PlayActor(), episodes=1, seed=3))


def test_the_driver_looks_to_the_left_for_what_it_cannot_see():
    boxes = torch.tensor([[1.0, 0.0], [0.5, 0.15], [-1.0, -0.01], [0.0, -1.0]])
    left, right = driver_action(torch.zeros(4, 2), torch.zeros(4), boxes).unbind(1)
    assert left[0] == right[0] == 1, "straight ahead"
    assert 0 < left[1] < right[1], "a curve to the left"
    assert (left[2:] < 0).all() and torch.equal(left[2:], -right[2:]), "on the spot, even if the right were shorter"


@pytest.mark.parametrize("name", ROOMS)
def test_furniture_stands_where_no_robot_gets(name: str):
    """Captured rooms share one physics, so nothing but walls and furniture may differ, and the robot must not reach them."""
    data, base = Scene(name).data, Scene("room").data
    assert {key for key in data if data[key] != base.get(key)} <= {"name", "base", "table", "furniture"}
    for box in data["furniture"]:
        nearest = max(abs(box["pos"][axis]) - box["size"][axis] / 2 for axis in (0, 1))
        assert nearest > 0.95 + 0.1, f"{box} is within reach of a chassis of .1 m on joints of .95 m"


def room_field(name: str, folder: Path) -> str:
    """A scene's floor, walls and furniture as a baked field."""
    data = Scene(name).data
    boxes = [{**data["table"], "pos": [0, 0, -data["table"]["size"][2] / 2]}, *data["furniture"]]

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        density, color = torch.zeros(len(points)), torch.zeros(len(points), 3)
        for box in boxes:
            inside = ((points - torch.tensor(box["pos"])).abs() <= torch.tensor(box["size"]) / 2).all(dim=1)
            density[inside], color[inside] = 500.0, torch.tensor(box["color"])
        return density, color

    field = BakedField((-1.32, -1.32, -0.04), (1.32, 1.32, 0.64), (132, 132, 36), coarse=64, fine=48).bake(query)
    return str(checkpoint.save(field, folder / name))


def test_captured_rooms_stand_around_the_moving_robot(tmp_path: Path):
    """The field's depth from the robot's camera is that of Genesis's own empty room; environments 1 and 3 are in another one."""
    fields = [room_field("room", tmp_path), room_field("room_oak", tmp_path)]
    nerf = NerfDriveWorld(fields, scene="room", num_envs=4)
    nerf.reset(seed=3)
    nerf.step_chunk(torch.tensor([0.2, 0.9]).expand(4, 6, 2))
    lens = Intrinsics.from_fov(90, width=64, height=64)
    for rows, name in (([0, 2], "room"), ([1, 3], "room_oak")):
        depth = torch.from_numpy(photograph(name, nerf.camera_poses()[rows].double().numpy(), lens)[1])
        seen = depth.isfinite()
        off = (nerf.backdrop.depth[rows] - depth)[seen].abs()
        assert seen.float().mean() > 0.6 and off.median() < 0.01
        assert (off > 0.03).float().mean() < 0.1, "more than one and a half voxels off only at edges and where rays graze the floor"
    floor = nerf.backdrop.color[:, -4:, 28:36].mean(dim=(1, 2))
    for rows, name in (([0, 2], "room"), ([1, 3], "room_oak")):
        expected = torch.tensor(Scene(name).data["table"]["color"]).expand(2, 3)
        torch.testing.assert_close(floor[rows], expected, atol=0.02, rtol=0)
    check_world(nerf)
    expected = nerf.reset(seed=3)[0].images["front"]
    nerf._look.cache_clear()
    with torch.autocast("cpu", torch.bfloat16):
        seen = nerf.reset(seed=3)[0].images["front"]
    assert torch.equal(seen, expected), "half precision is for networks: a ray needs more digits"
    nerf.close()


def test_a_policy_is_cloned_and_then_reinforced_in_captured_rooms(tmp_path: Path, monkeypatch):
    fields = [room_field("room_oak", tmp_path), room_field("room_brick", tmp_path)]
    where = [f"world.fields=[{','.join(fields)}]", "world.num_envs=4"]
    data, first, second = (tmp_path / name for name in ("demos", "cloned", "reinforced"))
    assert main(["collect", "world=room", "renderer=nerf_rooms", *where, f"root={data}", "episodes=4", "seed=1"]) == 0
    quick = ["logger=[]", f"data.roots=[{data}]", "data.batch_size=4"]
    assert main(["fit", "experiment=policy_room", *quick, "trainer.max_steps=2", f"run_dir={first}"]) == 0
    arena = [f"model.arena.{option}" for option in where]
    learn = [f"model.policy.folder={first}", "model.chunks=3", "model.advantage.warmup=0", "trainer.limit_train_batches=2"]
    randomised = watched(monkeypatch)
    conditions = "+randomization@model.arena.randomization=moderate"
    assert main(["fit", "experiment=post_train_room", *quick, *arena, *learn, conditions, f"run_dir={second}"]) == 0
    assert randomised and {type(world) for world in randomised} == {NerfDriveWorld}
    before, after = (dict(checkpoint.load(folder, Policy).named_parameters()) for folder in (first, second))
    assert all(value.isfinite().all() for value in after.values())
    assert any(not torch.equal(value, before[name]) for name, value in after.items())
    assert json.loads((second / "physics_steps.json").read_text())["physics_steps"] > 4 * 3 * 4
