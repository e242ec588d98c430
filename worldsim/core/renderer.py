"""`Renderer`: what a captured scene is made of, whatever learned it: it answers rays.

Neural fields, grids and splats have nothing in common but this, and a scene asks for nothing else, so it is what a folder must hold
to be shown in a world. Read `models/renderers/` for those there are and `worldsim/worlds/genesis/nerf.py` for who asks.
"""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor

from worldsim.core.checkpoint import Configured

Look = tuple[Float[Tensor, "n 3"], Float[Tensor, " n"], Float[Tensor, " n"]]
"""Colour, distance and opacity of n rays."""


class Renderer(Configured, ABC):
    """A radiance field in the widest sense: colour and opacity along any ray."""

    @abstractmethod
    def render(self, origins: Float[Tensor, "n 3"], directions: Float[Tensor, "n 3"]) -> Look:
        """What n rays meet.

        Args:
            origins: where they begin, in the scene's own units.
            directions: unit vectors.

        Returns:
            Colour 0..1, the background included; distance along the ray to what stops it, in the scene's units, which means
            nothing where there is nothing; accumulated opacity 0..1.
        """
