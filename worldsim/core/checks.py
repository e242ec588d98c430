"""`check_world`: the contract of `World` as one executable test, in the spirit of Gymnasium's `check_env`.

Every world of the repository passes it in the tests, and whoever adds one calls it first. It finds what breaks reinforcement
learning quietly: environments that disturb each other, snapshots that forget something, ends that leak into the next episode.
Read `worldsim/worlds/genesis/world.py` next, or `worldsim/worlds/dream.py`: two implementations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from worldsim.core.comparison import REWARD_TOLERANCE, assert_close, assert_equal
from worldsim.core.types import Judgement, Observation
from worldsim.core.world import Branchable, ChunkResult, World

SEEDS = 10  # so many starts are tried to find episodes that do not end too early


def check_world(world: World, *, seed: int = 0, chunk: int = 4) -> list[str]:
    """Assert that `world` keeps the contract of `World`, and of `Branchable` if it has that ability; takes about five episodes.

    Args:
        world: two environments or more; it is reset and left in an arbitrary state.
        seed: of the episodes and of the random actions.
        chunk: ah of the chunks that are played, and compared with single steps where the world is causal.

    Returns:
        What was left out because the world lacks the ability, one line each.

    Raises:
        AssertionError: with what was expected and what happened.
    """
    assert world.num_envs >= 2, f"check_world needs num_envs >= 2 to see environments disturb each other, got {world.num_envs}"
    assert 3 <= chunk < world.max_episode_steps, f"chunk must be in [3, {world.max_episode_steps}), got {chunk}"
    check_spaces(world, seed)
    check_seeds(world, seed)
    check_masked_reset(world, seed)
    check_chunk(world, seed, chunk)
    check_ends(world, seed, chunk)
    check_errors(world, seed)
    if not world.able(Branchable):
        return ["not Branchable: that snapshots hold all, that restored environments repeat, which episode follows an end"]
    check_restore(world, seed)
    check_branches(world, seed, chunk)
    return []


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
        _check_tensor(world, value, (world.num_envs,), kind, f"step's {name}")
    missing = {"final_obs", "_final_obs", "final_judge", "is_success"} - set(info)
    assert not missing, f"step's info lacks {sorted(missing)}"
    _check_observation(world, info["final_obs"], "info['final_obs']")
    for name in ("_final_obs", "is_success"):
        _check_tensor(world, info[name], (world.num_envs,), torch.bool, f"info['{name}']")
    for judgement in (info["final_judge"], world.judge()):
        assert isinstance(judgement, Judgement), f"a judgement must be a Judgement, got {type(judgement).__name__}"
        _check_tensor(world, judgement.success, (world.num_envs,), torch.bool, "the judgement's success")
        progress = judgement.progress
        _check_tensor(world, progress.nan_to_num(), (world.num_envs,), torch.float32, "the judgement's progress")
        assert (progress.isnan() | (progress >= 0) & (progress <= 1)).all(), f"progress must be in [0, 1] or NaN, got {progress}"
    frames = world.render()
    assert frames is not None, "render must return frames"
    assert len(frames) == world.num_envs, f"render must return one frame per environment, got {len(frames)}"


def check_seeds(world: World, seed: int) -> None:
    """One seed, one trajectory; environment i gets seed + i; a seed belongs to an episode, not to a place in the batch."""
    actions = _actions(world, 3, seed)
    first, _ = world.reset(seed=seed)
    one = _play(world, actions)
    again, _ = world.reset(seed=seed)
    assert_equal(first, again, "the first observation after reset(seed) twice")
    _assert_same_play(one, _play(world, actions), "a trajectory after reset(seed) twice")
    seeds = [seed + i for i in range(world.num_envs)]
    listed, _ = world.reset(seed=seeds)
    assert_equal(first, listed, f"reset(seed={seed}) and reset(seed={seeds})")
    backwards, _ = world.reset(seed=seeds[::-1])
    assert_equal(first, backwards[list(range(world.num_envs))[::-1]], "observations of the same seeds in reversed order")
    _assert_same_play(
        one, [_flip(play) for play in _play(world, actions.flip(0))], "trajectories of the same seeds in reversed order"
    )


def check_masked_reset(world: World, seed: int) -> None:
    """A reset with a mask resets the masked environments, and touches neither the present nor the future of the others."""
    lead, actions = _actions(world, 2, seed), _actions(world, 3, seed + 1)
    mask = torch.arange(world.num_envs, device=world.device) % 2 == 0
    world.reset(seed=seed)
    latest = _play(world, lead)[-1][0]
    undisturbed = _play(world, actions)
    world.reset(seed=seed)
    _play(world, lead)
    obs, _ = world.reset(options={"mask": mask})
    assert_equal(latest[~mask], obs[~mask], "the observation of environments that a mask kept from being reset")
    disturbed = _play(world, actions)
    _assert_same_play(
        [_take(p, ~mask) for p in undisturbed],
        [_take(p, ~mask) for p in disturbed],
        "the future of environments beside a masked reset",
    )
    world.reset(seed=seed)
    _play(world, lead)
    seeded, _ = world.reset(seed=seed + 100, options={"mask": mask})
    assert_equal(latest[~mask], seeded[~mask], "the observation of environments beside a masked reset with a seed")
    fresh, _ = world.reset(seed=seed + 100)
    assert_equal(fresh[mask], seeded[mask], "the first observation of a masked reset with a seed and of a whole one")


def check_restore(world: Any, seed: int) -> None:
    """`snapshot` and `restore` repeat a trajectory, and a row copied to every environment makes all of them equal."""
    world.reset(seed=seed)
    _play(world, _actions(world, 3, seed))
    state = world.snapshot()
    rows = list(range(world.num_envs))
    kept = state[rows]
    actions = _actions(world, 4, seed + 1)
    original = _play(world, actions)
    assert_equal(kept, state, "a snapshot and its copy after the world went on (it must not share memory with the world)")
    obs = world.restore(state)
    _check_observation(world, obs, "restore")
    assert_equal(state, world.snapshot(), "a snapshot and the snapshot taken after restoring it")
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
            assert_equal(_take(play, [0]), _take(play, [i]), f"environments 0 and {i}, both restored from row 0, after {k} steps")


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
    assert_equal(result.obs[alive], result.final_obs[alive], "obs and final_obs of a chunk in which no episode ended")
    after = _play(world, follow)
    world.reset(seed=attempt)
    watched, seen = world.watch_chunk(actions)
    assert_equal(watched, result, "a chunk that is watched and one that is not")
    assert len(seen) == chunk, f"watch_chunk must show {chunk} actions, got {len(seen)}"
    assert_equal(seen[-1][0], result.final_obs, "final_obs and what was seen last")
    assert_equal(seen[-1][1], result.final_judge, "final_judge and what was judged last")
    if not world.causal:
        return
    world.reset(seed=attempt)
    for k, (obs, reward, terminated, truncated, judged) in enumerate(_play(world, actions)):
        what = f"of a chunk and of single steps, after {k + 1} of {chunk} actions"
        assert_close(reward[alive], result.reward[alive, k], REWARD_TOLERANCE, f"rewards {what}")
        assert not (terminated | truncated)[alive].any(), f"chunks and single steps disagree on whether an episode ends: {what}"
        assert_equal(obs[alive], seen[k][0][alive], f"observations {what}")
        assert_equal(judged[alive], seen[k][1][alive], f"judgements {what}")
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
    result = _counted(world, actions)
    again = world.step_chunk(_actions(world, limit, seed + 2))
    ended = (result.terminated | result.truncated).int().argmax(dim=1)
    assert result.done[alive].all(), (
        f"an episode went on beyond max_episode_steps = {limit}: truncated is {result.truncated.tolist()}"
    )
    on_time = alive & (ended == tail - 1)
    assert (ended[alive] <= tail - 1).all(), f"an episode was truncated later than after max_episode_steps = {limit} steps"
    early = alive & (ended < tail - 1)
    assert result.terminated[early].any(dim=1).all(), f"an episode was truncated before max_episode_steps = {limit} steps"
    length = again.valid.sum(1)[result.done & ~again.terminated.any(dim=1)]
    assert (length == limit).all(), f"the episode after an autoreset lasted {length.tolist()} steps, expected {limit}"

    world.reset(seed=attempt)
    world.step_chunk(lead)
    watched, seen = world.watch_chunk(actions)
    assert_equal(watched, result, "a chunk with an end that is watched and one that is not")
    assert_equal(seen[-1], (result.final_obs, result.final_judge), "what was seen last and final_obs, final_judge")
    _check_autoreset(result.obs, result.final_obs, on_time)

    world.reset(seed=attempt)
    world.step_chunk(lead)
    lived = alive.clone()
    for k in range(tail):
        obs, reward, terminated, truncated, info = world.step(actions[:, k])
        over = terminated | truncated
        assert torch.equal(info["_final_obs"], over), "info['_final_obs'] must mark the environments whose episode ended"
        judge = world.judge()
        assert_close(
            judge.progress[~over], info["final_judge"].progress[~over], REWARD_TOLERANCE, "judge() and final_judge before an end"
        )
        assert_equal(obs[~over], info["final_obs"][~over], "obs and final_obs where no episode ended")
        assert k + 1 < tail or over[lived].all(), f"a step did not end the episode after max_episode_steps = {limit} steps"
        _check_autoreset(obs, info["final_obs"], over)
        lived &= ~over
    if world.causal and on_time.any():
        what = "of an episode that single steps and a chunk brought to its end"
        assert_equal(info["final_obs"][on_time], result.final_obs[on_time], f"final_obs {what}")
        if world.able(Branchable):  # which can also put back what stepped beyond an end
            assert_equal(obs[on_time], result.obs[on_time], f"the next episode's first observation {what}")


def check_branches(world: Any, seed: int, chunk: int) -> None:
    """A snapshot knows whom a masked reset leaves alone, where an autoreset led, and that refused calls change nothing."""
    mask = torch.arange(world.num_envs, device=world.device) % 2 == 0
    world.reset(seed=seed)
    _play(world, _actions(world, 2, seed))
    before = world.snapshot()
    for more in ({}, {"seed": seed + 100}):
        world.reset(**more, options={"mask": mask})
        assert_equal(before[~mask], world.snapshot()[~mask], "the snapshot of environments that a mask kept from being reset")
        world.restore(before)
    for name, actions in (("autoreset", _actions(world, world.max_episode_steps, seed)), ("a chunk", _actions(world, chunk, seed))):
        obs = world.step_chunk(actions).obs
        assert_equal(obs, world.restore(world.snapshot()), f"obs after {name} and the observation of the state reached")
    state = world.snapshot()
    rows = list(range(world.num_envs - 1))
    _check_refused([("restore of one row too few", lambda: world.restore(state[rows])), *_wrong_calls(world)])
    assert_equal(state, world.snapshot(), "the state before and after refused calls")


def check_errors(world: World, seed: int) -> None:
    """Wrong arguments are refused with a ValueError, and change nothing."""
    actions = _actions(world, 2, seed)
    world.reset(seed=seed)
    undisturbed = _play(world, actions)
    world.reset(seed=seed)
    _check_refused(_wrong_calls(world))
    _assert_same_play(undisturbed, _play(world, actions), "what follows with and without refused calls")


# Internals --------------------------------------------------------------------------------------------------------------


def _wrong_calls(world: World) -> list[tuple[str, Callable[[], Any]]]:
    b, (size,) = world.num_envs, world.single_action_space.shape
    nan = torch.zeros(b, size)
    nan[-1, -1] = torch.nan
    return [
        ("step with an action too few", lambda: world.step(torch.zeros(b - 1, size))),
        ("step with an action dimension too many", lambda: world.step(torch.zeros(b, size + 1))),
        ("step with a chunk", lambda: world.step(torch.zeros(b, 2, size))),
        ("step with NaN", lambda: world.step(nan)),
        ("step_chunk with a single action", lambda: world.step_chunk(torch.zeros(b, size))),
        ("step_chunk with infinity", lambda: world.step_chunk(torch.full((b, 2, size), torch.inf))),
        ("reset with a mask too long", lambda: world.reset(options={"mask": torch.ones(b + 1, dtype=torch.bool)})),
        ("reset with a seed too few", lambda: world.reset(seed=list(range(b - 1)))),
    ]


def _check_refused(calls: list[tuple[str, Callable[[], Any]]]) -> None:
    for what, call in calls:
        try:
            call()
        except ValueError:
            continue
        except Exception as error:
            raise AssertionError(f"{what} must raise ValueError, got {type(error).__name__}: {error}") from error
        raise AssertionError(f"{what} must raise ValueError, it was accepted")


def _actions(world: World, steps: int, seed: int) -> Tensor:
    """Random actions [b, steps, ad] within the limits of the action space."""
    low, high = (torch.as_tensor(bound) for bound in (world.single_action_space.low, world.single_action_space.high))
    shape = (world.num_envs, steps, *low.shape)
    return (low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))).to(world.device)


def _check_autoreset(obs: Observation, final_obs: Observation, ended: Tensor) -> None:
    if ended.any():
        same = all(torch.equal(obs.images[c][i], final_obs.images[c][i]) for c in obs.images for i in _indices(ended))
        assert not same or not torch.equal(obs.state[ended], final_obs.state[ended]), (
            "obs must be the new episode's first observation after an end, it is the old one's last; autoreset is SAME_STEP"
        )


def _counted(world: World, actions: Tensor) -> ChunkResult:
    """A chunk whose result is sound and whose steps were counted, those beyond an end too if they were executed."""
    count = world.physics_steps
    result = world.step_chunk(actions)
    counted, executed = world.physics_steps - count, int(result.valid.sum())
    _check_chunk_result(world, result, actions.shape[1])
    most = actions.shape[1] * world.num_envs
    expected = range(executed, most + 1) if world.physics else (0,)
    assert counted in expected, f"physics_steps grew by {counted} for {executed} executed steps of a world with {world.physics=}"
    return result


Step = tuple[Observation, Tensor, Tensor, Tensor, Judgement]


def _play(world: World, actions: Tensor) -> list[Step]:
    """Single steps: observation, reward, terminated, truncated and the last frame's judgement of each; checks the counter."""
    plays = []
    for k in range(actions.shape[1]):
        count = world.physics_steps
        obs, reward, terminated, truncated, info = world.step(actions[:, k])
        counted = world.physics_steps - count
        expected = world.num_envs * world.physics
        assert counted == expected, f"physics_steps grew by {counted} in one step of {world.num_envs} environments, not {expected}"
        assert torch.equal(info["is_success"], info["final_judge"].success), "is_success must be what the judge says of the end"
        plays.append((obs, reward, terminated, truncated, info["final_judge"]))
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
    for name, value in {**obs.images, "state": obs.state}.items():
        assert value.device == world.device, f"{source}: {name} lies on {value.device}, world.device is {world.device}"
    for i in range(world.num_envs):
        images = {camera: image[i].cpu().numpy() for camera, image in obs.images.items()}
        row = {"images": images, "state": obs.state[i].cpu().numpy(), "instruction": obs.instruction[i]}
        for name, space in world.single_observation_space.spaces.items():
            found = {c: (v.dtype.name, v.shape) for c, v in images.items()} if name == "images" else repr(row[name])
            assert space.contains(row[name]), f"{source}: {name} of environment {i} lies outside {space}: {found}"
        assert set(row) == set(world.single_observation_space.spaces), (
            "single_observation_space must have images, state, instruction"
        )


