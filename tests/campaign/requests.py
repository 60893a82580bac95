"""What a stranger asks of the page: sound requests with fields out of their kind, and JSON that is none."""

from __future__ import annotations

import base64
import copy
import functools
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.campaign.values import changed, damaged, written

BODIES = [
    b"[" * 10**6, b'{"a":' * 10**5, b'"\\ud800"', b"9" * 10**5, b"\xff\xfe", b"[" + b"[]," * 10**6 + b"[]]",
    b"", b"null",
]  # fmt: skip


@functools.cache
def _sound() -> dict[str, Any]:
    """A sound request of each route."""
    meta = {"traj_key_points": [[[5, 6], [20, 9]]], "times": [[0, 0.5]], "brush": [1], "camera": {"pan": 0.1}}
    image = "data:image/png;base64," + text(png())
    drawing = {"image": image, "runs": [1, 60, 0, 40 * 60 - 60], "meta": meta, "files": {}}
    files = [{"name": "a.png", "data": text(png())}, {"name": "m.json", "data": text(json.dumps(meta).encode())}]
    about = {"frames": 4, "fps": 8, "size": "64 x 64", "seed": 0}
    poses = "\n".join(f"{n} 1 1 0.5 0.5 0 0 1 0 0 0 0 1 0 0 0 0 1 0" for n in range(3))
    return {
        "control": {"drawing": drawing, **about},
        "moving": {"drawing": drawing, **about, "fine": 2},
        "paths": {"width": 60, "height": 40, "tracks": meta["traj_key_points"], "times": [None], **about, "fine": 2},
        "attach": {"kind": "poses", "name": "p.txt", "data": text(poses.encode()), "width": 60, "height": 40},
        "open": {"files": files},
        "cancel": {"job": "x"},
    }  # fmt: skip


def write(rng: random.Random, folder: Path) -> list[Any]:
    """Write the body of a request; its route and file."""
    route = rng.choice(sorted(_sound()))
    body = copy.deepcopy(_sound()[route])
    data = written(changed(body, rng)) if rng.random() < 0.75 else damaged(json.dumps(body).encode(), rng)
    if rng.random() < 0.1:
        data = rng.choice(BODIES)
    (folder / "body").write_bytes(data)
    return [route, "body"]


def png(grey: bool = False) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((40, 60) if grey else (40, 60, 3), 80, np.uint8)).save(file, "PNG")
    return file.getvalue()


def text(data: bytes) -> str:
    return base64.b64encode(data).decode()
