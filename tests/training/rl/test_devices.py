"""Where the tensors of dreams and rollouts lie, and how often they wait for an answer. The meta device stands for a GPU."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from toy_spec import toy_spec

from models.policies.flow_vla import FlowVLA
from models.world.latent_flow import LatentFlowWorldModel
from reflectors.instant import InstantReflector
from training.rl.arena import DreamArena
from training.rl.chains import Chain, Deterministic, Diffusion, FlowNoise, FlowSDE, OneStepFlowSDE
from training.rl.estimators import GAE, GRPO, RLOO, Advantage
from training.rl.nft import NFTPostTraining
from training.rl.ppo import PPOPostTraining
from training.rl.rollout import collect_rollout
from training.rl.rollout_learner import Decisions, RolloutLearner
from training.supervised.batches import Batch
from worldsim.core.types import Rollout, TensorBatch
from worldsim.worlds.dream import DreamWorld, Starts

STARTS, SENTENCES = 3, ("push the red block onto the green disc", "go on", "stop")


class Asked(TorchDispatchMode):
    """Counts how often the host waits for values of a tensor; of the meta device they are all 0, and every answer is no."""

    def __init__(self) -> None:
        super().__init__()
        self.times = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            self.times += 1
            return False if args[0].dtype is torch.bool else 0
        if func is torch.ops.aten._to_copy.default and args[0].is_meta and kwargs.get("device", args[0].device).type == "cpu":
            self.times += 1
            return torch.zeros(args[0].shape, dtype=args[0].dtype)
        if func is torch.ops.aten.nonzero.default and args[0].is_meta:
            self.times += 1
            return torch.empty(0, args[0].ndim, dtype=torch.long, device="meta")
        return func(*args, **kwargs)


def tensors(value: Any) -> Iterator[Tensor]:
    """All that is in a batch."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)
    elif isinstance(value, TensorBatch):
        yield from tensors(vars(value))


def models() -> tuple[FlowVLA, LatentFlowWorldModel, InstantReflector]:
    """Tiny ones."""
    world_model = LatentFlowWorldModel(latent_channels=4, channels=(8, 8), layers=(1, 1), sampling_steps=2)
    world_model.spec = toy_spec(torch.randn(50, 4))
    policy, reflector = FlowVLA(width=16, channels=8, blocks=1), InstantReflector(features=16, channels=8, blocks=1)
    return policy, world_model.eval(), reflector.eval()


def recorded() -> Batch:
    """Moments, on the meta device as a trainer would hand them over."""
    images = {"front": torch.zeros(STARTS, 2, 64, 64, 3, dtype=torch.uint8, device="meta")}
    return {"images": images, "state": torch.zeros(STARTS, 2, 4, device="meta"), "instruction": SENTENCES}


def test_all_of_a_dream_lies_where_its_models_do_and_asks_twice_in_a_chunk() -> None:
    """Whether the actions are finite, and whether a dream has ended: at the borders of a chunk, however long it is."""
    _, world_model, reflector = (model.to("meta") for model in models())
    batch = recorded()
    with Asked() as asked:
        world = DreamWorld(world_model, reflector, Starts(batch["images"], batch["state"], SENTENCES), num_envs=2)
        asked.times = 0
        results = world.watch_chunk(torch.zeros(2, 4, 2))
        times = asked.times
        world.step_chunk(torch.zeros(2, 12, 2))
    assert times == 2 and asked.times == 2 * times
    found = [*tensors((*results, world.snapshot(), world.judge()))]
    assert len(found) > 40 and {tensor.device for tensor in found} == {world.device} == {torch.device("meta")}


@pytest.mark.parametrize("chain", [FlowSDE, OneStepFlowSDE, FlowNoise, Diffusion, Deterministic])
@pytest.mark.parametrize("advantage", [GAE(), GRPO(2), RLOO(2)])
def test_all_of_a_rollout_lies_where_the_policy_does(chain: type[Chain], advantage: Advantage) -> None:
    """And what is made of it: PPO's loss of two of its decisions."""
    learner, rollout = play(PPOPostTraining if chain.explores else NFTPostTraining, chain(), advantage)
    rows = (torch.tensor([0, 1], device="meta"), torch.tensor([1, 0], device="meta"))
    with Asked():
        assessment, obs = learner.advantage.assess(rollout), rollout.observations(rows)
        features = learner.policy.encode(obs)
        taken = (getattr(rollout, name)[rows] for name in ("chain", "stochastic", "logprob", "valid"))
        told = (assessment.advantage[rows], rollout.returns[rows[0]], rows[0], rollout.group[rows[0]])
        decisions = Decisions(obs, features, *taken, *told, generator=torch.Generator())
        loss = learner.policy_loss(decisions) if isinstance(learner, PPOPostTraining) else ()
    found = [*tensors((rollout, assessment, loss))]
    assert len(found) == (21 if chain.explores else 15) and {tensor.device for tensor in found} == {torch.device("meta")}


def play(kind: type[RolloutLearner], chain: Chain, advantage: Advantage) -> tuple[RolloutLearner, Rollout]:
    """A learner on the meta device, and two decisions of it in dreams."""
    policy, world_model, reflector = models()
    learner = kind(policy, DreamArena(world_model, reflector), chain, advantage).to("meta")
    world_model, reflector = learner.arena.world_model, learner.arena.reflector
    batch, n = recorded(), STARTS * advantage.group_size
    group = torch.arange(STARTS, device="meta").repeat_interleave(advantage.group_size)
    with Asked():
        world = DreamWorld(world_model, reflector, Starts(batch["images"], batch["state"], SENTENCES), num_envs=n)
        obs, _ = world.reset(seed=0, options={"start": group})
        rollout = collect_rollout(learner.actor, learner.chain, learner.advantage, world, obs, chunks=2, group=group, seed=0)
    return learner, rollout
