"""Judges of clips, slow ones and ones without gradient: what they are shown, when they are asked, and what holds in between."""

from pathlib import Path
from typing import Any

import pytest
import torch
from counting import VIEWS, Remembering, Rising, frames, starts
from learners import fit

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from training.rl.analytic import AnalyticPostTraining
from training.rl.arena import DreamArena
from training.rl.chains import Deterministic, FlowSDE
from training.rl.critics import OwnEncoder
from training.rl.estimators import GAE
from training.rl.imagine import Moment, imagine
from training.rl.ppo import PPOPostTraining
from worldsim.core.interfaces import Encoder
from worldsim.core.noise import Noise
from worldsim.measure.dream_quality import _judge
from worldsim.tasks.reward import ProgressReward
from worldsim.worlds.dream import DreamWorld


def up(number: int, by: float = 1.0, b: int = 2) -> torch.Tensor:
    return torch.full((b, number, 2), by)


def tiny_policy() -> FlowVLA:
    torch.manual_seed(0)
    return FlowVLA(width=16, channels=8, blocks=1, views=VIEWS).eval()


def test_a_judge_of_clips_is_shown_the_last_frames_across_chunks_and_resets() -> None:
    """Before a start of one frame it is repeated; a start of more frames shows them; another episode forgets the one before."""
    judge = Remembering(context=3)
    world = DreamWorld(Rising(), judge, starts([10], [20]), num_envs=2, max_episode_steps=6)
    judge.shown.clear()
    world.reset(options={"start": torch.tensor([0, 1])})
    assert judge.shown == [[10, 10, 10], [20, 20, 20]]
    judge.shown.clear()
    world.step_chunk(up(2))
    assert judge.shown == [[10, 10, 11], [10, 11, 12], [20, 20, 21], [20, 21, 22]]
    world.reset(options={"start": torch.tensor([0, 0]), "mask": torch.tensor([False, True])})
    judge.shown.clear()
    world.step_chunk(up(1, by=3.0))
    assert judge.shown == [[11, 12, 13], [10, 10, 11]], "an action of 3 is beyond the limits"

    world = DreamWorld(Rising(context=2), judge, starts([1, 2, 3, 4]), num_envs=1)
    judge.shown.clear()
    world.reset()
    assert judge.shown == [[2, 3, 4]] and world.starts.state.shape[1] == 3


