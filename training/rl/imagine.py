"""A short differentiable dream: policy -> world model -> reflector, chunk after chunk, with the gradient of the reward.

`analytic.py` differentiates it; nothing here steps an environment."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from training.rl.chains import Chain
from training.supervised.batches import Batch
from worldsim.core.interfaces import FlowPolicy, Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent, seen
from worldsim.core.sizes import join
from worldsim.core.types import Judgement, Observation, TensorBatch, cat_rows, float_image, where_rows
from worldsim.core.world import Reward
from worldsim.measure.doubt import disagreement, opinions


@dataclass(frozen=True)
class Moment(TensorBatch):
    """Where b dreams are: the world model's state, the latest frames of each camera and proprioception, oldest first, and the wish.

    There are as many frames as world model or reflector look back on, whichever looks further. They are of the world model's views,
    floats in 0..1 when recorded and may leave that range when dreamed.
    """

    model: TensorBatch
    images: dict[str, Float[Tensor, "b context _ _ 3"]]
    states: Float[Tensor, "b context s"]
    instruction: tuple[str, ...]

    @classmethod
    def of(cls, world_model: WorldModel, batch: Batch) -> "Moment":
        """The recorded moments of a batch of `StartData`."""
        images = {name: float_image(frames) for name, frames in seen(batch["images"], world_model.views, "the dream").items()}
        instruction = tuple(batch["instruction"])  # the loader turns tuples into lists
        return cls(_begun(world_model, images, batch["state"], instruction), images, batch["state"], instruction)


@dataclass(frozen=True)
class Dream:
    """A dream of h chunks; time runs along the second axis.

    Attributes:
        actions: as the sampler gave them, in network units, [b, h, ah, ad].
        images: what each camera shows before each chunk and at the end, [b, h+1, height, width, 3].
        obs: the observation before each chunk.
        noise: x_1 of each chunk, [b, h, ah, ad].
        reward: of each chunk, [b, h].
        p_success: largest success probability within each chunk, [b, h].
        doubt: disagreement of world model and rivals about each chunk, summed over its steps, [b, h]; 0 without rivals.
        end: where the dreams are after the last chunk, without gradient.
    """

    actions: Tensor
    images: dict[str, Tensor]
    obs: list[Observation]
    noise: Tensor
    reward: Tensor
    p_success: Tensor
    doubt: Tensor
    end: Moment


def imagine(
    policy: FlowPolicy,
    world_model: WorldModel,
    reflector: Reflector,
    start: Moment,
    *,
    chain: Chain,
    chunks: int,
    exploration: Float[Tensor, "b 1 1"],
    reward: Reward,
    judged: Sequence[int],
    noise: Noise,
    rivals: Sequence[WorldModel] = (),
) -> Dream:
    """Dream `chunks` chunks; what is judged of each is its largest success probability and its last progress.

    The gradient flows reward <- reflector <- world model <- action <- sampler, and through the world model's state from chunk to
    chunk; the policy's own observations are cut off, so that it learns to act and not to shape what it sees.

    Args:
        policy: the only one whose parameters should require gradients.
        world_model: frozen.
        reflector: frozen.
        start: where the dreams begin.
        chain: the sampler, differentiated by reparameterisation: `Deterministic`, or a noisy one.
        chunks: h.
        exploration: standard deviation of noise on the executed actions, per dream.
        reward: of these judgements, whose success is that probability; a bonus for it is the expected one.
        judged: which frames of a chunk the reflector looks at; must include the last.
        noise: one row per dream; its steps are the chunks.
        rivals: world models trained from other seeds. Each predicts every chunk too, from the same latest frames, and the least of
            their rewards and success probabilities counts: where models disagree, a dream promises nothing (pessimism as in MOReL,
            arXiv:2005.05951).
    """
    instruction, past, felt = start.instruction, start.images, start.states
    now_seen, proprioception = _latest(past), felt[:, -1]
    joined = join(policy, world_model.spec, "the dream")
    b = len(instruction)
    first = reflector.judge({name: _clip(frames, reflector) for name, frames in past.items()}, instruction).detach()
    before = Judgement(success=first.p_success, progress=first.progress)

    def judge(predicted: Mapping[str, Tensor]) -> Judgement:
        """Largest success probability and the last progress of a chunk's frames."""
        shown = {}
        for name, frames in predicted.items():
            ending = clips(torch.cat([_clip(past[name], reflector), frames.clamp(0, 1)], dim=1), reflector.context)[:, 1:]
            shown[name] = ending[:, list(judged)].flatten(0, 1)
        reflection = reflector.judge(shown, tuple(s for s in instruction for _ in judged))
        p_success, reached = (x.unflatten(0, (b, len(judged))) for x in (reflection.p_success, reflection.progress))
        return Judgement(success=p_success.amax(dim=1), progress=reached[:, -1])

    state, actions, views, observations, noises, rewards, successes, doubts = start.model, [], [now_seen], [], [], [], [], []
    for number in range(chunks):
        now = noise.at(number)
        images = {name: frame.detach() for name, frame in now_seen.items()}
        obs = joined.seen(Observation(images, proprioception.detach().float(), instruction))
        features = policy.encode(obs)
        path = chain.sample(policy, features, now).path
        action = path[:, -1]
        jitter = now.normal("action", *action.shape[1:]) if exploration.any() else torch.zeros_like(action)
        executed = joined.done(policy.action_units.native(action + exploration * jitter))
        there = noise.at(number * executed.shape[1])  # a world model counts control steps
        others = opinions(rivals, past, felt, instruction, executed, there)
        state, predicted, proprioceptions = world_model.step(state, executed, there)
        verdicts = [judge(frames_of_one) for frames_of_one in (predicted, *others)]
        least = Judgement(**{name: torch.stack([vars(v)[name] for v in verdicts]).amin(dim=0) for name in vars(before)})
        rewards.append(reward(before, least))
        doubts.append(disagreement([predicted, *others]).sum(dim=1) if others else felt.new_zeros(b))
        context = felt.shape[1]
        past = {name: torch.cat([frames, predicted[name]], dim=1)[:, -context:] for name, frames in past.items()}
        felt = torch.cat([felt, proprioceptions], dim=1)[:, -context:]
        now_seen, proprioception = _latest(past), felt[:, -1]
        observations.append(obs)
        views.append(now_seen)
        for values, value in ((actions, action), (noises, path[:, 0]), (successes, least.success)):
            values.append(value)
        before = verdicts[0]
    return Dream(
        actions=torch.stack(actions, dim=1),
        images={name: torch.stack([images[name] for images in views], dim=1) for name in now_seen},
        obs=observations,
        noise=torch.stack(noises, dim=1),
        reward=torch.stack(rewards, dim=1),
        p_success=torch.stack(successes, dim=1),
        doubt=torch.stack(doubts, dim=1),
        end=Moment(state, past, felt.float(), instruction).detach(),
    )


