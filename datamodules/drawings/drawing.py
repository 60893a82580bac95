"""What a generation starts from, as page, command and benchmark read and write it: an image, tracks on it, a brush.

Two layouts of a folder: the benchmark's, `first_frame.png`, `first_frame_mask.png` and `meta_data.json`, whose key
points are in pixels of the image; and `image.png` with `tracks.npy` (N, L, 2), `visibility.npy` (N, L) and `brush.png`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from datamodules.drawings.backdrop import Backdrop, backdrop_from_json
from datamodules.drawings.checked import MAX_TRACKS, checked_eases, checked_ids, checked_tracks
from remoco.common.errors import UserError, brief, one_line
from remoco.common.json_files import parse_json
from remoco.common.picture_files import (
    Source,
    check_size,
    data_of,
    name_of,
    read_array,
    read_bytes,
    read_image,
    read_mask,
)
from remoco.common.pictures import WHITE
from remoco.common.whole_files import write_atomic

MAX_TEXT = 16 * 2**20  # bytes of a meta_data.json
META = ("meta_data.json", "meta_data_new.json")  # some copies of the benchmark have the second name
IMAGE, MASK = "first_frame.png", "first_frame_mask.png"
PALETTE = (
    (0, 0, 0), (255, 176, 0), (0, 158, 255), (230, 57, 120), (0, 190, 110), (150, 90, 255), (255, 110, 40),
    (120, 200, 0), (0, 200, 210),
)  # fmt: skip
"""Colour of each brush id in a written mask, 0 is not brushed; ids beyond it begin again after 0."""


@dataclass  # not frozen: Lightning copies batches field by field
class Drawing:
    """A first frame, tracks drawn on it and what is brushed; checked where it is made.

    Attributes:
        image: (H, W, 3) uint8.
        tracks: key points of each track, (n, 2) float64 x, y in pixels of the image; they start inside it.
        brush: (H, W) uint8, 0 where nothing is brushed; None for no brush.
        times: for each track (n,) when it is at each point, growing from 0, the first frame, to 1, the last; None
            spreads its points evenly. None for all of them.
        brush_ids: for each track the value of `brush` that moves with it, None for none of them; what is brushed with
            a value of no track stays. None: one brush for all tracks, whatever its values.
        backdrop: how what lies behind the objects moves; None: it does not.
        eases: for each track one of `conditions.strokes.EASES`, its speed along the way, or None; one with times has
            none. None for all of them.

    Raises:
        UserError: one line that names the field and what was expected.
    """

    image: np.ndarray
    tracks: list[np.ndarray]
    brush: np.ndarray | None = None
    times: list[np.ndarray | None] | None = None
    brush_ids: list[int | None] | None = None
    backdrop: Backdrop | None = None
    eases: list[str | None] | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise UserError(f"image is {self.image.shape} {self.image.dtype}, expected (height, width, 3) uint8 (RGB)")
        check_size(self.image.shape[:2], "image")
        names = [f"track {index}" for index in range(len(self.tracks))]
        self.tracks, self.times = checked_tracks(self.tracks, self.times, self.size, names, "times")
        self.eases = checked_eases(self.eases, len(self.tracks), self.times, "eases")
        if self.brush is not None:
            if self.brush.shape != self.image.shape[:2]:
                raise UserError(f"brush: {_size(self.brush)}, expected the size of the image, {_size(self.image)}")
            self.brush = _as_ids(self.brush)
        if self.brush_ids is not None:
            found = set() if self.brush is None else set(np.unique(self.brush).tolist()) - {0}
            self.brush_ids = checked_ids(self.brush_ids, len(self.tracks), found, "brush_ids")

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    def paths(self, frames: int) -> list[np.ndarray]:
        """Where each track is in each frame, (frames, 2) float64 x, y."""
        return self.scaled_paths(frames, *self.size)

    def scaled_paths(self, frames: int, height: int, width: int) -> list[np.ndarray]:
        """`paths` in the pixels of a video of another size."""
        from conditions.strokes import interpolate_track

        scaled = zip(self.scaled_tracks(height, width), self._times(), self._eases(), strict=True)
        return [interpolate_track(track, frames, at, ease) for track, at, ease in scaled]

    def strokes(self, frames: int) -> list[np.ndarray]:
        """The tracks for a pipeline, which spreads key points evenly: those with times or an ease as a point for each
        frame.
        """
        drawn = zip(self.tracks, self._times(), self._eases(), self.paths(frames), strict=True)
        return [track if times is None and ease is None else path for track, times, ease, path in drawn]

    def masks(self) -> np.ndarray | None:
        """The brush for a pipeline: (H, W) bool; or with `brush_ids` (M, H, W), one for each track and then those of no
        track; None for no brush.
        """
        if self.brush is None or self.brush_ids is None:
            return None if self.brush is None else self.brush > 0
        own = [self.brush == (index or -1) for index in self.brush_ids]
        others = sorted(set(np.unique(self.brush).tolist()) - {0} - set(self.brush_ids))
        masks = own + [self.brush == index for index in others]
        return np.stack(masks) if masks else np.zeros((0, *self.brush.shape), dtype=bool)

    def brushed(self) -> np.ndarray | None:
        """(H, W) bool, what any brush covers; None where none does."""
        return None if self.brush is None or not self.brush.any() else self.brush > 0

    def resized(self, height: int, width: int) -> Drawing:
        """The same at another size, tracks and brush with it."""
        if self.size == (height, width):
            return self
        shrinks = height * width < self.image.shape[0] * self.image.shape[1]
        image = cv2.resize(self.image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
        brush, ids = self.brush, self.brush_ids
        if brush is not None:
            brush = cv2.resize(brush, (width, height), interpolation=cv2.INTER_NEAREST)
        if ids is not None:  # a brush of a few pixels may be gone
            ids = [index if brush is not None and (brush == index).any() else None for index in ids]
        return Drawing(image, self.scaled_tracks(height, width), brush, self.times, ids, self.backdrop, self.eases)

    def fingerprint(self) -> str:
        """SHA-256 of all of it: that of other inputs is another one."""
        digest = hashlib.sha256(json.dumps([self.image.shape, drawing_json(self)]).encode())
        digest.update(self.image.tobytes())
        digest.update(b"none" if self.brush is None else self.brush.tobytes())
        for source in (self.backdrop.files() if self.backdrop else {}).values():
            with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def scaled_tracks(self, height: int, width: int) -> list[np.ndarray]:
        """The tracks in the pixels of a video of another size; each start stays inside the frame.

        Pixel centres have integer coordinates, so x goes to (x + 0.5) * scale - 0.5. A track whose start would leave
        the frame by that is moved as a whole: its displacements are what is drawn and scored.
        """
        new = np.array([width, height], dtype=np.float64)
        tracks = [(track + 0.5) * (new / self.size[::-1]) - 0.5 for track in self.tracks]
        return [track + (track[0].clip(0, new - 1) - track[0]) for track in tracks]

    def _times(self) -> Sequence[np.ndarray | None]:
        return self.times or [None] * len(self.tracks)

    def _eases(self) -> Sequence[str | None]:
        return self.eases or [None] * len(self.tracks)


def read_drawing(
    source: str | Path,
    tracks: str | Path | None = None,
    brush: str | Path | None = None,
    background: tuple[int, int, int] = WHITE,
) -> Drawing:
    """Read and check what to generate from.

    Args:
        source: an image; or a folder in one of the two layouts.
        tracks: with an image: `.json` as the benchmark's, or `.npy` with a `visibility.npy` beside it, if there is one.
        brush: with an image: the mask; None for no brush.
        background: R, G, B of what transparent parts of the image show.

    Raises:
        UserError: one line that names the file, the field and what was expected.
    """
    source = Path(source)
    if not source.is_dir():
        image = read_image(source, background=background)
        if tracks is None:
            return Drawing(image, [], None if brush is None else _fitting(brush, image, False))
        tracks = Path(tracks)
        if tracks.suffix.lower() == ".npy":
            return _from_arrays(image, tracks, tracks.with_name("visibility.npy"), brush)
        return drawing_from_json(read_bytes(tracks), image, brush, str(tracks), tracks.parent)
    if (source / IMAGE).is_file():
        image = read_image(source / IMAGE, background=background)
        meta = next((source / name for name in META if (source / name).is_file()), None)
        if meta is None:
            raise UserError(f"{source}: neither {META[0]} nor {META[1]}")
        return drawing_from_json(read_bytes(meta), image, source / MASK, str(meta), source)
    if not (source / "image.png").is_file():
        raise UserError(f"{source}: neither {IMAGE} nor image.png in this folder")
    mask = source / "brush.png"
    arrays = source / "tracks.npy", source / "visibility.npy"
    image = read_image(source / "image.png", background=background)
    return _from_arrays(image, *arrays, mask if mask.is_file() else None)


def drawing_from_json(
    data: bytes | str,
    image: np.ndarray,
    brush: Source | np.ndarray | None = None,
    name: str = "tracks",
    beside: Path | Mapping[str, bytes] | None = None,
) -> Drawing:
    """A drawing of an image and the text of its `meta_data.json`.

    Args:
        data: `{"traj_key_points": [[[x, y], ...], ...]}`, if wanted with `times`, a list of numbers or null for each
            track, `ease`, one of `conditions.strokes.EASES` or null for each track, and `brush`, a mask's value or null
            for each track; and what `datamodules.drawings.backdrop` reads, with which there may be no tracks.
        image: (H, W, 3) uint8.
        brush: the mask.
        name: what errors call the text.
        beside: where the files are that it names.

    Raises:
        UserError: one line that names the field and what was expected.
    """
    if len(data) > MAX_TEXT:
        raise UserError(f"{name}: has {len(data)} bytes, expected at most {MAX_TEXT // 2**20} MB")
    try:
        found = parse_json(data)
        tracks, times, ids = found["traj_key_points"], found.get("times"), found.get("brush")
        eases = found.get("ease")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f'{name}: expected {{"traj_key_points": [[[x, y], ...], ...]}} ({one_line(error)})') from error
    for key, value in (("traj_key_points", tracks), ("times", times), ("ease", eases), ("brush", ids)):
        if not isinstance(value, list) and (key == "traj_key_points" or value is not None):
            raise UserError(f"{name}: {key}: expected a list, got {brief(value)}")
    backdrop = backdrop_from_json(found, beside, name)
    if not tracks and backdrop is None:
        raise UserError(f"{name}: traj_key_points: expected at least one track, got none")
    if len(tracks) > MAX_TRACKS:
        raise UserError(f"{name}: traj_key_points: expected at most {MAX_TRACKS} tracks, got {len(tracks)}")
    names = [f"{name}: traj_key_points[{index}]" for index in range(len(tracks))]
    tracks, times = checked_tracks(tracks, times, image.shape[:2], names, f"{name}: times")
    eases = checked_eases(eases, len(tracks), times, f"{name}: ease")
    if isinstance(brush, (str, Path, bytes)):
        brush = _fitting(brush, image, ids is not None)
    if ids is not None:
        values = set() if brush is None else set(np.unique(brush).tolist()) - {0}
        ids = checked_ids(ids, len(tracks), values, f"{name}: brush")
    return Drawing(image, tracks, brush, times, ids, backdrop, eases)


def drawing_json(inputs: Drawing) -> dict[str, Any]:
    """What `meta_data.json` says of inputs; see `drawing_from_json`."""
    found: dict[str, Any] = {"traj_key_points": [track.tolist() for track in inputs.tracks]}
    if inputs.times is not None:
        found["times"] = [None if times is None else times.tolist() for times in inputs.times]
    if inputs.eases is not None:
        found["ease"] = inputs.eases
    if inputs.brush_ids is not None:
        found["brush"] = inputs.brush_ids
    return found if inputs.backdrop is None else found | inputs.backdrop.json()


def write_drawing(folder: str | Path, inputs: Drawing) -> None:
    """Write inputs in the benchmark's layout, each file whole or not at all, the tracks last; the folder is made."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / IMAGE, _png(Image.fromarray(inputs.image)))
    brush = np.zeros(inputs.image.shape[:2], np.uint8) if inputs.brush is None else inputs.brush
    if inputs.brush_ids is None:
        mask = Image.fromarray((brush > 0).astype(np.uint8) * 255)
    else:
        mask = Image.fromarray(brush)
        mask.putpalette([part for index in range(256) for part in colour(index)])
    write_atomic(folder / MASK, _png(mask))
    for name, source in (inputs.backdrop.files() if inputs.backdrop else {}).items():
        write_atomic(folder / name, data_of(source))
    write_atomic(folder / META[0], json.dumps(drawing_json(inputs), allow_nan=False).encode())


