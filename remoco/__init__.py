"""The commands, `remoco COMMAND`, and for Python `from remoco import MotionControlPipeline`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_modules.pipeline import MotionControlPipeline

__all__ = ["MotionControlPipeline"]
__version__ = "0.2.0"  # setup.cfg reads it; CHANGELOG.md and CITATION.cff name it too


def __getattr__(name: str) -> Any:
    """The pipeline needs torch and diffusers, which `remoco --help` does not: it is imported at its first use."""
    if name != "MotionControlPipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return import_module("lightning_modules.pipeline").MotionControlPipeline
