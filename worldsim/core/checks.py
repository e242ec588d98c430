"""`check_world`: the contract of `World` as one executable test, in the spirit of Gymnasium's `check_env`.

Every world of the repository passes it in the tests, and whoever adds one calls it first. It finds what breaks reinforcement
learning quietly: environments that disturb each other, snapshots that forget something, ends that leak into the next episode.
Read `worldsim/worlds/genesis/world.py` next, or `worldsim/worlds/dream.py`: two implementations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim.core.interfaces import ChunkResult, World
from worldsim.core.types import Judgement, Observation, TensorBatch

# Largest differences between two runs from one state. Solver warm starts of contacts are not part of a physics snapshot; in
# single precision over a few control steps they measured 2e-7 in Genesis, a lost velocity component 0.3. Networks give 1e-6.
STATE_TOLERANCE = 1e-4  # m, m/s
REWARD_TOLERANCE = 1e-4
PIXEL_TOLERANCE = 0.1  # mean over an image, of 255
SEEDS = 10  # so many starts are tried to find episodes that do not end too early


def check_world(world: World, *, seed: int = 0, chunk: int = 4) -> None:
    """Assert that `world` keeps the contract of `World`; takes about three episodes.

    Args:
        world: two environments or more; it is reset and left in an arbitrary state.
        seed: of the episodes and of the random actions.
        chunk: ah of the chunks that are played, and compared with single steps where the world is causal.

    Raises:
        AssertionError: with what was expected and what happened.
    """
    assert world.num_envs >= 2, f"check_world needs num_envs >= 2 to see environments disturb each other, got {world.num_envs}"
    assert 3 <= chunk < world.max_episode_steps, f"chunk must be in [3, {world.max_episode_steps}), got {chunk}"
    check_spaces(world, seed)
    check_seeds(world, seed)
    check_masked_reset(world, seed)
    check_restore(world, seed)
    check_chunk(world, seed, chunk)
    check_ends(world, seed, chunk)
    check_errors(world, seed)


def check_spaces(world: World, seed: int) -> None:
    """Observations lie in the space; shapes and types of a step's results."""
    obs, info = world.reset(seed=seed)
    assert isinstance(info, dict), f"reset must return (Observation, dict), got {type(info).__name__} in second place"
    _check_observation(world, obs, "reset")
    obs, reward, terminated, truncated, info = world.step(_actions(world, 1, seed)[:, 0])
    _check_observation(world, obs, "step")
    for name, value, kind in (
        ("reward", reward, torch.float32),
        ("terminated", terminated, torch.bool),
        ("truncated", truncated, torch.bool),
    ):
        _check_tensor(value, (world.num_envs,), kind, f"step's {name}")
    missing = {"final_obs", "_final_obs", "final_judge"} - set(info)
    assert not missing, f"step's info lacks {sorted(missing)}"
    _check_observation(world, info["final_obs"], "info['final_obs']")
    _check_tensor(info["_final_obs"], (world.num_envs,), torch.bool, "info['_final_obs']")
    for judgement in (info["final_judge"], world.judge()):
        assert isinstance(judgement, Judgement), f"a judgement must be a Judgement, got {type(judgement).__name__}"
        _check_tensor(judgement.success, (world.num_envs,), torch.bool, "the judgement's success")
        _check_tensor(judgement.progress, (world.num_envs,), torch.float32, "the judgement's progress")
        assert ((judgement.progress >= 0) & (judgement.progress <= 1)).all(), (
            f"progress must be in [0, 1], got {judgement.progress}"
        )
    frames = world.render()
    assert frames is not None, "render must return frames"
    assert len(frames) == world.num_envs, f"render must return one frame per environment, got {len(frames)}"


