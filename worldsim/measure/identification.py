"""System identification: which camera, light, delay and dynamics made a few recorded episodes, if the scene is known otherwise.

The starts of the episodes must be known (a person put the block and the discs there). What the camera does follows from the first
pictures, by gradient descent, because the effects of `worldsim/worlds/effects.py` can be differentiated; what moves follows from
replaying the recorded actions in a batch of simulated candidates, by differential evolution (scipy). Nothing of this sees the real
world's truth. Read `worldsim/worlds/randomized.py` for the world that results, and `training/studies/rehearsal.py` for what it is
worth."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from scipy.optimize import differential_evolution
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.types import Episode, float_image
from worldsim.core.world import World
from worldsim.measure.dream_quality import ColorTracker
from worldsim.worlds.effects import Distribution, Light, LogUniform, Normal, Sensor, Uniform, View
from worldsim.worlds.genesis.world import GenesisWorld, PhysicsState
from worldsim.worlds.randomized import Dynamics, Latency, RandomizedWorld

Found = dict[str, float]
"""Values of a world's parameters, named as `RandomizedWorld.parameters` names them: "view.pan", "latency.delay"."""

# How far from what was found a policy should learn: of factors a share, of all else what it says (degrees, seconds, pixels).
FACTORS = {
    **{"view.zoom": 0.02, "light.exposure": 0.03, "light.red": 0.03, "light.blue": 0.03, "sensor.contrast": 0.05},
    **{"dynamics.mass": 0.1, "dynamics.friction": 0.1, "dynamics.gain": 0.1},
}
OTHERS = {
    **{"view.pan": 0.5, "view.tilt": 0.5, "view.roll": 0.5, "light.slope": 0.03, "light.direction": 10.0},
    **{"sensor.blur": 0.1, "sensor.noise": 0.005, "latency.delay": 0.005},
}
SPREAD = FACTORS | OTHERS
# Where the search looks.
DYNAMICS = {"dynamics.mass": (0.5, 2.0), "dynamics.friction": (0.5, 2.0), "dynamics.gain": (0.4, 2.5), "latency.delay": (0.0, 0.1)}
BLOCK_M, ROBOT, LARGEST = 0.01, 0.05, 5.0  # errors count in centimetres and twentieths of the state's spread, up to five of them
SAME_M = 1e-3
_ANYTHING = Uniform(0, 0)  # effects are applied with given values here, not with drawn ones


def identify(
    world: GenesisWorld, episodes: Sequence[Episode], starts: PhysicsState, *, seed: int = 0, generations: int = 30
) -> Found:
    """The parameters that explain recorded episodes best.

    Args:
        world: the nominal one; its `num_envs` is 8, 12, 16 ... times the number of episodes.
        episodes: recorded on the robot, seen by the world's camera.
        starts: where each of them began, one row per episode.
        seed: of the search.
        generations: of the search over dynamics.

    Raises:
        ValueError: if the numbers do not fit together, or an episode is of another robot.
    """
    n = len(episodes)
    if not n or len(starts.elapsed) != n or world.num_envs % (4 * n) or world.num_envs < 8 * n:
        raise ValueError(
            f"{n} episodes need as many starts and 8, 12, 16 ... times as many environments, got {len(starts.elapsed)} starts and "
            f"{world.num_envs} environments"
        )
    for number, episode in enumerate(episodes):
        frames, state = episode.images.get(world.camera, torch.empty(0)), episode.state
        size = (*world.scene.data["camera"]["size"], 3)
        if frames.shape[1:] != size or state.shape[1] != len(world.state_names):
            raise ValueError(
                f"episode {number} must have {size} pictures of camera {world.camera!r} and {len(world.state_names)} numbers of "
                f"state, got {tuple(frames.shape[1:])} and {state.shape[1]}; record it on the robot that the world models"
            )
    every = torch.arange(world.num_envs)
    nominal = world.restore(starts[every % n]).images[world.camera][:n]
    recorded = torch.stack([episode.images[world.camera][0] for episode in episodes])
    fov = world.scene.data["camera"]["fov"]
    found = fit_pictures(nominal, recorded, fov=fov) | {"sensor.noise": noise_of([e.images[world.camera] for e in episodes])}
    obs, _ = world.reset(seed=seed)
    values = {name: torch.tensor(value) for name, value in found.items()}
    seen = changed(float_image(obs.images[world.camera]).permute(0, 3, 1, 2), values, fov).permute(0, 2, 3, 1)
    tint = found["light.exposure"] * torch.tensor([found["light.red"], 1.0, found["light.blue"]])
    color = torch.tensor(next(iter(world.scene.data["blocks"].values()))["color"]) * tint
    tracker = ColorTracker(seen, color.expand(len(seen), 3), world.truth().block)

    def track(frames: Tensor) -> Tensor:
        return tracker(frames, color.expand(len(frames), 3))

    return found | fit_dynamics(world, episodes, starts, track, seed=seed, generations=generations)


