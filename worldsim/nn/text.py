"""Sentences for small networks: a real tokenizer, and an encoder that pools its tokens. Read `layers.py` next.

Any sentence has a tokenisation, and everyday English words have one of their own, so a new task needs no new tokenizer;
trained models depend on it. It holds the 6,000 most frequent merges of CLIP's vocabulary (OpenAI, MIT, `LICENSE-CLIP`).
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from tokenizers import Tokenizer
from torch import Tensor, nn

MAX_TOKENS = 32
MAX_CHARACTERS = 1000  # of a sentence that are read, far more than so many tokens have


@cache
def tokenizer() -> Tokenizer:
    """The first 6,000 merges of CLIP's byte-level BPE (arXiv:2103.00020); any sentence has an encoding (`make_tokenizer.py`)."""
    loaded = Tokenizer.from_file(str(Path(__file__).with_name("tokenizer.json")))
    loaded.enable_truncation(MAX_TOKENS)
    loaded.enable_padding(length=MAX_TOKENS, pad_id=0, pad_token="<pad>")
    return loaded


@lru_cache(maxsize=10_000)  # a server's clients choose the sentences; at most some 20 MB
def _encode(sentence: str) -> tuple[int, ...]:
    return tuple(tokenizer().encode(sentence.lower()).ids)


def tokenize(instruction: Sequence[str]) -> Int[Tensor, "b tokens"]:
    """Token ids of each sentence's first `MAX_CHARACTERS` in lower case, padded with 0 or cut to `MAX_TOKENS`."""
    place = {sentence: i for i, sentence in enumerate(dict.fromkeys(instruction))}  # many rows have few sentences
    tokens = torch.tensor([_encode(sentence[:MAX_CHARACTERS]) for sentence in place], dtype=torch.long).view(-1, MAX_TOKENS)
    return tokens[[place[sentence] for sentence in instruction]]


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
