"""Checkpoints and packed models whose record, tensors or header say anything, field by field."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import torch

from tests.campaign.values import changed

HUGE = [2**31, 2**40, 10**6, -1, 0, 2.5, None, "x", [1], True]
BASES = ["stabilityai/stable-video-diffusion-img2vid", "../x", "/etc", "http://127.0.0.1/x", "embedded-sprites"]


def write(rng: random.Random, folder: Path, sound: dict[str, Path]) -> list[Any]:
    """Write a damaged file; its name and how many bytes a sound one has.

    Args:
        rng: draws the damage.
        folder: to write in.
        sound: `ckpt` and `packed`, files to begin with.
    """
    kind = rng.choice(sorted(sound))
    data = sound[kind].read_bytes()
    if kind == "packed":
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        about = header["__metadata__"]
        if rng.random() < 0.7:
            record = _record(json.loads(about["remoco"]), rng)
            about["remoco"] = (
                json.dumps(record) if rng.random() < 0.9 else rng.choice(["[" * 10**5, "", "null", "9" * 9999])
            )
        elif rng.random() < 0.5:
            about[rng.choice(sorted(about))] = rng.choice(["", "x", "-1", "9" * 5000, "1e9"])
        else:
            _tensor(header, rng)
        text = json.dumps(header).encode()
        data = len(text).to_bytes(8, "little") + text + data[8 + length :]
        if rng.random() < 0.1:
            data = rng.choice([b"\xff" * 7 + b"\x7f" + data[8:], data[: len(data) // 2], data + b"x"])
        (folder / "packed.safetensors").write_bytes(data)
        return ["packed.safetensors", len(data)]
    found = torch.load(sound[kind], weights_only=True)
    draw = rng.random()
    if draw < 0.7:
        found["remoco"] = _record(found["remoco"], rng)
    elif draw < 0.8:
        changed(found, rng)
    else:
        name = rng.choice(sorted(found["state_dict"]))
        found["state_dict"][name] = _odd(found["state_dict"][name], rng)
    torch.save(found, folder / "last.ckpt")
    return ["last.ckpt", (folder / "last.ckpt").stat().st_size]


def _record(record: Any, rng: random.Random) -> Any:
    """Its numbers out of their range, a base of somebody's, or any field of any value."""
    draw = rng.random()
    if draw < 0.5:
        numbers = [(part, key) for part, key in _leaves(record) if isinstance(part[key], (int, float))]
        part, key = rng.choice(numbers)
        part[key] = rng.choice(HUGE)
    elif draw < 0.6:
        record["base"] = {"svd": rng.choice(BASES), "revision": None, "hash": record["base"]["hash"]}
    else:
        record = changed(record, rng)
    return record


def _leaves(value: Any) -> list[tuple[Any, Any]]:
    items = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    return [(value, key) for key, each in items if not isinstance(each, (dict, list))] + [
        found for _, each in items for found in _leaves(each)
    ]


def _odd(tensor: torch.Tensor, rng: random.Random) -> Any:
    """A tensor that is not plain, dense, finite, or of its shape; of few bytes in the file."""
    kinds = {
        "expanded": lambda: torch.zeros(1).expand(10**6, 10**5),
        "sparse": lambda: torch.sparse_coo_tensor(torch.zeros(2, 1, dtype=torch.long), torch.ones(1), (10**6, 10**6)),
        "not finite": lambda: torch.full_like(tensor, float("nan")),
        "complex": lambda: tensor.to(torch.complex64),
        "whole": lambda: tensor.to(torch.int64),
        "doubled": lambda: torch.cat([tensor, tensor]) if tensor.ndim else tensor[None],
        "empty": lambda: tensor.new_zeros(0),
        "scalar": lambda: tensor.new_zeros(()),
        "meta": lambda: tensor.to("meta"),
        "a view": lambda: torch.zeros(10**6)[: tensor.numel()].view(tensor.shape),
        "none": lambda: None,
        "text": lambda: "x",
    }
    return kinds[rng.choice(sorted(kinds))]()


def _tensor(header: dict[str, Any], rng: random.Random) -> None:
    name = rng.choice(sorted(key for key in header if key != "__metadata__"))
    entry = header[name]
    draw = rng.random()
    if draw < 0.3:
        entry["shape"] = rng.choice([[2**40], [2**31, 2**31], [0], [], [-1], ["x"]])
    elif draw < 0.6:
        entry["data_offsets"] = rng.choice([[0, 2**50], [2**50, 0], [0, 0], [-1, 4], entry["data_offsets"][:1]])
    elif draw < 0.8:
        entry["dtype"] = rng.choice(["F64", "BF16", "BOOL", "I64", "x"])
    else:
        header[hashlib.sha256(name.encode()).hexdigest()] = header.pop(name)
