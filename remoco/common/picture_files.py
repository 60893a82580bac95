"""Untrusted pictures and arrays: checked against bounds before they are decoded; each error is one line."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from PIL.TiffImagePlugin import TiffImageFile

from remoco.common.errors import UserError
from remoco.common.json_files import read_regular
from remoco.common.pictures import DAMAGED, WHITE, brushed, shown_with_alpha

MAX_SIDE = 8192  # pixels: what a file may ask to be decoded
MAX_BYTES = 64 * 2**20  # of a file
FARTHEST = 1e9  # in the unit of a depth
# formats whose decoders run no program, as PostScript's does
FORMATS: tuple[str, ...] = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
with warnings.catch_warnings(action="ignore"):  # Pillow before 11.3 does not know the word
    if features.check("avif"):
        FORMATS += ("AVIF",)
RAW = "a camera's raw data"
FOREIGN = {
    "HEIC": rb".{4}ftyp(hei[cmsx]|hev[cmsx]|mif1|msf1)", "AVIF": rb".{4}ftypavi[fs]",
    "a video": rb".{4}ftyp|\x1aE\xdf\xa3",
    "JPEG XL": rb"\xff\x0a|.{4}JXL ", "JPEG 2000": rb".{4}jP  |\xff\x4f\xff\x51", "Photoshop": rb"8BPS",
    "PDF": rb"%PDF", "PostScript": rb"%!PS|\xc5\xd0\xd3\xc6", "OpenEXR": rb"\x76\x2f\x31\x01",
    "SVG": rb"\s*(<\?xml.*)?<svg", "HTML": rb"\s*<(!doctype\s+)?html",
    RAW: rb"FUJIFILMCCD-RAW|IIRO|IIU\x00|MMOR|II\*\x00.{4}CR",
}  # fmt: skip
"""What else people call pictures, and how its files begin, as regular expressions."""
_DNG, _SUBFILE = 50706, 254  # TIFF tags: DNGVersion, NewSubfileType
NPY = b"\x93NUMPY"  # how an .npy file begins

Source = str | Path | bytes


def read_image(source: Source, name: str | None = None, background: tuple[int, int, int] = WHITE) -> np.ndarray:
    """(H, W, 3) uint8 of a picture as a viewer shows it, see `remoco.common.pictures`; of an animation the first one.

    Args:
        source: a file or its bytes.
        name: what errors call it; the file by default.
        background: R, G, B of what transparent parts show.

    Raises:
        UserError: not a file of FORMATS, larger than MAX_SIDE (known before it is decoded), damaged, or of a mode that
            is not taken.
    """
    return read_image_with_alpha(source, name, background)[0]


def read_image_with_alpha(
    source: Source, name: str | None = None, background: tuple[int, int, int] = WHITE
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `read_image`, and (H, W) uint8, how opaque each pixel is; None where no part is transparent."""
    name = name or name_of(source)
    return shown_with_alpha(_opened(source, name), name, background)


def read_mask(source: Source, name: str | None = None, labelled: bool = False) -> np.ndarray:
    """(H, W) uint8 of a mask, 0 where it is not brushed.

    Args:
        source: as in `read_image`.
        name: as in `read_image`.
        labelled: whether values tell brushes apart: the numbers of a picture's palette, or its grey values. Otherwise
            what is not black is brushed, or in a picture with transparent places what is not transparent.

    Raises:
        UserError: as in `read_image`; or of colours, where values tell brushes apart.
    """
    name = name or name_of(source)
    picture = ImageOps.exif_transpose(_opened(source, name))
    if labelled:
        if picture.mode not in ("P", "L", "1"):
            raise UserError(
                f"{name}: a picture of mode {picture.mode}, expected a palette or grey values (a brush each)"
            )
        return np.array(picture if picture.mode == "P" else picture.convert("L"))
    return brushed(picture)


def read_array(
    source: Source, expected: str, ndim: int | Collection[int], name: str | None = None, kinds: str = "iuf"
) -> np.ndarray:
    """An array of numbers from an .npy file; its header is held against the file's size before anything is allocated.

    Args:
        source: a file or its bytes.
        expected: what it should be, in words.
        ndim: how many axes it has, or may have.
        name: as in `read_image`.
        kinds: kinds of numpy's dtypes that it may have.

    Raises:
        UserError: it is not an array, is empty, or has another number of axes or other values.
    """
    path, data = name or name_of(source), data_of(source)
    file = io.BytesIO(data)
    try:
        shape, fortran, dtype = npy_header(file)
    except Exception as error:  # numpy evaluates the header as a literal, which raises errors of many types
        raise UserError(
            f"{path}: expected an .npy file of {expected}; it is another kind of file or cut short"
        ) from error
    axes = (ndim,) if isinstance(ndim, int) else ndim
    if dtype.kind not in kinds or len(shape) not in axes or not all(0 < n < 2**31 for n in shape):
        what = "" if dtype.kind in kinds else " of what is no number"
        raise UserError(f"{path}: expected {expected}, got {_sides(shape)}{what}")
    count = math.prod(shape)
    if count * dtype.itemsize != len(data) - file.tell():
        held = len(data) - file.tell()
        raise UserError(f"{path}: expected {count * dtype.itemsize} bytes for {_sides(shape)} numbers, got {held}")
    return np.frombuffer(data, dtype, count, file.tell()).reshape(shape, order="F" if fortran else "C")


