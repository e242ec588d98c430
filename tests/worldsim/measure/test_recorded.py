"""Models held to recorded episodes of a dot that goes where it is told: a right one, and those with a fault that must be found."""

import math
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_dots import EPISODES, SIZE, STEPS, Dots, wandering

from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.types import Reflection
from worldsim.data.store import FrameStore
from worldsim.measure import judging, recorded, trust
from worldsim.measure.judging import Succeeded
from worldsim.worlds.dream import DreamWorld, Starts

_SPEC = spec_from_file_location("planted_models", Path(__file__).parents[3] / "benchmarks" / "planted_models.py")
planted_models = module_from_spec(_SPEC)  # type: ignore[arg-type]
_SPEC.loader.exec_module(planted_models)  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return wandering(tmp_path_factory.mktemp("dots") / "data")


class RightOf(Reflector):
    """Sees how far right the white is; a success is right of `line`."""

    views = {"front": (SIZE, SIZE)}

    def __init__(self, line: float = 0.0, context: int = 1, consecutive: int = 1, window: int = 1, every: int = 1):
        super().__init__()
        self.line, self.context, self.consecutive, self.window, self.every = line, context, consecutive, window, every
        self.register_buffer("threshold", torch.tensor(0.5))

    def judge(self, clip: Any, instruction: Sequence[str]) -> Reflection:
        frames = clip["front"]
        assert frames.shape[1] == self.context
        frames = frames[:, -1].float() / (255 if frames.dtype == torch.uint8 else 1)
        weight = frames.mean(-1).sum(1)
        place = (weight * torch.linspace(-1.5, 1.5, SIZE)).sum(1) / weight.sum(1)
        p = (50 * (place - self.line)).sigmoid()
        return Reflection(p, p, torch.zeros_like(p))


def found(model: WorldModel, table: FrameStore) -> dict[str, Any]:
    rows = recorded.starts(table, STEPS, 100)
    return trust.figures(recorded.hold(model, table, rows, steps=STEPS, batch=5), model.action_horizon)


def succeeded(model: WorldModel, reflector: Reflector, table: FrameStore, steps: int = STEPS, batch: int = 32) -> Succeeded:
    return judging.succeeded(model, reflector, table, judging.labelled(table, 100), steps=steps, batch=batch)


def test_a_right_model_is_believed_to_the_end(table):
    figures = found(Dots(), table)
    front = figures["cameras"]["front"]
    assert figures["flags"] == [] and figures["useful_steps"] == STEPS and figures["unmoved"] == ["wall"]
    # Recorded frames are bytes: errors of 1/510 at most.
    assert min(front["psnr_by_step"]) > 54 and min(low for _, low, _ in front["skill_by_step"]) > 0.99
    assert front["motion"] == pytest.approx([1, 1, 1], abs=2e-3) and front["detail"] == pytest.approx([1, 1, 1], abs=5e-3)
    assert figures["state"]["skill_by_step"][0] == pytest.approx([1, 1, 1], abs=1e-6)
    assert front["control"][1] > 0.99 and figures["state"]["control"][1] > 0.99
    assert figures["verdict"] == "Its pictures beat one that stays for 10 of 10 steps, they move, and they follow the actions."
    # Every episode but the short one has a second start, of which two steps are left.
    assert figures["episodes"] == EPISODES and figures["dreams"] == 2 * EPISODES - 1 and figures["steps"] == STEPS


@pytest.mark.parametrize(
    ("model", "faults"),
    [(Dots(frozen=True), ["frozen", "action-blind"]), (Dots(blur=5), ["blurred"]), (Dots(gain=0), ["action-blind"])],
)
def test_planted_faults_are_named_and_no_others(model, faults, table):
    figures = found(model, table)
    named = [f"{fault} (front)" for fault in faults]
    assert figures["flags"] == named and figures["verdict"] == f"Do not learn in it: it is {', '.join(named)}."


