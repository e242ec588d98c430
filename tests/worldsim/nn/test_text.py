"""The tokenizer behind every instruction: what it must do for sentences that no task has spoken."""

import pytest

from worldsim.nn.text import MAX_CHARACTERS, MAX_TOKENS, _encode, tokenize, tokenizer
from worldsim.worlds.genesis.scene import Scene


@pytest.mark.parametrize("phrasings", ["train", "eval"])
@pytest.mark.parametrize("scene", ["push_block", "push_block_hard"])
def test_no_sentence_of_a_task_is_cut(scene, phrasings):
    sentences = Scene(scene, phrasings).sentences()
    assert (tokenize(sentences)[:, -MAX_TOKENS // 4 :] == 0).all()


def test_everyday_words_are_whole_and_known_from_each_other():
    words = ["can", "you", "move", "the", "red", "piece", "that", "over", "where", "should", "please", "blue", "green", "table"]
    ids = [tokenizer().encode(word).ids for word in words]
    lengths = {word: sum(i != 0 for i in row) for word, row in zip(words, ids, strict=True)}
    assert set(lengths.values()) == {1}, lengths
    assert len({row[0] for row in ids}) == len(words)


def test_any_text_has_an_encoding_of_its_own():
    texts = ["naïve robots", "naive robots", "机器人", "😀", "push!", "push"]
    encoded = tokenize(texts)
    assert (encoded[:, 0] != 0).all()
    assert len(encoded.unique(dim=0)) == len(texts)


def test_capitals_do_not_matter():
    assert (tokenize(["Push the RED block"]) == tokenize(["push the red block"])).all()


def test_sentences_of_strangers_do_not_fill_the_memory():
    """A server tokenises whatever its clients send, for months."""
    size = _encode.cache_info().maxsize
    assert size is not None
    tokenize([f"push block {i}" for i in range(size + 100)])
    assert _encode.cache_info().currsize == size
    known = _encode.cache_info().hits
    long = "push the red block " + 10**6 * "x"
    assert (tokenize([long]) == tokenize([long + "y"])).all()
    assert _encode.cache_info().hits == known + 1, "what lies beyond the characters that are read is no other key"


def test_what_is_cut_has_no_token_among_those_that_count():
    words = " ".join(f"extraordinarily number {i}" for i in range(100))
    assert len(words) > MAX_CHARACTERS and tokenize([words])[0].tolist() == tokenizer().encode(words).ids[:MAX_TOKENS]
