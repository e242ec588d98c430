"""Whoever plays: each start once, in order, with the same noise whatever else is played; rates are those of the starts."""

from types import SimpleNamespace

import pytest
import torch
from gymnasium.spaces import Box
from known_world import LIMIT, KnownActor, KnownWorld, expected_chunk, truth

from worldsim.core.noise import Noise
from worldsim.measure.collect import ExpertActor, PlayActor, collect, play, unwatched
from worldsim.measure.evaluate import evaluate
from worldsim.measure.metrics import success_rate

SEED = 11


@pytest.mark.parametrize(("num_envs", "episodes"), [(1, 3), (3, 8), (5, 5), (4, 3)])
@pytest.mark.parametrize(("ah", "executed"), [(4, None), (4, 3), (1, None), (3, 9)])
def test_every_value_of_every_start(num_envs: int, episodes: int, ah: int, executed: int | None):
    world = KnownWorld(num_envs)
    recorded = list(collect(world, KnownActor(ah), episodes=episodes, seed=SEED, n_action_steps=executed))
    success, length = truth(range(SEED, SEED + episodes), world.p)
    assert len(recorded) == episodes
    played = ah if executed is None else min(ah, executed)
    for k, episode in enumerate(recorded):
        t, seed = int(length[k]), SEED + k
        assert episode.instruction == f"start {seed}" and episode.source == "policy"
        assert episode.state.tolist() == [[seed, step] for step in range(t + 1)]
        assert episode.images["front"][:, 0, 0, 0].tolist() == list(range(t + 1)), "the last frame is the episode's own"
        assert episode.reward.tolist() == list(range(1, t + 1))
        assert (episode.success == 1).tolist() == [False] * t + [bool(success[k])]
        torch.testing.assert_close(episode.progress, torch.arange(t + 1) / LIMIT)
        # A chunk is decided at steps 0, n, 2 n, ... of each episode, whatever the other environments do.
        at = torch.arange(0, t, played)
        decided = expected_chunk(Noise(torch.full_like(at, seed), torch.zeros_like(at), at), ah)[:, :played]
        torch.testing.assert_close(episode.action, decided.flatten(0, 1)[:t], rtol=0, atol=0)
    asked = [seed for reset in world.resets for seed in reset if seed < SEED + episodes]
    assert sorted(asked) == list(range(SEED, SEED + episodes)), "each start is played once"


@pytest.mark.parametrize("p", [0.6, 0.8])
def test_rates_are_those_of_the_starts_and_not_of_the_first_to_end(p: float):
    """Successes take 10 to 29 steps, failures 40: of 64 environments the first 64 episodes to end would be far too good."""
    rates = []
    for num_envs, episodes in ((64, 400), (16, 400), (7, 400), (512, 400)):
        outcome = evaluate(KnownWorld(num_envs, p), KnownActor(4), episodes=episodes, seed=SEED)
        success, length = truth(range(SEED, SEED + episodes), p)
        assert torch.equal(outcome.success, success) and torch.equal(outcome.length, length)
        assert outcome.starts.state[:, 0, 0].tolist() == list(range(SEED, SEED + episodes))
        rates.append(success_rate(outcome.success))
    low, high = rates[0]["ci95"]
    assert low < p < high and all(rate == rates[0] for rate in rates)
    recorded = [bool(e.success[-1] == 1) for e in collect(KnownWorld(64, p), KnownActor(4), episodes=64, seed=SEED)]
    assert recorded == truth(range(SEED, SEED + 64), p)[0].tolist()


def test_another_stream_is_other_noise_on_the_same_starts():
    def actions(stream: int) -> torch.Tensor:
        world = KnownWorld(3)
        turns = play(world, KnownActor(4), unwatched(world), episodes=3, seed=SEED, stream=stream)
        return next(turns).actions

    assert torch.equal(actions(0), actions(0)) and not torch.equal(actions(0), actions(1))
    again = evaluate(KnownWorld(3), KnownActor(4), episodes=7, seed=SEED, stream=1)
    assert torch.equal(again.success, truth(range(SEED, SEED + 7), 0.6)[0])


@pytest.mark.parametrize("steps", [0, -1, 1.5, "two"])
def test_impossible_parts_of_chunks_are_refused(steps):
    with pytest.raises(ValueError, match="n_action_steps must be an integer from 1 on"):
        evaluate(KnownWorld(), KnownActor(4), episodes=3, seed=0, n_action_steps=steps)


def test_no_episodes_are_refused():
    with pytest.raises(ValueError, match="episodes must be at least 1, got 0"):
        evaluate(KnownWorld(), KnownActor(4), episodes=0, seed=0)


class Table:
    """A table with a block, a pusher and two discs per environment, placed by its seed."""

    max_delta_m = 0.03
    single_action_space = Box(-1, 1, (2,))

    def __init__(self, seeds: list[int]):
        self.unwrapped, self.seeds = self, torch.tensor(seeds)
        places = Noise(self.seeds, 0 * self.seeds, 0 * self.seeds).uniform("places", 4, 2) - 0.5
        self.goals = places[:, :2]
        self.facts = SimpleNamespace(block=places[:, 2], goal=places[:, 0], pusher=places[:, 3])

    def truth(self) -> SimpleNamespace:
        return self.facts

    def require(self, *asked) -> "Table":
        return self

    def clipped(self, actions: torch.Tensor) -> torch.Tensor:
        return actions.clamp(-1, 1)

    def expert(self) -> torch.Tensor:
        return self.facts.block


def acts(actor, seeds: list[int], steps: int) -> torch.Tensor:
    table, zeros = Table(seeds), torch.zeros(len(seeds), dtype=torch.long)
    chunks = [actor.act(table, None, Noise(torch.tensor(seeds), zeros, zeros + step)) for step in range(steps)]
    return torch.stack(chunks, dim=1)[:, :, 0]


@pytest.mark.parametrize("make", [PlayActor, lambda: ExpertActor(0.2)])
def test_scripted_actors_do_the_same_on_a_start_whatever_else_is_played(make):
    actor = make()
    alone, together = acts(actor, [7], 40), acts(actor, [3, 9, 7, 5], 40)
    assert torch.equal(alone[0], together[2]), "one actor moves between worlds of any size"
    assert not torch.equal(together[0], together[1])


def test_the_noise_of_play_remembers_seventy_percent_and_begins_afresh():
    actor, table, zeros = PlayActor(), Table([4, 8]), torch.zeros(2, dtype=torch.long)
    noise = Noise(torch.tensor([4, 8]), zeros, zeros)
    before = zeros[:, None].float()
    for step in (0, 1, 2, 0):
        actor.act(table, None, noise.at(step))
        before = actor.drift if step == 0 else 0.7 * before + 0.51**0.5 * noise.at(step).normal("play.drift", 2)
        torch.testing.assert_close(actor.drift, before)
    torch.testing.assert_close(actor.drift, 0.51**0.5 * noise.at(0).normal("play.drift", 2))


def test_play_wishes_anew_when_its_patience_is_over():
    """Without noise the push only turns with the wish, since nothing moves here: at steps 5 and 10."""
    directions = acts(PlayActor(levels=(0.0,), patience=5), list(range(50)), 15)
    changed = (directions.diff(dim=1).abs().sum(-1) > 1e-6).any(dim=0)
    assert changed.nonzero().flatten().tolist() == [4, 9]