@pytest.mark.parametrize(("name", "fault"), planted_models.FAULTS.items())
def test_faults_are_found_in_the_model_that_has_them(name, fault, table):
    rows = recorded.starts(table, 20, 100)  # one of each episode, for neighbours are confused
    flags = trust.figures(recorded.hold(fault(Dots()), table, rows, steps=STEPS), 4)["flags"]
    assert name == "confused" or f"{name} (front)" in flags
    assert flags and ("blurred (front)" in flags) == (name == "blurred")


def test_a_codec_that_cannot_show_everything_is_no_motion(table):
    """Grey veils over all pictures of a frozen dream: its error is larger than what really moves, and it is frozen all the same."""
    model = Dots(frozen=True)
    step = model.step

    def veiled(*args):
        state, images, states = step(*args)
        return state, {name: 0.5 * frames + 0.25 for name, frames in images.items()}, states

    model.step = veiled  # type: ignore[method-assign]
    figures = found(model, table)
    assert figures["cameras"]["front"]["motion"] == [0, 0, 0] and "frozen (front)" in figures["flags"]


def test_where_all_do_the_same_nobody_knows_whether_actions_count(table):
    """The same right model on twelve copies of one episode."""
    one = (table.episode == 3).nonzero().flatten()
    rows, n = one.repeat(12), len(one)
    number = torch.arange(12).repeat_interleave(n)
    copies = replace(
        table,
        images={
            name: type(frames)(tuple((file, range(one[0], one[-1] + 1)) for file, _ in frames.parts) * 12)
            for name, frames in table.images.items()
        },
        state=table.state[rows],
        action=table.action[rows],
        success=table.success[rows],
        progress=table.progress[rows],
        first=number * n,
        last=number * n + n - 1,
        episode=number,
        instruction=("go right",) * 12,
        source=("expert",) * 12,
    )
    figures = found(Dots(), copies)
    assert figures["flags"] == [] and figures["verdict"].endswith(
        "whether they follow actions these episodes do not tell, in which all do the same."
    )


def test_steps_that_few_episodes_reach_are_not_reported(table):
    """All but two episodes end after four steps: what comes later is of two."""
    short = (table.episode > 2) & (torch.arange(len(table.first)) - table.first > 4)
    last = torch.where(table.episode > 2, (table.first + 4).minimum(table.last), table.last)
    assert short.any()
    figures = found(Dots(), replace(table, last=last))
    assert figures["steps"] == figures["useful_steps"] == len(figures["cameras"]["front"]["psnr_by_step"]) == 4


def test_a_single_step_is_no_fault(table):
    """Nothing has moved since the first step, which is no standstill; what diverges after a recording's end is not looked at."""
    rows = recorded.starts(table, 1, 100)
    assert trust.figures(recorded.hold(Dots(), table, rows, steps=1), 4)["flags"] == []
    model, rows = Dots(), recorded.starts(table, 20, 100)
    step = model.step

    def diverging(state, actions, noise):
        state, images, states = step(state, actions, noise)
        beyond = (state.begun == table.state[0]).all(1)[:, None, None]  # episode 0, from its fourth step on
        late = torch.full_like(states, torch.nan)
        return state, images, torch.where(beyond & (torch.arange(states.shape[1]) >= 3)[:, None], late, states)

    model.step = diverging  # type: ignore[method-assign]
    state = trust.figures(recorded.hold(model, table, rows, steps=4), 4)["state"]
    assert not any(math.isnan(value) for figure in (state["control"], *state["skill_by_step"]) for value in figure)


def test_an_ended_recording_asks_for_nothing_wild(table):
    """Beyond its end the middle action stands, which the model knows; the recording has native zeros there."""
    model = Dots()
    model.action_units.shift.fill_(7)
    window = recorded.filled(model, table.window(torch.tensor([0]), context=1, horizon=5))
    assert torch.equal(window["action"][0, 3:], torch.full((2, 2), 7.0)) and torch.equal(window["action"][0, :3], table.action[:3])


def test_a_model_that_does_the_opposite_is_not_believed(table):
    figures = found(Dots(gain=-1), table)
    assert figures["cameras"]["front"]["control"][2] < 0 and figures["flags"] == ["action-blind (front)"]
    assert figures["useful_steps"] == 0


