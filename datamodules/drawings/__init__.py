"""What a person gives to generate from: an image, tracks, brushes, a camera or a driving video; and its frame."""

from datamodules.drawings.arguments import Picture, drawings_of, read_image
from datamodules.drawings.backdrop import Backdrop, backdrop_from_flags
from datamodules.drawings.drawing import Drawing
from datamodules.drawings.files import drawing_from_json, find_drawings, read_drawing, write_drawing
from datamodules.drawings.framing import Fit, FrameArea, Framing, framing_of

__all__ = [
    "Backdrop",
    "Drawing",
    "Fit",
    "Framing",
    "FrameArea",
    "Picture",
    "backdrop_from_flags",
    "drawing_from_json",
    "drawings_of",
    "find_drawings",
    "framing_of",
    "read_drawing",
    "read_image",
    "write_drawing",
]
