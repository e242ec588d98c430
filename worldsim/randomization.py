"""Sim-to-real randomisation: what a robot's camera and wires do to a world, anew for every episode (CAD2RL, arXiv:1611.04201).

`RandomizedWorld` wraps any world. Each parameter is a distribution in `configs/randomization/`, drawn from the environment's own
stream (seed, episode), so one seed always meets the same conditions whatever else is randomised; `info["randomization"]` logs them.
Read `effects.py` for what happens to the pictures.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector.utils import batch_space
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from worldsim.effects import Distribution, Effect, Values
from worldsim.interfaces import ChunkResult, World
from worldsim.types import Judgement, Observation, TensorBatch, float_image


@dataclass(frozen=True)
class Latency:
    """Actions that arrive late: for the first `delay` of a control step the previous action still acts.

    Attributes:
        delay: [s], drawn once per episode.
        jitter: [s], added, drawn anew for every step.
    """

    delay: Distribution
    jitter: Distribution

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The episode's delay."""
        return {"delay": self.delay.sample(rng)}


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

    def draw(self, rng: np.random.Generator) -> dict[str, float]:
        """The episode's factors."""
        return {field.name: getattr(self, field.name).sample(rng) for field in fields(self)}


@dataclass(frozen=True)
class RandomizedState(TensorBatch):
    """The wrapped world's state, and what determines the conditions."""

    world: TensorBatch
    stream: Int[Tensor, "b 2"]  # seed and number of the episode
    elapsed: Int[Tensor, " b"]
    previous: Float[Tensor, "b ad"]  # the action of the step before; 0 at an episode's beginning


