"""What a stranger draws: an image, tracks, times, brushes, cameras, depths and poses, each out of its kind."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.campaign.values import changed, damaged, written

HEIGHT, WIDTH = 40, 60
POSE = "{} 1 1 0.5 0.5 0 0 1 0 0 {} 0 1 0 0 0 0 1 0"
SHAPES = [
    "(0, 8, 2)", "(-3, -8, 2)", "(3, 9999999999999, 2)", "(3,)", "()", "(3, 8, 2, 1)", "(True, 48, 1)", "'x'",
    "(3.0, 8)",
]  # fmt: skip
TYPES = ["'|O'", "'|b1'", "'<U4'", "'<M8[s]'", "'<c16'", "'|V8'", "[('a', '<f8')]", "('<f8', (999, 999))", "'<f2'", "3"]
WORDS = ["nan", "inf", "1e300", "-1", "x", "1_0", "9" * 5000, "", "\x00", "é"]


def write(rng: random.Random, folder: Path) -> list[Any]:
    """Write an image with what belongs to it, one of them damaged; the words of `remoco generate`."""
    kind = rng.choice([_meta] * 4 + [_arrays] * 3 + [_pictures] * 2 + [_depth, _poses])
    words = kind(rng, folder)
    if not (folder / "image.png").exists():
        (folder / "image.png").write_bytes(_png(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)))
    return [words]


def _meta(rng: random.Random, folder: Path) -> list[str]:
    meta: dict[str, Any] = {
        "traj_key_points": [[[5, 6], [20.5, 9]], [[30, 20]], [[8, 8], [9, 9], [10, 30]]],
        "times": [[0, 0.5], None, [0, 0.2, 1]],
        "brush": [1, None, 2],
    }
    brush = np.zeros((HEIGHT, WIDTH), np.uint8)
    brush[:9], brush[20:] = 1, 2
    if rng.random() < 0.4:
        meta["camera"] = rng.choice(
            [{"pan": 0.2, "zoom": 1.3, "roll": 5}, {"poses": "poses.txt", "depth": "depth.npy"}]
        )
        (folder / "poses.txt").write_text("\n".join(POSE.format(n, n / 10) for n in range(3)))
        (folder / "depth.npy").write_bytes(_npy(np.ones((HEIGHT, WIDTH))))
    data = written(changed(meta, rng)) if rng.random() < 0.8 else damaged(json.dumps(meta).encode(), rng)
    (folder / "tracks.json").write_bytes(data)
    (folder / "mask.png").write_bytes(_png(brush))
    return ["image.png", "--tracks", "tracks.json", "--brush", "mask.png"]


def _arrays(rng: random.Random, folder: Path) -> list[str]:
    tracks = np.linspace(5, 30, 48).reshape(3, 8, 2)
    name = rng.choice(["tracks.npy", "tracks.npy", "visibility.npy"])
    found = {"tracks.npy": tracks, "visibility.npy": np.ones((3, 8), bool)}
    (folder / "image.png").write_bytes(_png(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)))
    for each, array in found.items():
        data = _npy(array)
        if each == name:
            draw = rng.random()
            if draw < 0.3:
                data = _headed(array, shape=rng.choice(SHAPES))
            elif draw < 0.5:
                data = _headed(array, descr=rng.choice(TYPES))
            elif draw < 0.7:
                array = array.astype(rng.choice(["f4", ">f8", "i2", "u8", "f2"]))
                array.flat[rng.randrange(array.size)] = rng.choice([0, 1, 100])
                data = _npy(array)
            elif draw < 0.8 and array.dtype.kind == "f":
                array = array.copy()
                array.flat[rng.randrange(array.size)] = rng.choice([np.nan, np.inf, -1e300, 1e30])
                data = _npy(array)
            else:
                data = damaged(data, rng)
        (folder / each).write_bytes(data)
    return ["."] if rng.random() < 0.3 else ["image.png", "--tracks", "tracks.npy"]


def _pictures(rng: random.Random, folder: Path) -> list[str]:
    mode = rng.choice(["RGB", "RGBA", "L", "LA", "P", "1", "I;16", "F", "CMYK"])
    kind = {"F": "TIFF", "CMYK": "JPEG"}.get(mode) or rng.choice(["PNG", "PNG", "GIF", "TIFF", "WEBP", "BMP"])
    size = rng.choice([(WIDTH, HEIGHT), (WIDTH, HEIGHT), (1, 1), (9000, 2), (1, 8192), (3000, 3000)])
    file = io.BytesIO()
    try:
        picture = Image.new(mode, size)
        more = {"save_all": True, "append_images": [picture] * 3} if kind in ("GIF", "TIFF", "WEBP") else {}
        picture.save(file, kind, **more)
    except (OSError, ValueError, KeyError):  # formats do not take all modes
        Image.new("RGB", size).save(file, "PNG")
    data = bytearray(file.getvalue())
    if data[:4] == b"\x89PNG" and rng.random() < 0.3:
        data[16:24] = rng.choice([b"\x7f\xff\xff\xff" * 2, b"\0\0\0\0" * 2, b"\0\1\0\0" * 2])  # the size in its header
    found = damaged(bytes(data), rng) if rng.random() < 0.5 else bytes(data)
    name = rng.choice(["image.png", "mask.png"])
    (folder / name).write_bytes(found)
    (folder / "tracks.json").write_text('{"traj_key_points": [[[0, 0], [5, 5]]]}')
    return ["image.png", "--tracks", "tracks.json", *(["--brush", "mask.png"] if name == "mask.png" else [])]


def _depth(rng: random.Random, folder: Path) -> list[str]:
    depth = np.full((HEIGHT, WIDTH), 2.0)
    depth.flat[rng.randrange(depth.size)] = rng.choice([0, -1, np.nan, np.inf, 1e300, 1e-300, 2])
    data = rng.choice(
        [_npy(depth), _npy(depth.astype(bool)), _npy(depth.astype("f2")), _headed(depth, shape=rng.choice(SHAPES))]
    )
    if rng.random() < 0.3:
        data = _png(np.full(rng.choice([(HEIGHT, WIDTH), (3, 3)]), 1000, np.uint16))
    (folder / "depth.npy").write_bytes(damaged(data, rng) if rng.random() < 0.5 else data)
    (folder / "poses.txt").write_text("\n".join(POSE.format(n, n / 10) for n in range(3)))
    return ["image.png", "--poses", "poses.txt", "--depth", "depth.npy"]


def _poses(rng: random.Random, folder: Path) -> list[str]:
    lines = [POSE.format(n, n / 10).split() for n in range(rng.choice([0, 1, 2, 5, 300]))]
    for _ in range(rng.choice([0, 1, 3])):
        if lines:
            line = rng.choice(lines)
            line[rng.randrange(len(line))] = rng.choice(WORDS)
    data = "\n".join(" ".join(line) for line in lines).encode()
    (folder / "poses.txt").write_bytes(damaged(data, rng) if rng.random() < 0.4 else data or b" ")
    (folder / "depth.npy").write_bytes(_npy(np.ones((HEIGHT, WIDTH))))
    return ["image.png", "--poses", "poses.txt", "--depth", "depth.npy"]


def _png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _headed(array: np.ndarray, shape: str | None = None, descr: str | None = None) -> bytes:
    """The array's bytes under a header of one's own."""
    header = (
        f"{{'descr': {descr or repr(array.dtype.str)}, 'fortran_order': False, 'shape': {shape or array.shape}, }}\n"
    )
    return b"\x93NUMPY\x01\0" + len(header).to_bytes(2, "little") + header.encode() + array.tobytes()
