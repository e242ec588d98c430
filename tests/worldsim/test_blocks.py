"""The tokenizer behind every instruction: what it must do for sentences that no task has spoken."""

import pytest

from worldsim.blocks import MAX_TOKENS, tokenize, tokenizer
from worldsim.sim.scene import Scene


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
