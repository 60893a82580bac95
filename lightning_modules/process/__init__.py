"""Noise processes: how clips are noised, denoised and sampled. One class each, by class path."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.process.edm import EDM
    from lightning_modules.process.flow_matching import FlowMatching
    from lightning_modules.process.v_prediction import VPrediction

__all__ = ["EDM", "FlowMatching", "VPrediction"]
PLACES = {"EDM": "edm", "FlowMatching": "flow_matching", "VPrediction": "v_prediction"}


def __getattr__(name: str) -> Any:
    """On demand, since importing a settings module must not import torch."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
