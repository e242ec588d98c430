"""Captured scenes: the pictures are those of the world's own renderer, poses and depth agree with the geometry."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from training.app import cli
from worldsim.geometry.cameras import Intrinsics, look_at, orbit, read_transforms
from worldsim.worlds.genesis.capture import capture, photograph
from worldsim.worlds.genesis.scene import Scene
from worldsim.worlds.genesis.world import GenesisWorld

pytestmark = pytest.mark.genesis


def test_a_picture_from_the_worlds_camera_is_the_worlds_picture_without_its_bodies() -> None:
    world = GenesisWorld("push_block", num_envs=4)
    seen = np.stack(world.render()).astype(int)
    camera = Scene("push_block").data["camera"]
    lens = Intrinsics.from_fov(camera["fov"], width=64, height=64)
    frames, _ = photograph("push_block", look_at(camera["pos"], camera["lookat"])[None], lens)
    same = (np.abs(seen - frames.astype(int)) <= 2).all(axis=-1)
    assert same.mean() > 0.8, "bodies cover about a tenth of the picture"
    assert not same.all(), "the world shows bodies"
    assert same.any(axis=0).all(), "and every pixel without one in some environment is the same"


def test_depth_is_that_of_the_table_and_files_are_nerfstudios(tmp_path: Path) -> None:
    poses = orbit(6, target=(0, 0, 0), radius=(0.8, 1.0), elevation=(30, 60), seed=1)
    lens = Intrinsics.from_fov(50, width=96, height=64)
    file = capture(tmp_path / "scene", "push_block", poses, lens)
    read, back, images = read_transforms(tmp_path / "scene")
    assert read == lens and [image.name for image in images] == [f"{i:04d}.png" for i in range(6)]
    np.testing.assert_allclose(back, poses)
    for frame, pose in zip(json.loads(file.read_text())["frames"], poses, strict=True):
        depth = cv2.imread(str(file.parent / frame["depth_file_path"]), cv2.IMREAD_UNCHANGED) / 1000
        rays = lens.directions() @ pose[:3, :3].T / lens.planar_per_ray()[..., None]
        points = (pose[:3, 3] + depth[..., None] * rays)[depth > 0]
        top = points[(np.abs(points[:, :2]) < 0.39).all(axis=1)]
        assert len(top) > 1000
        assert np.abs(top[:, 2]).max() < 0.008, "the table's surface is the plane z = 0, to half a pixel"
    with pytest.raises(FileExistsError, match="a capture does not overwrite"):
        capture(tmp_path / "scene", "push_block", poses, lens)


def test_the_verb_photographs_a_scene(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["capture.number=5", "capture.size=[32,48]"]
    assert cli.main(["collect", "world=push_block", "capture=orbit", f"root={tmp_path / 'scene'}", *size]) == 0
    lens, poses, _ = read_transforms(tmp_path / "scene")
    assert (lens.width, lens.height, len(poses)) == (48, 32, 5)
    dream = ["world.world_model=a", "world.reflector=b", "world.data=[c]"]
    assert cli.main(["collect", "world=dream", *dream, "capture=orbit", f"root={tmp_path / 'none'}"]) == 2
    assert "a capture needs a world with a scene" in capsys.readouterr().err


def test_a_lens_that_genesis_lacks_is_refused() -> None:
    bent = Intrinsics(50, 50, 32, 32, 64, 64, (0.1, 0, 0, 0))
    with pytest.raises(ValueError, match="Genesis renders undistorted square pixels"):
        photograph("push_block", look_at((0, -1, 1), (0, 0, 0))[None], bent)
