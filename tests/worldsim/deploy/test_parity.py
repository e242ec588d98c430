"""The comparison before a bundle appears: what the policy sees and does is what the robot sees and does, or nothing is written."""

import numpy as np
import pytest
import torch
from toy_policy import FORMATS, make_observation, recorded_observation, write_policy

from models.policies.flow_vla import FlowVLA
from worldsim.core.noise import Noise
from worldsim.core.types import Observation
from worldsim.core.views import mosaic
from worldsim.deploy import parity
from worldsim.deploy.export import export_policy, load_bundle
from worldsim.robot.check import read_recorded


@pytest.fixture
def policy(tmp_path):
    return write_policy(tmp_path / "policy")


TWO = {"front": (48, 80), "wrist": (96, 96)}


def two_cameras(n: int = 8, dtype: torch.dtype = torch.uint8) -> Observation:
    """The front is twice as large as its view, the wrist as large as its own; there is a camera that the policy does not see."""
    generator = torch.Generator().manual_seed(5)
    sizes = {"wrist": (96, 96), "top": (8, 8), "front": (96, 160)}
    images = {}
    for name, size in sizes.items():
        blocks = torch.randint(0, 256, (n, size[0] // 8, size[1] // 8, 3), generator=generator, dtype=torch.uint8)
        frames = blocks.repeat_interleave(8, 1).repeat_interleave(8, 2)  # what is left of single pixels is grey
        frames[:, ::3] //= 2
        images[name] = frames if dtype == torch.uint8 else frames / 255
    return Observation(images, 0.5 * torch.randn(n, 4, generator=generator), ("stop", "push the red block") * (n // 2))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_robots_mosaic_of_two_cameras_is_what_the_policy_sees(tmp_path, format, dtype):
    policy, folder, observation = write_policy(tmp_path / "policy", TWO), tmp_path / "bundle", two_cameras(dtype=dtype)
    description = export_policy(policy, folder, format=format, observation=observation[:3], recorded=observation)
    assert description["views"] == {"front": [48, 80], "wrist": [96, 96]}
    assert list(description["views"]) == ["front", "wrist"]
    assert description["inputs"][0] == {"name": "image", "shape": [1, 96, 176, 3], "dtype": "uint8"}
    assert description["parity"]["max_abs_difference"] <= 1e-4
    bundle, recorded, raw = load_bundle(folder, threads=1), read_recorded(folder), two_cameras()
    assert recorded is not None and recorded.images.shape == (8, 96, 176, 3)
    images = mosaic({name: frames.numpy() for name, frames in raw.images.items()}, description["views"])
    np.testing.assert_array_equal(recorded.images, images)
    noise = Noise.rows(3, 8)
    with torch.no_grad():
        expected = policy.act(raw, noise).numpy()
    drawn = noise.normal("policy", 4, 2).numpy()
    arrays = zip(images, raw.state.numpy(), raw.instruction, drawn, strict=True)
    actual = np.stack([bundle(*case) for case in arrays])
    assert np.abs(expected).min() < 1 and np.abs(expected[0] - expected[2]).max() > 0.1
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)  # the tolerance of an export
    card = (folder / "README.md").read_text()
    assert "| cameras, side by side | front 48 x 80, wrist 96 x 96 |" in card


def test_a_robot_that_sees_otherwise_than_the_policy_is_noticed(tmp_path, monkeypatch):
    """Here the robot's mosaic, of recorded pictures that are larger than the views, takes every second pixel."""

    def coarse(images, views):
        front = images["front"]
        larger = front.shape[1] > views["front"][0]
        return mosaic({**images, "front": front[:, ::2, ::2] if larger else front}, views)

    policy = write_policy(tmp_path / "policy", TWO)
    monkeypatch.setattr(parity, "mosaic", coarse)
    with pytest.raises(ValueError, match="differs from the original by"):
        export_policy(policy, tmp_path / "bundle", format="torch", observation=two_cameras()[:3], recorded=two_cameras())


def test_recorded_observations_take_part_in_the_comparison(policy, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "replay", lambda bundle, recorded: 2e-4)
    with pytest.raises(ValueError, match="differs from the original by 2.0e-04"):
        export_policy(policy, tmp_path / "bundle", format="torch", observation=make_observation(), recorded=recorded_observation())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("format", FORMATS)
def test_a_policy_that_is_not_finite_is_refused(policy, tmp_path, format):
    with torch.no_grad():
        policy.expert[-1].bias[0] = float("nan")
    check_refused(policy, tmp_path, "on this observation are not finite", format=format)


class Different(FlowVLA):
    """Its graph differs from what it was trained as, by a little."""

    def encode_tokens(self, picture, state, tokens):
        return super().encode_tokens(picture, state + 0.002, tokens)


@pytest.mark.parametrize("format", FORMATS)
def test_a_graph_that_differs_is_refused(policy, tmp_path, format):
    different = Different(**policy.arguments)
    different.load_state_dict(policy.state_dict())
    check_refused(different, tmp_path, "differs from the original by", format=format)


def test_a_policy_without_an_action_inside_the_limits_is_refused(policy, tmp_path):
    with torch.no_grad():
        policy.expert[-1].bias.fill_(1e3)
    check_refused(policy, tmp_path, "every action of the policy lies beyond its limits", format="torch")


def check_refused(policy, tmp_path, message, *, format):
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=message):
        export_policy(policy, tmp_path / "out" / "bundle", format=format, observation=make_observation())
    assert not list((tmp_path / "out").iterdir())
