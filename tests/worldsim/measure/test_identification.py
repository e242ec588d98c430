"""System identification finds what was hidden, in pictures and in motion, and says when it cannot."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from worldsim.measure.collect import ExpertActor, collect
from worldsim.measure.identification import SPREAD, IdentifiedWorld, changed, fit_pictures, identify, known_starts, noise_of
from worldsim.worlds.effects import Normal, Uniform
from worldsim.worlds.genesis.world import GenesisWorld
from worldsim.worlds.randomized import Dynamics, Latency, RandomizedWorld

pytestmark = pytest.mark.genesis

HIDDEN = {
    **{"view.pan": 3.0, "view.tilt": -2.0, "view.roll": 4.0, "view.zoom": 1.06},
    **{"light.exposure": 0.7, "light.red": 1.1, "light.blue": 0.85, "light.slope": 0.4, "light.direction": 120.0},
    **{"sensor.contrast": 0.8, "sensor.blur": 0.7},
}
SEED = 77


@pytest.fixture(scope="module")
def worlds():
    """A nominal world of 64 candidates for 4 episodes, and a robot with a soft controller and late actions."""
    nominal = GenesisWorld(num_envs=64)
    robot = GenesisWorld(num_envs=4)

    def always(value: float) -> Uniform:
        return Uniform(value, value)

    dynamics = Dynamics(mass=always(1.0), friction=always(1.0), gain=always(0.6))
    yield nominal, RandomizedWorld(robot, {}, Latency(always(0.06), Normal(0, 0)), dynamics)
    nominal.close()
    robot.close()


def test_camera_light_and_sensor_follow_from_pictures(worlds):
    obs, _ = worlds[0].reset(seed=3)
    frames = obs.images["front"][:12]
    values = {name: torch.tensor(value) for name, value in HIDDEN.items()}
    seen = changed(frames.permute(0, 3, 1, 2).float() / 255, values, fov=40).permute(0, 2, 3, 1)
    found = fit_pictures(frames, (255 * seen).round().byte(), fov=40)
    assert set(found) == set(HIDDEN)
    within = {"view": 0.3, "light": 0.03, "sensor": 0.15}
    for name, value in HIDDEN.items():
        tolerance = 10 if name == "light.direction" else 0.01 if name == "view.zoom" else within[name.partition(".")[0]]
        assert abs(found[name] - value) < tolerance, name


def test_noise_follows_from_what_stands_still():
    generator = torch.Generator().manual_seed(0)
    video = 0.5 + 0.02 * torch.randn(20, 32, 32, 3, generator=generator)
    video[5:, :2] = torch.rand(15, 2, 32, 3, generator=generator)  # something moves
    assert noise_of([(255 * video).round().byte()]) == pytest.approx(0.02, rel=0.2)


def test_gain_and_delay_follow_from_motion(worlds):
    nominal, robot = worlds
    episodes = list(collect(robot, ExpertActor(noise=0.3), episodes=4, seed=SEED))
    starts = known_starts(nominal, episodes, seed=SEED)
    before = nominal.physics_steps
    found = identify(nominal, episodes, starts, seed=1, generations=10)
    assert found["dynamics.gain"] == pytest.approx(0.6, rel=0.15)
    assert found["latency.delay"] == pytest.approx(0.06, abs=0.015)
    assert abs(found["view.pan"]) < 0.2
    assert found["light.exposure"] == pytest.approx(1, abs=0.02)
    assert nominal.physics_steps > before  # replays are counted


def test_starts_that_were_not_planned_are_refused(worlds):
    nominal, robot = worlds
    episode = next(collect(robot, ExpertActor(), episodes=1, seed=SEED))
    with pytest.raises(ValueError, match="episode 0 began at none of the 64 planned starts"):
        known_starts(nominal, [episode], seed=SEED + 1000)
    with pytest.raises(ValueError, match="1 episodes need as many starts"):
        identify(nominal, [episode], nominal.snapshot())
    blind = replace(episode, images={"wrist": episode.images["front"]})
    with pytest.raises(ValueError, match="episode 0 must have .* pictures of camera 'front'"):
        identify(nominal, [blind], nominal.snapshot()[:1])


def test_a_world_with_what_was_found(worlds, tmp_path: Path):
    found = {name: 1.0 for name in SPREAD} | HIDDEN | {"latency.delay": 0.05, "dynamics.gain": 0.6}
    file = tmp_path / "identified.json"
    file.write_text(json.dumps({"found": found}))
    exact = IdentifiedWorld(worlds[0], str(file), spread=0.0)
    assert {name: values[0].item() for name, values in exact.parameters().items()} == pytest.approx(found)
    spread = IdentifiedWorld(worlds[0], str(file)).parameters()["dynamics.gain"]
    assert 0.6 / 1.1 <= spread.min() < spread.max() <= 0.6 * 1.1
    file.write_text(json.dumps({"found": {k: v for k, v in found.items() if k != "view.pan"}}))
    with pytest.raises(ValueError, match=r"lacks \['view.pan'\]"):
        IdentifiedWorld(worlds[0], str(file))