def _begun(model: WorldModel, images: Mapping[str, Tensor], states: Tensor, instruction: tuple[str, ...]) -> TensorBatch:
    """A world model's state after the latest of these frames, as many as it looks back on."""
    latest = {name: recent(frames, model.context) for name, frames in images.items()}
    return model.init(latest, recent(states, model.context), instruction)


def _clip(frames: Tensor, reflector: Reflector) -> Tensor:
    """The latest frames of a camera as the reflector sees them."""
    return recent(frames, reflector.context).clamp(0, 1)


def _latest(images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The last frame of each camera, as a picture."""
    return {name: frames[:, -1].clamp(0, 1) for name, frames in images.items()}


class Continuation(nn.Module):
    """Goes on with some dreams where the last iteration left them, so that the policy also learns where it gets to itself.

    Starts recorded by others show states that others reach; a policy that pushes past its goal must learn to come back. SHAC
    (arXiv:2204.07137) goes on in its simulator the same way. A dream ends by success, drawn with the reflector's probability, after
    `max_chunks`, before the world model has drifted too far, or once rivals have disagreed too much; what would have come is the
    critic's to say.

    Args:
        share: share of each batch that goes on.
        max_chunks: longest dream.
        doubt: most doubt of a dream that goes on, the threshold of `worldsim.measure.doubt`; needs rivals. Null never doubts.
    """

    def __init__(self, share: float = 0.5, max_chunks: int = 10, doubt: float | None = None):
        super().__init__()
        if not 0 < share <= 1:
            raise ValueError(f"share must be in (0, 1], got {share}; null starts every dream from data")
        self.share, self.max_chunks, self.doubt = share, max_chunks, doubt
        self.moment: Moment | None = None
        self._restored: dict[str, Any] | None = None  # `moment` from a checkpoint, until a fresh one tells its types
        self.chunks = torch.zeros(0, dtype=torch.long)  # length of each dream so far; 0 where it has ended
        self.doubts = torch.zeros(0)  # of each dream so far

    def begin(self, fresh: Moment) -> Moment:
        """`fresh` with its first rows replaced by dreams that go on."""
        if self._restored is not None:
            self.moment, self._restored = _rebuilt(fresh, self._restored), None
            self.chunks, self.doubts = (x.to(fresh.states.device) for x in (self.chunks, self.doubts))
        if self.moment is None:
            return fresh
        rows = len(self.moment.instruction)
        return cat_rows(where_rows(self.chunks > 0, self.moment, fresh[:rows]), fresh[rows:])

    def end(self, dream: Dream, noise: Noise) -> None:
        """Remember where the first rows are now; `noise` is that of the dream."""
        rows = round(self.share * len(dream.reward))
        p_stay = (1 - dream.p_success[:rows].detach()).prod(dim=1).clamp(0, 1)
        begun = (torch.zeros(rows, dtype=torch.long), torch.zeros(rows)) if self.moment is None else (self.chunks, self.doubts)
        length, doubt = (x.to(p_stay.device) for x in begun)
        length, doubt = length + dream.reward.shape[1], doubt + dream.doubt[:rows].sum(dim=1)
        stays = (noise.uniform("continuation")[:rows] < p_stay) & (length < self.max_chunks)
        if self.doubt is not None:
            stays &= doubt <= self.doubt
        self.moment, self.chunks, self.doubts = dream.end[:rows], torch.where(stays, length, 0), torch.where(stays, doubt, 0)

    def get_extra_state(self) -> dict[str, Any]:
        """Where the dreams are, as plain values, for exact resumption."""
        return {
            "moment": self._restored if self.moment is None else _plain(self.moment),
            "chunks": self.chunks,
            "doubts": self.doubts,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with the dreams of an interrupted run."""
        self.moment, self._restored, self.chunks, self.doubts = None, state["moment"], state["chunks"], state["doubts"]


def _plain(value: Any) -> Any:
    """Nested dictionaries, lists and tensors, which `torch.load(weights_only=True)` reads."""
    if isinstance(value, TensorBatch):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}  # type: ignore[arg-type]
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return list(value) if isinstance(value, tuple) else value


def _rebuilt(example: Any, plain: Any) -> Any:
    """What `_plain` took apart, with the types and the device of `example`."""
    if isinstance(example, TensorBatch):
        parts = {name: _rebuilt(getattr(example, name), value) for name, value in plain.items()}
        return replace(example, **parts)  # type: ignore[type-var]
    if isinstance(example, dict):
        return {name: _rebuilt(item, plain[name]) for name, item in example.items()}
    return tuple(plain) if isinstance(example, tuple) else plain.to(example.device)
