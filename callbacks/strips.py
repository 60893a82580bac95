"""Moving strips of labelled panels: numpy pictures in, GIF bytes, mp4 and PNG files out. No model, no trainer."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from lightning_modules.conditioning import to_uint8
from remoco.common.errors import UserError
from remoco.common.videos.files import write_video
from remoco.common.whole_files import atomic_path

MIN_PANEL = 192  # pixels of a panel's width: smaller frames are enlarged by a whole factor, so that labels fit
GIF_WIDTH = 1280
GAP, MARGIN = 6, 8
PAPER, INK, FAINT = (255, 255, 255), (25, 25, 25), (115, 115, 115)


def to_pictures(video: Tensor) -> np.ndarray:
    """(..., 3, H, W) float in [-1, 1] or uint8 -> (..., H, W, 3) uint8 on the host."""
    return to_uint8(video).movedim(-3, -1).contiguous().cpu().numpy()


def panel_factor(width: int) -> int:
    """The whole factor by which frames of this width are enlarged."""
    return max(1, -(-MIN_PANEL // width))


def strip(panels: dict[str, np.ndarray], title: str, columns: int | None = None) -> np.ndarray:
    """Panels side by side, or in rows of `columns`, each under its label, under one title.

    Args:
        panels: label -> (H, W, 3) still or (L, H, W, 3) moving picture, uint8; one L, and one H, W or a panel that is
            already enlarged by `panel_factor`.
        title: a line over all of them.
        columns: panels in a row; None = all of them.

    Returns:
        (L, H', W', 3) uint8, with even H' and W' (video codecs need that); L = 1 when nothing moves.
    """
    frames = max(len(panel) if panel.ndim == 4 else 1 for panel in panels.values())
    height, width = min(panel.shape[-3:-1] for panel in panels.values())
    factor = panel_factor(width)
    width, height = width * factor, height * factor
    label_font, title_font = _font(max(12, width // 16)), _font(max(12, width // 18))
    label_height, title_height = 2 * label_font.size - 4, 2 * title_font.size
    columns = columns or len(panels)
    row_height = label_height + height
    rows = -(-len(panels) // columns)
    shape = (_even(title_height + rows * row_height + MARGIN), _even(columns * (width + GAP) - GAP + 2 * MARGIN))

    page = Image.new("RGB", shape[::-1], PAPER)
    draw = ImageDraw.Draw(page)
    full = shape[1] - 2 * MARGIN
    draw.text((MARGIN, title_height // 2), _shorten(title, title_font, full), fill=FAINT, font=title_font, anchor="lm")
    places = [
        (MARGIN + i % columns * (width + GAP), title_height + i // columns * row_height) for i in range(len(panels))
    ]
    for (left, top), label in zip(places, panels, strict=True):
        text = _shorten(label, label_font, width)
        draw.text((left, top + label_height // 2 - 2), text, fill=INK, font=label_font, anchor="lm")

    moving = np.repeat(np.asarray(page)[None], frames, axis=0)
    for (left, top), panel in zip(places, panels.values(), strict=True):
        factor = width // panel.shape[-2]
        inside = moving[:, top + label_height : top + row_height, left : left + width]
        inside[:] = panel.repeat(factor, axis=-3).repeat(factor, axis=-2)
    return moving


def sheet(strips: Sequence[np.ndarray]) -> np.ndarray:
    """Strips under each other, at their last frame, where the motion is largest: (H', W', 3) uint8."""
    return np.concatenate([moving[-1] for moving in strips])


def gif(video: np.ndarray, fps: float) -> bytes:
    """(L, H, W, 3) uint8 -> an endless GIF at most `GIF_WIDTH` wide.

    Its 256 colours are chosen once, over frames from all of the clip: a hundred times faster than for every frame, and
    no flicker of still areas.
    """
    length, height, width, _ = video.shape
    size = (min(width, GIF_WIDTH), round(height * min(1, GIF_WIDTH / width)))
    frames = [Image.fromarray(frame) for frame in video]
    if size[0] != width:
        frames = [frame.resize(size, Image.Resampling.LANCZOS) for frame in frames]
    some = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[:: max(1, length // 4)]]))
    palette = some.quantize(256, method=Image.Quantize.FASTOCTREE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    buffer = io.BytesIO()
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=round(1000 / fps), loop=0, disposal=1
    )
    return buffer.getvalue()


def write_mp4(path: Path, video: np.ndarray, fps: float) -> None:
    """`write_video` with the bytes of something to look at."""
    write_video(path, video, fps, crf=16)


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write (H, W, 3) uint8; the file is whole or absent."""
    with atomic_path(path) as temporary:
        Image.fromarray(picture).save(temporary, format="PNG")


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise UserError("Pillow was built without FreeType, which the labels of the strips need")
    return font


def _shorten(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """`text`, or its beginning and an ellipsis, within `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _even(n: int) -> int:
    return n + n % 2
