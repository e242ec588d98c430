"""A policy behind a websocket as an actor: `worldsim evaluate policy=ws://host:port` judges anyone's server.

One request per environment, over connections of their own, so that a server which batches sees the whole batch. Read
`worldsim/robot/client.py` for a connection, and `evaluate.py` for who asks.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from worldsim.core.noise import Noise
from worldsim.core.spec import Spec, match
from worldsim.core.types import Observation
from worldsim.core.views import check_cameras
from worldsim.measure.collect import Actor
from worldsim.robot.client import RemotePolicy
from worldsim.robot.observation import IMAGE, IMAGES, NOISE, PROMPT, STATE

LONGEST_CHUNK = 1000  # actions; more is a mistake or a prank of the server
T = TypeVar("T")


class RemotePolicies:
    """Connections to one policy server, over which a `RemoteActor` asks.

    The first is opened at once, to hear what the server is; others as soon as so many environments ask. Whoever makes one closes
    it: ``with RemotePolicies(url) as policies:``.

    Args:
        url: ``ws://host:port`` or ``wss://host:port``.
        api_key: of the server.
        connections: at most so many at a time; environments beyond share them.
        timeout_s: longest time that one request takes.

    Raises:
        ValueError: if `url` is no websocket URL.
        ConnectionError: if there is no policy server.
    """

    def __init__(self, url: str, *, api_key: str | None = None, connections: int = 64, timeout_s: float = 30.0):
        self.connections = connections
        self.clients: list[RemotePolicy] = []
        self._client = partial(RemotePolicy, url, api_key=api_key, timeout_s=timeout_s)
        self._threads = ThreadPoolExecutor(connections, thread_name_prefix="remote policy")
        self._open(1)
        self.metadata = self.clients[0].metadata

    def infer(self, observations: list[dict[str, Any]]) -> list[np.ndarray]:
        """Actions [ah, ad] of each observation; client k of n takes observations k, k + n, ...

        Raises:
            ConnectionError: if a request fails. Where a connection cannot be had, all are closed.
        """
        self._open(min(len(observations), self.connections))
        n = len(self.clients)
        shares = self._at_once([partial(_ask, client, observations[k::n]) for k, client in enumerate(self.clients)])
        chunks: list[Any] = [None] * len(observations)
        for k, share in enumerate(shares):
            chunks[k::n] = share
        return chunks

    def close(self) -> None:
        """Close all connections, after what is in flight."""
        self._threads.shutdown(cancel_futures=True)
        clients, self.clients = self.clients, []
        with ThreadPoolExecutor(self.connections) as threads:  # a server that does not say goodbye takes a second for each
            list(threads.map(RemotePolicy.close, clients))

    def __enter__(self) -> "RemotePolicies":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _open(self, number: int) -> None:
        """At least so many connections, or none at all."""
        new = [self._client() for _ in range(number - len(self.clients))]
        self.clients += new
        try:
            self._at_once([partial(getattr, client, "metadata") for client in new])
        except ConnectionError:
            self.close()
            raise

    def _at_once(self, calls: list[Callable[[], T]]) -> list[T]:
        """Results of calls side by side. All have ended before the first error is raised: nothing goes on behind one's back."""
        futures = [self._threads.submit(call) for call in calls]
        wait(futures)
        return [future.result() for future in futures]


def _ask(client: RemotePolicy, observations: list[dict[str, Any]]) -> list[np.ndarray]:
    return [client.infer(observation)["actions"] for observation in observations]


class RemoteActor(Actor):
    """Asks a policy server for every environment's chunk.

    Args:
        policies: connections to it. A server whose metadata gives `views` gets the pictures of these cameras, as large as the world
            shows them; one that gives a `noise_shape` the noise that `PolicyActor` would use; one that gives a `spec` gets states
            and is understood in the order of its channels.
    """

    source = "policy"

    def __init__(self, policies: RemotePolicies):
        self.policies = policies

    def act(self, world: Any, obs: Observation, noise: Noise) -> Float[Tensor, "b ah ad"]:
        """Chunks of the server, within what the world executes.

        Raises:
            ValueError: if the server needs another camera or has other channels, or its actions are not finite, not [ah, ad] or of
                another robot.
            ConnectionError: if a request fails.
        """
        felt, asked = self._orders(world)
        columns = {key: _pixels(obs.images[name]) for key, name in self._cameras(world, obs).items()}
        columns[STATE] = obs.state[:, felt].float().numpy()
        if (shape := self._noise_shape(world)) is not None:
            columns[NOISE] = noise.normal("policy", *shape).numpy()
        rows = [
            {PROMPT: sentence, **{key: values[i] for key, values in columns.items()}} for i, sentence in enumerate(obs.instruction)
        ]
        chunks = self.policies.infer(rows)
        expected, shapes = world.single_action_space.shape, {chunk.shape for chunk in chunks}
        if len(shapes) > 1 or chunks[0].ndim != 2 or chunks[0].shape[1:] != expected or not len(chunks[0]):
            raise ValueError(
                f"the server's actions must have shape (ah, {expected[0]}), got {sorted(shapes)}; it serves another robot"
            )
        actions = torch.from_numpy(np.stack(chunks).astype(np.float32))
        if not torch.isfinite(actions).all():
            raise ValueError("the server's actions must be finite, got NaN or infinity; check the server")
        return world.clipped(actions[..., asked])

    def _cameras(self, world: Any, obs: Observation) -> dict[str, str]:
        """Which camera goes under which key."""
        match self.policies.metadata.get("views"):
            case None:
                return {IMAGE: world.camera} | {IMAGES + name: name for name in obs.images if name != world.camera}
            case dict(views) if views and all(isinstance(name, str) for name in views):
                check_cameras(views, obs.images, "the server", "the world shows")
                return {IMAGES + name: name for name in views}
            case other:
                raise ValueError(f"the server's views must be [height, width] by camera, got {other!r:.60}")

    def _orders(self, world: Any) -> tuple[list[int], list[int]]:
        """Of the world's state the server's channels, and of its actions the world's."""
        if not (said := self.policies.metadata.get("spec")):
            return [*range(len(world.state_names))], [*range(len(world.action_names))]
        spec = Spec.from_json(said, "the server's metadata")
        felt = match(spec.state, world.state_channels, what="state", who="the server", where="the world", exact=True)
        asked = match(world.action_channels, spec.action, what="action", who="the world", where="the server", exact=True)
        return [*felt], [*asked]

    def _noise_shape(self, world: Any) -> tuple[int, int] | None:
        match self.policies.metadata.get("noise_shape"):
            case [int(horizon), int(dim)] if 0 < horizon <= LONGEST_CHUNK and (dim,) == world.single_action_space.shape:
                return horizon, dim
            case None:
                return None
            case other:
                raise ValueError(f"the server's noise_shape must be [ah, {world.single_action_space.shape[0]}], got {other!r:.60}")


def _pixels(frames: Tensor) -> np.ndarray:
    """uint8 pictures, [b, h, w, 3]; a differentiable dream's are floats in 0..1."""
    return (frames if frames.dtype == torch.uint8 else (frames * 255).round().clamp(0, 255).byte()).numpy()
