"""Clips for editing and compositing: ProRes 4444 in a MOV, and sequences of PNGs; both with a matte where there is one.

Colours are the clip's own, also where the matte is transparent: over the background that transparent parts were laid
on. A compositor calls that matted with a colour, or premultiplied with one.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from remoco.common.errors import UserError
from remoco.common.videos.files import whole_container
from remoco.common.videos.mp4 import REPEATABLE, set_format, tagged
from remoco.common.whole_files import new_folder

WRITER = b"ReMoCo"  # stands in the pictures' heads: nobody else's numbered pictures are replaced
NUMBERED = re.compile(r"\d{5,}\.png")
# 8000 bits a macroblock of 256 pixels are prores_ks's most, and its own choice with alpha; without, its own loses 12 dB
_PRORES = {"profile": "4444", "vendor": "apl0", "alpha_bits": "16", "bits_per_mb": "8000"}


def write_mov(path: Path, video: np.ndarray, fps: float, alpha: np.ndarray | None = None) -> None:
    """Write ProRes 4444, 10 bits in BT.709 of limited range, whole or not at all; the same bytes for the same frames.

    Args:
        path: The file.
        video: (L, H, W, 3) uint8.
        fps: Frames per second.
        alpha: (L, H, W) uint8, how opaque each pixel is: the file's alpha channel. None writes none.

    Raises:
        OSError: it cannot be written.
    """
    form = "yuv444p10le" if alpha is None else "yuva444p10le"
    rate = Fraction(fps).limit_denominator(1000)
    height, width = video.shape[1:3]
    with whole_container(path, "mov") as container:
        stream = container.add_stream("prores_ks", rate=rate)
        set_format(stream, height, width, form)
        stream.options = {**_PRORES, "threads": REPEATABLE["threads"], "flags": REPEATABLE["flags"]}
        for number, picture in enumerate(video):
            image = picture if alpha is None else np.dstack([picture, alpha[number]])
            container.mux(stream.encode(tagged(image, form)))
        container.mux(stream.encode())


def write_pngs(folder: Path, video: np.ndarray, alpha: np.ndarray | None = None) -> None:
    """Write a folder of 00000.png, 00001.png, ..., tagged sRGB; whole or absent, in the place of an earlier sequence.

    Args:
        folder: The folder.
        video: (L, H, W, 3) uint8.
        alpha: (L, H, W) uint8, the fourth channel. None writes three.

    Raises:
        UserError: the folder holds something else.
        OSError: it cannot be written.
    """
    check_sequence(folder)
    said = PngInfo()
    said.add(b"sRGB", b"\0")  # perceptual
    said.add_text("Software", WRITER.decode())
    with new_folder(folder) as part:
        for number, picture in enumerate(video):
            image = picture if alpha is None else np.dstack([picture, alpha[number]])
            Image.fromarray(np.ascontiguousarray(image)).save(part / f"{number:05d}.png", pnginfo=said)
        for before in folder.iterdir() if folder.is_dir() else ():
            before.unlink()


def check_sequence(folder: Path, name: str = "") -> None:
    """Raise UserError unless a folder, whose option is `name`, is absent or holds pictures of `write_pngs` alone."""
    shown = f"{name} {folder}".strip()
    if folder.is_file():
        raise UserError(f"{shown}: is a file, expected the name of a folder for the pictures")
    if folder.is_dir() and (other := next((path.name for path in folder.iterdir() if not _ours(path)), None)):
        raise UserError(f"{shown}: holds {other}, expected a new folder, or one that --format png wrote before")


def _ours(path: Path) -> bool:
    if not (NUMBERED.fullmatch(path.name) and path.is_file()):
        return False
    with open(path, "rb") as file:
        return WRITER in file.read(256)
