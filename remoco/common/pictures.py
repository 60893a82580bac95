"""A still picture, opened or as an array, to RGB as a viewer shows it: upright, sRGB, 8 bits, over a background.

- EXIF's orientation turns it, each of its eight values.
- An embedded ICC profile that fits the picture converts it to sRGB, relative to the white of each; one that is damaged,
  or of another kind of picture, is ignored, as viewers do. Without a profile it is sRGB, and CMYK ideal inks.
- 16 bits are scaled by 1/257, rounded.
- Transparency (an alpha channel, a palette's, a colour that a PNG makes transparent) is laid over the background in the
  sRGB signal, as browsers do.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageCms, ImageColor, ImageOps

from remoco.common.errors import UserError

WHITE = (255, 255, 255)
DAMAGED = "it is damaged or cut short; save it again, as PNG or JPEG"
MODES = "RGB, grey, a palette or CMYK, of 8 bits or 16"
ARRAYS = "(height, width, 3) RGB or (height, width, 4) RGBA, as uint8, uint16 or floats in 0..1"
Background = str | Sequence[int]


def colour_of(background: Background, name: str = "background") -> tuple[int, int, int]:
    """R, G, B of `white`, `#rrggbb` and what else CSS calls colours, or of three whole numbers in 0..255.

    Raises:
        UserError: it is not a colour; one line that begins with `name`.
    """
    try:
        colour = ImageColor.getrgb(background) if isinstance(background, str) else tuple(background)
        if len(colour) == 3 and all(isinstance(n, (int, np.integer)) and 0 <= n <= 255 for n in colour):
            return int(colour[0]), int(colour[1]), int(colour[2])
    except (ValueError, TypeError):
        pass
    raise UserError(
        f"{name} is {str(background)[:40]}, expected a colour as `white`, `#00ff00` or three numbers in 0..255"
    )


def shown(picture: Image.Image, name: str = "image", background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(H, W, 3) uint8 of an opened picture.

    Args:
        picture: picture of MODES.
        name: what errors call it.
        background: R, G, B of what transparent parts show.

    Raises:
        UserError: it is of another mode; or its EXIF or transparency does not read.
    """
    return shown_with_alpha(picture, name, background)[0]


def shown_with_alpha(
    picture: Image.Image, name: str = "image", background: tuple[int, int, int] = WHITE
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `shown`, and (H, W) uint8, how opaque each pixel is; None where no part is transparent."""
    try:
        upright = ImageOps.exif_transpose(picture)
        alpha = alpha_of(upright)
        image = _srgb(_shallow(upright, name))
    except UserError:
        raise
    except Exception as error:  # Pillow raises exceptions of many types
        raise UserError(f"{name}: not a readable picture: {DAMAGED}") from error
    return image if alpha is None else over(image, alpha, background), alpha


def shown_array(array: np.ndarray, name: str = "image", background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(H, W, 3) uint8 of an array of ARRAYS; what else one might mean is not guessed.

    Raises:
        UserError: another shape, another type, or floats outside of 0..1.
    """
    kind = array.dtype
    if array.ndim != 3 or array.shape[2] not in (3, 4) or not (kind in (np.uint8, np.uint16) or kind.kind == "f"):
        raise UserError(f"{name} is {array.shape} {kind}, expected {ARRAYS}")
    if kind.kind == "f":
        if not (array.size and array.min() >= 0 and array.max() <= 1):
            raise UserError(f"{name} is of floats outside of 0..1, expected {ARRAYS}")
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    elif kind == np.uint16:
        array = eight_bits(array)
    return over(array[..., :3], array[..., 3], background) if array.shape[2] == 4 else array


def over(image: np.ndarray, alpha: np.ndarray, background: tuple[int, int, int], top: int = 255) -> np.ndarray:
    """(H, W, 3) uint8 with straight alpha (H, W) in 0..top, over a background."""
    part = alpha[..., None].astype(np.uint32)
    return ((image * part + np.array(background, np.uint32) * (top - part) + top // 2) // top).astype(np.uint8)


def eight_bits(values: np.ndarray) -> np.ndarray:
    """Integers in 0..65535 to 0..255, rounded."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def alpha_of(picture: Image.Image) -> np.ndarray | None:
    """(H, W) uint8, how opaque a picture is; None where no part is transparent."""
    if picture.mode.startswith("I;16") and "transparency" in picture.info:
        alpha = np.where(np.asarray(picture) == picture.info["transparency"], 0, 255).astype(np.uint8)
    elif picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        alpha = np.array(picture.convert("RGBA").getchannel("A"))
    else:
        return None
    return None if alpha.min(initial=255) == 255 else alpha


def brushed(picture: Image.Image) -> np.ndarray:
    """(H, W) uint8 of a mask, 0 where it is black, or where it is transparent in a picture with such places."""
    alpha = alpha_of(picture)
    if alpha is not None:
        return alpha
    if picture.mode.startswith(("I", "F")):
        return (np.asarray(picture) != 0).astype(np.uint8) * 255
    return np.array(picture.convert("L"))


def _shallow(picture: Image.Image, name: str) -> Image.Image:
    """The picture with 8 bits a channel; Pillow itself reads deep colours so, and keeps grey ones deep."""
    mode = picture.mode
    if not mode.startswith("I;16"):
        if mode.startswith(("I", "F")) or mode in ("LAB", "HSV"):
            kind = f"mode {mode}" if mode in ("LAB", "HSV") else "numbers of 32 bits"
            raise UserError(f"{name}: a picture of {kind}, expected {MODES}")
        return picture
    grey = Image.fromarray(eight_bits(np.asarray(picture)))
    grey.info = {key: value for key, value in picture.info.items() if key != "transparency"}
    return grey


def _srgb(picture: Image.Image) -> np.ndarray:
    """(H, W, 3) uint8 by the picture's profile, without its transparency."""
    data = picture.info.get("icc_profile")
    if not data:
        return np.array(_plain(picture, "RGB"))
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        grey, inks = picture.mode in ("1", "L", "LA", "La"), picture.mode == "CMYK"
        mode = {"RGB": None if inks else "RGB", "GRAY": "L" if grey else None, "CMYK": "CMYK" if inks else None}.get(
            profile.profile.xcolor_space.strip()
        )
        if mode is not None:
            converted = ImageCms.profileToProfile(
                _plain(picture, mode), profile, _srgb_profile(), ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB",
                flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
            )  # fmt: skip
            if converted is not None:
                return np.array(converted)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, AttributeError):
        pass  # damaged, or of a kind that does not convert
    return np.array(_plain(picture, "RGB"))


def _plain(picture: Image.Image, mode: str) -> Image.Image:
    """In another mode; by way of RGBA where parts are transparent, so that their colours stay what they are."""
    if picture.mode == mode and "transparency" not in picture.info:
        return picture
    if mode == "RGB" and (picture.mode in ("PA", "La", "RGBa") or "transparency" in picture.info):
        return picture.convert("RGBA").convert("RGB")
    return picture.convert(mode)


@cache
def _srgb_profile() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
