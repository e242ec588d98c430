"""Specifications of made-up robots, for tests."""

import torch
from torch import Tensor

from worldsim.core.spec import Channel, Spec


def toy_spec(state: Tensor, actions: int = 2) -> Spec:
    """No cameras; the state is normalised by these rows, [n, s], and actions, which lie in [-1, 1], stay as they are.

    Channels have the names of a push, or their numbers if there are others.
    """
    names = [
        push if len(push) == number else [f"{letter}{i}" for i in range(number)]
        for push, number, letter in ((["x", "y", "vx", "vy"], state.shape[1], "s"), (["dx", "dy"], actions, "a"))
    ]
    felt = tuple(Channel(name, normalisation="mean_std") for name in names[0])
    asked = tuple(Channel(name, low=-1, high=1) for name in names[1])
    return Spec({}, 10, "toy", felt, asked).fitted(state.numpy(), torch.zeros(2, actions).numpy())
