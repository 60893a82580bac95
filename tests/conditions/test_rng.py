"""Random numbers of the conditions: splitmix64 and uniform numbers as functions of the seed."""

import math

import pytest
import torch

from conditions import mix, uniform


def test_mix_is_splitmix64():
    # First outputs of the reference C code for these seeds.
    assert int(mix(0)) % 2**64 == 0xE220A8397B1DCDAF
    assert int(mix(1234567)) % 2**64 == 6457827717110365317
    assert int(mix(2**64 + 1234567)) == int(mix(1234567))


def test_mix_broadcasts_and_orders_words():
    seeds, positions = torch.arange(5)[:, None], torch.arange(7)[None]
    table = mix(seeds, positions)
    assert table.shape == (5, 7) and table.unique().numel() == 35
    assert table[3, 4] == mix(3, 4) != mix(4, 3)
    with pytest.raises(ValueError, match="mix"):
        mix()
    with pytest.raises(ValueError, match="int64"):
        mix(torch.ones(2))


def test_uniform_is_uniform_and_counter_based():
    numbers = uniform(torch.arange(400), 500)
    assert numbers.dtype == torch.float32 and numbers.min() >= 0 and numbers.max() < 1
    assert torch.equal(numbers[7:8, :20], uniform(torch.tensor([7]), 20))
    counts = torch.histc(numbers, bins=100, min=0, max=1)
    assert ((counts - 2000).square() / 2000).sum() < 99 + 5 * math.sqrt(2 * 99)  # chi-square, 99 degrees of freedom
    rows = numbers - 0.5
    for a, b in ((rows[:, :-1], rows[:, 1:]), (rows[:-1], rows[1:])):  # neighbours in the stream, neighbouring seeds
        assert abs((a * b).mean() * 12) < 5 / math.sqrt(a.numel())


@pytest.mark.gpu
def test_same_random_bits_on_the_gpu():
    seed = torch.arange(1000) * 12345 - 10**6
    assert torch.equal(mix(seed, 5).cpu(), mix(seed.cuda(), 5).cpu())
    assert torch.equal(uniform(seed, 300), uniform(seed.cuda(), 300).cpu())
