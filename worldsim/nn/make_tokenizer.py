"""Make `tokenizer.json` from CLIP's vocabulary file (MIT licence): its most frequent merges. Trained models depend on the result.

    python -m worldsim.nn.make_tokenizer bpe_simple_vocab_16e6.txt.gz

The file is in the PyPI package open_clip_torch (3.3.0) and in github.com/openai/CLIP.
"""

import gzip
import sys
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

MERGES = 6000  # of 48,894: everyday English words are one token, and an embedding table stays small
END = "</w>"

if __name__ == "__main__":
    lines = gzip.decompress(Path(sys.argv[1]).read_bytes()).decode().splitlines()[1 : 1 + MERGES]
    merges = [(first, second) for first, second in (line.split() for line in lines)]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<pad>", *alphabet, *(letter + END for letter in alphabet), *("".join(pair) for pair in merges)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, end_of_word_suffix=END))
    tokenizer.normalizer = normalizers.Lowercase()
    words = pre_tokenizers.Split(Regex(r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"), "removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.BPEDecoder(suffix=END)
    tokenizer.save(str(Path(__file__).parent / "tokenizer.json"), pretty=False)