def test_figures_of_one_dream_by_hand():
    """Two steps each, of which the second dream has one: own 1, 3 and 1; still 2, 4 and 2; exchanged 4, 4 and 2."""
    own, still, other = torch.tensor([[1.0, 3], [1, 0]]), torch.tensor([[2.0, 4], [2, 0]]), torch.tensor([[4.0, 4], [2, 0]])
    errors = recorded.Errors(own, still, other, still / 4, still, own, own)
    valid = torch.tensor([[True, True], [True, False]]).repeat(8, 1)
    eight = recorded.Errors(*(value.repeat(8, 1) for value in errors))
    # A third step, which no exchanged episode has: it counts for skill and not for control.
    eight = recorded.Errors(*(torch.cat([value, 5 * value[:, :1]], dim=1) for value in eight))
    valid = torch.cat([valid, valid[:, :1]], dim=1)
    shared = valid & torch.tensor([True, True, False])
    held = recorded.Held(torch.arange(16), valid, shared, {"front": eight}, None, 1.0)
    figures = trust.figures(held, 1)
    front = figures["cameras"]["front"]
    assert [value for value, _, _ in front["skill_by_step"]] == pytest.approx([1 - 2 / 4, 1 - 3 / 4, 1 - 2 / 4])
    assert front["motion"][0] == pytest.approx(0.5) and front["detail"][0] == pytest.approx(1) and figures["state"] == {}
    # Units of the steps: 2 and 4. Own (1 + 1) / 2 + 3 / 4, exchanged (4 + 2) / 2 + 4 / 4.
    assert front["control"][0] == pytest.approx(1 - 1.75 / 4)
    assert front["psnr_by_step"] == pytest.approx([0, -10 * math.log10(3), -10 * math.log10(5)])
    # An unsure model: control between -1 and 1 by episode.
    doubt = eight._replace(other=torch.where(torch.arange(16)[:, None] % 2 == 0, 2 * eight.own, 0.01 * eight.own))
    flags = trust.figures(held._replace(pictures={"front": doubt}), 1)["flags"]
    assert flags == ["perhaps action-blind: too few episodes to tell (front)"]
    nothing = eight._replace(own=eight.own * torch.nan)
    assert trust.figures(held._replace(pictures={"front": nothing}), 1)["flags"] == ["not a number (front)"]


@pytest.mark.parametrize("episodes", [EPISODES, EPISODES - 1, 2])
def test_actions_come_from_another_episode_that_lasts_as_long(episodes, table):
    """Each episode but the short one has two dreams, of 10 and of 2 steps; two episodes have three dreams of 10, 3 and 2."""
    rows = recorded.starts(table, STEPS, 100)
    rows = rows[table.episode[rows] < episodes]
    other = rows[recorded._elsewhere(table, rows, STEPS)]
    assert (table.episode[other] != table.episode[rows]).all()
    length, others = ((table.last[r] - r).clamp(max=STEPS) for r in (rows, other))
    assert (length == others).sum() >= len(rows) - 4


def test_too_few_episodes_and_pictures_that_stay_are_one_line(table):
    rows = recorded.starts(table, STEPS, 100)
    held = recorded.hold(Dots(), table, rows, steps=4)
    with pytest.raises(ValueError, match="nothing moves in wall"):
        trust.figures(held._replace(pictures={"wall": held.pictures["wall"]}), 4)
    for most in (3, 1, 0, -1):
        with pytest.raises(ValueError, match=f"dreams of {max(most, 0)} episodes say little .* 4 are the fewest"):
            recorded.starts(table, 20, most)
    with pytest.raises(ValueError, match="1 step or more, got horizon=0"):
        recorded.starts(table, 0, 100)
    some = replace(table, success=table.success.clone().masked_fill(table.episode >= 16, torch.nan))
    with pytest.raises(ValueError, match="16 labelled episodes are too few .* 34 are the fewest"):
        judging.labelled(some, 100)
    none = replace(table, success=torch.full_like(table.success, torch.nan))
    with pytest.raises(ValueError, match="0 of these episodes say whether they succeeded"):
        judging.frames_judged(RightOf(), none)
    with pytest.raises(ValueError, match="at every 1st or so, got context=1 and every=0"):
        judging.frames_judged(RightOf(every=0), table)


