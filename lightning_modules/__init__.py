"""The LightningModules and everything with weights or sigma in it."""

from lightning_modules.base import BaseModule
from lightning_modules.motion_control import MotionControlModule

__all__ = ["BaseModule", "MotionControlModule"]
