"""`DreamWorld`: a world model and a reflector as one vector environment. No physics runs here.

Dreams start from real frames; the world model predicts what the camera will see, the reflector gives reward and end. The
same Gymnasium contract as the physics worlds holds, so a policy cannot tell the difference. Read `training/rl/ppo.py` next.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium.spaces.text import alphanumeric
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from worldsim.core import checkpoint
from worldsim.core.interfaces import Reflector, WorldModel
from worldsim.core.noise import Noise
from worldsim.core.sight import clips, recent, seen
from worldsim.core.sizes import check_sizes
from worldsim.core.spec import Channel
from worldsim.core.types import Judgement, Observation, TensorBatch, float_image, where_rows
from worldsim.core.views import check_cameras
from worldsim.core.world import Branchable, ChunkResult, Divisible, Reward, Sight, Step, World
from worldsim.data.store import FrameStore
from worldsim.tasks.reward import ProgressReward

FPS = 10  # of a dream whose model does not say it [Hz]


@dataclass(frozen=True)
class Starts(TensorBatch):
    """Real moments from which dreams start: n windows of `context` frames of each camera, proprioception and an instruction."""

    images: dict[str, UInt8[Tensor, "n context _ _ 3"]]
    state: Float[Tensor, "n context s"]
    instruction: tuple[str, ...]

    def __len__(self) -> int:
        return self.state.shape[0]

    def with_context(self, context: int) -> "Starts":
        """The same moments with `context` frames: the oldest is repeated, or the oldest are dropped."""
        images = {name: recent(frames, context) for name, frames in self.images.items()}
        return Starts(images, recent(self.state, context), self.instruction)

    @classmethod
    def first_observations(cls, observations: Sequence[Observation]) -> "Starts":
        """The first observations of episodes, with one frame of context."""
        return cls(
            images={name: torch.cat([obs.images[name] for obs in observations])[:, None] for name in observations[0].images},
            state=torch.cat([obs.state for obs in observations])[:, None],
            instruction=tuple(sentence for obs in observations for sentence in obs.instruction),
        )

    @classmethod
    def first_frames(cls, table: FrameStore, context: int) -> "Starts":
        """The first frame of every episode, repeated to fill the context."""
        rows = table.first.unique()
        window = table.window(rows, context=context, horizon=0)
        return cls(window["images"], window["state"], table.instruction)


@dataclass(frozen=True)
class DreamState(TensorBatch):
    """Everything that determines the future of b dreams, but for the stream of noise, which a reset chooses."""

    model: TensorBatch
    clip: dict[
        str, Float[Tensor, "b context _ _ 3"]
    ]  # the last frames that the cameras saw, 0..1, as many as the reflector asks for
    state: Float[Tensor, "b s"]
    instruction: tuple[str, ...]
    progress: Float[Tensor, " b"]
    p_success: Float[Tensor, " b"]  # largest of the dream so far
    hits: Bool[Tensor, "b window"]  # which of the last frames that it judged the reflector called a success
    elapsed: Int[Tensor, " b"]
    stream: Int[Tensor, "b 2"]  # seed and episode number: the state of the random generators


@dataclass(frozen=True, kw_only=True)
class DreamJudgement(Judgement):
    """A reflector's verdict, and the largest success probability that it gave to a frame of the dream so far."""

    p_success: Float[Tensor, " b"]


def check_reflector(reflector: Reflector) -> None:
    """A reflector of somebody's can end dreams.

    Raises:
        ValueError: if it has no threshold, or looks at no frame.
    """
    if getattr(reflector, "threshold", None) is None:
        raise ValueError(
            f"{type(reflector).__name__} has no threshold, the probability from which a frame counts as a success; give it "
            "one, best as a buffer"
        )
    if reflector.every < 1 or reflector.context < 1:
        raise ValueError(
            f"{type(reflector).__name__} must look at 1 frame or more, at every 1st or so, got context={reflector.context} and "
            f"every={reflector.every}"
        )


