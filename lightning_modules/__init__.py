"""The LightningModules and everything with weights or noise levels in it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.base_training import BaseModule
    from lightning_modules.motion_control import MotionControlModule
    from lightning_modules.optimizer import WarmupDecay

__all__ = ["BaseModule", "MotionControlModule", "WarmupDecay"]
PLACES = {"BaseModule": "base_training", "MotionControlModule": "motion_control", "WarmupDecay": "optimizer"}


def __getattr__(name: str) -> Any:
    """On demand, since importing a settings module must not import torch."""
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{PLACES[name]}"), name)