def colour(brush_id: int) -> tuple[int, int, int]:
    """Red, green and blue of a brush's value."""
    return PALETTE[0 if brush_id == 0 else 1 + (brush_id - 1) % (len(PALETTE) - 1)]


def find_drawings(folder: str | Path) -> dict[str, Path]:
    """Name -> folder of all inputs in a folder: a benchmark's levels, folders in one of the two layouts, or itself.

    Raises:
        UserError: there are none.
    """
    root = Path(folder)

    def is_sample(path: Path) -> bool:
        return not path.name.startswith(".") and any((path / name).is_file() for name in (IMAGE, "image.png"))

    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    if is_sample(root):
        return {root.resolve().name: root}
    inner = [path for pattern in ("*/", "*/*/") for path in sorted(root.glob(pattern)) if is_sample(path)]
    if not inner:
        raise UserError(f"{root}: no inputs, expected folders with {IMAGE} and {META[0]}, or image.png and tracks.npy")
    return {path.relative_to(root).as_posix(): path for path in inner}


def _from_arrays(image: np.ndarray, tracks: Path, visibility: Path, brush: str | Path | None) -> Drawing:
    """A drawing of a tracker's or anybody's points: frames in which one is hidden are bridged by those around them, and
    after the last one in which it is seen it stays. Points that the first frame hides start nowhere and are left out.
    """
    points = read_array(tracks, "(N, L, 2) numbers", 3)
    if points.shape[2] != 2 or 0 in points.shape:
        raise UserError(f"{tracks}: expected shape (N, L, 2) of x, y in pixels, got {points.shape}")
    if len(points) > MAX_TRACKS:
        raise UserError(f"{tracks}: expected at most {MAX_TRACKS} tracks, got {len(points)}")
    seen = np.ones(points.shape[:2], dtype=bool)
    if visibility.is_file():
        seen = read_array(visibility, "(N, L) truth values", 2, kinds="biuf") > 0
        if seen.shape != points.shape[:2]:
            raise UserError(f"{visibility}: expected shape {points.shape[:2]} as {tracks.name}, got {seen.shape}")
    starts = np.flatnonzero(seen[:, 0])
    if not len(starts):
        raise UserError(f"{visibility}: no point is visible in the first frame, where tracks start")
    knots = np.linspace(0, 1, points.shape[1])
    kept = [points[index][seen[index]].astype(np.float64) for index in starts]
    times = [None if seen[index].all() else knots[seen[index]] for index in starts]
    names = [f"{tracks}: track {index}" for index in starts]
    kept, checked = checked_tracks(kept, times, image.shape[:2], names, f"{tracks}: times")
    return Drawing(image, kept, None if brush is None else _fitting(brush, image, False), checked)


def _fitting(brush: Source, image: np.ndarray, labelled: bool) -> np.ndarray:
    mask = read_mask(brush, labelled=labelled)
    if mask.shape != image.shape[:2]:
        raise UserError(f"{name_of(brush)}: {_size(mask)}, expected the size of {IMAGE}, {_size(image)}")
    return mask


def _as_ids(brush: np.ndarray) -> np.ndarray:
    return brush if brush.dtype == np.uint8 else (brush != 0).astype(np.uint8)


def _size(image: np.ndarray) -> str:
    return " x ".join(map(str, image.shape[:2]))


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
