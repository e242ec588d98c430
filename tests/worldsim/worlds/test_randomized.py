"""Randomised worlds keep the contract of a world, see what they should, and meet the same conditions under the same seed."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from counting import Remembering
from drifting import Drift, moments

from worldsim.core import checkpoint
from worldsim.core.channels import Channel
from worldsim.core.checks import check_world
from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.geometry.cameras import Intrinsics, look_at
from worldsim.worlds.dream import DreamWorld, Starts
from worldsim.worlds.effects import Distractors, Effect, Light, LogUniform, Normal, Sensor, Uniform, View
from worldsim.worlds.randomized import Dynamics, Latency, RandomizedWorld

NOTHING = {
    "view": View(Uniform(0, 0), Uniform(0, 0), Uniform(0, 0), Uniform(1, 1), fov=40),
    "light": Light(Uniform(1, 1), Uniform(1, 1), Uniform(1, 1), Uniform(0, 0), Uniform(0, 0)),
    "sensor": Sensor(Uniform(1, 1), Uniform(0, 0), Uniform(0, 0)),
    "distractors": Distractors(Uniform(0, 0), Uniform(0, 0)),
}
SOMETHING = {
    "view": View(Uniform(-3, 3), Uniform(-3, 3), Uniform(-3, 3), LogUniform(0.95, 1.05), fov=40),
    "light": Light(LogUniform(0.7, 1.4), LogUniform(0.9, 1.1), LogUniform(0.9, 1.1), Uniform(0, 0.4), Uniform(0, 360)),
    "distractors": Distractors(Uniform(0, 3), Uniform(0.02, 0.06)),
    "sensor": Sensor(LogUniform(0.8, 1.2), Uniform(0, 1), Uniform(0, 0.05)),
}


def dream(folders: dict[str, str], num_envs: int = 3) -> DreamWorld:
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (5, 2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    state = 0.1 * torch.randn(5, 2, 4, generator=generator)
    starts = Starts({"front": frames}, state, ("push the red block onto the green disc",) * 5)
    model, reflector = checkpoint.load(folders["world_model"], WorldModel), checkpoint.load(folders["reflector"], Reflector)
    return DreamWorld(model, reflector, starts, num_envs=num_envs, max_episode_steps=9)


def test_a_randomised_world_is_a_world(folders: dict[str, str]):
    latency = Latency(Uniform(0.01, 0.05), Normal(0, 0.005))
    check_world(RandomizedWorld(dream(folders), dict(SOMETHING), latency), chunk=4)


def test_effects_of_nothing_change_nothing(folders: dict[str, str]):
    plain, wrapped = dream(folders), RandomizedWorld(dream(folders), dict(NOTHING), Latency(Uniform(0, 0), Uniform(0, 0)))
    actions = torch.rand(3, 4, 2) - 0.5
    (a, _), (b, _) = plain.reset(seed=3), wrapped.reset(seed=3)
    for first, second in ((a, b), (plain.step_chunk(actions).obs, wrapped.step_chunk(actions).obs)):
        difference = first.images["front"].int() - second.images["front"].int()
        assert difference.abs().max() <= 1  # resampling in single precision
        assert torch.equal(first.state, second.state)


def test_conditions_belong_to_a_seed_and_an_effect(folders: dict[str, str]):
    world = RandomizedWorld(dream(folders), dict(SOMETHING))
    obs, info = world.reset(seed=[5, 6, 5])
    values = info["randomization"]
    assert all(value[0] == value[2] != value[1] for value in values.values())
    assert torch.equal(obs.images["front"][0], obs.images["front"][2])
    alone = RandomizedWorld(dream(folders), {"light": SOMETHING["light"]})
    _, other = alone.reset(seed=[5, 6, 5])
    assert all(torch.equal(value, values[name]) for name, value in other["randomization"].items())
    _, again = world.reset()
    assert not torch.equal(again["randomization"]["light.exposure"], values["light.exposure"])


def test_noise_is_new_in_every_frame_and_the_rest_stays(folders: dict[str, str]):
    world = RandomizedWorld(
        dream(folders), {"light": SOMETHING["light"], "sensor": Sensor(Uniform(1, 1), Uniform(0, 0), Uniform(0.2, 0.2))}
    )
    world.reset(seed=0)
    before = world.snapshot()
    first, again = world.restore(before), world.restore(before)
    assert torch.equal(first.images["front"], again.images["front"])
    _, _, _, _, info = world.step(torch.zeros(3, 2))
    assert torch.equal(info["randomization"]["light.exposure"], world.parameters()["light.exposure"])
    grey = torch.full((1, 3, 64, 64), 0.5)
    values = {"contrast": torch.ones(1), "blur": torch.zeros(1), "noise": torch.full((1,), 0.05)}
    noisy = SOMETHING["sensor"].apply(grey, values, Noise.rows(0, 1))
    assert noisy.std() == pytest.approx(0.05, rel=0.03)


def test_distractors_stay_for_the_episode_and_differ_between_episodes():
    grey, rows = torch.full((3, 3, 64, 64), 0.5), Noise(torch.tensor([1, 1, 1]), torch.tensor([1, 1, 2]), torch.tensor([0, 9, 0]))
    values = {"number": torch.tensor([2.0, 2.0, 2.0]), "size": torch.full((3,), 0.1)}
    first, later, other = Distractors(Uniform(0, 3), Uniform(0, 1)).apply(grey, values, rows)
    assert torch.equal(first, later) and not torch.equal(first, other)
    share = (first != 0.5).any(dim=0).float().mean()
    assert 0.5 * np.pi * 0.1**2 < share <= 2 * np.pi * 0.1**2 * 1.05, (
        "at most two discs of a tenth of the height, at least half of one"
    )
    none = Distractors(Uniform(0, 3), Uniform(0, 1)).apply(grey, values | {"number": torch.zeros(3)}, rows)
    assert torch.equal(none, grey)


@pytest.mark.parametrize("rows", [[0], [2, 0, 1], [1, 1]])
def test_what_a_start_meets_does_not_depend_on_the_batch(folders: dict[str, str], rows: list[int]):
    """Conditions, grain and late actions of three starts, and of some of them alone."""
    latency = Latency(Uniform(0.01, 0.05), Normal(0, 0.01))
    seeds, actions = [5, 6, 7], torch.rand(3, 4, 2, generator=torch.Generator().manual_seed(0))

    def met(chosen: list[int]) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
        world = RandomizedWorld(dream(folders, len(chosen)), dict(SOMETHING), latency)
        _, info = world.reset(seed=[seeds[i] for i in chosen])
        late = world._late(actions[chosen])
        same = torch.full((len(chosen), 64, 64, 3), 128, dtype=torch.uint8)
        seen = world._seen(replace(world.world._observe(world.world._state), images={"front": same}), world._elapsed)
        return info["randomization"], late, seen.images["front"]

    (values, late, seen), (some, some_late, some_seen) = met([0, 1, 2]), met(rows)
    assert all(torch.equal(value[rows], some[name]) for name, value in values.items())
    assert torch.equal(late[rows], some_late) and torch.equal(seen[rows], some_seen)


@dataclass(frozen=True)
class Snow(Effect):
    """Pictures of nothing but the noise of their moment."""

    def apply(self, frames, values, noise):
        return noise.uniform("snow", *frames.shape[1:])


def test_two_effects_of_one_kind_and_two_streams_have_noise_of_their_own(folders: dict[str, str]):
    """The conditions belong to the start, whatever the stream of its noise."""
    seen, drawn = {}, {}
    for name, stream in (("first", 0), ("second", 0), ("first", 1)):
        world = RandomizedWorld(dream(folders), {"light": SOMETHING["light"], name: Snow()})
        obs, info = world.reset(seed=2, options={"stream": stream})
        seen[name, stream], drawn[name, stream] = obs.images["front"].double(), info["randomization"]["light.exposure"]
    assert len({tuple(values.tolist()) for values in drawn.values()}) == 1
    for other in (("second", 0), ("first", 1)):
        pair = torch.stack([seen["first", 0].flatten(), seen[other].flatten()])
        assert abs(float(torch.corrcoef(pair)[0, 1])) < 0.1, other


def test_watched_frames_have_the_noise_of_single_steps(folders: dict[str, str]):
    world = RandomizedWorld(dream(folders), {"snow": Snow()})
    world.reset(seed=2)
    before = world.snapshot()
    result, seen = world.watch_chunk(torch.zeros(3, 4, 2))
    world.restore(before)
    for k, (obs, _) in enumerate(seen):
        final = world.step(torch.zeros(3, 2))[4]["final_obs"]
        assert torch.equal(obs.images["front"], final.images["front"]), k
    assert torch.equal(seen[-1][0].images["front"], result.final_obs.images["front"])


def pattern(directions: np.ndarray) -> np.ndarray:
    """A smooth picture on the sphere of directions, so that a camera that turns sees it without parallax."""
    x, y, z = directions[..., 0], directions[..., 1], directions[..., 2]
    return np.stack([0.5 + 0.4 * np.sin(9 * x + 2), 0.5 + 0.4 * np.cos(8 * z - 1), 0.5 + 0.4 * np.sin(7 * y + 5 * z)], axis=-1)


@pytest.mark.parametrize(
    ("pan", "tilt", "roll", "zoom"), [(6, 0, 0, 1), (0, 5, 0, 1), (0, 0, 10, 1), (0, 0, 0, 1.2), (4, -3, 5, 1.1)]
)
def test_a_view_is_what_a_turned_camera_with_that_lens_sees(pan: float, tilt: float, roll: float, zoom: float):
    """Against cameras of `cameras.py`: pan turns to the right, tilt up, roll clockwise; away from the border, where both see."""
    lens = Intrinsics.from_fov(40, width=96, height=64)
    straight = look_at([0, 0, 0], [0, 1, 0])[:3, :3]

    def about(axis: int, degrees: float) -> np.ndarray:
        angle, (i, j) = math.radians(degrees), [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = math.cos(angle)
        turn[i, j], turn[j, i] = -math.sin(angle), math.sin(angle)
        return turn

    # OpenGL's camera axes: x right, y up, z back. Right-handed turns about y go left, about x go up, about z anticlockwise;
    # `about(1)` has the opposite sign because of the order (x, z).
    turned = straight @ about(1, pan) @ about(0, tilt) @ about(2, -roll)
    zoomed = Intrinsics(zoom * lens.fx, zoom * lens.fy, lens.cx, lens.cy, 96, 64)
    expected = pattern(zoomed.directions() @ turned.T)
    picture = torch.from_numpy(pattern(lens.directions() @ straight.T)).float().permute(2, 0, 1)[None]
    names = dict(zip(("pan", "tilt", "roll", "zoom"), (pan, tilt, roll, zoom), strict=True))
    values = {name: torch.tensor([float(v)]) for name, v in names.items()}
    seen = SOMETHING["view"].apply(picture, values, Noise.rows(0, 1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(SOMETHING["view"].apply(picture, values, Noise.rows(0, 1)), seen), "half precision is for networks"
    seen = seen[0].permute(1, 2, 0).numpy()
    inner = (slice(18, -18), slice(26, -26))
    assert np.abs(seen - expected)[inner].max() < 0.01
    assert np.abs(picture[0].permute(1, 2, 0).numpy() - expected)[inner].max() > 0.02


def test_light_and_blur_do_what_their_names_say():
    picture = torch.full((1, 3, 8, 8), 0.4)
    values = {"exposure": 1.5, "red": 1.2, "blue": 0.5, "slope": 0.4, "direction": 0.0}
    lit = SOMETHING["light"].apply(picture, {name: torch.tensor([value]) for name, value in values.items()}, Noise.rows(0, 1))
    assert lit[0, 1].mean() == pytest.approx(0.6, abs=1e-5) and lit[0, 2].mean() == pytest.approx(0.3, abs=1e-5)
    assert lit[0, 1, 0, 7] / lit[0, 1, 0, 0] == pytest.approx((1 + 0.2 * 7 / 8) / (1 - 0.2 * 7 / 8), abs=1e-5)
    point = torch.zeros(1, 3, 15, 15)
    point[..., 7, 7] = 1
    values = {"contrast": torch.ones(1), "blur": torch.ones(1), "noise": torch.zeros(1)}
    spread = SOMETHING["sensor"].apply(point, values, Noise.rows(0, 1))[0, 0]
    assert spread.sum() == pytest.approx(1, abs=1e-5)
    offsets = torch.arange(15.0) - 7
    assert (spread.sum(0) * offsets.square()).sum() == pytest.approx(1, abs=0.1)  # a variance of one pixel


def test_before_its_first_action_a_robot_stays_where_it_is():
    """Told a place in one channel and a way in the other, after a reset and where an episode ends within a chunk."""
    inner = DreamWorld(Drift(), Remembering(1), moments(), num_envs=2, max_episode_steps=2)
    inner.action_channels = (Channel("east", "m", kind="absolute"), Channel("dn", "m", kind="delta"))
    world = RandomizedWorld(inner, {}, latency=Latency(Uniform(0.03, 0.03), Uniform(0, 0)))
    obs, _ = world.reset(seed=0, options={"start": torch.tensor([0, 1])})
    for _ in range(2):
        asked = torch.full((2, 3, 2), 0.1)
        first = 0.7 * asked[:, 0] + 0.3 * torch.stack([obs.state[:, 0], torch.zeros(2)], dim=1)
        result = world.step_chunk(asked)
        torch.testing.assert_close(result.final_obs.state, obs.state + first + asked[:, 1])
        obs = result.obs


def test_late_actions_are_mixed_with_the_ones_before(folders: dict[str, str]):
    """30 ms of a control step of 100 ms: 0.3 of the previous action."""
    world = RandomizedWorld(dream(folders), {}, Latency(Uniform(0.03, 0.03), Uniform(0, 0)))
    world.reset(seed=0)
    taken = []
    step_chunk = world.world.step_chunk
    world.world.step_chunk = lambda actions: taken.append(actions) or step_chunk(actions)  # type: ignore[method-assign]
    actions = torch.tensor([0.5, -0.5, 1.0, 0.0])[None, :, None].expand(3, 4, 2)
    world.step_chunk(actions)
    expected = torch.tensor([0.35, -0.2, 0.55, 0.3])[None, :, None].expand(3, 4, 2)
    assert torch.allclose(taken[0], expected, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: Uniform(2, 1), lambda: LogUniform(0, 1), lambda: Normal(0, -1)])
def test_impossible_distributions_are_refused(make):
    with pytest.raises(ValueError, match="distribution needs"):
        make()


def test_distributions_have_their_moments():
    noise = Noise.rows(0, 20_000)
    draws = {d: d.sample(noise, "draw").numpy() for d in (Uniform(-1, 3), LogUniform(0.5, 2), Normal(1, 2))}
    uniform, factor, normal = draws.values()
    assert uniform.mean() == pytest.approx(1, abs=0.03) and uniform.min() >= -1 and uniform.max() <= 3
    assert np.log(factor).mean() == pytest.approx(0, abs=0.02) and factor.min() >= 0.5 and factor.max() <= 2
    assert normal.mean() == pytest.approx(1, abs=0.05) and normal.std() == pytest.approx(2, abs=0.05)


def test_a_dream_has_no_dynamics_to_change(folders: dict[str, str]):
    with pytest.raises(ValueError, match="DreamWorld has no dynamics"):
        RandomizedWorld(dream(folders), {}, dynamics=Dynamics(*[Uniform(1, 1)] * 3))


@pytest.mark.genesis
def test_bodies_are_what_an_episode_drew_also_after_an_end_and_a_restore():
    from worldsim.worlds.genesis.world import GenesisWorld

    inner = GenesisWorld(num_envs=3)
    nominal = float(inner._blocks[0].get_mass()[0])
    world = RandomizedWorld(inner, {}, dynamics=Dynamics(LogUniform(0.5, 2), LogUniform(0.5, 2), LogUniform(0.5, 2)))

    def agrees() -> torch.Tensor:
        factor = world.parameters()["dynamics.mass"]
        torch.testing.assert_close(torch.as_tensor(inner._blocks[0].get_mass()).cpu() / nominal, factor.float(), atol=1e-4, rtol=0)
        return factor

    world.reset(seed=3)
    first, state = agrees(), world.snapshot()
    world.step_chunk(torch.zeros(3, world.max_episode_steps, 2))
    assert (agrees() != first).all(), "the next episode draws anew"
    world.restore(state[[2, 1, 0]])
    torch.testing.assert_close(agrees(), first[[2, 1, 0]])
    check_world(world)
    world.close()
