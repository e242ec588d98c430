"""Sim-to-real randomisation: what a robot's camera and wires do to a world, anew for every episode (CAD2RL, arXiv:1611.04201).

`RandomizedWorld` wraps any world. Each parameter is a distribution in `configs/randomization/`, drawn from the environment's own
stream (seed, episode), so one seed always meets the same conditions whatever else is randomised; `info["randomization"]` logs them.
Read `effects.py` for what happens to the pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from gymnasium.vector.utils import batch_space
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.precision import exact
from worldsim.core.types import Judgement, Observation, TensorBatch, float_image
from worldsim.core.world import Branchable, ChunkResult, Scripted, Sight, Step, World
from worldsim.worlds.effects import Distribution, Effect, Values, sampled


@dataclass(frozen=True)
class Latency:
    """Actions that arrive late: for the first `delay` of a control step the previous action still acts.

    Attributes:
        delay: [s], drawn once per episode.
        jitter: [s], added, drawn anew for every step.
    """

    delay: Distribution
    jitter: Distribution


@dataclass(frozen=True)
class Dynamics:
    """A world that moves otherwise than its model says: factors of the scene's values, drawn once per episode.

    Attributes:
        mass: of every body that the robot moves.
        friction: of every surface.
        gain: stiffness of the robot's controller.
    """

    mass: Distribution
    friction: Distribution
    gain: Distribution


@dataclass(frozen=True)
class RandomizedState(TensorBatch):
    """The wrapped world's state, and what determines the conditions."""

    world: TensorBatch
    stream: Int[Tensor, "b 2"]  # seed and number of the episode
    elapsed: Int[Tensor, " b"]
    previous: Float[Tensor, "b ad"]  # the action of the step before; 0 at an episode's beginning


