"""Clips in, batches out. Names are imported on first use, so that a loader's workers do not import lightning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datamodules.bench.datamodule import BenchmarkDataModule
    from datamodules.holes import HolesDataModule
    from datamodules.photos import PhotosDataModule
    from datamodules.sprites import SpritesDataModule
    from datamodules.webvid import WebVidDataModule
    from remoco.common.errors import BadClip, UserError

_HOME = {
    "WebVidDataModule": "datamodules.webvid",
    "SpritesDataModule": "datamodules.sprites",
    "HolesDataModule": "datamodules.holes",
    "PhotosDataModule": "datamodules.photos",
    "BenchmarkDataModule": "datamodules.bench.datamodule",
    "BadClip": "remoco.common.errors",
    "UserError": "remoco.common.errors",
}
__all__ = [
    "BadClip",
    "BenchmarkDataModule",
    "HolesDataModule",
    "PhotosDataModule",
    "SpritesDataModule",
    "UserError",
    "WebVidDataModule",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