def test_a_first_frame_that_nobody_judged_leaves_an_episode_labelled(table):
    """Whoever has next.success alone says nothing of the first frame."""
    first = torch.arange(len(table.first)) == table.first
    assert len(judging.labelled(replace(table, success=table.success.masked_fill(first, torch.nan)), 99)) == EPISODES
    assert len(judging.labelled(table, 35)) == 35


def test_coverage_names_the_channel_that_leaves_what_was_seen(table):
    assert recorded.coverage(table, table.spec) == {"share": 1.0, "worst": {}}
    assert recorded.coverage(table, None) == {}
    high = sorted(table.action[table.acting_rows][:, 1].tolist())[-5]
    narrow = replace(table.spec, action_statistics=replace(table.spec.action_statistics, max=(99.0, high)))  # type: ignore[type-var]
    outside = 4 / len(table.acting_rows)
    assert recorded.coverage(table, narrow) == {
        "share": pytest.approx(1 - outside, abs=1e-6),
        "worst": {"action lift": pytest.approx(outside, abs=1e-6)},
    }


def test_who_errs_is_told_apart(table):
    right = judging.horizon(succeeded(Dots(), RightOf(), table, batch=7))
    assert right["trusted_steps"] == STEPS and right["judge_points"]["points"] == right["world_model_points"]["points"] == 0
    assert right["error_points"]["points"] == 0
    assert right["against_labels"]["dreamed"]["agreement"] == 1 and right["episodes"] == EPISODES
    lenient = judging.horizon(succeeded(Dots(), RightOf(line=-0.6), table))
    assert lenient["judge_points"]["points"] > 10 and lenient["world_model_points"]["points"] == 0
    frozen = judging.horizon(succeeded(Dots(frozen=True), RightOf(), table))
    assert frozen["world_model_points"]["points"] < -10 and frozen["judge_points"]["points"] == 0
    assert frozen["trusted_steps"] < STEPS


def test_horizon_by_hand():
    """40 of 100 episodes have succeeded by steps 1 to 3, in the dream 43, 44, 42: true for one step, whatever comes."""
    label = torch.arange(100)[:, None].expand(-1, 3) < 40
    said = torch.stack([torch.arange(100) < 43, torch.arange(100) < 44, torch.arange(100) < 42], dim=1)
    result = judging.horizon(Succeeded(label, label, said))
    assert result["trusted_steps"] == 1 and result["world_model_points"]["points"] == 2
    assert result["against_labels"]["dreamed"]["false_success"] == pytest.approx(0.02)


def test_what_comes_after_an_end_is_not_looked_at(table):
    """Episode 0 has three steps; the model moves on beyond them."""
    for_ever = succeeded(Dots(gain=0), RightOf(line=0.45), table)
    rows = torch.arange(STEPS)
    assert not (for_ever.dreamed[0] & (rows >= 3)).any() or for_ever.dreamed[0, 2]
    assert for_ever.dreamed[1:, -1].float().mean() > 0.5  # it would have got there


@pytest.mark.parametrize(
    "rule", [{}, {"consecutive": 2, "window": 3, "context": 3}, {"every": 3}, {"every": 4, "consecutive": 2, "window": 2}]
)
def test_episodes_end_as_dreams_do(rule, table):
    reflector = RightOf(line=0.1, **rule)
    mine = succeeded(Dots(gain=0.7), reflector, table, steps=8).dreamed[1:]  # the first one is short
    rows = table.first.unique()[1:]
    starts = Starts.first_frames(table, 2)[1:]
    world = DreamWorld(Dots(gain=0.7), reflector, starts, num_envs=len(rows), max_episode_steps=8)
    world.reset(options={"start": torch.arange(len(rows))})
    result = world.step_chunk(table.window(rows, context=1, horizon=8)["action"])
    ended = torch.where(result.terminated.any(1), result.terminated.long().argmax(1), 8)
    assert ((torch.arange(8) >= ended[:, None]) == mine).all()
    assert 0 < mine[:, -1].float().mean() < 1