def check_seeds(world: World, seed: int) -> None:
    """One seed, one trajectory; environment i gets seed + i; a seed belongs to an episode, not to a place in the batch."""
    actions = _actions(world, 3, seed)
    first, _ = world.reset(seed=seed)
    one = _play(world, actions)
    again, _ = world.reset(seed=seed)
    _assert_equal(first, again, "the first observation after reset(seed) twice")
    _assert_same_play(one, _play(world, actions), "a trajectory after reset(seed) twice")
    seeds = [seed + i for i in range(world.num_envs)]
    listed, _ = world.reset(seed=seeds)
    _assert_equal(first, listed, f"reset(seed={seed}) and reset(seed={seeds})")
    backwards, _ = world.reset(seed=seeds[::-1])
    _assert_equal(first, backwards[list(range(world.num_envs))[::-1]], "observations of the same seeds in reversed order")
    _assert_same_play(
        one, [_flip(play) for play in _play(world, actions.flip(0))], "trajectories of the same seeds in reversed order"
    )


def check_masked_reset(world: World, seed: int) -> None:
    """A reset with a mask resets the masked environments, and touches neither the present nor the future of the others."""
    world.reset(seed=seed)
    _play(world, _actions(world, 2, seed))
    before = world.snapshot()
    actions = _actions(world, 3, seed + 1)
    undisturbed = _play(world, actions)
    world.restore(before)
    mask = torch.arange(world.num_envs) % 2 == 0
    obs, _ = world.reset(options={"mask": mask})
    _assert_equal(before[~mask], world.snapshot()[~mask], "the snapshot of environments that a mask kept from being reset")
    disturbed = _play(world, actions)
    _assert_same_play(
        [_take(p, ~mask) for p in undisturbed],
        [_take(p, ~mask) for p in disturbed],
        "the future of environments beside a masked reset",
    )
    world.restore(before)
    seeded, _ = world.reset(seed=seed + 100, options={"mask": mask})
    _assert_equal(before[~mask], world.snapshot()[~mask], "the snapshot of environments beside a masked reset with a seed")
    fresh, _ = world.reset(seed=seed + 100)
    _assert_equal(fresh[mask], seeded[mask], "the first observation of a masked reset with a seed and of a whole one")


def check_restore(world: World, seed: int) -> None:
    """`snapshot` and `restore` repeat a trajectory, and a row copied to every environment makes all of them equal."""
    world.reset(seed=seed)
    _play(world, _actions(world, 3, seed))
    state = world.snapshot()
    rows = list(range(world.num_envs))
    kept = state[rows]
    actions = _actions(world, 4, seed + 1)
    original = _play(world, actions)
    _assert_equal(kept, state, "a snapshot and its copy after the world went on (it must not share memory with the world)")
    obs = world.restore(state)
    _check_observation(world, obs, "restore")
    _assert_equal(state, world.snapshot(), "a snapshot and the snapshot taken after restoring it")
    _assert_same_play(original, _play(world, actions), "a trajectory and its repetition after restore")
    obs = world.restore(state[rows[::-1]])
    _assert_same_play(
        original,
        [_flip(play) for play in _play(world, actions.flip(0))],
        "a trajectory and its repetition in other places of the batch",
    )
    obs = world.restore(state[[0] * world.num_envs])
    for k, play in enumerate([obs, *_play(world, actions[:1].expand_as(actions))]):
        for i in range(1, world.num_envs):
            _assert_equal(_take(play, [0]), _take(play, [i]), f"environments 0 and {i}, both restored from row 0, after {k} steps")


def check_chunk(world: World, seed: int, chunk: int) -> None:
    """A watched chunk equals one that is not; in a causal world both equal single steps, after every action and beyond."""
    actions, follow = _actions(world, chunk, seed), _actions(world, 2, seed + 1)
    for attempt in range(seed, seed + SEEDS):
        world.reset(seed=attempt)
        result = _counted(world, actions)
        alive = ~result.done
        if alive.any():
            break
    else:
        raise AssertionError(f"every episode of {SEEDS} seeds ended within {chunk} steps; check_world needs longer ones")
    _assert_equal(result.obs[alive], result.final_obs[alive], "obs and final_obs of a chunk in which no episode ended")
    after = _play(world, follow)
    world.reset(seed=attempt)
    watched, seen = world.watch_chunk(actions)
    _assert_equal(watched, result, "a chunk that is watched and one that is not")
    assert len(seen) == chunk, f"watch_chunk must show {chunk} actions, got {len(seen)}"
    _assert_equal(seen[-1][0], result.final_obs, "final_obs and what was seen last")
    _assert_equal(seen[-1][1], result.final_judge, "final_judge and what was judged last")
    if not world.causal:
        return
    world.reset(seed=attempt)
    for k, (obs, reward, terminated, truncated, judged) in enumerate(_play(world, actions)):
        what = f"of a chunk and of single steps, after {k + 1} of {chunk} actions"
        _assert_close(reward[alive], result.reward[alive, k], REWARD_TOLERANCE, f"rewards {what}")
        assert not (terminated | truncated)[alive].any(), f"chunks and single steps disagree on whether an episode ends: {what}"
        _assert_equal(obs[alive], seen[k][0][alive], f"observations {what}")
        _assert_equal(judged[alive], seen[k][1][alive], f"judgements {what}")
    _assert_same_play(
        [_take(p, alive) for p in _play(world, follow)],
        [_take(p, alive) for p in after],
        f"what follows {chunk} steps and one chunk",
    )


