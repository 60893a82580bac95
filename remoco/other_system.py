"""Another system in the place of a checkpoint, for `remoco generate` and the page: read, and its clips as panels."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import torch

from callbacks.strips import panel_factor
from datamodules.drawings import Drawing
from lightning_modules.systems.system import System
from remoco.devices import usable_device
from remoco.generate import Loading, OtherSystem
from remoco.report.command import control_frames
from remoco.systems import SystemChoice, load_system, sampled


def load_other(other: OtherSystem, loading: Loading) -> tuple[System, SystemChoice]:
    """Another system where it is to compute, in float32 unless told otherwise; UserError where it does not load."""
    options = other.options if loading.svd is None else other.options | {"svd": loading.svd}
    choice = SystemChoice(str(other.system), other.weights, options)
    system = load_system(choice, usable_device(loading.device), getattr(torch, loading.dtype or "float32"))
    return system, choice


def system_panels(
    system: System, drawing: Drawing, seed: int, progress: Callable[[int], object]
) -> dict[str, np.ndarray]:
    """Panels of a strip, as of `panels_of`: first frame, tracks, and what another system generates."""
    frames = sampled(system, drawing, seed, progress)
    factor = panel_factor(drawing.size[1])
    size = drawing.size[1] * factor, drawing.size[0] * factor
    drawn = [cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in control_frames(drawing, len(frames))]
    return {"first frame": drawing.image, "tracks": np.stack(drawn), "generated": frames}