class RandomizedWorld(World):
    """A world seen and moved under randomised conditions. Reward, end and ground truth are the wrapped world's.

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
        self.world, self.effects, self.latency, self.dynamics = world, effects, latency, dynamics
        for name in ("num_envs", "fps", "max_episode_steps", "camera", "state_names", "action_names", "robot_type"):
            setattr(self, name, getattr(world, name))
        self.single_observation_space, self.single_action_space = world.single_observation_space, world.single_action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        b, (size,) = self.num_envs, self.single_action_space.shape
        self._stream = torch.stack([seed + torch.arange(b), torch.zeros(b, dtype=torch.long)], dim=1)
        self._elapsed, self._previous = torch.zeros(b, dtype=torch.long), torch.zeros(b, size)
        self._drawn: dict[tuple[int, int], dict[str, float]] = {}

    @property
    def physics_steps(self) -> int:  # type: ignore[override]
        """Those of the wrapped world."""
        return self.world.physics_steps

    def reset(
        self, *, seed: int | Sequence[int] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        obs, info = self.world.reset(seed=seed, options=options)
        mask = torch.as_tensor((options or {}).get("mask", torch.ones(self.num_envs)), dtype=torch.bool)
        if seed is not None:
            seeds = seed + torch.arange(self.num_envs) if isinstance(seed, int) else torch.tensor(list(seed))
            fresh = torch.stack([seeds, torch.zeros_like(seeds)], dim=1)
            self._stream = torch.where(mask[:, None], fresh, self._stream)
        self._begin(mask)
        return self._seen(obs), info | {"randomization": self.parameters()}

    def step(self, actions: Float[Tensor, "b ad"]) -> tuple[Observation, Tensor, Tensor, Tensor, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.world.step(self._late(self.check_actions(actions, ndim=2)))
        self._elapsed = self._elapsed + 1
        final = self._seen(info["final_obs"])
        self._begin(terminated | truncated)
        info = info | {"final_obs": final, "randomization": self.parameters()}
        return self._seen(obs), reward, terminated, truncated, info

    def step_chunk(self, actions: Float[Tensor, "b ah ad"]) -> ChunkResult:
        actions = self.check_actions(actions, ndim=3)
        before = self._elapsed
        late = []
        for action in actions.unbind(1):
            late.append(self._late(action))
            self._elapsed = self._elapsed + 1
        result = self.world.step_chunk(torch.stack(late, dim=1))
        executed = result.valid.sum(dim=1)
        self._elapsed = before + executed
        self._previous = actions[torch.arange(self.num_envs), executed - 1]
        final = self._seen(result.final_obs)
        self._begin(result.done)
        return replace(result, obs=self._seen(result.obs), final_obs=final)

    def snapshot(self) -> RandomizedState:
        return RandomizedState(self.world.snapshot(), self._stream.clone(), self._elapsed.clone(), self._previous.clone())

    def restore(self, state: TensorBatch) -> Observation:
        if not isinstance(state, RandomizedState) or state.elapsed.shape != (self.num_envs,):
            raise ValueError(
                f"restore needs a RandomizedState of {self.num_envs} environments; index the snapshot: restore(snapshot[rows])"
            )
        self._stream, self._elapsed, self._previous = state.stream.clone(), state.elapsed.clone(), state.previous.clone()
        self._set_dynamics(torch.ones(self.num_envs, dtype=torch.bool))
        return self._seen(self.world.restore(state.world))

    def judge(self) -> Judgement:
        return self.world.judge()

    def expert(self) -> Float[Tensor, "b ad"]:
        """The wrapped world's, who knows nothing of late actions."""
        return self.world.expert()

    def render(self) -> Any:
        """The pictures of the wrapped world, as no camera distorts them."""
        return self.world.render()

    def close_extras(self, **kwargs: Any) -> None:
        self.world.close()

    def parameters(self) -> Values:
        """What was drawn for the present episodes: "effect.parameter" -> [b]."""
        drawn = [self._draw(*key) for key in self._stream.tolist()]
        return {name: torch.tensor([values[name] for values in drawn]) for name in drawn[0]}

    # Internals ----------------------------------------------------------------------------------------------------------

    def _begin(self, mask: Tensor) -> None:
        self._stream = self._stream + torch.stack([torch.zeros_like(mask), mask], dim=1)
        self._elapsed = torch.where(mask, 0, self._elapsed)
        self._previous = torch.where(mask[:, None], 0.0, self._previous)
        self._set_dynamics(mask)

    def _set_dynamics(self, mask: Tensor) -> None:
        if self.dynamics is None or not mask.any():
            return
        drawn, world = self.parameters(), self.world
        factors = {field.name: drawn[f"dynamics.{field.name}"][mask] for field in fields(Dynamics)}
        world.set_dynamics(mask.nonzero().flatten(), **factors)  # type: ignore[attr-defined]

    def _draw(self, seed: int, episode: int) -> dict[str, float]:
        """The conditions of one episode; each effect has a stream of its own."""
        if (seed, episode) not in self._drawn:
            others = {"latency": self.latency, "dynamics": self.dynamics}
            parts: dict[str, Any] = {**self.effects, **{name: part for name, part in others.items() if part is not None}}
            values = {}
            for name, part in parts.items():
                rng = np.random.default_rng([seed % 2**63, episode, zlib.crc32(name.encode())])
                sampled = part.draw(rng)
                values |= {f"{name}.{key}": float(value) for key, value in sampled.items()}
            if len(self._drawn) > 4 * self.num_envs:
                self._drawn.clear()
            self._drawn[seed, episode] = values
        return self._drawn[seed, episode]

    def _late(self, actions: Float[Tensor, "b ad"]) -> Float[Tensor, "b ad"]:
        """What acts during this control step on average."""
        previous, self._previous = self._previous, actions
        if self.latency is None:
            return actions
        jitter = [self.latency.jitter.sample(np.random.default_rng([*self._key(i), 1])) for i in range(self.num_envs)]
        delay = self.parameters()["latency.delay"] + torch.tensor(jitter)
        share = (delay * self.fps).clamp(0, 1).float()[:, None]
        return share * previous + (1 - share) * actions

    def _seen(self, obs: Observation) -> Observation:
        frames = obs.images[self.camera]
        pictures = float_image(frames).permute(0, 3, 1, 2)
        drawn = self.parameters() if self.effects else {}
        for number, (name, effect) in enumerate(self.effects.items()):
            values = {key.partition(".")[2]: value.float() for key, value in drawn.items() if key.startswith(f"{name}.")}
            seeds = [
                np.random.SeedSequence([*self._key(i), 2 + number]).generate_state(1, np.uint64)[0] for i in range(self.num_envs)
            ]
            generators = [torch.Generator().manual_seed(int(seed) >> 1) for seed in seeds]
            pictures = effect.apply(pictures, values, generators)
        seen: UInt8[Tensor, "b h w 3"] = (pictures.permute(0, 2, 3, 1) * 255).round().to(torch.uint8)
        return replace(obs, images={**obs.images, self.camera: seen})

    def _key(self, i: int) -> tuple[int, int, int]:
        """Seed, episode and step of environment i."""
        seed, episode = self._stream[i].tolist()
        return seed % 2**63, episode, int(self._elapsed[i])
