"""Counter-based noise: the published numbers, the right distributions, and only (seed, episode, step, draw, stream) count."""

import json
import subprocess
import sys

import pytest
import torch
from scipy import stats

from worldsim.core.noise import Noise, philox

# Known answers of philox4x32-10 (Random123 1.14, tests/kat_vectors): counter, key, result.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN)
def test_published_numbers(counter, key, result):
    words = [torch.tensor([word]) for word in (*counter, *key)]
    assert [int(word) for word in philox(tuple(words[:4]), tuple(words[4:]))] == list(result)


def rows(*keys: tuple[int, int, int]) -> Noise:
    return Noise(*torch.tensor(keys).unbind(1))


MANY = [(900_000_000 + i, i % 3, 4 * i) for i in range(200)]


@pytest.mark.parametrize("draw", [lambda n: n.normal("x", 5, 3), lambda n: n.uniform("x", 7), lambda n: n.integers("x", 12)])
def test_a_row_is_the_same_in_any_batch_and_order(draw):
    whole, order = draw(rows(*MANY)), torch.randperm(200, generator=torch.Generator().manual_seed(0))
    assert torch.equal(draw(rows(*MANY)[order]), whole[order])
    for i in (0, 17, 199):
        assert torch.equal(draw(rows(MANY[i]))[0], whole[i])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(draw(rows(*MANY)), whole), "half precision is for networks"


def test_another_process_with_other_threads_draws_the_same():
    code = (
        "import torch; torch.set_num_threads(1); from worldsim.core.noise import Noise; "
        "print(Noise.rows(2**40 + 3, 64).at(5).normal('x', 1000).double().sum(1)[[0, 63]].tolist())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    mine = Noise.rows(2**40 + 3, 64).at(5).normal("x", 1000).double().sum(1)[[0, 63]].tolist()
    assert json.loads(found) == mine


def test_every_part_of_the_key_counts():
    base = (2**33 + 1, 2, 3)
    others = [rows((2**33 + 2, 2, 3)), rows((2**34 + 1, 2, 3)), rows((2**33 + 1, 3, 2)), rows((2**33 + 1, 2, 4)), rows(base)]
    draws = [noise.normal("a", 8) for noise in others[:-1]] + [rows(base).normal("b", 8)]
    draws += [Noise(*torch.tensor([base]).unbind(1), stream=1).normal("a", 8), others[-1].normal("a", 8)]
    assert len({tuple(draw[0].tolist()) for draw in draws}) == len(draws)


def test_shapes_and_more_numbers_do_not_change_the_uniform_ones():
    noise = rows(*MANY[:4])
    assert noise.uniform("x").shape == (4,) and noise.normal("x").shape == (4,) and noise.normal("x", 2, 0).shape == (4, 2, 0)
    assert torch.equal(noise.uniform("x", 9)[:, :4], noise.uniform("x", 2, 2).flatten(1))


def test_distributions():
    noise = Noise.rows(1, 2000)
    normal, uniform, whole = noise.normal("n", 50).flatten(), noise.uniform("u", 50).flatten(), noise.integers("i", 5)
    assert stats.kstest(normal.numpy(), "norm").pvalue > 0.001
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 0.001
    assert stats.chisquare(torch.bincount(whole, minlength=5).numpy()).pvalue > 0.001
    assert uniform.min() >= 0 and uniform.max() < 1 and whole.min() == 0 and whole.max() == 4
    pairs = noise.normal("n", 2)
    assert torch.corrcoef(pairs.T)[0, 1].abs() < 0.08  # the two numbers of a Box-Muller pair; standard error 0.022
    steps = torch.stack([noise.normal("n"), noise.at(1).normal("n"), noise.normal("m")])
    assert (torch.corrcoef(steps) - torch.eye(3)).abs().max() < 0.08


@pytest.mark.gpu
def test_a_gpu_draws_the_same():
    for draw in (lambda n: n.bits("x", 9), lambda n: n.uniform("x", 9), lambda n: n.integers("x", 9)):
        assert torch.equal(draw(rows(*MANY).to("cuda")).cpu(), draw(rows(*MANY)))
    torch.testing.assert_close(rows(*MANY).to("cuda").normal("x", 999).cpu(), rows(*MANY).normal("x", 999), atol=1e-6, rtol=0)
