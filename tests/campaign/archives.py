"""Zips that a stranger opens on the page: damaged, of other methods, with sizes and places that lie, many, bombs."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from pathlib import Path
from typing import Any

from tests.campaign.requests import png, text
from tests.campaign.values import changed, damaged, written

NAMES = [
    "../first_frame.png", "/etc/x", "a\\b.png", "é" * 200, "first_frame.png", "", "a/b/c/first_frame.png", "m.json/",
]  # fmt: skip
FIELDS = [  # place in a central entry, form, values
    (8, "<H", [1, 9, 0xFFFF]), (10, "<H", [0, 8, 9, 12, 14, 93, 99]), (16, "<I", [0]), (20, "<I", [0, 1, 2**32 - 1]),
    (24, "<I", [0, 1, 2**31, 2**32 - 1]), (28, "<H", [0, 9999]), (42, "<I", [0, 7, 2**32 - 1]),
]  # fmt: skip


def write(rng: random.Random, folder: Path) -> list[Any]:
    """Write a request that opens a zip; its route and file."""
    files = {"s/first_frame.png": png(), "s/first_frame_mask.png": png(grey=True), "s/meta_data.json": _meta(rng)}
    kind, file = rng.random(), io.BytesIO()
    method = rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in files.items():
            if kind < 0.2 and rng.random() < 0.5:
                name = rng.choice(NAMES)
            if kind > 0.85 and name.endswith(rng.choice([".json", "mask.png"])):
                content += b"\0" * rng.choice([10**6, 40 * 2**20])  # unpacks to much more than it is
            archive.writestr(_entry(name, method), content)
        for number in range(rng.choice([0, 0, 0, 3000])):
            archive.writestr(_entry(f"{number}/first_frame.png", method), b"")
    data = bytearray(file.getvalue())
    if 0.2 < kind < 0.5:  # a number of a central entry: method, sizes, name's length, place; or of the end
        at = rng.choice([place for place in range(len(data) - 46) if data[place : place + 4] == b"PK\1\2"])
        offset, form, values = rng.choice(FIELDS)
        struct.pack_into(form, data, at + offset, rng.choice(values))
    elif 0.5 < kind < 0.7:
        data = bytearray(damaged(bytes(data), rng))
    elif 0.7 < kind < 0.75:
        data = bytearray(png() + bytes(data))  # a zip behind another file
    name = rng.choice(["a.zip", "a.zip", "a.png"])
    (folder / "body").write_text(json.dumps({"files": [{"name": name, "data": text(bytes(data))}]}))
    return ["open", "body"]


def _entry(name: str, method: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)  # of 1980: the time of day is no function of a seed
    entry.compress_type = method
    return entry


def _meta(rng: random.Random) -> bytes:
    meta = {"traj_key_points": [[[5, 6], [20, 9]]], "camera": {"poses": "poses.txt", "depth": "../depth.npy"}}
    return written(changed(meta, rng)) if rng.random() < 0.3 else b'{"traj_key_points": [[[5, 6], [20, 9]]]}'