class RandomizedWorld(World, Branchable, Scripted):
    """A world seen and moved under randomised conditions. Reward, end, truth and abilities are the wrapped world's.

    Args:
        world: any world.
        effects: applied to its pictures in this order, by name.
        latency: of the actions, or null. A late action is mixed with the one before it, by their shares of the control step.
        dynamics: of the bodies, or null; only for a world with `set_dynamics` (`GenesisWorld`).
        seed: environment i uses the stream seed + i; `reset(seed=...)` sets it, too.

    Raises:
        ValueError: if the world has no dynamics that could be changed.
    """

    def __init__(
        self,
        world: World,
        effects: dict[str, Effect],
        latency: Latency | None = None,
        dynamics: Dynamics | None = None,
        seed: int = 0,
    ):
        if dynamics is not None and not hasattr(world, "set_dynamics"):
            raise ValueError(f"{type(world).__name__} has no dynamics to change; randomise a physics world or set dynamics to null")
        self.world, self.latency, self.dynamics = world, latency, dynamics
        self.effects = {name: effect.through(world) for name, effect in effects.items() if effect is not None}
        for name in ("num_envs", "fps", "max_episode_steps", "camera", "state_channels", "action_channels", "robot_type"):
            setattr(self, name, getattr(world, name))
        self.device, self.reward, self.causal, self.physics = world.device, world.reward, world.causal, world.physics
        self.single_observation_space, self.single_action_space = world.single_observation_space, world.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        b, (size,) = self.num_envs, self.single_action_space.shape
        self._elapsed = torch.zeros(b, dtype=torch.long, device=self.device)
        self._stream = torch.stack([seed + torch.arange(b, device=self.device), self._elapsed], dim=1)
        self._previous = torch.zeros(b, size, device=self.device)
        self._noise_stream = 0
        self._values = self._drawn()

    @property
    def unwrapped(self) -> World:
        """The world inside, with its scene and its truth (Gymnasium's name)."""
        return self.world.unwrapped

    @property
    def physics_steps(self) -> int:  # type: ignore[override]
        """Those of the wrapped world."""
        return self.world.physics_steps

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        obs, info = self.world.reset(seed=seed, options=options)
        mask, seeds = self.begun(seed, options)
        self._noise_stream = (options or {}).get("stream", self._noise_stream)
        if seeds is not None:
            fresh = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)
            self._stream = torch.where(mask[:, None], fresh, self._stream)
        self._begin(mask, obs)
        return self._seen(obs, self._elapsed), info | {"randomization": self.parameters()}

    def step(self, actions: Float[Tensor, "b ad"]) -> Step:
        actions = self.check_actions(actions, ndim=2)
        obs, reward, terminated, truncated, info = self.world.step(self._late(actions[:, None])[:, 0])
        self._previous, self._elapsed = actions, self._elapsed + 1
        final = self._seen(info["final_obs"], self._elapsed)
        self._begin(terminated | truncated, obs)
        info = info | {"final_obs": final, "randomization": self.parameters()}
        return self._seen(obs, self._elapsed), reward, terminated, truncated, info

    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        actions = self.check_actions(actions, ndim=3)
        return self._finish(self.world.step_chunk(self._late(actions)), actions)

    def watch_chunk(self, actions: Float[Tensor, "b ah ad"]) -> tuple[ChunkResult, list[Sight]]:
        actions = self.check_actions(actions, ndim=3)
        result, seen = self.world.watch_chunk(self._late(actions))
        executed = result.valid.cumsum(dim=1)
        watched = [(self._seen(obs, self._elapsed + executed[:, i]), judged) for i, (obs, judged) in enumerate(seen)]
        return self._finish(result, actions), watched

    def able(self, ability: type) -> bool:
        return super().able(ability) and self.world.able(ability)

    def snapshot(self) -> RandomizedState:
        inner = self.world.require(Branchable, "snapshot", "reset it to a seed instead")
        return RandomizedState(inner.snapshot(), self._stream.clone(), self._elapsed.clone(), self._previous.clone())

    def restore(self, state: TensorBatch) -> Observation:
        if not isinstance(state, RandomizedState) or state.elapsed.shape != (self.num_envs,):
            raise ValueError(
                f"restore needs a RandomizedState of {self.num_envs} environments; index the snapshot: restore(snapshot[rows])"
            )
        inner = self.world.require(Branchable, "restore", "reset it to a seed instead")
        self._stream, self._elapsed, self._previous = state.stream.clone(), state.elapsed.clone(), state.previous.clone()
        self._values = self._drawn()
        self._set_dynamics(torch.ones_like(self._elapsed, dtype=torch.bool))
        return self._seen(inner.restore(state.world), self._elapsed)

    def judge(self) -> Judgement:
        return self.world.judge()

    def expert(self) -> Float[Tensor, "b ad"]:
        """The wrapped world's, who knows nothing of late actions."""
        return self.world.require(Scripted, "expert", "let a policy act").expert()

    def render(self) -> Any:
        """The pictures of the wrapped world, as no camera distorts them."""
        return self.world.render()

    def close_extras(self, **kwargs: Any) -> None:
        self.world.close()

    def parameters(self) -> Values:
        """What was drawn for the present episodes: "effect.parameter" -> [b]."""
        return dict(self._values)

    # Internals ----------------------------------------------------------------------------------------------------------

    def _noise(self, elapsed: Int[Tensor, " b"], stream: int = 0) -> Noise:
        return Noise(self._stream[:, 0], self._stream[:, 1], elapsed, stream)

    def _drawn(self) -> Values:
        """The conditions of the present episodes; each draws under a name of its own, so that none depends on the others."""
        noise, values = self._noise(torch.zeros_like(self._elapsed)), {}  # of the start, whatever the stream of its noise
        parts: dict[str, Any] = dict(self.effects) if self.dynamics is None else {**self.effects, "dynamics": self.dynamics}
        for name, part in parts.items():
            values |= {f"{name}.{key}": value for key, value in sampled(part, noise.within(name)).items()}
        if self.latency is not None:
            values["latency.delay"] = self.latency.delay.sample(noise.within("latency"), "delay")
        return values

    def _begin(self, mask: Tensor, obs: Observation) -> None:
        if not mask.any():
            return
        self._stream = self._stream + torch.stack([torch.zeros_like(mask), mask], dim=1)
        self._elapsed = torch.where(mask, 0, self._elapsed)
        self._previous = torch.where(mask[:, None], self._still(obs), self._previous)
        self._values = self._drawn()
        self._set_dynamics(mask)

    def _still(self, obs: Observation) -> Float[Tensor, "b ad"]:
        """What a robot does that nobody told anything: where it is told places that it feels, it stays, elsewhere it moves by 0."""
        still = torch.zeros_like(self._previous)
        for i, channel in enumerate(self.action_channels):
            if channel.kind in ("absolute", "angle") and channel.name in self.state_names:
                still[:, i] = obs.state[:, self.state_names.index(channel.name)]
        return still

    def _set_dynamics(self, mask: Tensor) -> None:
        if self.dynamics is None:
            return
        factors = {field.name: self._values[f"dynamics.{field.name}"][mask] for field in fields(Dynamics)}
        self.world.set_dynamics(mask.nonzero().flatten(), **factors)  # type: ignore[attr-defined]

    def _late(self, actions: Float[Tensor, "b m ad"]) -> Float[Tensor, "b m ad"]:
        """What acts during each of these control steps on average."""
        if self.latency is None:
            return actions
        before = torch.cat([self._previous[:, None], actions[:, :-1]], dim=1)
        steps = [self._noise(self._elapsed + i, self._noise_stream) for i in range(actions.shape[1])]
        jitter = torch.stack([self.latency.jitter.sample(noise.within("latency"), "jitter") for noise in steps], dim=1)
        share = ((self._values["latency.delay"][:, None] + jitter) * self.fps).clamp(0, 1)[..., None]
        return share * before + (1 - share) * actions

    def _finish(self, result: ChunkResult, actions: Float[Tensor, "b m ad"]) -> ChunkResult:
        """The result of a chunk as it is seen, and this world's memory of it."""
        executed = result.valid.sum(dim=1)
        self._elapsed = self._elapsed + executed
        self._previous = actions[torch.arange(self.num_envs, device=self.device), executed - 1]
        final = self._seen(result.final_obs, self._elapsed)
        self._begin(result.done, result.obs)
        return replace(result, obs=self._seen(result.obs, self._elapsed), final_obs=final)

    @exact
    def _seen(self, obs: Observation, elapsed: Int[Tensor, " b"]) -> Observation:
        pictures = float_image(obs.images[self.camera]).permute(0, 3, 1, 2)
        for name, effect in self.effects.items():
            values = {key.partition(".")[2]: value for key, value in self._values.items() if key.startswith(f"{name}.")}
            pictures = effect.apply(pictures, values, self._noise(elapsed, self._noise_stream).within(name))
        seen: UInt8[Tensor, "b h w 3"] = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        return replace(obs, images={**obs.images, self.camera: seen})