class DreamWorld(World, Branchable, Divisible):
    """`num_envs` dreams, paid and ended by what the reflector judges, on the device of both models.

    `step_chunk` is one call of the world model for every `action_horizon` actions. `step` is a chunk of one action: unless the
    world model is `causal` another dream than the one in which a policy's chunks are played whole, and no verb of worldsim uses it.

    Rate, names and limits are those of the world model's `spec`.

    Args:
        world_model: predicts frames and proprioception.
        reflector: judges every predicted frame, or so many of them as it says (`Reflector.every`); k of n judged frames above its
            threshold terminate.
        starts: real moments to start from, of any number of frames; drawn at random by each environment's own stream.
        num_envs: batch size.
        max_episode_steps: truncation.
        seed: environment i uses the stream seed + i.
        reward: of the reflector's judgements; null is `ProgressReward`, as in physics.
        every: of each call of the world model a reflector that would look at every frame looks at the last one and each `every`-th
            before it. Where time is up within a call, what it said last holds.

    Raises:
        ValueError: if there are no starts, num_envs < 1 or every < 1.
    """

    reward: Reward

    def __init__(
        self,
        world_model: WorldModel,
        reflector: Reflector,
        starts: Starts,
        num_envs: int = 64,
        max_episode_steps: int = 40,
        seed: int = 0,
        reward: Reward | None = None,
        every: int = 1,
    ):
        if num_envs < 1 or len(starts) < 1:
            raise ValueError(f"a dream needs num_envs >= 1 and at least one start, got {num_envs} and {len(starts)}")
        check_reflector(reflector)
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}; 2 judges every second frame of a call")
        self.world_model, self.reflector, self.every = world_model, reflector, every
        check_cameras(reflector.views, world_model.views, "the reflector", "the world model dreams")
        starts = starts.with_context(max(world_model.context, reflector.context)).to(world_model.device)
        self.starts = replace(starts, images=seen(starts.images, world_model.views, "the world model"))
        low, high = (bound.cpu().numpy() for bound in (world_model.action_units.low, world_model.action_units.high))
        self.fps = FPS if world_model.spec is None else round(world_model.spec.fps)
        if world_model.spec is None:
            self.state_channels = tuple(Channel(f"state_{i}") for i in range(starts.state.shape[-1]))
            limits = zip(low.tolist(), high.tolist(), strict=True)
            self.action_channels = tuple(Channel(f"action_{i}", low=a, high=z) for i, (a, z) in enumerate(limits))
        else:
            self.state_channels, self.action_channels = world_model.spec.state, world_model.spec.action
            self.robot_type = world_model.spec.robot_type
        self.num_envs, self.max_episode_steps, self.camera = num_envs, max_episode_steps, next(iter(world_model.views))
        self.causal, self._noise_stream, self.device = world_model.causal, 0, starts.state.device
        self.reward = ProgressReward() if reward is None else reward
        self.single_observation_space = gym.spaces.Dict(
            images=gym.spaces.Dict(
                {name: gym.spaces.Box(0, 255, (*size, 3), np.uint8) for name, size in world_model.views.items()}
            ),
            state=gym.spaces.Box(-np.inf, np.inf, (starts.state.shape[-1],), np.float32),
            instruction=gym.spaces.Text(200, charset=alphanumeric | set(" .,:;!?'-")),
        )
        self.single_action_space = gym.spaces.Box(low, high)
        rows = torch.arange(num_envs, device=self.device)
        self._state = self._fresh(torch.stack([seed + rows, torch.zeros_like(rows)], dim=1), None)

    @classmethod
    def from_folders(
        cls,
        world_model: str,
        reflector: str,
        data: Sequence[str],
        num_envs: int = 16,
        max_episode_steps: int = 40,
        seed: int = 0,
        reward: Reward | None = None,
    ) -> "DreamWorld":
        """A dream of exported models that starts from the first frames of recorded datasets.

        Raises:
            FileNotFoundError: if a model or a dataset is missing.
            ValueError: if one is damaged, or the data have other sizes than a model.
        """
        model = checkpoint.load(world_model, WorldModel)
        judge = checkpoint.load(reflector, Reflector)
        table = FrameStore.read(data, model.views)
        for part in (model, judge):
            check_sizes(part, table.spec)
        if model.spec is not None:
            table = table.ordered(model.spec, "the world model")
        starts = Starts.first_frames(table, model.context)
        return cls(model, judge, starts, num_envs, max_episode_steps, seed, reward)

    @cached_property
    def action_space(self) -> gym.Space[Any]:  # type: ignore[override]
        """Of all dreams together; made when somebody asks, as Gymnasium copies the space of one for each of them."""
        return batch_space(self.single_action_space, self.num_envs)

    @cached_property
    def observation_space(self) -> gym.Space[Any]:  # type: ignore[override]
        """As `action_space`."""
        return batch_space(self.single_observation_space, self.num_envs)

    # Gymnasium ----------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """See `World.reset`. ``options={"start": int [b]}`` chooses the starts instead of drawing them."""
        options = options or {}
        mask, seeds = self.begun(seed, options)
        if seeds is not None:
            fresh = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)
            self._state = replace(self._state, stream=torch.where(mask[:, None], fresh, self._state.stream))
        self._noise_stream = options.get("stream", self._noise_stream)
        self._draw(mask, options.get("start"))
        return self._observe(self._state), {}

    @torch.no_grad()
    def step(self, actions: Float[Tensor, "b ad"]) -> Step:
        return self.step_chunk(self.check_actions(actions, ndim=2)[:, None]).as_step()

    @torch.no_grad()
    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        return self._play(actions)[0]

    @torch.no_grad()
    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        result, states = self._play(actions)
        return result, [(self._observe(state), self._judge(state)) for state in states]

    def snapshot(self) -> DreamState:
        return self._state

    def restore(self, state: TensorBatch) -> Observation:
        if not isinstance(state, DreamState) or state.elapsed.shape != (self.num_envs,):
            raise ValueError(
                f"restore needs a DreamState of {self.num_envs} dreams; index the snapshot: world.restore(snapshot[rows])"
            )
        self._state = state
        return self._observe(state)

    def take(self, rows: Tensor) -> "DreamWorld":
        world = copy.copy(self)
        world._state = self._state[rows]
        world.num_envs = len(world._state.elapsed)
        for space in ("action_space", "observation_space"):
            vars(world).pop(space, None)
        return world

    def judge(self) -> DreamJudgement:
        return self._judge(self._state)

    def render(self) -> tuple[np.ndarray, ...]:
        """The dreamed frames, one uint8 [h, w, 3] per environment."""
        return tuple(self._observe(self._state).images[self.camera].cpu().numpy())

    # Internals ----------------------------------------------------------------------------------------------------------

    def _play(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[DreamState]]:
        """The result of a chunk, and where the dreams were after each of its actions."""
        actions = self.check_actions(actions, ndim=3)
        done = torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        final, states, log = self._state, [], []
        for piece in actions.split(self.world_model.action_horizon, dim=1):
            for now in self._advance(piece):
                success = self._succeeded(now)
                reward = torch.where(done, 0.0, self.reward(self._said(final), self._said(now)))
                terminated, truncated = success & ~done, (now.elapsed >= self.max_episode_steps) & ~success & ~done
                log.append((reward, terminated, truncated, ~done))
                final = where_rows(done, final, now) if states else now  # before its first action no dream of a chunk has ended
                done = done | terminated | truncated
                states.append(final)
            self._state = now
        self._state = final
        obs = final_obs = self._observe(final)
        if done.any():
            self._draw(done)
            obs = self._observe(self._state)
        columns = (torch.stack(values, dim=1) for values in zip(*log, strict=True))
        return ChunkResult(obs, final_obs, *columns, final_judge=self._judge(final)), states

    def _advance(self, actions: Float[Tensor, "b m ad"]) -> list[DreamState]:
        """The m states after each of m actions: one call of the world model."""
        old, m = self._state, actions.shape[1]
        noise = Noise(old.stream[:, 0], old.stream[:, 1], old.elapsed, self._noise_stream)
        model, images, states = self.world_model.step(old.model, actions, noise)
        # Before the reflector looks, so that it judges the pictures that the policy sees.
        past = self.reflector.context
        shown = {
            name: clips(torch.cat([old.clip[name][:, 1:], frames.clamp(0, 1)], dim=1), past) for name, frames in images.items()
        }
        elapsed = old.elapsed[:, None] + torch.arange(1, m + 1, device=self.device)
        due, p_success, progress = self._reflected(shown, old.instruction, elapsed)
        results, hits, highest, reached = [], old.hits, old.p_success, old.progress
        for j in range(m):
            asked, hit = due[:, j], (p_success[:, j] > self.reflector.threshold)[:, None]
            hits = torch.where(asked[:, None], torch.cat([hits[:, 1:], hit], dim=1), hits)
            highest = torch.where(asked, highest.maximum(p_success[:, j].float()), highest)
            reached = torch.where(asked, progress[:, j], reached)
            now = {name: frames[:, j] for name, frames in shown.items()}
            found = {"state": states[:, j], "progress": reached, "hits": hits, "p_success": highest}
            results.append(replace(old, model=model, clip=now, elapsed=elapsed[:, j], **found))
        return results

    def _reflected(
        self, shown: dict[str, Float[Tensor, "b m context _ _ 3"]], instruction: tuple[str, ...], elapsed: Int[Tensor, "b m"]
    ) -> tuple[Bool[Tensor, "b m"], Float[Tensor, "b m"], Float[Tensor, "b m"]]:
        """Which clips are judged; their success probability and progress, zeros elsewhere."""
        (p_success, progress), m = torch.zeros(2, *elapsed.shape, device=self.device), elapsed.shape[1]
        if self.reflector.every > 1:
            due = (elapsed % self.reflector.every == 0) | (elapsed == self.max_episode_steps)
            if due.any():
                sentences = tuple(instruction[i] for i in due.nonzero()[:, 0].tolist())
                said = self.reflector.judge({name: frames[due] for name, frames in shown.items()}, sentences)
                p_success[due], progress[due] = said.p_success.float(), said.progress.float()
            return due, p_success, progress
        # The same frames of all dreams: nobody waits to be told which.
        chosen = [*range(m)][:: -self.every][::-1]
        columns, sentences = torch.tensor(chosen, device=self.device), tuple(sentence for sentence in instruction for _ in chosen)
        looked_at = shown if len(chosen) == m else {name: frames[:, chosen] for name, frames in shown.items()}
        said = self.reflector.judge({name: frames.flatten(0, 1) for name, frames in looked_at.items()}, sentences)
        p_success, progress = (
            values.index_copy(1, columns, found.float().view(-1, len(chosen)))
            for values, found in ((p_success, said.p_success), (progress, said.progress))
        )
        return torch.zeros_like(elapsed, dtype=torch.bool).index_fill(1, columns, True), p_success, progress

    def _succeeded(self, state: DreamState) -> Bool[Tensor, " b"]:
        return state.hits.sum(dim=1) >= self.reflector.consecutive

    def _begin(self, index: Int[Tensor, " b"], stream: Int[Tensor, "b 2"]) -> DreamState:
        start = self.starts[index]
        b = len(index)
        clip = {name: recent(frames, self.reflector.context) for name, frames in start.images.items()}
        first = start.with_context(self.world_model.context)
        with torch.no_grad():
            judged = self.reflector.judge(clip, start.instruction)
            model = self.world_model.init(first.images, first.state, first.instruction)
        return DreamState(
            model=model,
            clip={name: float_image(frames) for name, frames in clip.items()},
            state=start.state[:, -1],
            instruction=start.instruction,
            progress=judged.progress,
            p_success=torch.zeros(b, device=self.device),
            hits=torch.zeros(b, self.reflector.window, dtype=torch.bool, device=self.device),
            elapsed=torch.zeros(b, dtype=torch.long, device=self.device),
            stream=stream,
        )

    def _draw(self, mask: Bool[Tensor, " b"], start: Int[Tensor, " b"] | None = None) -> None:
        """Begin a new dream where `mask`, from a random start of each environment's own stream or from a chosen one."""
        if not mask.any():
            return
        chosen = None if start is None else torch.as_tensor(start, device=self.device)[mask]
        fresh = self._fresh(self._state.stream[mask], chosen)
        place = (mask.cumsum(0) - 1).clamp(min=0)  # of each environment's row in `fresh`
        self._state = where_rows(mask, fresh[place], self._state)

    def _fresh(self, stream: Int[Tensor, "b 2"], start: Int[Tensor, " b"] | None) -> DreamState:
        """New dreams, each from a random start of its own stream or from a chosen one."""
        if start is None:
            start = Noise(stream[:, 0], stream[:, 1], torch.zeros_like(stream[:, 0])).integers("start", len(self.starts))
        return self._begin(start, stream + torch.tensor([0, 1], device=self.device))

    def _said(self, state: DreamState) -> Judgement:
        """What rewards see: progress as the reflector says it, which may leave 0..1 a little and still grows with the truth."""
        return Judgement(success=self._succeeded(state), progress=state.progress)

    def _judge(self, state: DreamState) -> DreamJudgement:
        return DreamJudgement(success=self._succeeded(state), progress=state.progress.clamp(0, 1), p_success=state.p_success)

    def _observe(self, state: DreamState) -> Observation:
        images = {name: (frames[:, -1] * 255).round().to(torch.uint8) for name, frames in state.clip.items()}
        return Observation(images, state.state.float(), state.instruction)
