"""Noise processes: how clips are noised, denoised and sampled. One class each, by class path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.process.edm import EDM

__all__ = ["EDM"]


def __getattr__(name: str) -> Any:
    """On demand, since importing a settings module must not import torch."""
    if name != "EDM":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from lightning_modules.process.edm import EDM

    return EDM