def _check_tensor(world: World, value: Any, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    assert isinstance(value, Tensor), f"{name} must be a torch tensor, got {type(value).__name__}"
    assert value.shape == shape, f"{name} must have shape {shape}, got {tuple(value.shape)}"
    assert value.dtype == dtype, f"{name} must be {dtype}, got {value.dtype}"
    assert value.device == world.device, f"{name} lies on {value.device}, world.device is {world.device}"
    assert not value.is_floating_point() or bool(torch.isfinite(value).all()), f"{name} must be finite, got {value}"


def _check_chunk_result(world: World, result: ChunkResult, chunk: int) -> None:
    _check_observation(world, result.obs, "step_chunk's obs")
    _check_observation(world, result.final_obs, "step_chunk's final_obs")
    for name in ("reward", "terminated", "truncated", "valid"):
        dtype = torch.float32 if name == "reward" else torch.bool
        _check_tensor(world, getattr(result, name), (world.num_envs, chunk), dtype, f"step_chunk's {name}")
    over = result.terminated | result.truncated
    assert not (result.terminated & result.truncated).any(), "an action is both terminated and truncated; success comes first"
    assert (over.sum(1) <= 1).all(), f"an episode ended twice in one chunk: {over.tolist()}"
    dropped = over.int().cumsum(1).roll(1, dims=1) > 0
    dropped[:, 0] = False
    assert torch.equal(result.valid, ~dropped), f"valid must be False after the end and only there, got {result.valid.tolist()}"
    assert (result.reward[dropped] == 0).all(), f"reward must be 0 after the end of an episode, got {result.reward.tolist()}"


def _assert_same_play(first: list[Step], second: list[Step], what: str) -> None:
    for k, (a, b) in enumerate(zip(first, second, strict=True), start=1):
        assert_equal(a[0], b[0], f"{what}: observations after {k} steps")
        assert_close(a[1], b[1], REWARD_TOLERANCE, f"{what}: rewards of step {k}")
        assert torch.equal(a[2], b[2]), f"{what}: terminated of step {k} differs"
        assert torch.equal(a[3], b[3]), f"{what}: truncated of step {k} differs"
        assert torch.equal(a[4].success, b[4].success), f"{what}: judged success of step {k} differs"
        assert_close(a[4].progress, b[4].progress, REWARD_TOLERANCE, f"{what}: judged progress of step {k}")