def known_starts(world: GenesisWorld, episodes: Sequence[Episode], *, seed: int) -> PhysicsState:
    """Where recorded episodes began, if they are first episodes of the world's streams seed, seed + 1, ...: a scene that was set up
    as planned. They are recognised by where the robot stood.

    Raises:
        ValueError: if one began elsewhere.
    """
    world.reset(seed=seed)
    state = world.snapshot()
    rows = []
    for number, episode in enumerate(episodes):
        apart = (state.pusher - episode.state[0, : state.pusher.shape[1]]).norm(dim=1)
        if apart.min() > SAME_M:
            raise ValueError(f"episode {number} began at none of the {world.num_envs} planned starts from seed {seed}; set seed")
        rows.append(int(apart.argmin()))
    return state[rows]


def changed(pictures: Float[Tensor, "b 3 h w"], values: dict[str, Tensor], fov: float) -> Float[Tensor, "b 3 h w"]:
    """Pictures as a camera with these parameters sees them, without its noise."""

    def of(name: str) -> dict[str, Tensor]:
        chosen = {key.partition(".")[2]: value for key, value in values.items() if key.startswith(f"{name}.")}
        return {key: value.expand(len(pictures)) for key, value in chosen.items()}

    noise = Noise.rows(0, len(pictures))
    pictures = View(*[_ANYTHING] * 4, fov=fov).apply(pictures, of("view"), noise)
    pictures = Light(*[_ANYTHING] * 5).apply(pictures, of("light"), noise)
    silent = of("sensor") | {"noise": torch.zeros(len(pictures))}
    return Sensor(*[_ANYTHING] * 3).apply(pictures, silent, noise)


