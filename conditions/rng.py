"""Counter-based random numbers: pure functions of their arguments, with the same bits on every device.

SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014; public-domain C by
Sebastiano Vigna) written in int64 tensor operations, whose products and sums wrap modulo 2^64. No generator object and
no global state: what is drawn for a sample depends on its words alone, not on batch, order, worker or device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from remoco.common.errors import UserError

_GAMMA = 0x9E3779B97F4A7C15
_FINALISER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def _signed(word: int) -> int:
    """The int64 with the bits of `word` modulo 2^64."""
    return (word + 2**63) % 2**64 - 2**63


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift: torch shifts int64 arithmetically, so the copies of the sign are masked off."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _finalise(x: Tensor) -> Tensor:
    for bits, factor in _FINALISER:
        x = (x ^ _shift_right(x, bits)) * _signed(factor)
    return x ^ _shift_right(x, 31)


def mix(*words: int | Tensor) -> Tensor:
    """Hash of one or more 64-bit words, the order of which counts.

    `mix(s)` is the first output of SplitMix64 seeded with `s`; every further word is added to the hash so far and
    hashed again.

    Args:
        words: Python ints (taken modulo 2^64) or int64 tensors, broadcast against each other.

    Returns:
        int64 of the broadcast shape, on the device of the tensors (a scalar on the CPU if there is none).
    """
    if not words:
        raise UserError("mix: expected at least one word")
    device = next((word.device for word in words if isinstance(word, Tensor)), torch.device("cpu"))
    state = torch.zeros((), dtype=torch.int64, device=device)
    for word in words:
        if isinstance(word, Tensor) and word.dtype != torch.int64:
            raise UserError(f"mix: expected int64 tensors, got {word.dtype}")
        state = _finalise(state + (word if isinstance(word, Tensor) else _signed(word)) + _signed(_GAMMA))
    return state


def uniform(seed: Tensor, n: int) -> Tensor:
    """`n` uniform numbers per seed: the SplitMix64 stream seeded with `mix(seed)`, top 24 bits of each output.

    Args:
        seed: (B,) int64.
        n: how many numbers per seed; the first m of n are the m that `uniform(seed, m)` gives.

    Returns:
        (B, n) float32, multiples of 2^-24 in [0, 1).
    """
    counter = torch.arange(1, n + 1, device=seed.device)
    bits = _finalise(mix(seed).unsqueeze(-1) + counter * _signed(_GAMMA))
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24
