"""The contracts that every world model, reflector and policy keeps; that of worlds is in `world.py`.

`worldsim` owns environments, evaluation and export without importing any model: it receives objects that implement these
abstract classes. ABCs rather than Protocols, because the Lightning CLI's parser rejects Protocols with jaxtyping shapes.
Read `worldsim/worlds/dream.py` next: it turns a `WorldModel` and a `Reflector` into a `World`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, final

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor, nn

from worldsim.core.checkpoint import Configured
from worldsim.core.flow import matching_loss, sample_guided, sample_ode
from worldsim.core.noise import Noise
from worldsim.core.spec import Spec
from worldsim.core.types import Features, Observation, Reflection, TensorBatch
from worldsim.core.units import Units
from worldsim.core.views import Views


class WorldModel(Configured, ABC):
    """A learned simulator: (state, action chunk, noise) -> (state, frames). State is explicit, a `TensorBatch`.

    A chunk of fewer actions than `action_horizon` leads to a state of its own, from which the next one goes on.

    Attributes:
        views: the cameras whose frames it predicts, all of them together, and at which size.
        differentiable: gradients pass through `step`, from frames to actions and state.
        context: number of real frames that start a dream.
        action_horizon: longest chunk that one call predicts.
        action_dim: ad.
        action_units: of its actions, whose limits are those of the dream.
        causal: a frame depends on the actions before it alone, so that chunks may be cut anywhere with the same result.
    """

    views: Views
    differentiable: bool = False
    causal: bool = False
    context: int
    action_horizon: int
    action_dim: int
    action_units: Units

    @property
    def horizon(self) -> int:
        """Actions of a window that `loss` takes: one chunk, unless a model learns from several in a row."""
        return self.action_horizon

    @property
    def device(self) -> torch.device:
        """Where its numbers lie, and so the dreams."""
        return next((tensor.device for tensor in (*self.parameters(), *self.buffers())), torch.device("cpu"))

    def fit_statistics(self, images: Mapping[str, Shaped[Tensor, "n _ _ 3"]], spec: Spec) -> None:
        """Fit to the data what is not trained by gradient, units and in a subclass a codec, and keep what their numbers mean as
        `spec`; once, before training."""
        self.action_units.fit(spec, "action")
        self.spec = spec

    @abstractmethod
    def init(
        self,
        images: Mapping[str, Shaped[Tensor, "b context _ _ 3"]],
        state: Float[Tensor, "b context s"],
        instruction: Sequence[str],
    ) -> TensorBatch:
        """A dream's state from `context` real frames of each camera (uint8 or float 0..1, of any size: `sight.seen` makes them
        views) and their proprioception, oldest first, and what the robot was told, for models that read it."""

    @abstractmethod
    def step(
        self, state: TensorBatch, actions: Float[Tensor, "b ah ad"], noise: Noise
    ) -> tuple[TensorBatch, dict[str, Float[Tensor, "b ah _ _ 3"]], Float[Tensor, "b ah s"]]:
        """Predict the ah frames of each camera (float 0..1, of its view's size) and proprioceptive states that follow.

        Args:
            state: from `init` or the previous `step`.
            actions: 1 to `action_horizon` actions in native units.
            noise: where each dream is; the only randomness. A model draws from it what it needs, and nothing if it needs none.
        """

    @abstractmethod
    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Training loss and named scalars to log, for a batch of `FrameStore.window`s."""


class Encoder(ABC):
    """Ability of a world model: it says what it sees as latents of its own, for judges and figures that read those."""

    @abstractmethod
    def encode(self, clip: Mapping[str, Shaped[Tensor, "*b _ _ 3"]]) -> Float[Tensor, "*b c y x"]:
        """Latents of the pictures of all cameras, uint8 or float 0..1 of any size; differentiable if the model is."""


class Reflector(Configured, ABC):
    """Judges what cameras show, under an instruction: single moments, or clips of the last few frames.

    Attributes:
        views: the cameras that it looks through, and at which size.
        context: frames of a clip, of which the last is judged; before an episode's start the first one is repeated.
        differentiable: gradients pass from its judgement to the pixels. Who needs them says so by name.
        every: a slow judge is asked about a dreamed episode's start, every so many-th frame and the one at which time is up; in
            between its last word holds.
        threshold: calibrated success probability above which a frame counts as success.
        consecutive: k, so many of the last `window` judged frames must count before an episode stops.
        window: n of the k-of-n rule.
        scale, bias: of Platt's calibration, p = sigmoid(scale * logit + bias); only what `ReflectorTraining` trains needs them.
    """

    views: Views
    context: int = 1
    differentiable: bool = False
    every: int = 1
    threshold: Tensor
    scale: Tensor
    bias: Tensor
    consecutive: int = 1
    window: int = 1

    @abstractmethod
    def judge(self, clip: Mapping[str, Shaped[Tensor, "b context _ _ 3"]], instruction: Sequence[str]) -> Reflection:
        """Judge the last of `context` frames, oldest first, what each camera shows of them (uint8 or float 0..1, of any size),
        under one instruction each."""

    def raw(
        self, clip: Mapping[str, Shaped[Tensor, "b context _ _ 3"]], instruction: Sequence[str]
    ) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
        """Uncalibrated success logit and progress, which learn from recorded frames.

        Raises:
            ValueError: if the reflector does not learn that way, unless it overrides this.
        """
        raise ValueError(
            f"{type(self).__name__} has no logit that frames could train; train another reflector, or this one elsewhere"
        )


class Policy(Configured, ABC):
    """Acts on what it sees: any network, sampler or script that answers an observation with a chunk of actions.

    Attributes:
        views: the cameras that it looks through, and at which size; observations may be of any size.
        action_horizon: ah, actions per decision.
        action_dim: ad.
        state_units, action_units: between native units, which come in and go out, and those of the network.
    """

    views: Views
    action_horizon: int
    action_dim: int
    state_units: Units
    action_units: Units

    def fit_statistics(self, spec: Spec) -> None:
        """Keep what the numbers of a dataset mean as `spec`, and normalise by it; once, before training.

        Raises:
            ValueError: if it was built for other numbers.
        """
        self.state_units.fit(spec, "state")
        self.action_units.fit(spec, "action")
        self.spec = spec

    @abstractmethod
    def act(self, obs: Observation, noise: Noise, committed: Float[Tensor, "b n ad"] | None = None) -> Float[Tensor, "b ah ad"]:
        """Chunks of actions in native units, within their limits.

        Args:
            obs: in native units.
            noise: the only randomness, one row per observation; a policy draws from it what it needs.
            committed: the running chunk from this observation on, of which n <= ah actions will still be executed whatever comes
                back; the new chunk should go on from them, if the policy can do so.
        """

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """What behaviour cloning minimises on a batch of `DemonstrationData` in native units, and named scalars to log.

        Args:
            batch: `obs`, the `action` that followed [b, ah, ad], and which of them are `valid` [b, ah].
            generator: of what it draws, on the device of the batch.

        Raises:
            ValueError: if the policy does not learn from demonstrations, unless it overrides this.
        """
        raise ValueError(f"{type(self).__name__} does not learn from demonstrations; train another policy, or this one elsewhere")


class FlowPolicy(Policy):
    """A velocity field over action chunks, conditioned on an observation. Sampling is a function: what reinforcement learning
    changes the sampler of.

    Attributes:
        num_steps: K, denoising steps of the ODE sampler.
        feature_dim: f, size of `Features.vector`.
        repeats: noise samples per observation of a batch of demonstrations; `encode` runs once for all of them.
    """

    num_steps: int
    feature_dim: int
    repeats: int = 4

    @abstractmethod
    def encode(self, obs: Observation) -> Features:
        """What all denoising steps of a decision need of its observation, computed once."""

    @abstractmethod
    def velocity(self, features: Features, x_t: Float[Tensor, "b ah ad"], t: Float[Tensor, " b"]) -> Float[Tensor, "b ah ad"]:
        """The velocity of `worldsim.core.flow` at x_t and time t."""

    @final
    def act(self, obs: Observation, noise: Noise, committed: Float[Tensor, "b n ad"] | None = None) -> Float[Tensor, "b ah ad"]:
        features, start = self.encode(obs), noise.normal("policy", self.action_horizon, self.action_dim)
        if committed is not None and committed.shape[1] > self.action_horizon:
            raise ValueError(f"{committed.shape[1]} actions are committed, a chunk has {self.action_horizon}; ask again later")
        if committed is None:
            return self.action_units.native(self.sample(features, start))
        missing = self.action_horizon - committed.shape[1]
        previous = torch.nn.functional.pad(committed, (0, 0, 0, missing))
        weights = (torch.arange(self.action_horizon, device=previous.device) < committed.shape[1]).to(previous.dtype)
        return self.guided(features, start, previous, weights.expand(len(previous), -1))

    def sample(self, features: Features, noise: Float[Tensor, "b ah ad"]) -> Float[Tensor, "b ah ad"]:
        """The chunk in network units that the ODE makes of noise."""
        return sample_ode(partial(self.velocity, features), noise, num_steps=self.num_steps).float()

    def guided(
        self,
        features: Features,
        noise: Float[Tensor, "b ah ad"],
        previous: Float[Tensor, "b ah ad"],
        weights: Float[Tensor, "b ah"],
    ) -> Float[Tensor, "b ah ad"]:
        """The chunk in native units, drawn towards `previous` ones: real-time chunking, see `sample_guided`."""
        wanted = self.action_units.network(previous)
        drawn = sample_guided(partial(self.velocity, features), noise, previous=wanted, weights=weights, num_steps=self.num_steps)
        return self.action_units.native(drawn)

    def expert_parameters(self) -> list[nn.Parameter]:
        """The parameters that `velocity` uses and `encode` does not; what learns when the encoder is frozen.

        Raises:
            ValueError: if the policy does not tell them apart, unless it overrides this.
        """
        raise ValueError(f"{type(self).__name__} does not tell its action expert apart; set model.expert_only=false")

    def loss(self, batch: dict[str, Any], generator: torch.Generator) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        features, mask = self.encode(batch["obs"]).repeat(self.repeats), batch["valid"].repeat(self.repeats, 1)[..., None]
        return self.cloning_loss(features, batch["action"].repeat(self.repeats, 1, 1), mask, generator), {}

    def cloning_loss(
        self, features: Features, actions: Float[Tensor, "b ah ad"], mask: Bool[Tensor, "b ah 1"], generator: torch.Generator
    ) -> Float[Tensor, ""]:
        """Flow matching of recorded chunks in native units, counted where `mask` is True; `generator`, on the device of the
        actions, draws times and noise."""
        actions = torch.where(mask, self.action_units.network(actions), 0.0)
        t = torch.rand(len(actions), generator=generator, device=actions.device).clamp(min=1e-3)
        noise = torch.randn(actions.shape, generator=generator, device=actions.device)
        return matching_loss(partial(self.velocity, features), actions, noise=noise, t=t, mask=mask)