def check_ends(world: World, seed: int, chunk: int) -> None:
    """Truncation on time, autoreset in the same step, and a chunk whose rest is dropped after an end."""
    limit = world.max_episode_steps
    tail = 2  # actions of the chunk that ends the episode
    lead, actions = _actions(world, limit - tail, seed), _actions(world, chunk, seed + 1)
    for attempt in range(seed, seed + SEEDS):
        world.reset(seed=attempt)
        alive = ~world.step_chunk(lead).done
        if alive.any():
            break
    else:
        raise AssertionError(f"every episode of {SEEDS} seeds ended before max_episode_steps = {limit}; nothing shows truncation")
    before = world.snapshot()
    result = _counted(world, actions)
    ended = (result.terminated | result.truncated).int().argmax(dim=1)
    assert result.done[alive].all(), (
        f"an episode went on beyond max_episode_steps = {limit}: truncated is {result.truncated.tolist()}"
    )
    on_time = alive & (ended == tail - 1)
    assert (ended[alive] <= tail - 1).all(), f"an episode was truncated later than after max_episode_steps = {limit} steps"
    early = alive & (ended < tail - 1)
    assert result.terminated[early].any(dim=1).all(), f"an episode was truncated before max_episode_steps = {limit} steps"
    state_after = world.snapshot()
    _assert_equal(result.obs, world.restore(state_after), "obs after an end and the observation of the state reached")
    world.restore(before)
    watched, seen = world.watch_chunk(actions)
    _assert_equal(watched, result, "a chunk with an end that is watched and one that is not")
    _assert_equal(seen[-1], (result.final_obs, result.final_judge), "what was seen last and final_obs, final_judge")
    _check_autoreset(result.obs, result.final_obs, on_time)

    world.restore(before)
    lived = alive.clone()
    for k in range(tail):
        obs, reward, terminated, truncated, info = world.step(actions[:, k])
        over = terminated | truncated
        assert torch.equal(info["_final_obs"], over), "info['_final_obs'] must mark the environments whose episode ended"
        judge = world.judge()
        _assert_close(
            judge.progress[~over], info["final_judge"].progress[~over], REWARD_TOLERANCE, "judge() and final_judge before an end"
        )
        _assert_equal(obs[~over], info["final_obs"][~over], "obs and final_obs where no episode ended")
        assert k + 1 < tail or over[lived].all(), f"a step did not end the episode after max_episode_steps = {limit} steps"
        _check_autoreset(obs, info["final_obs"], over)
        lived &= ~over
    if world.causal and on_time.any():
        what = "of an episode that single steps and a chunk brought to its end"
        _assert_equal(info["final_obs"][on_time], result.final_obs[on_time], f"final_obs {what}")
        _assert_equal(obs[on_time], result.obs[on_time], f"the next episode's first observation {what}")
        _assert_equal(obs, world.restore(world.snapshot()), "obs after autoreset and the observation of the state reached")
    world.restore(state_after)
    again = world.step_chunk(_actions(world, limit, seed + 2))
    length = again.valid.sum(1)
    whole = result.done & ~again.terminated.any(dim=1)
    assert (length[whole] == limit).all(), f"the episode after an autoreset lasted {length[whole].tolist()} steps, expected {limit}"


