"""`NerfWorld` keeps the contract of `World`, and shows what Genesis shows when its field is the table of the scene."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from models.renderers.baked import BakedField
from models.renderers.mesh import surface
from worldsim.core import checkpoint
from worldsim.core.checks import check_world
from worldsim.geometry.alignment import Similarity
from worldsim.geometry.cameras import Intrinsics, look_at
from worldsim.geometry.compositing import ColorFit
from worldsim.measure.metrics import psnr
from worldsim.nn.layers import VisualTrunk
from worldsim.worlds.genesis.capture import photograph
from worldsim.worlds.genesis.nerf import CapturedScene, NerfWorld
from worldsim.worlds.genesis.scene import Scene
from worldsim.worlds.genesis.world import GenesisWorld

pytestmark = pytest.mark.genesis

TINT = torch.tensor([0.3, 0.6, 0.9])


def table(color: torch.Tensor, scale: float = 1.0, screen: bool = False) -> BakedField:
    """The default scene's table in coordinates `scale` times the world's; a screen hangs over its right half."""

    def query(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x, y, z = (points / scale).unbind(1)
        opaque = (x.abs() < 0.4) & (y.abs() < 0.4) & (z < 0)
        if screen:
            opaque |= (x > 0) & (z > 0.11)
        return 1000 / scale * opaque, color.expand(len(points), 3)

    low, high = ((scale * x, scale * y, scale * z) for x, y, z in ((-0.44, -0.44, -0.04), (0.44, 0.44, 0.16)))
    return BakedField(low, high, (176, 176, 40), coarse=96, fine=96, background=(0.04, 0.08, 0.12)).bake(query)


@pytest.fixture(scope="module")
def color() -> torch.Tensor:
    """Of the table, as Genesis lights it."""
    camera = Scene("push_block").data["camera"]
    lens = Intrinsics.from_fov(camera["fov"], width=64, height=64)
    frames, _ = photograph("push_block", look_at(camera["pos"], camera["lookat"])[None], lens)
    return torch.from_numpy(frames[0, 32, 32].copy()).float() / 255


@pytest.fixture(scope="module")
def fields(color: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The table as it is, and one of another colour."""
    folder = tmp_path_factory.mktemp("fields")
    return [str(checkpoint.save(table(c), folder / name)) for name, c in (("same", color), ("other", TINT))]


@pytest.fixture(scope="module")
def world(fields: list[str]):
    world = NerfWorld(fields, num_envs=4)
    yield world
    world.close()


def test_it_keeps_the_contract(world: NerfWorld):
    check_world(world)


def test_the_picture_is_that_of_the_whole_scene(world: NerfWorld, color: torch.Tensor):
    """Episodes 0 and 2 stand before the table as Genesis has it; 1 and 3 before another one, with the same bodies."""
    whole = GenesisWorld(num_envs=4)
    true, seen = (each.reset(seed=5)[0].images["front"] for each in (whole, world))
    level = psnr(seen, true)
    assert level[[0, 2]].min() > 28 and level[[1, 3]].max() < 20
    table_pixels = (true[1].float() / 255 - color).abs().amax(-1) < 0.01
    assert ((seen[1][table_pixels].float() / 255 - TINT).abs().amax(-1) < 0.02).float().mean() > 0.9
    whole.close()


def test_a_field_in_other_units_is_brought_into_the_worlds(world: NerfWorld, color: torch.Tensor, tmp_path: Path):
    folder = checkpoint.save(table(color, scale=2.5), tmp_path / "scaled")
    Similarity(1 / 2.5, np.eye(3), np.zeros(3)).save(folder / "alignment.json")
    scaled = NerfWorld([str(folder)], num_envs=4)
    one, other = (each.reset(seed=7)[0].images["front"][[0, 2]] for each in (world, scaled))
    assert psnr(one, other).min() > 35
    scaled.close()


def test_what_hangs_over_the_table_hides_the_bodies_beneath(color: torch.Tensor, tmp_path: Path):
    behind = NerfWorld([str(checkpoint.save(table(color, screen=True), tmp_path / "screen"))], num_envs=4)
    first, second = (behind.reset(seed=seed)[0].images["front"].float() for seed in (7, 70))
    moved = (first - second).abs().amax(-1) > 8
    assert moved[:, 16:48, :28].any(dim=(1, 2)).all(), "bodies left of the screen are seen"
    assert not moved[:, 16:48, 40:].any(), "and none beneath it"
    behind.close()


