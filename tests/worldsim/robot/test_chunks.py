"""Executing action chunks: averages and weights worked out by hand, and what real-time chunking must never change."""

import math

import numpy as np
import pytest

from worldsim.robot.chunks import Blending, Chunk, OpenLoop, RealTimeChunking, TemporalEnsembling, interpolate, prefix_weights


def chunk(start: int, *values: float) -> Chunk:
    return Chunk(np.array(values, float)[:, None], start, observed_at=10.0 + start)


def said(execution, step: int) -> float | None:
    """The single number of the action for `step`."""
    found = execution.action(step)
    return None if found is None else float(found[0][0])


def test_a_chunk_belongs_to_its_steps():
    one = chunk(3, 30, 40)
    assert (one.at(2), one.end, one.at(5)) == (None, 5, None)
    assert one.at(4) == [40]


# Open loop --------------------------------------------------------------------------------------------------------------------


def test_open_loop_executes_its_share_and_goes_over():
    loop = OpenLoop(2)
    assert loop.wants(0, 1)
    assert said(loop, 0) is None
    loop.add(chunk(0, 0, 1, 2, 3), 1)
    assert said(loop, 1) == 1  # the action for step 0 is past
    assert not loop.wants(1, 1)  # executes 1 and 2; a chunk asked for at step 2 arrives at 3
    assert said(loop, 2) == 2
    assert loop.wants(2, 1)
    loop.add(chunk(2, 20, 21, 22, 23), 2)
    assert not loop.wants(2, 1)  # one is waiting
    assert said(loop, 2) == 2  # early; the share is not done
    assert said(loop, 3) == 21


def test_open_loop_goes_on_only_while_the_next_chunk_is_late():
    loop = OpenLoop(1)
    loop.add(chunk(0, 0, 1, 2), 0)
    assert [said(loop, step) for step in range(5)] == [0, 1, 2, None, None]
    assert loop.action(2)[1] == 10.0  # type: ignore[index] - time of the observation
    loop.add(chunk(1, 10, 11, 12), 3)
    assert said(loop, 3) == 12


# Temporal ensembling ----------------------------------------------------------------------------------------------------------


def test_ensembling_weighs_the_oldest_most():
    ensemble = TemporalEnsembling(decay=math.log(2))  # weights 1, 1/2, 1/4
    for start in range(3):
        assert ensemble.wants(start, 1)
        ensemble.add(chunk(start, *(10 * start + i for i in range(3))), start)
    # Step 2: the chunk of step 0 says 2, of step 1 11, of step 2 20. (2 + 11 / 2 + 20 / 4) / (7 / 4) = 50 / 7
    assert said(ensemble, 2) == pytest.approx(50 / 7)
    assert ensemble.action(2)[1] == 12.0  # the newest observation
    # Step 3: 12 of step 1, now the oldest, and 21: (12 + 21 / 2) / (3 / 2) = 15
    assert said(ensemble, 3) == pytest.approx(15)
    assert said(ensemble, 5) is None


def test_the_default_decay_is_that_of_act():
    ensemble = TemporalEnsembling()
    ensemble.add(chunk(0, 0, 0), 0)
    ensemble.add(chunk(1, 1), 1)
    assert said(ensemble, 1) == pytest.approx(math.exp(-0.01) / (1 + math.exp(-0.01)))


# Real-time chunking -----------------------------------------------------------------------------------------------------------


def test_prefix_weights_by_hand():
    # delay 1, overlap 3: c_1 = 2/3, c_2 = 1/3; w = c (e^c - 1) / (e - 1)
    second, third = 2 / 3 * (math.exp(2 / 3) - 1) / (math.e - 1), 1 / 3 * (math.exp(1 / 3) - 1) / (math.e - 1)
    np.testing.assert_allclose(prefix_weights(5, delay=1, overlap=3), [1, second, third, 0, 0])
    np.testing.assert_allclose([second, third], [0.36770, 0.07675], atol=1e-5)
    assert prefix_weights(4, delay=0, overlap=0).tolist() == [0, 0, 0, 0]
    assert prefix_weights(4, delay=4, overlap=4).tolist() == [1, 1, 1, 1]
    with pytest.raises(ValueError, match="expected 0 <= delay <= overlap <= horizon, got 3, 2 and 4"):
        prefix_weights(4, delay=3, overlap=2)


def test_weights_fall():
    for delay in range(5):
        weights = prefix_weights(8, delay=delay, overlap=6)
        assert (np.diff(weights[delay:7]) < 0).all()
        assert (weights[:delay] == 1).all() and (weights[6:] == 0).all()


