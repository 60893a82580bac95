"""What a person gives to generate from: an image, tracks, a brush, a camera or a driving video."""

from datamodules.drawings.backdrop import Backdrop
from datamodules.drawings.drawing import (
    Drawing,
    drawing_from_json,
    drawing_json,
    find_drawings,
    read_drawing,
    write_drawing,
)

__all__ = ["Backdrop", "Drawing", "find_drawings", "drawing_from_json", "drawing_json", "read_drawing", "write_drawing"]
