"""Noise as a pure function of (seed, episode, step, draw): one start meets the same noise in any batch, order and process.

A generator that is drawn from in turn gives a start other numbers as soon as a neighbour is added, dropped or reordered. A
counter-based one (Salmon et al. 2011, doi:10.1145/2063384.2063405) has no state: every number is a hash of where it is used.
Policies, world models, effects and scripted actors draw from it, so whole rollouts can be paired start by start. Read
`worldsim/measure/collect.py` next: it says at which start and step each environment is.
"""

import math
import zlib
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from worldsim.core.types import TensorBatch

WORD = 2**32 - 1
# Philox4x32-10: multipliers of the round, increments of the key.
MULTIPLIERS, INCREMENTS, ROUNDS = (0xD2511F53, 0xCD9E8D57), (0x9E3779B9, 0xBB67AE85), 10


@dataclass(frozen=True)
class Noise(TensorBatch):
    """Where b environments are: all that their noise depends on.

    Integers and uniform numbers are equal to the bit everywhere, normal ones on every CPU but for the last digit of one in some
    10^9, which libraries may round otherwise, and to 1e-6 on other devices with double precision. `draw` names what a number is
    for; two uses under one name would get the same numbers.

    Attributes:
        seed: of the start, any 64 bits.
        episode: number of the episode of this seed, below 2^32.
        step: control steps since the episode began, below 2^32.
        stream: another number gives other noise on the same starts, to see how much of an outcome is chance.
    """

    seed: Int[Tensor, " b"]
    episode: Int[Tensor, " b"]
    step: Int[Tensor, " b"]
    stream: int = 0

    @classmethod
    def rows(cls, seed: int, batch: int, device: torch.device | str = "cpu") -> "Noise":
        """`batch` rows of one seed, told apart by their number: where nothing else tells them apart."""
        row = torch.arange(batch, device=device)
        return cls(torch.full_like(row, seed), row, torch.zeros_like(row))

    def at(self, step: Int[Tensor, " b"] | int) -> "Noise":
        """The same rows at another step."""
        return replace(self, step=torch.as_tensor(step, device=self.seed.device).expand_as(self.seed))

    def within(self, name: str) -> "Noise":
        """The same rows in a stream of their own, so that what draws under one name in two places gets other numbers."""
        return replace(self, stream=zlib.crc32(name.encode(), self.stream & WORD))

    def __len__(self) -> int:
        return len(self.seed)

    def bits(self, draw: str, number: int) -> Int[Tensor, "b number"]:
        """Independent integers, uniform in 0..2^32 - 1."""
        index = torch.arange(-(-number // 4), device=self.seed.device)[None]
        purpose = torch.full_like(index[:, :1], zlib.crc32(draw.encode(), self.stream & WORD))
        counter = (index, purpose, self.step[:, None] & WORD, self.episode[:, None] & WORD)
        words = philox(counter, (self.seed[:, None] & WORD, (self.seed[:, None] >> 32) & WORD))
        return torch.stack(torch.broadcast_tensors(*words), dim=-1).flatten(1)[:, :number]

    def uniform(self, draw: str, *shape: int) -> Float[Tensor, "b *shape"]:
        """Numbers in [0, 1), multiples of 2^-24."""
        return ((self.bits(draw, math.prod(shape)) >> 8).float() / 2**24).reshape(len(self), *shape)

    def normal(self, draw: str, *shape: int) -> Float[Tensor, "b *shape"]:
        """Standard normal numbers (Box and Muller 1958), at most 6.8 in size; worked out in double precision, then rounded."""
        number = math.prod(shape)
        first, second = self.bits(draw, 2 * -(-number // 2)).double().add(0.5).div(2**32).chunk(2, dim=1)
        radius, angle = (-2 * first.log()).sqrt(), 2 * math.pi * second
        pair = torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
        return pair[:, :number].float().reshape(len(self), *shape)

    def integers(self, draw: str, high: int) -> Int[Tensor, " b"]:
        """One integer in 0..high - 1 per row; for `high` up to 2^16 none is likelier than another by more than 2^-16."""
        return (self.bits(draw, 1)[:, 0] * high) >> 32


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox4x32-10, ten rounds of multiplication and exclusive or over four words (Salmon et al. 2011, section 4.3).

    Args:
        counter: four 32-bit words, int64 tensors that broadcast.
        key: two more.
    """
    a, b, c, d = counter
    low, high = key
    for _ in range(ROUNDS):
        left, right = MULTIPLIERS[0] * a, MULTIPLIERS[1] * c  # int64 wraps around and keeps all 64 bits
        a, b, c, d = ((right >> 32) & WORD) ^ b ^ low, right & WORD, ((left >> 32) & WORD) ^ d ^ high, left & WORD
        low, high = (low + INCREMENTS[0]) & WORD, (high + INCREMENTS[1]) & WORD
    return a, b, c, d