def check_errors(world: World, seed: int) -> None:
    """Wrong arguments are refused with a ValueError."""
    world.reset(seed=seed)
    b, (size,) = world.num_envs, world.single_action_space.shape
    nan = torch.zeros(b, size)
    nan[-1, -1] = torch.nan
    state = world.snapshot()
    wrong: list[tuple[str, Callable[[], Any]]] = [
        ("step with an action too few", lambda: world.step(torch.zeros(b - 1, size))),
        ("step with an action dimension too many", lambda: world.step(torch.zeros(b, size + 1))),
        ("step with a chunk", lambda: world.step(torch.zeros(b, 2, size))),
        ("step with NaN", lambda: world.step(nan)),
        ("step_chunk with a single action", lambda: world.step_chunk(torch.zeros(b, size))),
        ("step_chunk with infinity", lambda: world.step_chunk(torch.full((b, 2, size), torch.inf))),
        ("reset with a mask too long", lambda: world.reset(options={"mask": torch.ones(b + 1, dtype=torch.bool)})),
        ("reset with a seed too few", lambda: world.reset(seed=list(range(b - 1)))),
        ("restore of one row too few", lambda: world.restore(state[list(range(b - 1))])),
    ]
    for what, call in wrong:
        try:
            call()
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"{what} must raise ValueError, got {type(error).__name__}: {error}") from error
        raise AssertionError(f"{what} must raise ValueError, it was accepted")
    _assert_equal(state, world.snapshot(), "the state before and after refused calls")


# Internals --------------------------------------------------------------------------------------------------------------


def _actions(world: World, steps: int, seed: int) -> Tensor:
    """Random actions [b, steps, ad] in [-1, 1]."""
    shape = (world.num_envs, steps, *world.single_action_space.shape)
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 1


def _check_autoreset(obs: Observation, final_obs: Observation, ended: Tensor) -> None:
    if ended.any():
        same = all(torch.equal(obs.images[c][i], final_obs.images[c][i]) for c in obs.images for i in _indices(ended))
        assert not same or not torch.equal(obs.state[ended], final_obs.state[ended]), (
            "obs must be the new episode's first observation after an end, it is the old one's last; autoreset is SAME_STEP"
        )


def _counted(world: World, actions: Tensor) -> ChunkResult:
    """A chunk whose result is sound and whose steps were counted."""
    count = world.physics_steps
    result = world.step_chunk(actions)
    counted, executed = world.physics_steps - count, int(result.valid.sum())
    _check_chunk_result(world, result, actions.shape[1])
    assert counted in (0, executed), f"physics_steps grew by {counted} for {executed} executed steps"
    return result


Step = tuple[Observation, Tensor, Tensor, Tensor, Judgement]


def _play(world: World, actions: Tensor) -> list[Step]:
    """Single steps: observation, reward, terminated, truncated and the last frame's judgement of each; checks the counter."""
    plays = []
    for k in range(actions.shape[1]):
        count = world.physics_steps
        obs, reward, terminated, truncated, info = world.step(actions[:, k])
        counted = world.physics_steps - count
        assert counted in (0, world.num_envs), f"physics_steps grew by {counted} in one step of {world.num_envs} environments"
        plays.append((obs, reward, terminated, truncated, info["final_judge"]))
    assert world.physics_steps == 0 or world.physics_steps >= actions.shape[1], "physics_steps must count every control step"
    return plays


def _take(play: Any, index: Any) -> Any:
    if isinstance(play, tuple):
        return tuple(_take(value, index) for value in play)
    return play[index]


def _flip(play: Step) -> Step:
    return _take(play, list(range(len(play[1])))[::-1])


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _check_observation(world: World, obs: Any, source: str) -> None:
    assert isinstance(obs, Observation), f"{source} must give an Observation, got {type(obs).__name__}"
    assert len(obs.instruction) == world.num_envs, f"{source} gives {len(obs.instruction)} instructions, expected {world.num_envs}"
    for i in range(world.num_envs):
        images = {camera: image[i].cpu().numpy() for camera, image in obs.images.items()}
        row = {"images": images, "state": obs.state[i].cpu().numpy(), "instruction": obs.instruction[i]}
        for name, space in world.single_observation_space.spaces.items():
            found = {c: (v.dtype.name, v.shape) for c, v in images.items()} if name == "images" else repr(row[name])
            assert space.contains(row[name]), f"{source}: {name} of environment {i} lies outside {space}: {found}"
        assert set(row) == set(world.single_observation_space.spaces), (
            "single_observation_space must have images, state, instruction"
        )