def fit_pictures(nominal: UInt8[Tensor, "n h w 3"], recorded: UInt8[Tensor, "n h w 3"], *, fov: float, steps: int = 400) -> Found:
    """Camera, light and sensor (all but its noise) that turn nominal pictures into recorded ones: the least absolute difference.

    Args:
        nominal: rendered.
        recorded: the same moments on the robot.
        fov: vertical field of view of the nominal camera [degrees].
        steps: of Adam.
    """
    before, after = (float_image(frames).permute(0, 3, 1, 2) for frames in (nominal, recorded))
    # Factors as logarithms; the slope of the light as a vector, so that no direction is special.
    free = {name: torch.zeros((), requires_grad=True) for name in ("pan", "tilt", "roll", "zoom", "exposure", "red", "blue")}
    start = {"across": 0.01, "down": 0.01, "contrast": 0.0, "blur": 0.25}  # without any blur its gradient would vanish
    free |= {name: torch.full((), value, requires_grad=True) for name, value in start.items()}

    def values() -> dict[str, Tensor]:
        degrees = {f"view.{name}": 10 * free[name] for name in ("pan", "tilt", "roll")}
        light = {f"light.{name}": free[name].exp() for name in ("exposure", "red", "blue")}
        slope = {"light.slope": torch.hypot(free["across"], free["down"])}
        slope["light.direction"] = torch.rad2deg(torch.atan2(free["down"], free["across"])) % 360
        sensor = {"sensor.contrast": free["contrast"].exp(), "sensor.blur": 2 * free["blur"].abs()}
        return {**degrees, "view.zoom": free["zoom"].exp(), **light, **slope, **sensor}

    optimizer = torch.optim.Adam(free.values(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = (changed(before, values(), fov) - after).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return {name: value.item() for name, value in values().items()}


def noise_of(videos: Sequence[UInt8[Tensor, "t h w 3"]]) -> float:
    """Standard deviation of a camera's noise, 0..1: from differences of consecutive pictures, most of which stand still."""
    steps = torch.cat([(float_image(video[1:]) - float_image(video[:-1])).abs().flatten() for video in videos])
    return 1.4826 * steps[:: max(1, len(steps) // 1_000_000)].median().item() / math.sqrt(2)


def fit_dynamics(
    world: GenesisWorld,
    episodes: Sequence[Episode],
    starts: PhysicsState,
    tracker: Callable[[Tensor], Tensor],
    *,
    seed: int,
    generations: int,
) -> Found:
    """Mass, friction, gain and delay under which the recorded actions lead where they led: the least absolute error.

    Robot and block are compared after every action: the robot by its proprioception, the block by where the tracker sees it.
    """
    n, length = len(episodes), max(len(episode) for episode in episodes)
    rows = torch.arange(world.num_envs) % n
    actions, felt, seen = (torch.zeros(n, length, size) for size in (world.single_action_space.shape[0], len(world.state_names), 2))
    lived = torch.zeros(n, length, dtype=torch.bool)
    for i, episode in enumerate(episodes):
        t = len(episode)
        actions[i, :t], felt[i, :t], lived[i, :t] = episode.action, episode.state[1:], True
        seen[i, :t] = tracker(episode.images[world.camera][1:])
    scale = felt[lived].std(dim=0)
    previous = torch.cat([torch.zeros_like(actions[:, :1]), actions[:, :-1]], dim=1)
    candidates = world.num_envs // n

    def error(population: Any) -> Any:
        """Of each candidate, [candidates], for parameters [4, candidates]."""
        found = _parameters(torch.as_tensor(population).float().repeat_interleave(n, dim=1))
        world.set_dynamics(
            torch.arange(world.num_envs), **{k.partition(".")[2]: v for k, v in found.items() if k != "latency.delay"}
        )
        share = (found["latency.delay"] * world.fps).clamp(0, 1)[:, None, None]
        reached, places = world.replay(starts[rows], share * previous[rows] + (1 - share) * actions[rows])
        robot = ((reached - felt[rows]) / (ROBOT * scale)).abs().clamp(max=LARGEST).mean(-1)
        block = ((places - seen[rows]) / BLOCK_M).abs().clamp(max=LARGEST).mean(-1)
        total = ((robot + block) * lived[rows]).sum(1).unflatten(0, (-1, n)).sum(1)
        return (total / lived.sum()).double().numpy()

    result = differential_evolution(
        error,
        bounds=[bound if name in OTHERS else tuple(map(math.log, bound)) for name, bound in DYNAMICS.items()],
        maxiter=generations,
        popsize=candidates // len(DYNAMICS),
        polish=False,
        vectorized=True,
        updating="deferred",
        tol=1e-3,
        rng=seed,
    )
    world.set_dynamics(torch.arange(world.num_envs))
    return {name: value.item() for name, value in _parameters(torch.as_tensor(result.x).float()).items()}


def _parameters(coded: Tensor) -> dict[str, Tensor]:
    """Rows of the search's coordinates, by name."""
    return {name: row if name in OTHERS else row.exp() for name, row in zip(DYNAMICS, coded, strict=True)}


class IdentifiedWorld(RandomizedWorld):
    """A world with identified parameters, randomised as far as they are uncertain.

    Args:
        world: the nominal one.
        file: JSON that `worldsim identify` wrote.
        spread: factor of `SPREAD`; 0 gives every episode the same conditions.

    Raises:
        ValueError: if a parameter is missing.
    """

    def __init__(self, world: World, file: str, spread: float = 1.0):
        document = json.loads(Path(file).read_text())
        found: Found = document.get("found", {}) if isinstance(document, dict) else {}
        if missing := SPREAD.keys() - found.keys():
            raise ValueError(f"{file} lacks {sorted(missing)}; write it with worldsim identify")

        def around(part: str) -> dict[str, Any]:
            """Distributions of one effect's parameters, by field."""
            return {name.partition(".")[2]: _around(name, found[name], spread) for name in SPREAD if name.startswith(f"{part}.")}

        effects = {"view": View(**around("view")), "light": Light(**around("light")), "sensor": Sensor(**around("sensor"))}
        latency = Latency(**around("latency"), jitter=Normal(0, 0))
        super().__init__(world, effects, latency, Dynamics(**around("dynamics")))


def _around(name: str, value: float, spread: float) -> Distribution:
    width = spread * SPREAD[name]
    return LogUniform(value / (1 + width), value * (1 + width)) if name in FACTORS else Uniform(value - width, value + width)
