"""The image-to-video models that control is trained on, each behind the contract of `bases.base`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.bases.base import VideoBase
    from lightning_modules.bases.cogvideox.base import CogVideoX
    from lightning_modules.bases.cogvideox.random import RandomCogVideoX
    from lightning_modules.bases.photos import Photos
    from lightning_modules.bases.sprites.base import Sprites
    from lightning_modules.bases.svd.base import SVD
    from lightning_modules.bases.wan.base import Wan
    from lightning_modules.bases.wan.random import RandomWan

__all__ = ["SVD", "CogVideoX", "Photos", "RandomCogVideoX", "RandomWan", "Sprites", "VideoBase", "Wan"]
PLACES = {
    "CogVideoX": "cogvideox.base", "SVD": "svd.base", "Photos": "photos", "RandomCogVideoX": "cogvideox.random",
    "RandomWan": "wan.random", "Sprites": "sprites.base", "VideoBase": "base", "Wan": "wan.base",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """On demand, since importing a settings module must not import torch."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)


def base_at(path: str, **arguments: Any) -> VideoBase:
    """The base of a folder or hub id, not built.

    Args:
        path: Path of Stable Video Diffusion, the one kind so far that has folders.
        **arguments: Of the base.
    """
    from lightning_modules.bases.svd.base import SVD

    return SVD(path, **arguments)
