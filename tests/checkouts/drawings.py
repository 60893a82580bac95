"""Fixed drawings as the page sends them: whole numbers and files that both checkouts are given as the same bytes."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.support.videos import write_pictures

TRACKS = [[[12, 20], [40, 24], [50, 44]], [[30.5, 50.25], [8, 58]], [[60, 5]]]
TIMES = {"times": [[0, 0.25, 0.9], None, None], "ease": [None, "in and out", None]}
POSES = "\n".join(f"{n} 0.9 1.2 0.5 0.45 0 0 1 0 0 {n / 20} 0 1 0 0 0 0 1 {-n / 10}" for n in range(5))


def drawings(folder: Path) -> dict[str, dict[str, Any]]:
    """Name -> a request: `drawing`, or `files` of an archive; `size`, `frames`, `fps`, `seed`; what `moves` the scene.

    Args:
        folder: for the video whose motion is taken.
    """
    square, wide, odd = (64, 64), (320, 512), (91, 61)
    camera = {"camera": {"pan": 0.2, "tilt": -0.1, "zoom": 1.3, "roll": 5}}
    posed, driven = {"camera": {"poses": "poses.txt", "depth": "depth.npy"}}, {"driving": "driving.mp4"}
    video = {"driving.mp4": _video(folder / "driving.mp4")}
    several = {"traj_key_points": [[[100, 90], [300, 200]], [[140, 96.5], [90, 10], [20, 5]], [[400, 250], [500, 319]]]}
    crossing = {"traj_key_points": [[[7, 80], [55, 10]], [[60.4, 0], [-20, 30.25], [5, 120]]]}
    one = {"traj_key_points": [[[30, 30], [50, 38]]]}
    found = {
        "tracks": _request(square, {"traj_key_points": TRACKS} | TIMES, _brush(square, [1])),
        "a brush each": _request(wide, several | {"brush": [3, None, 1]}, _brush(wide, [1, 3, 200]), size="320 x 512"),
        "odd size": _request(odd, crossing | {"brush": [1, 2]}, _brush(odd, [1, 2]), size="128 x 128"),
        "camera": _request(square, one | camera, _brush(square, [1]), moves=True),
        "camera, odd size": _request(odd, crossing | camera, _brush(odd, []), size="128 x 128", moves=True),
        "poses over depth": _request(square, one | posed, _brush(square, [1]), _poses(square), moves=True),
        "driving video": _request(square, {"traj_key_points": []} | driven, _brush(square, [1]), video, moves=True),
        "track over a video": _request(square, one | driven, _brush(square, [1]), video, moves=True),
    }
    tracks, brushes = found["tracks"]["drawing"], found["a brush each"]["drawing"]
    archives = {"archive": (tracks, square, [1]), "archive, a brush each": (brushes, wide, [1, 3, 200])}
    for name, (drawing, shape, ids) in archives.items():
        size = "64 x 64" if shape == square else "320 x 512"
        found[name] = _settings(size) | {"files": _archive(drawing["meta"], shape, _brush(shape, ids))}
    return found


def write_stroke(folder: Path) -> None:
    """Write image.png, tracks.json and brush.png of 64 x 64 for `remoco generate`: a disc, drawn to the right."""
    y, x = np.mgrid[:64, :64]
    disc = (x - 22) ** 2 + (y - 34) ** 2 < 12**2
    image = np.stack([60 + x, 90 + y, 140 - x // 2], axis=-1)
    image[disc] = (220, 70, 50)
    Image.fromarray(image.astype(np.uint8)).save(folder / "image.png")
    Image.fromarray((disc * 255).astype(np.uint8)).save(folder / "brush.png")
    (folder / "tracks.json").write_text(json.dumps({"traj_key_points": [[[22, 34], [34, 30], [46, 34]]]}))


def _settings(size: str) -> dict[str, Any]:
    return {"size": size, "frames": 6, "fps": 8, "seed": 3}


def _request(
    shape: tuple[int, int],
    meta: dict[str, Any],
    brush: np.ndarray,
    files: dict[str, bytes] | None = None,
    size: str = "64 x 64",
    moves: bool = False,
) -> dict[str, Any]:
    values = brush.ravel()
    starts = np.flatnonzero(np.diff(values, prepend=values[0] + 1))
    counts = np.diff(starts, append=len(values))
    drawing = {
        "image": "data:image/png;base64," + _text(_png(_image(shape))),
        "runs": np.stack([values[starts], counts], axis=1).ravel().tolist(),
        "meta": meta,
        "files": {name: _text(data) for name, data in (files or {}).items()},
    }
    return _settings(size) | {"drawing": drawing, "moves": moves}


def _image(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: shape[0], : shape[1]]
    return np.stack([5 * x + 3 * y, x * y // 8, 7 * y + 40], axis=-1).astype(np.uint8)


def _brush(shape: tuple[int, int], ids: list[int]) -> np.ndarray:
    """(H, W) int64: an upright bar for each value, side by side, and a gap after each."""
    brush = np.zeros(shape, dtype=np.int64)
    width = shape[1] // max(1, len(ids))
    for index, value in enumerate(ids):
        brush[shape[0] // 5 : shape[0] - 6, index * width : index * width + width * 3 // 4] = value
    return brush


def _poses(shape: tuple[int, int]) -> dict[str, bytes]:
    file = io.BytesIO()
    np.save(file, np.linspace(1, 4, shape[0] * shape[1], dtype=np.float32).reshape(shape))
    return {"poses.txt": POSES.encode(), "depth.npy": file.getvalue()}


def _video(path: Path) -> bytes:
    texture = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8).repeat(6, 0).repeat(6, 1)
    write_pictures(path, [np.roll(texture, (n, 2 * n), (0, 1))[:64, :64] for n in range(8)], rate=8)
    return path.read_bytes()


def _archive(meta: dict[str, Any], shape: tuple[int, int], brush: np.ndarray) -> list[dict[str, str]]:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sample/first_frame.png", _png(_image(shape)))
        archive.writestr("sample/first_frame_mask.png", _png(brush.astype(np.uint8)))
        archive.writestr("sample/meta_data.json", json.dumps(meta))
    return [{"name": "sample.zip", "data": _text(file.getvalue())}]


def _png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
