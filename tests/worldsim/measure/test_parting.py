"""Where dreams leave recordings, and recordings that go back there."""

import json
from pathlib import Path

import pytest
import torch
from known_world import KnownActor, KnownWorld
from torch import Tensor
from toy_dots import EPISODES, VIEWS, Dots, wandering

from training.app.verbs import _store
from worldsim.core.interfaces import Policy
from worldsim.core.noise import Noise
from worldsim.core.types import Observation
from worldsim.core.units import Units
from worldsim.data.lerobot import Dataset
from worldsim.data.store import FrameStore
from worldsim.measure import recorded
from worldsim.measure.doubt import TOLERATED
from worldsim.measure.parting import STARTS, Parting, RevisitActor, named, partings, show, write

SEED = 40


class Chance(Policy):
    """Actions by chance alone, two at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.views, self.action_horizon, self.action_dim = {"front": (8, 8)}, 2, 1
        self.state_units, self.action_units = Units(2), Units(1)

    def act(self, obs: Observation, noise: Noise, committed: Tensor | None = None) -> Tensor:
        return 0.5 * noise.normal("chance", 2, 1).tanh()


def test_the_first_frame_that_is_wrong_is_named_by_dataset_and_step(tmp_path: Path) -> None:
    """Two datasets, of which the last half is held out; dreams of four steps, so that a later one of an episode may part first."""
    roots = [str(tmp_path / name) for name in "ab"]
    for root in roots:
        wandering(Path(root))
    table, names = FrameStore.read_held_out(roots, VIEWS, held_out=0.5), named(roots, 0.5)
    assert names == [(root, i) for root in roots for i in range(EPISODES // 2, EPISODES)]
    assert named(roots, 1)[EPISODES - 1 : EPISODES + 1] == [(roots[0], EPISODES - 1), (roots[1], 0)]
    rows, steps = recorded.starts(table, 4, 1000), 4
    assert partings(recorded.hold(Dots(), table, rows, steps=steps), table, rows, names) == []
    still = recorded.hold(Dots(gain=1e-9), table, rows, steps=steps)
    found, front = partings(still, table, rows, names), still.pictures["front"]
    assert len({(one.root, one.episode) for one in found}) == len(found) > EPISODES // 2
    unit = max(float(front.still[:, k][still.valid[:, k]].mean()) for k in range(steps))
    for one in found:
        number = names.index((one.root, one.episode))
        first = int((table.episode == number).nonzero()[0])
        wrong = [
            int(rows[dream]) - first + k + 1
            for dream in (still.episode == number).nonzero().flatten().tolist()
            for k in range(steps)
            if still.valid[dream, k] and front.own[dream, k] / unit > TOLERATED
        ]
        assert one.step == min(wrong) and one.error > TOLERATED
    assert max(one.step for one in found) > 4, "counted from the episode's start, not from the dream's"
    show(Dots(), table, found, names, tmp_path / "partings.png", seed=0)
    assert (tmp_path / "partings.png").stat().st_size > 1000


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("parting") / "data"
    _store(KnownWorld(3), KnownActor(4), root, episodes=6, seed=SEED)
    return root


def revisiting(data: Path, file: Path, *found: tuple[int, int], before: int = 4) -> RevisitActor:
    write([Parting(str(data), episode, step, 1.0) for episode, step in found], file)
    return RevisitActor(Chance(), str(file), before)


def test_a_recording_goes_back_to_shortly_before_and_on_from_there(data: Path, tmp_path: Path) -> None:
    assert json.loads((data / STARTS).read_text())["seeds"] == list(range(SEED, SEED + 6))
    actor = revisiting(data, tmp_path / "partings.json", (4, 9), (0, 3), (2, 14), (5, 11), before=4)
    _store(KnownWorld(2), actor, tmp_path / "more", episodes=2, seed=1)  # the second and third of them, and one more
    _store(KnownWorld(2), actor, tmp_path / "more", episodes=3, seed=1)
    before, after = (list(Dataset(root).episodes()) for root in (data, tmp_path / "more"))
    assert [episode.instruction for episode in after] == [f"start {SEED + k}" for k in (0, 2, 5)]
    assert json.loads((tmp_path / "more" / STARTS).read_text())["seeds"] == [SEED, SEED + 2, SEED + 5]
    for episode, number, replayed in zip(after, (0, 2, 5), (0, 10, 7), strict=True):
        old, new = before[number].action, episode.action
        torch.testing.assert_close(new[:replayed], old[:replayed], rtol=0, atol=0)
        own = torch.tensor([k - k % 2 for k in range(len(new))])  # chunks of two, decided at even steps
        row = torch.full_like(own, SEED + number)
        chance = 0.5 * Noise(row, 0 * row, own, 1).normal("chance", 2, 1).tanh()
        expected = chance[torch.arange(len(own)), torch.arange(len(own)) % 2]
        torch.testing.assert_close(new[replayed:], expected[replayed:])


def test_what_cannot_be_revisited_is_said(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "partings.json"
    actor = revisiting(data, file, (4, 9), (0, 3))
    for seed, episodes in ((0, 3), (2, 1), (-1, 1)):
        with pytest.raises(ValueError, match=f"has 2 partings, got {episodes} episodes from the one of number seed={seed}"):
            actor.check_starts(seed, episodes)
    with pytest.raises(ValueError, match="has no parting to go back to"):
        revisiting(data, file)
    for text in ("{}", "[1]", "no", '{"partings": [{"root": "x"}]}'):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"partings.json is no partings.json of worldsim evaluate"):
            RevisitActor(Chance(), str(file))
    starts = (data / STARTS).read_text()
    world = KnownWorld()
    world.action_channels = tuple(type(one)("b", low=-1, high=1) for one in world.action_channels)  # type: ignore[misc]
    with pytest.raises(ValueError, match="of recordings with the actions a, the world has b; revisit that world"):
        _store(world, actor, tmp_path / "other", episodes=1, seed=0)
    try:
        (data / STARTS).write_text('{"seeds": [40, 41]}')
        with pytest.raises(ValueError, match="has 6 episodes, and .* says from which starts 2 of them were recorded"):
            revisiting(data, file, (4, 9))
        (data / STARTS).write_text('{"seeds": [900000000, 41, 42, 43, 44, 45]}')
        with pytest.raises(ValueError, match="900"):
            revisiting(data, file, (0, 9)).check_starts(0, 1)
        (data / STARTS).unlink()
        with pytest.raises(ValueError, match="does not say from which starts it was recorded"):
            revisiting(data, file, (4, 9))
    finally:
        (data / STARTS).write_text(starts)