def test_blocks_throw_shadows_of_contact_and_take_the_captures_colours(fields: list[str], tmp_path: Path):
    plain, shaded = (NerfWorld(fields[:1], num_envs=2, shadow=shadow) for shadow in (0.0, 0.8))
    without, with_shadow = (world.reset(seed=7)[0].images["front"].float().mean(-1) for world in (plain, shaded))
    change = with_shadow - without
    center = plain.snapshot().block_pose[:, 0, :3].numpy()
    camera = plain.scene.data["camera"]
    lens, pose = Intrinsics.from_fov(camera["fov"], width=64, height=64), look_at(camera["pos"], camera["lookat"])
    for i in range(2):
        column, row = lens.project(center[i : i + 1], pose)[0][0]
        rows, columns = torch.meshgrid(torch.arange(64) - row, torch.arange(64) - column, indexing="ij")
        away = (rows.square() + columns.square()).sqrt()
        assert change[i][away < 9].min() < -20, "dark where the block touches the table"
        assert change[i][away > 22].abs().max() <= 2, "and nowhere else"
    plain.close()
    shaded.close()
    shutil.copytree(fields[0], tmp_path / "magenta")
    ColorFit(torch.zeros(3, 3), torch.tensor([1.0, 0.0, 1.0])).save(tmp_path / "magenta" / "colors.json")
    magenta = NerfWorld([str(tmp_path / "magenta")], num_envs=2)
    picture = magenta.reset(seed=7)[0].images["front"].float()
    body = (picture[..., 0] > 240) & (picture[..., 1] < 15) & (picture[..., 2] > 240)
    assert (body.sum(dim=(1, 2)) > 100).all()
    magenta.close()
    (tmp_path / "magenta" / "colors.json").write_text('{"matrix": [[1]], "offset": [0, 0, 0]}')
    with pytest.raises(ValueError, match="needs a finite 3x3 matrix"):
        NerfWorld([str(tmp_path / "magenta")], num_envs=2)
    with pytest.raises(ValueError, match="shadow must be in"):
        NerfWorld(fields, shadow=2.0)


def test_a_mesh_of_the_capture_stops_the_block(fields: list[str], tmp_path: Path):
    """A wall at x = 0.2, as a field's surface: the pusher drives the block against it, and it stays on this side."""

    def wall(points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inside = ((points[:, 0] - 0.2).abs() < 0.02) & (points[:, 1].abs() < 0.3) & (points[:, 2] < 0.1)
        return 200.0 * inside, torch.ones_like(points)

    field = BakedField((-0.1, -0.4, 0.0), (0.3, 0.4, 0.2), (40, 80, 20)).bake(wall)
    file = tmp_path / "wall.obj"
    surface(field).export(file)
    furthest = {}
    for name, obstacles in (("free", None), ("wall", str(file))):
        world = NerfWorld(fields[:1], num_envs=2, obstacles=obstacles)
        state = world.snapshot()
        state.block_pose[:, 0, :3] = torch.tensor([0.05, 0.0, 0.025])
        state.block_pose[:, 0, 3:] = torch.tensor([1.0, 0.0, 0.0, 0.0])
        state.pusher[:] = torch.tensor([-0.05, 0.0])
        state.goals[:] = torch.tensor([[-0.15, 0.15], [-0.15, -0.15]])
        world.restore(state)
        world.step_chunk(torch.tensor([1.0, 0.0]).expand(2, 20, 2))
        furthest[name] = world.truth().block[0, 0].item()
        world.close()
    assert furthest["free"] > 0.2
    assert 0.1 < furthest["wall"] < 0.16, "the wall's face at 0.18 less half a block of 0.07"


def test_a_world_without_a_field_is_refused(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="is no file"):
        NerfWorld(["somewhere"], obstacles=str(tmp_path / "none.obj"))
    with pytest.raises(ValueError, match="at least one radiance field"):
        NerfWorld([])
    with pytest.raises(FileNotFoundError, match="no exported model"):
        NerfWorld([str(tmp_path)])


def test_a_field_of_a_stranger_is_nothing_but_a_field(tmp_path: Path):
    """A description may name any class; a constructor that opens or writes something must not run."""
    folder = checkpoint.save(VisualTrunk(features=8, channels=8, blocks=1, text=8), tmp_path / "trunk")
    with pytest.raises(ValueError, match="holds a VisualTrunk, expected a Renderer"):
        CapturedScene(folder)
    recorder = {"_target_": "worldsim.data.lerobot.DatasetWriter", "root": str(tmp_path / "data"), "fps": 10, "robot_type": "x"}
    features = {"state_names": ["x"], "action_names": ["x"], "cameras": {"front": [8, 8]}}
    (folder / checkpoint.DESCRIPTION).write_text(yaml.safe_dump(recorder | features))
    with pytest.raises(ValueError, match="which is not a model of worldsim; nothing was built"):
        CapturedScene(folder)
    assert not (tmp_path / "data").exists()
