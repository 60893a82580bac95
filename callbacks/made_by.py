"""What made the videos of a folder: they are never mixed with those of other weights or settings."""

import hashlib
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

from conditions import mix
from remoco.common.errors import UserError
from remoco.common.whole_files import read_object

RECORD = "generated.json"


def made_by(pl_module: LightningModule, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The weights and these settings, as JSON gives them back."""
    weights = {"trained": trained_hash(pl_module), "base": pl_module.base.identity}
    return as_json({**settings, **weights})


def as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a record of them is read again."""
    return json.loads(json.dumps(settings, default=str))


def refuse_to_mix(
    folder: Path,
    made: Mapping[str, Any],
    name: str,
    remedy: str,
    absent: Mapping[str, Any] | None = None,
    empty: bool = False,
) -> dict[str, Any]:
    """What a folder's record says; {} where it has none.

    Args:
        folder: Folder of videos.
        made: What is about to make more of them, from `made_by`.
        name: How an error calls the folder and its videos.
        remedy: What to do instead.
        absent: Settings that older records do not have.
        empty: Whether none of the videos are there, so that nothing is mixed.

    Raises:
        UserError: its videos were made with other weights or settings.
    """
    if not (folder / RECORD).is_file():
        return {}
    stored = {**(absent or {}), **read_object(folder / RECORD)}
    differs = [key for key, value in made.items() if stored.get(key) != value]
    if differs and not empty:
        raise UserError(f"{name} made with other {', '.join(differs)}; {remedy}")
    return stored


def trained_hash(pl_module: LightningModule) -> str:
    """SHA-256 over the trained parameters as they are now."""
    digest = hashlib.sha256()
    for name, parameter in sorted(pl_module.trained().items()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def clip_seed(seed: int, key: str) -> int:
    """The seed of one clip's noise: a function of the seed and the clip's name."""
    name = torch.tensor([zlib.crc32(key.encode())])
    return int(mix(seed, name, 0)) % 2**62
