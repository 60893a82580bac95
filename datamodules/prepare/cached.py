"""Clips that come with their tracks, in the layout of MotionPro's released data (its dataset/vidtar.py and
dataset/video_dataset_flow.py).

A clip is a video, every picture of which is a frame; the flow (L - 1, H, W, 2), x and y in pixels from frame 1, of the
frames 2..L; and their visibility masks, white where frame 1's pixel is seen. In a tar, or loose in a folder, these are
`KEY.mp4`, `KEY.npy` and `KEY.jpg`, with the masks side by side. A folder of one clip has `flow_01.npy` (H, W, 2) and
`visible_mask_01.jpg` for frame 2, and so on.
"""

from __future__ import annotations

import io
import math
import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from datamodules.prepare.captions import CAPTION_BYTES, decoded
from datamodules.prepare.clips import Clip
from datamodules.prepare.settings import CACHED, Settings
from datamodules.prepare.source import SUFFIXES, Slice, Video
from datamodules.trackers.base import Tracks
from remoco.common.errors import BadClip
from remoco.common.json_files import open_regular, read_regular
from remoco.common.picture_files import npy_header
from remoco.common.videos import decode
from remoco.common.videos.picture import upright

NAME, VERSION = CACHED, "1"
SEEN = 125  # a mask's grey value above which the pixel is visible, as the released loader has it
_NUMBERED = {
    "flow": re.compile(r"flow_(\d{1,9})\.npy", re.IGNORECASE),
    "visible_mask": re.compile(r"visible_mask_(\d{1,9})\.jpe?g", re.IGNORECASE),
}
_HEAD = 1 << 16  # bytes of an .npy file that hold its header
_SLACK = 1 << 16  # bytes of a JPEG beside its pixels


class Member(NamedTuple):
    """Where the bytes of a flow or of masks are: `called` in errors."""

    called: str
    path: str
    offset: int
    size: int

    def read(self) -> bytes:
        """All of them; BadClip where the file ends before."""
        with self.open() as file:
            data = file.read()
        if len(data) != self.size:
            raise BadClip(f"{self.called}: is cut short at {len(data)} of {self.size} bytes")
        return data

    def open(self) -> Slice:
        """The bytes as a file."""
        try:
            return Slice(self.path, self.offset, self.size)
        except OSError as error:
            raise BadClip(f"{self.called}: does not open: {error.strerror}") from error


class Files(NamedTuple):
    """The tracks of a clip: `whole`, an array and a picture for all frames, or one for each, in order."""

    flow: list[Member]
    masks: list[Member]
    whole: bool


def read(video: Video, settings: Settings) -> tuple[Clip, Tracks]:
    """A clip and the tracks that came with it.

    Raises:
        BadClip: something is missing or damaged, or of another shape; the line names the file.
    """
    files = files_of(video)
    shape = settings.shape
    size = (shape.height, shape.width)
    flow = np.zeros((shape.frames, 2, *size), np.float32)
    visibility = np.ones((shape.frames, *size), bool)
    flow[1:] = _read_flow(files, shape.frames, size)
    visibility[1:] = _read_masks(files, shape.frames, size)
    return _read_frames(video, settings), Tracks(flow, visibility)


def files_of(video: Video) -> Files:
    """Where the tracks of a clip are.

    Raises:
        BadClip: one is missing.
    """
    if video.offset is not None:
        beside = {part.kind: Member(f".{part.kind}", video.path, part.offset, part.size) for part in video.beside}
        flow, masks = beside.get("npy"), beside.get("jpg") or beside.get("jpeg")
        if flow is None or masks is None:
            what = ".npy, the flow," if flow is None else ".jpg, the visibility masks,"
            raise BadClip(f"has no {what} beside its video")
        return Files([flow], [masks], whole=True)
    path = Path(video.path)
    if path.with_suffix(".npy").exists():
        return Files([_file(path.with_suffix(".npy"))], [_file(path.with_suffix(".jpg"))], whole=True)
    return _numbered(path)