def test_what_is_executed_during_inference_is_frozen_and_the_rest_blends():
    blending = Blending(3)
    blending.add(chunk(0, *[0.0] * 8), 0)
    assert not blending.wants(2, 2)
    assert blending.wants(3, 2)
    before = [said(blending, step) for step in range(8)]
    blending.add(chunk(3, *[1.0] * 8), 5)  # asked at step 3, arrives at 5
    # Steps 3 and 4 were executed meanwhile. The old plan reaches up to step 7: delay 2, overlap 5, c_i = (5 - i) / 4.
    after = [said(blending, step) for step in range(3, 11)]
    assert after[:2] == before[3:5]
    blend = [1 - c * (math.exp(c) - 1) / (math.e - 1) for c in (3 / 4, 2 / 4, 1 / 4)]
    np.testing.assert_allclose(after[2:5], blend)
    assert after[5:] == [1, 1, 1]
    assert blending.action(5)[1] == 13.0


@pytest.mark.parametrize("seed", range(20))
def test_no_chunk_changes_the_past_and_agreeing_chunks_change_nothing(seed):
    random = np.random.default_rng(seed)
    horizon, execute = int(random.integers(4, 12)), int(random.integers(1, 4))
    blending, truth = Blending(execute), random.standard_normal((300, 2))
    executed, step, asked = [], 0, None
    while step < 200:
        if asked is None and blending.wants(step, 1):
            asked, arrives = step, step + int(random.integers(0, 4))
        if asked is not None and step >= arrives:
            planned = [blending.action(past) for past in range(asked, step)]
            assert blending.add(Chunk(truth[asked : asked + horizon], asked, float(asked)), step)
            for before, past in zip(planned, range(asked, step), strict=True):
                if before is not None:
                    np.testing.assert_allclose(blending.action(past)[0], before[0], rtol=0, atol=1e-12)
            asked = None
        executed.append(blending.action(step))
        step += 1
    errors = [np.abs(found[0] - truth[i]).max() for i, found in enumerate(executed) if found is not None]
    assert len(errors) > 100 and max(errors) < 1e-12


def test_without_a_plan_the_first_chunk_is_the_plan_and_a_plan_that_ran_out_does_not_count():
    blending = Blending(2)
    blending.add(chunk(0, 0, 1, 2), 1)
    assert said(blending, 1) == 1
    assert blending.add(chunk(9, 9, 10, 11), 10)
    assert [said(blending, step) for step in (9, 10, 11, 12)] == [9, 10, 11, None]


@pytest.mark.parametrize("execution", [OpenLoop(1), TemporalEnsembling(), Blending(1), RealTimeChunking(1)])
def test_a_chunk_that_comes_too_late_is_refused_and_clear_forgets(execution):
    execution.clear()
    assert not execution.add(chunk(0, 1, 2, 3), 3)
    assert said(execution, 3) is None
    assert execution.add(chunk(0, 1, 2, 3), 2)
    assert said(execution, 2) == 3
    execution.clear()
    assert said(execution, 2) is None


def test_inference_is_guided_by_what_the_plan_does_from_its_step_on():
    rtc = RealTimeChunking(3)
    assert rtc.guide(0, 1) is None
    rtc.add(chunk(0, *range(8)), 0)
    guide = rtc.guide(3, 2)
    assert guide is not None
    np.testing.assert_array_equal(guide.previous[:, 0], [3, 4, 5, 6, 7, 0, 0, 0])
    np.testing.assert_allclose(guide.weights, prefix_weights(8, delay=2, overlap=5), rtol=1e-6)
    assert guide.previous.dtype == guide.weights.dtype == np.float32
    np.testing.assert_array_equal(rtc.guide(6, 5).weights, [1, 1, 0, 0, 0, 0, 0, 0])  # the plan ends before the chunk would come
    assert rtc.guide(8, 1) is None
    assert rtc.add(chunk(3, *[9.0] * 8), 5)
    assert [said(rtc, step) for step in (5, 10, 11)] == [9, 9, None]  # executed as it is
    rtc.clear()
    assert rtc.guide(5, 1) is None


# Interpolation ----------------------------------------------------------------------------------------------------------------


def test_interpolation_by_hand():
    np.testing.assert_allclose(interpolate(np.array([0.0, 4.0]), np.array([1.0, 0.0]), 4), [[0.25, 3], [0.5, 2], [0.75, 1], [1, 0]])
    np.testing.assert_array_equal(interpolate(np.array([5.0]), np.array([7.0]), 1), [[7]])
    for multiplier in (0, 1.5):
        with pytest.raises(ValueError, match="must be a positive whole number"):
            interpolate(np.zeros(1), np.ones(1), multiplier)  # type: ignore[arg-type]


def test_impossible_arguments_are_refused():
    for kind in (OpenLoop, Blending):
        with pytest.raises(ValueError, match="positive whole number, got 0"):
            kind(0)
    with pytest.raises(ValueError, match="decay must not be negative"):
        TemporalEnsembling(-1)