def read_depth(source: Source, name: str | None = None) -> np.ndarray:
    """(H, W) float64 depth from an .npy file, or in metres from a PNG of 16 bits in millimetres.

    Raises:
        UserError: it is neither, or holds a depth that is not above 0.
    """
    name, data = name or name_of(source), data_of(source)
    if data.startswith(NPY) or name.lower().endswith(".npy"):
        depth = read_array(data, "(H, W) numbers", 2, name).astype(np.float64)
        check_size(depth.shape, name)
    else:
        picture = ImageOps.exif_transpose(_opened(data, name))
        if not picture.mode.startswith("I"):
            raise UserError(f"{name}: a picture of mode {picture.mode}, expected grey values of 16 bits")
        depth = np.array(picture).astype(np.float64) / 1000
    wrong = ~((depth > 0) & (depth <= FARTHEST))
    if wrong.any():
        raise UserError(
            f"{name}: expected a depth above 0, up to {FARTHEST:g}, in every pixel; {int(wrong.sum())} are not"
        )
    return depth


def _sides(shape: tuple[int, ...]) -> str:
    """A shape in words: `3 x 4`."""
    return " x ".join(map(str, shape))[:60] or "a single value"


def npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and dtype of an .npy file; whatever numpy raises passes through."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    with warnings.catch_warnings(action="ignore"):
        return read(file)


def _opened(source: Source, name: str) -> Image.Image:
    """A decoded picture, as it is stored."""
    data = data_of(source)
    try:
        with warnings.catch_warnings(action="ignore"):
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
            if isinstance(picture, TiffImageFile) and (_DNG in picture.tag_v2 or picture.tag_v2.get(_SUBFILE, 0) & 1):
                # Pillow would show the small preview that comes first
                raise UserError(f"{name}: not a readable picture: {_foreign(data)}")
            check_size(picture.size[::-1], name)
            picture.load()
            picture.getexif()  # reads what follows the pixels
    except UserError:
        raise
    except UnidentifiedImageError:
        raise UserError(f"{name}: not a readable picture: {_foreign(data)}") from None
    except Image.DecompressionBombError:
        raise UserError(f"{name}: more pixels than the {MAX_SIDE} x {MAX_SIDE} it may have") from None
    except Exception as error:  # Pillow raises exceptions of many types for broken bytes
        said = _foreign(data) if _kind(data) == RAW else DAMAGED
        raise UserError(f"{name}: not a readable picture: {said}") from error
    return picture


def _kind(data: bytes) -> str | None:
    """Which of FOREIGN a file is, by its first bytes."""
    head = data[:4096]
    return next((kind for kind, begin in FOREIGN.items() if re.match(begin, head, re.DOTALL | re.IGNORECASE)), None)


def _foreign(data: bytes) -> str:
    """What a file is that is no picture of FORMATS, and what is expected."""
    raw = RAW if data[:4] in (b"II*\0", b"MM\0*") else "of a kind that is not known here"
    kind = _kind(data) or raw
    return DAMAGED if kind in FORMATS else f"{kind}, expected {', '.join(FORMATS[:-1])} or {FORMATS[-1]}"


def data_of(source: Source) -> bytes:
    """The bytes of a source."""
    return source if isinstance(source, bytes) else read_bytes(Path(source))


def read_bytes(path: Path) -> bytes:
    """All of a file of at most MAX_BYTES; UserError where it is missing, empty or larger."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    try:
        data = read_regular(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: {said}") from error
    if not data:
        raise UserError(f"{path}: the file is empty")
    return data


def check_size(size: tuple[int, ...], name: str) -> None:
    """UserError where a picture of (height, width) has no pixels or a side above MAX_SIDE."""
    if min(size) < 1 or max(size) > MAX_SIDE:
        raise UserError(f"{name}: {size[0]} x {size[1]} pixels, expected at most {MAX_SIDE} a side")


def name_of(source: Source) -> str:
    """What errors call a source."""
    return "the uploaded file" if isinstance(source, bytes) else str(source)
