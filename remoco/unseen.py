"""A line where a model is asked for pictures unlike any it was trained on, as its base states them."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import torch

from datamodules.drawings import Drawing, FrameArea
from lightning_modules.conditioning import to_float

LARGER = 2  # times the sides of the training clips: what has more detail than any of them had


@torch.no_grad()
def unseen(pipeline: Any, picture: np.ndarray) -> str | None:
    """What to tell before a clip is made of a picture; None where the model's training is not stated, or has the like.

    A picture is unlike the training set where it has sides of more than LARGER times as many pixels, or where the
    base's own latents hold less of it than of any training picture, if the base states how much that is.

    Args:
        pipeline: A `MotionControlPipeline`; anything without a base states nothing.
        picture: (H, W, 3) uint8.
    """
    base = getattr(getattr(pipeline, "module", None), "base", None)
    seen = getattr(base, "trained_on", None)
    if base is None or seen is None:
        return None
    height, width = size = pipeline.trained_size
    line = (
        f"This model has only seen {seen.says}, {width} x {height} pixels. Pictures like this one are new to it: "
        "expect blur and blocks."
    )
    if max(picture.shape[:2]) > LARGER * max(size):
        return line
    if not seen.psnr:
        return None
    area = FrameArea(height * width, base.grid.step, base.grid.only_size)
    framed = Drawing(picture, []).framed(Drawing(picture, []).framing(area))
    frame = to_float(torch.from_numpy(framed.image).permute(2, 0, 1)[None, None])
    coder = getattr(base, "vae", None) or getattr(base, "pca", None) or base  # the rest may be on another device
    frame = frame.to(next(chain(coder.parameters(), coder.buffers())).device)
    kept = base.decode(base.normalise(base.encode(frame).mean)).clamp(-1, 1)
    error = (kept - frame).double().square().mean() / 4  # of a range of 2
    return line if -10 * float(error.clamp(min=1e-10).log10()) < seen.psnr else None
