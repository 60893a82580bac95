"""Released MotionPro weights: read them, and build the same network.

A released file holds the diffusion network in the naming of Stability AI's `generative-models`, LoRA inside. This
folder is the one place that knows those names.

    remoco convert motionpro.pt FOLDER --base
    remoco export FOLDER motionpro.pt
"""

from lightning_modules.released.files import (
    adapter_of,
    load_adapter,
    load_released,
    read_tensors,
    released_tensors,
    take_apart,
)
from lightning_modules.released.names import Architecture
from lightning_modules.released.network import Network, Released, build, empty, names

__all__ = [
    "Architecture",
    "Network",
    "Released",
    "adapter_of",
    "build",
    "empty",
    "load_adapter",
    "load_released",
    "names",
    "read_tensors",
    "released_tensors",
    "take_apart",
]
