"""Visibility and motion masks to bytes and back, exactly.

One black-and-white TIFF, compressed as CCITT group 4 (ITU-T T.6), half the bytes of a PNG of these masks: stacked from
top to bottom, whether frame 1's pixel is visible in frames 2..L, and after them one motion mask per norm. Frame 1 sees
all of itself and is not stored.
"""

from __future__ import annotations

import io
import warnings

import numpy as np

from remoco.common.errors import BadClip, one_line

NORMS = ("l2", "squared")  # of the motion masks, in their order


def encode_masks(visibility: np.ndarray, moving: np.ndarray) -> bytes:
    """Encode (L, H, W) bool and the (2, H, W) bool motion masks of NORMS.

    Raises:
        BadClip: a pixel of frame 1 that is not visible.
    """
    from PIL import Image

    if not visibility[0].all():
        raise BadClip("visibility of frame 1 is not all true")
    file = io.BytesIO()
    stack = np.concatenate([visibility[1:], moving])
    Image.fromarray(stack.reshape(-1, stack.shape[2])).save(file, "TIFF", compression="group4")
    return file.getvalue()


def decode_masks(data: bytes, visibility: np.ndarray, moving: np.ndarray) -> None:
    """Bytes into (L, H, W) bool and (2, H, W) bool.

    Raises:
        BadClip: the bytes are no black-and-white TIFF of these shapes; its size is known before it is decoded.
    """
    from PIL import TiffImagePlugin

    length, height, width = visibility.shape
    expected = (width, (length - 1 + len(moving)) * height)
    try:
        with warnings.catch_warnings(action="ignore"), TiffImagePlugin.TiffImageFile(io.BytesIO(data)) as image:
            if image.size != expected or image.mode != "1":
                raise BadClip(f"visibility is {image.mode} of size {image.size}, expected 1 of size {expected}")
            stack = np.asarray(image).reshape(-1, height, width)
    except BadClip:
        raise
    except Exception as error:  # Pillow raises exceptions of many types for broken bytes
        raise BadClip(f"visibility does not decode: {one_line(error)}") from error
    visibility[0] = True
    visibility[1:] = stack[: length - 1]
    moving[:] = stack[length - 1 :]
