"""Files of every released layout, tiny and random, and the list of systems that `remoco compare` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from datamodules.bench.sprites import write_sprite_bench
from tests.support.stable_diffusion import write_stable_diffusion
from tests.support.systems.files import svd_folder, write_draganything, write_dragnuwa, write_mofa

SMALL = {"size": [64, 128], "frames": 3, "steps": 2}


def sprite_bench(folder: Path, pairs: int = 1) -> Path:
    """A benchmark of small pictures, with its true clips."""
    write_sprite_bench(folder / "sprites", pairs, 80, 128, 6)
    return folder / "sprites"


def every_system(folder: Path) -> list[dict[str, Any]]:
    """A row for each system, one of them twice."""
    weights, root = write_dragnuwa(folder), str(folder)
    svd_folder(folder / "svd", layers_per_block=2)
    svd_folder(folder / "base")
    svd_folder(folder / "xt", 25)
    write_draganything(folder / "draganything")
    (folder / "mofa").mkdir()
    write_mofa(folder / "mofa")
    write_stable_diffusion(folder / "sd", (320, 32, 32, 32))
    nuwa = {"system": "dragnuwa", "weights": str(weights), "head_channels": 32, "settings": SMALL}
    return [
        {"name": "Ours", "system": "remoco", "weights": "embedded-sprites",
         "settings": {"frames": 6, "size": [64, 64]}},
        {"name": "DragNUWA 1.5", **nuwa},
        {"name": "DragNUWA 1.5 corrected", **nuwa, "quirks": "corrected"},
        {
            "system": "draganything", "weights": f"{root}/draganything", "svd": f"{root}/base",
            "features": f"{root}/sd", "settings": SMALL,
        },
        {
            "system": "mofa", "weights": f"{root}/mofa/controlnet", "cmp": f"{root}/mofa", "svd": f"{root}/xt",
            "settings": SMALL,
        },
        {"system": "sgi2v", "svd": f"{root}/svd", "settings": SMALL | {"decode_chunk": 2}},
    ]  # fmt: skip


def systems_file(folder: Path, rows: list[dict[str, Any]]) -> str:
    """The list as a file."""
    path = folder / "systems.yaml"
    path.write_text(yaml.safe_dump(rows, sort_keys=False))
    return str(path)