def _check_tensor(value: Any, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    assert isinstance(value, Tensor), f"{name} must be a torch tensor, got {type(value).__name__}"
    assert value.shape == shape, f"{name} must have shape {shape}, got {tuple(value.shape)}"
    assert value.dtype == dtype, f"{name} must be {dtype}, got {value.dtype}"
    assert not value.is_floating_point() or bool(torch.isfinite(value).all()), f"{name} must be finite, got {value}"


def _check_chunk_result(world: World, result: ChunkResult, chunk: int) -> None:
    _check_observation(world, result.obs, "step_chunk's obs")
    _check_observation(world, result.final_obs, "step_chunk's final_obs")
    for name in ("reward", "terminated", "truncated", "valid"):
        dtype = torch.float32 if name == "reward" else torch.bool
        _check_tensor(getattr(result, name), (world.num_envs, chunk), dtype, f"step_chunk's {name}")
    over = result.terminated | result.truncated
    assert not (result.terminated & result.truncated).any(), "an action is both terminated and truncated; success comes first"
    assert (over.sum(1) <= 1).all(), f"an episode ended twice in one chunk: {over.tolist()}"
    dropped = over.int().cumsum(1).roll(1, dims=1) > 0
    dropped[:, 0] = False
    assert torch.equal(result.valid, ~dropped), f"valid must be False after the end and only there, got {result.valid.tolist()}"
    assert (result.reward[dropped] == 0).all(), f"reward must be 0 after the end of an episode, got {result.reward.tolist()}"


def _assert_close(a: Tensor, b: Tensor, tolerance: float, what: str) -> None:
    assert a.shape == b.shape, f"{what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}"
    if a.numel():
        error = (a.double() - b.double()).abs().max().item()
        assert error <= tolerance, f"{what} differ by {error:.2g}, more than {tolerance}"


def _assert_same_play(first: list[Step], second: list[Step], what: str) -> None:
    for k, (a, b) in enumerate(zip(first, second, strict=True), start=1):
        _assert_equal(a[0], b[0], f"{what}: observations after {k} steps")
        _assert_close(a[1], b[1], REWARD_TOLERANCE, f"{what}: rewards of step {k}")
        assert torch.equal(a[2], b[2]), f"{what}: terminated of step {k} differs"
        assert torch.equal(a[3], b[3]), f"{what}: truncated of step {k} differs"
        assert torch.equal(a[4].success, b[4].success), f"{what}: judged success of step {k} differs"
        _assert_close(a[4].progress, b[4].progress, REWARD_TOLERANCE, f"{what}: judged progress of step {k}")


def _assert_equal(a: Any, b: Any, what: str) -> None:
    """Two observations, states or steps are equal up to the tolerances."""
    if isinstance(a, TensorBatch):
        for name, value in vars(a).items():
            _assert_equal(value, getattr(b, name), f"{what}: {name}")
    elif isinstance(a, dict):
        assert set(a) == set(b), f"{what} differ in their keys: {sorted(a)} and {sorted(b)}"
        for name in a:
            _assert_equal(a[name], b[name], f"{what}: {name}")
    elif isinstance(a, tuple) and any(isinstance(value, Tensor | TensorBatch) for value in a):
        for left, right in zip(a, b, strict=True):
            _assert_equal(left, right, what)
    elif isinstance(a, Tensor) and a.dtype == torch.uint8:
        assert a.shape == b.shape, f"{what} differ in shape: {tuple(a.shape)} and {tuple(b.shape)}"
        if a.numel():
            error = (a.float() - b.float()).abs().flatten(1).mean(1).max().item()
            assert error <= PIXEL_TOLERANCE, f"{what} differ by {error:.2g} of 255 on average, more than {PIXEL_TOLERANCE}"
    elif isinstance(a, Tensor):
        _assert_close(a, b, STATE_TOLERANCE if a.is_floating_point() else 0, what)
    else:
        assert a == b, f"{what} differ: {a!r} and {b!r}"