def test_a_slow_judge_is_asked_at_its_frames_and_when_time_is_up() -> None:
    """Every third frame of each episode and the seventh, which is the last; what it said holds in between, and pays once."""
    judge = Remembering(context=4, every=3)
    world = DreamWorld(Rising(), judge, starts([10]), num_envs=2, max_episode_steps=7, reward=ProgressReward())
    world.reset()
    world.step_chunk(up(1))
    world.reset(options={"mask": torch.tensor([False, True])})  # one frame behind from here on
    judge.shown.clear()
    result, seen = world.watch_chunk(up(4))
    assert judge.shown == [[10, 11, 12, 13], [10, 11, 12, 13]]  # its second frame from here, and the other's third
    progress = torch.stack([judged.progress for _, judged in seen], dim=1)
    torch.testing.assert_close(progress, torch.tensor([[0, 0.03, 0.03, 0.03], [0, 0, 0.03, 0.03]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(result.reward, torch.tensor([[0, 0.03, 0, 0], [0, 0, 0.03, 0]]), atol=1e-6, rtol=0)
    assert world.snapshot().clip["front"].shape == (2, 4, 8, 8, 3)
    judge.shown.clear()
    result = world.step_chunk(up(3))
    assert judge.shown == [[13, 14, 15, 16], [14, 15, 16, 17]] * 2 + [[10] * 4] * 2, "and the starts of the next episodes"
    assert result.truncated.tolist() == [[False, True, False], [False, False, True]]


def test_frames_that_nobody_judged_are_no_successes() -> None:
    """Brighter and brighter: the threshold is passed at the second frame, and the episode ends at the fourth, where it is asked."""
    world = DreamWorld(Rising(), Remembering(every=4), starts([99]), num_envs=1, max_episode_steps=20)
    world.reset()
    result = world.step_chunk(up(4, b=1))
    assert result.terminated.tolist() == [[False, False, False, True]] and result.is_success.all()
    world = DreamWorld(Rising(), Remembering(every=1), starts([99]), num_envs=1, max_episode_steps=20)
    world.reset()
    assert world.step_chunk(up(4, b=1)).terminated.tolist() == [[True, False, False, False]]
    world = DreamWorld(Rising(), Remembering(every=2), starts([99]), num_envs=1, max_episode_steps=20)
    world.reflector.consecutive = 2  # of the last two that it judged, whatever came between
    world.reset()
    assert world.step_chunk(up(4, b=1)).terminated.tolist() == [[False, False, False, True]]


def test_every_second_frame_of_a_chunk_is_judged_and_its_last_one() -> None:
    """Of four frames the second and the last, of the next three the first and the last; progress holds in between, and pays once. A
    judge that chooses for itself goes on doing so."""
    judge = Remembering(context=1)
    world = DreamWorld(Rising(), judge, starts([10]), num_envs=1, max_episode_steps=20, reward=ProgressReward(), every=2)
    world.reset()
    judge.shown.clear()
    results = [world.step_chunk(up(steps, b=1)) for steps in (4, 3)]
    assert judge.shown == [[12], [14], [15], [17]]
    torch.testing.assert_close(results[0].reward, torch.tensor([[0, 0.02, 0, 0.02]]), atol=1e-6, rtol=0)
    torch.testing.assert_close(results[1].reward, torch.tensor([[0.01, 0, 0.02]]), atol=1e-6, rtol=0)
    judge = Remembering(context=1, every=3)
    world = DreamWorld(Rising(), judge, starts([10]), num_envs=1, max_episode_steps=20, every=2)
    world.reset()
    judge.shown.clear()
    world.step_chunk(up(4, b=1))
    assert judge.shown == [[13]]
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        DreamWorld(Rising(), judge, starts([10]), num_envs=1, every=0)


def test_an_analytic_dream_shows_the_same_clips_and_differentiates_them() -> None:
    """Of each chunk the frames that the learner asks for; the reward's gradient reaches actions of the chunk before."""
    judge, model = Remembering(context=3, differentiable=True), Rising(context=2)
    batch: Any = {"images": starts([8, 9, 10]).images, "state": torch.zeros(1, 3, 4), "instruction": ["go"]}
    moment = Moment.of(model, batch)
    policy = tiny_policy()
    policy.expert[-1].bias.data.fill_(-1.0)  # the velocity is noise - data: one step leads to noise + 1, and beyond the limits
    with torch.no_grad():
        policy.expert[-1].weight.mul_(0)
    settings: Any = {"chain": Deterministic(), "chunks": 2, "exploration": torch.zeros(1, 1, 1), "reward": ProgressReward()}
    noise = Noise.rows(0, 1)
    dream = imagine(policy, model, judge, moment, judged=(1, 3), noise=noise, **settings)
    actions = policy.action_units.native(dream.actions)[0, :, :, 0]
    first = moment.images["front"][0].mean(dim=(1, 2, 3)) * 100  # 8, 9 and 10 in steps of 1/255
    levels = torch.cat([first, first[-1] + actions.flatten().cumsum(0)]).round().long().tolist()
    expected = [levels[:3], *(levels[3 + j - 2 : 3 + j + 1] for j in (1, 3, 5, 7))]
    assert judge.shown == expected
    assert dream.end.images["front"].shape[1] == 3
    dream.reward.sum().backward()
    assert policy.expert[-1].bias.grad is not None and policy.expert[-1].bias.grad.abs().sum() > 0


def test_analytic_learning_refuses_what_has_no_gradient_by_name() -> None:
    with pytest.raises(
        ValueError, match="AnalyticPostTraining differentiates through the reflector, Remembering is not diff.*learner=ppo"
    ):
        AnalyticPostTraining(tiny_policy(), Rising(), Remembering())
    model = Rising()
    model.differentiable = False
    for models, rivals in (((model,), ()), ((Rising(),), (model,))):
        with pytest.raises(ValueError, match="differentiates through the world model, Rising is not differentiable"):
            AnalyticPostTraining(tiny_policy(), *models, Remembering(differentiable=True), rivals=rivals)


def test_a_learner_from_rollouts_takes_a_slow_judge_of_clips(tmp_path: Path) -> None:
    """One without trunk, logit or gradient, that is asked about every fourth frame: of 2 chunks of 6 dreams, two each."""
    judge = Remembering(context=5, every=4)
    arena = DreamArena(Rising(), judge)
    assert arena.context == 5
    learner = PPOPostTraining(tiny_policy(), arena, FlowSDE(), GAE(OwnEncoder(), warmup=0), chunks=2, minibatch=4)
    before = learner.policy.state_dict()["expert_in.weight"].clone()
    batch = {"images": starts(*[[10, 11, 12, 13, 14]] * 6).images, "state": torch.zeros(6, 5, 4), "instruction": ("go",) * 6}
    fit(learner, batch, tmp_path, 1)
    played = [clip for clip in judge.shown if clip != [10, 11, 12, 13, 14]]
    assert len(played) == 12 and played[0][0] == 14, "the fourth frame's clip begins with the last recorded one"
    assert not torch.equal(before, learner.policy.state_dict()["expert_in.weight"])


def test_a_slow_judge_has_the_last_word_on_a_rollout(tmp_path: Path) -> None:
    """However rarely it is asked: a dream's time is up where the learner stops, and not after forty steps."""
    judge = Remembering(context=1, every=33)
    learner = PPOPostTraining(tiny_policy(), DreamArena(Rising(), judge), FlowSDE(), GAE(OwnEncoder(), warmup=0), chunks=2)
    batch = {"images": starts([10], [20]).images, "state": torch.zeros(2, 1, 4), "instruction": ("go", "go")}
    rollout, _ = learner.imagine(batch, torch.Generator().manual_seed(0))
    assert len(judge.shown) == 2 * 2 + 2 + 2, "two worlds' worth of starts, the last frames, and where nobody goes on"
    assert rollout.valid.all() and not rollout.terminated.any() and (rollout.final_value != 0).all()
    assert (rollout.reward[:, -1, -1] != 0).all() and (rollout.reward.flatten(1)[:, :-1] == 0).all()


def test_a_judge_that_looks_at_nothing_is_refused() -> None:
    for judge in (Remembering(context=0), Remembering(every=0)):
        with pytest.raises(ValueError, match="Remembering must look at 1 frame or more"):
            DreamWorld(Rising(), judge, starts([10]), num_envs=1)
    judge = Remembering()
    del judge.threshold
    with pytest.raises(ValueError, match="Remembering has no threshold, the probability from which a frame counts as a success"):
        DreamWorld(Rising(), judge, starts([10]), num_envs=1)


def test_figures_of_a_judge_are_of_clips_too() -> None:
    judge = Remembering(context=3)
    videos = {"front": frames(torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]]))}
    p = _judge(judge, videos, ("go", "stop"), batch=4)
    torch.testing.assert_close(p, torch.tensor([0.2, 0.3, 0.4, 0.6, 0.7, 0.8]))
    assert judge.shown == [[10, 10, 20], [10, 20, 30], [20, 30, 40], [50, 50, 60], [50, 60, 70], [60, 70, 80]]


def test_a_world_model_may_say_its_latents(models: dict[str, Any]) -> None:
    """`Encoder` is an ability: the codec has it, of clips of any length, and a model without it is none."""
    model = models["world_model"]
    assert isinstance(model, LatentFlowWorldModel) and isinstance(model, Encoder) and not isinstance(Rising(), Encoder)
    clip = torch.rand(2, 5, 64, 64, 3, requires_grad=True)
    latents = model.encode({"front": clip})
    assert latents.shape == (2, 5, 12, 16, 16)
    assert torch.equal(latents[:, :2], model.init({"front": clip[:, :2]}, torch.zeros(2, 2, 4)).latents)
    latents.sum().backward()
    assert clip.grad is not None and clip.grad.abs().sum() > 0
    assert model.device == Rising().device == torch.device("cpu")
