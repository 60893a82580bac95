"""Values that nobody meant, and bytes that time or a stranger changed: what all kinds of mutations draw from."""

from __future__ import annotations

import json
import random
from typing import Any

DEEP = "deep"  # stands for nesting without end, which no writer of JSON or YAML gives
VALUES = [
    None, True, 0, -1, 1, 3.5, -7.25, 2**31, 2**62, 2**70, -(2**63), 1e30, float("inf"), float("nan"), "", "x",
    "../../escape", "/abs/escape", "a\0b", "é" * 300, "1" * 5000, [], {}, [1, 2, 3], {"a": 1}, [[]], DEEP,
]  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes flipped, cut off, repeated, taken out or overwritten."""
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5, 20])):
        at, length = rng.randrange(max(1, len(found))), rng.choice([1, 1, 2, 4, 8, 100])
        draw = rng.random()
        if draw < 0.5 and found:
            found[at] ^= 1 << rng.randrange(8)
        elif draw < 0.7:
            found[at : at + length] = rng.choice([b"\xff", b"\0", b"\x7f", b"["]) * length
        elif draw < 0.8:
            del found[at : at + length]
        elif draw < 0.9:
            found[at:at] = found[at : at + length]
        else:
            del found[at:]
    return bytes(found)


def changed(value: Any, rng: random.Random, tensors: bool = False, paths: bool = True) -> Any:
    """A nested value with a few of its fields gone or replaced; `paths`: also by some that lead out of a folder."""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        places = list(_places(value))
        parent, key = rng.choice(places)
        if rng.random() < 0.3:
            del parent[key]
        else:
            choices = [each for each in VALUES if paths or not (isinstance(each, str) and "escape" in each)]
            if tensors and hasattr(parent[key], "shape"):
                choices = [
                    None,
                    parent[key].double() * float("nan"),
                    parent[key].reshape(-1)[:1],
                    parent[key].new_zeros(()),
                    5,
                ]
            parent[key] = rng.choice(choices)
        if not list(_places(value)):
            break
    return value


def _places(value: Any, depth: int = 0):
    """Every (container, key) of a nested value; those near the root as often as all below them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, each in list(items):
        yield value, key
        yield from _places(each, depth + 1)


def written(value: Any) -> bytes:
    """As JSON, nesting included that json itself does not write."""
    return json.dumps(value).replace(f'"{DEEP}"', "[" * 100_000 + "]" * 100_000, 1).encode()