def _numbered(path: Path) -> Files:
    """The files of a folder that is one clip."""
    names = sorted(os.listdir(path.parent))
    found: dict[str, dict[int, str]] = {kind: {} for kind in _NUMBERED}
    for name in names:
        for kind, pattern in _NUMBERED.items():
            match = pattern.fullmatch(name)
            if match and found[kind].setdefault(int(match[1]), name) != name:
                raise BadClip(f"{name}: has the number of {found[kind][int(match[1])]}")
    for kind, files in found.items():
        if not files:
            example = "flow_01.npy" if kind == "flow" else "visible_mask_01.jpg"
            raise BadClip(f"has no tracks: neither {path.stem}.npy nor {example} is beside it")
        gap = next((number for number in range(min(files), max(files)) if number not in files), None)
        if gap is not None:
            raise BadClip(f"{kind}: number {gap:02d} is missing, there are {len(files)} from {min(files):02d} on")
    videos = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    if len(videos) > 1:
        raise BadClip(f"its folder has {len(videos)} videos and one set of tracks, expected one video")
    flow, masks = ([_file(path.with_name(files[number])) for number in sorted(files)] for files in found.values())
    return Files(flow, masks, whole=False)


def _file(path: Path) -> Member:
    try:
        with open_regular(path) as file:
            return Member(path.name, str(path), 0, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise BadClip(f"{path.name}: does not open: {error.strerror}") from error


def sizes(video: Video) -> list[int]:
    """Bytes of each file of the tracks, so that a set knows when they change; none where they are not usable."""
    try:
        files = files_of(video)
    except (BadClip, OSError):
        return []
    return [member.size for member in (*files.flow, *files.masks)]


def caption(video: Video) -> str:
    """The video's text; where it has none, that of the only `.txt` in the folder that is one clip."""
    if video.caption or video.note or video.offset is not None or video.fault:
        return video.caption
    folder = Path(video.path).parent
    try:
        names = [name for name in os.listdir(folder) if name.lower().endswith(".txt")]
        if len(names) != 1 or not any(_NUMBERED["flow"].fullmatch(name) for name in os.listdir(folder)):
            return ""
        return decoded(read_regular(folder / names[0], CAPTION_BYTES["txt"]))[0]
    except (OSError, ValueError):
        return ""


def _read_flow(files: Files, frames: int, size: tuple[int, int]) -> np.ndarray:
    """(L - 1, 2, H, W) float, from one array (L - 1, H, W, 2) or from L - 1 of (H, W, 2)."""
    if files.whole:
        return _array(files.flow[0], (frames - 1, *size, 2)).transpose(0, 3, 1, 2)
    _require_count(files.flow, "flow", frames)
    flow = np.empty((frames - 1, 2, *size), np.float32)
    for out, file in zip(flow, files.flow, strict=True):
        out[:] = _array(file, (*size, 2)).transpose(2, 0, 1)
    return flow


def _array(file: Member, shape: tuple[int, ...]) -> np.ndarray:
    """Floats of this shape as float32; nothing is read before the header and the file's size agree with it."""
    with file.open() as opened:
        head = io.BytesIO(opened.read(_HEAD))
        try:
            found, fortran, dtype = npy_header(head)
        except Exception as error:  # numpy evaluates the header as a literal, which raises errors of many types
            raise BadClip(f"{file.called}: is no .npy file, or its header is damaged") from error
        if dtype.kind != "f" or dtype.itemsize > 8:
            raise BadClip(f"{file.called}: holds no floats of 16, 32 or 64 bits, which the flow is")
        if found != shape:
            names = "frames - 1, height, width, 2" if len(shape) == 4 else "height, width, 2"
            raise BadClip(
                f"{file.called}: the flow is {_sides(found)}, expected {_sides(shape)} ({names}) by --frames, --height "
                "and --width"
            )
        count = math.prod(shape)
        if file.size - head.tell() != count * dtype.itemsize:
            raise BadClip(
                f"{file.called}: has {file.size - head.tell()} bytes of flow, expected {count * dtype.itemsize} for "
                f"{_sides(shape)}"
            )
        opened.seek(head.tell())
        data = opened.read()
    if len(data) != count * dtype.itemsize:
        raise BadClip(f"{file.called}: is cut short")
    array = np.frombuffer(data, dtype, count).reshape(shape, order="F" if fortran else "C")
    with np.errstate(over="ignore"):  # what float32 does not hold is refused as not finite
        return array.astype(np.float32)


def _read_masks(files: Files, frames: int, size: tuple[int, int]) -> np.ndarray:
    """(L - 1, H, W) bool, from one picture of the masks side by side, or from one for each frame."""
    height, width = size
    if files.whole:
        strip = _mask(
            files.masks[0], (height, (frames - 1) * width), f"{frames - 1} masks of {_sides(size)} side by side"
        )
        return strip.reshape(height, frames - 1, width).transpose(1, 0, 2)
    _require_count(files.masks, "visible_mask", frames)
    return np.stack([_mask(file, size, "by --height and --width") for file in files.masks])


def _mask(file: Member, size: tuple[int, int], why: str) -> np.ndarray:
    """(H, W) bool of a JPEG, whose size is known before it is decoded."""
    if file.size > 3 * math.prod(size) + _SLACK:
        raise BadClip(f"{file.called}: has {file.size} bytes, too many for a picture of {_sides(size)}")
    try:
        picture = Image.open(io.BytesIO(file.read()), formats=("JPEG",))
        found = picture.size[::-1]
        if found == size:
            return np.asarray(picture.convert("L")) > SEEN
    except Exception as error:  # Pillow raises exceptions of many types for broken bytes
        raise BadClip(f"{file.called}: does not decode as a JPEG") from error
    raise BadClip(f"{file.called}: is {_sides(found)}, expected {_sides(size)} ({why})")


def _require_count(files: list[Member], kind: str, frames: int) -> None:
    if len(files) != frames - 1:
        raise BadClip(f"{kind}: there are {len(files)} files, expected {frames - 1} for --frames {frames}")


def _read_frames(video: Video, settings: Settings) -> Clip:
    """Every picture of the video, which must have the size and number of the clip's frames."""
    shape = settings.shape
    frames = np.empty((shape.frames, 3, shape.height, shape.width), np.uint8)
    count, last, odd = 0, 0.0, ""
    try:
        for count, picture in enumerate(decode.pictures(video.source()), start=1):
            if count > shape.frames:
                break
            image, aspect = upright(picture, settings.colour)
            if image.shape[:2] != frames.shape[2:] or aspect != 1:
                pixels = "" if aspect == 1 else f" with pixels {aspect:g} times as wide as high"
                odd = f"{_sides(image.shape[:2])}{pixels}"
                break
            frames[count - 1] = image.transpose(2, 0, 1)
            last = picture.time
    except BadClip:
        raise
    except Exception as error:
        raise BadClip(f"video: does not decode: {decode.reason(error)}") from error
    if odd:
        expected = f"{_sides(frames.shape[2:])} by --height and --width; tracks are not scaled"
        raise BadClip(f"video: is {odd}, expected {expected}")
    if count != shape.frames:
        found = f"more than {shape.frames}" if count > shape.frames else str(count)
        raise BadClip(f"video: has {found} pictures, expected {shape.frames} by --frames")
    rate = (count - 1) / last if last > 0 else 0.0
    same = abs(rate - settings.fps) <= 0.02 * settings.fps
    return Clip(frames, 0.0, () if same else (f"{rate:.4g} pictures a second taken as {settings.fps:g}",))


def _sides(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))[:60] or "a single value"
