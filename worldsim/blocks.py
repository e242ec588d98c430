"""Network parts that policies, reflectors and critics share: a text encoder over a real tokenizer and a visual trunk.

They live here because `models` and `reflectors` may not import each other. Both are small enough for a laptop; a VLM backbone
takes their place through the same two methods. Read `models/policies/flow_vla.py` next.
"""

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from tokenizers import Tokenizer
from torch import Tensor, nn

from worldsim.checkpoint import Configured
from worldsim.sim.scene import ASSETS
from worldsim.types import float_image

MAX_TOKENS = 32
MAX_CHARACTERS = 1000  # of a sentence that are read, far more than so many tokens have


@cache
def tokenizer() -> Tokenizer:
    """The first 6,000 merges of CLIP's byte-level BPE (arXiv:2103.00020); any sentence has an encoding (`sim_assets/README.md`)."""
    loaded = Tokenizer.from_file(str(ASSETS / "tokenizer.json"))
    loaded.enable_truncation(MAX_TOKENS)
    loaded.enable_padding(length=MAX_TOKENS, pad_id=0, pad_token="<pad>")
    return loaded


@lru_cache(maxsize=10_000)  # a server's clients choose the sentences; at most some 20 MB
def _encode(sentence: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(sentence.lower()).ids)


def tokenize(instruction: Sequence[str]) -> Int[Tensor, "b tokens"]:
    """Token ids of each sentence's first `MAX_CHARACTERS` in lower case, padded with 0 or cut to `MAX_TOKENS`."""
    return torch.tensor([_encode(sentence[:MAX_CHARACTERS]) for sentence in instruction], dtype=torch.long)


class TextEncoder(nn.Module):
    """Sentence -> vector: token embeddings pooled by learned attention queries.

    Pooling by attention lets the words that matter ("green") outweigh words never seen in training. While training, a share of
    the tokens is replaced by random ones so that unknown words are nothing unusual.

    Args:
        width: size of the embedding and of the result.
        queries: number of attention queries.
        corruption: probability that a token is replaced while training.
    """

    def __init__(self, width: int = 64, queries: int = 4, corruption: float = 0.15):
        super().__init__()
        self.corruption = corruption
        self.embedding = nn.Embedding(tokenizer().get_vocab_size(), width)
        self.query = nn.Parameter(0.1 * torch.randn(width, queries))
        self.out = nn.Linear(queries * width, width)

    def forward(self, instruction: Sequence[str]) -> Float[Tensor, "b width"]:
        return self.pool(tokenize(instruction).to(self.query.device))

    def pool(self, tokens: Int[Tensor, "b tokens"]) -> Float[Tensor, "b width"]:
        """The vector of `tokenize`d sentences: what an exported graph holds."""
        padding = tokens == 0
        if self.training:
            noise = torch.randint_like(tokens, 1, self.embedding.num_embeddings)
            tokens = torch.where((torch.rand_like(tokens, dtype=torch.float) < self.corruption) & ~padding, noise, tokens)
        embedded = self.embedding(tokens)
        weight = (embedded @ self.query).masked_fill(padding[..., None], -1e4).softmax(dim=1)
        return self.out(torch.einsum("btq,btw->bqw", weight, embedded).flatten(1))


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)) * (1 + scale) + shift)) with scale and shift from the instruction (FiLM, arXiv:1709.07871).

    The last convolution starts at zero instead of a normalisation layer: group norm costs as much as the convolution on a CPU.
    """

    def __init__(self, channels: int, condition: int):
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        nn.init.zeros_(self.second.weight)

    def forward(self, x: Float[Tensor, "b c h w"], condition: Float[Tensor, "b n"]) -> Float[Tensor, "b c h w"]:
        scale, shift = self.film(condition)[..., None, None].chunk(2, dim=1)
        hidden = self.first(F.silu(x)) * (1 + scale) + shift
        return x + self.second(F.silu(hidden))


class VisualTrunk(Configured):
    """RGB frames and an instruction -> features: patches, residual blocks that the instruction modulates, one linear layer.

    The grid is flattened, not pooled: where things are is what matters.

    Args:
        features: size of the result.
        channels: width of the convolutions.
        blocks: number of residual blocks.
        text: size of the instruction's vector.
        patch: side of a patch in pixels.
        image: (height, width) of the frames, multiples of `patch`.
    """

    def __init__(
        self,
        features: int = 256,
        channels: int = 64,
        blocks: int = 2,
        text: int = 64,
        patch: int = 8,
        image: tuple[int, int] = (64, 64),
    ):
        super().__init__()
        if min(image) < patch or any(side % patch for side in image):
            raise ValueError(
                f"image must be (height, width) in multiples of {patch} pixels, got {tuple(image)}; resize the pictures"
            )
        self.text = TextEncoder(text)
        self.stem = nn.Conv2d(3, channels, patch, stride=patch)
        self.blocks = nn.ModuleList(ResidualBlock(channels, text) for _ in range(blocks))
        grid = (image[0] // patch) * (image[1] // patch)
        self.out = nn.Sequential(nn.Linear(grid * channels + text, features), nn.SiLU(), nn.Linear(features, features))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, frames: Shaped[Tensor, "b h w 3"], instruction: Sequence[str]) -> Float[Tensor, "b features"]:
        return self.see(frames, self.text(instruction))

    def see(self, frames: Shaped[Tensor, "b h w 3"], text: Float[Tensor, "b text"]) -> Float[Tensor, "b features"]:
        """Features of frames under the instruction's vector."""
        x = self.stem((float_image(frames) - 0.45).permute(0, 3, 1, 2) * 4)  # a permuted NHWC frame is channels-last already
        for block in self.blocks:
            x = block(x, text)
        return F.silu(self.out(torch.cat([F.silu(x).flatten(1), text], dim=-1)))


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with SiLU between them."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [nn.SiLU()] if i else []
        layers += [nn.Linear(a, b)]
    return nn.Sequential(*layers)


def time_embedding(t: Float[Tensor, " b"], width: int) -> Float[Tensor, "b width"]:
    """Sines and cosines of t in [0, 1] at frequencies 1 to 100 (arXiv:1706.03762, section 3.5)."""
    angle = t[:, None] * torch.logspace(0, 2, width // 2, device=t.device)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
