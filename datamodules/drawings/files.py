"""Drawings as files, as command, page and benchmark read and write them.

Two layouts of a folder: the benchmark's, `first_frame.png`, `first_frame_mask.png` and `meta_data.json`, whose key
points are in pixels of the image; and `image.png` with `tracks.npy` (N, L, 2), `visibility.npy` (N, L) and `brush.png`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from datamodules.drawings.backdrop import backdrop_from_json
from datamodules.drawings.checked import MAX_TRACKS, checked_eases, checked_ids, checked_tracks
from datamodules.drawings.drawing import Drawing, sides
from datamodules.drawings.other_tools import (
    Points,
    double_quoted,
    from_splines,
    is_points,
    read_points,
    visibility_names,
)
from remoco.common.errors import UserError, brief, one_line
from remoco.common.json_files import parse_json
from remoco.common.picture_files import Source, data_of, name_of, read_bytes, read_image_with_alpha, read_mask
from remoco.common.pictures import WHITE
from remoco.common.whole_files import write_atomic

MAX_TEXT = 16 * 2**20  # bytes of a meta_data.json
MOST_PROMPT = 10_000  # characters
META = ("meta_data.json", "meta_data_new.json")  # some copies of the benchmark have the second name
IMAGE, MASK = "first_frame.png", "first_frame_mask.png"
PALETTE = (
    (0, 0, 0), (255, 176, 0), (0, 158, 255), (230, 57, 120), (0, 190, 110), (150, 90, 255), (255, 110, 40),
    (120, 200, 0), (0, 200, 210),
)  # fmt: skip
"""Colour of each brush id in a written mask, 0 is not brushed; ids beyond it begin again after 0."""


def read_drawing(
    source: str | Path,
    tracks: str | Path | None = None,
    brush: str | Path | None = None,
    background: tuple[int, int, int] = WHITE,
) -> Drawing:
    """Read and check what to generate from.

    Args:
        source: an image; or a folder in one of the two layouts.
        tracks: with an image: `.json` as the benchmark's, or `.npy` with a `visibility.npy` beside it, if there is one;
            or another tool's, see `datamodules.drawings.other_tools`.
        brush: with an image: the mask; None for no brush.
        background: R, G, B of what transparent parts of the image show.

    Raises:
        UserError: one line that names the file, the field and what was expected.
    """
    source = Path(source)
    file = source
    if source.is_dir():
        file = source / IMAGE if (source / IMAGE).is_file() else source / "image.png"
        if not file.is_file():
            raise UserError(f"{source}: neither {IMAGE} nor image.png in this folder")
    image, alpha = read_image_with_alpha(file, background=background)
    drawing = _of_image(image, tracks, brush) if file is source else _of_folder(source, file, image)
    drawing.alpha = alpha
    return drawing


def _of_image(image: np.ndarray, tracks: str | Path | None, brush: str | Path | None) -> Drawing:
    """A drawing of an image's file and those given with it."""
    if tracks is None:
        return Drawing(image, [], None if brush is None else fitting_brush(brush, image))
    tracks = Path(tracks)
    if is_points(tracks.name):
        return _from_arrays(image, tracks, [tracks.with_name(name) for name in visibility_names(tracks.name)], brush)
    return drawing_from_json(read_bytes(tracks), image, brush, str(tracks), tracks.parent)


def _of_folder(source: Path, file: Path, image: np.ndarray) -> Drawing:
    """A drawing of a folder, whose image is `file`."""
    if file.name == IMAGE:
        meta = next((source / name for name in META if (source / name).is_file()), None)
        if meta is None:
            raise UserError(f"{source}: neither {META[0]} nor {META[1]}")
        return drawing_from_json(read_bytes(meta), image, source / MASK, str(meta), source)
    mask = source / "brush.png"
    return _from_arrays(image, source / "tracks.npy", [source / "visibility.npy"], mask if mask.is_file() else None)


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
            for each track; `prompt`, a text; and what `datamodules.drawings.backdrop` reads, with which there may be no
            tracks. Or the list that KJNodes' spline editor holds.
        image: (H, W, 3) uint8.
        brush: the mask.
        name: what errors call the text.
        beside: where the files are that it names.

    Raises:
        UserError: one line that names the field and what was expected.
    """
    if len(data) > MAX_TEXT:
        raise UserError(f"{name}: has {len(data)} bytes, expected at most {MAX_TEXT // 2**20} MB")
    expected = f'{name}: expected {{"traj_key_points": [[[x, y], ...], ...]}}'
    try:
        entries = parse_json(double_quoted(data))
    except ValueError as error:
        said = f" ({one_line(error)})" if isinstance(error, UserError) else ""
        raise UserError(f"{expected}{said}") from error
    if isinstance(entries, list) and entries:
        entries = from_splines(entries, name)
    try:
        tracks, times, ids = entries["traj_key_points"], entries.get("times"), entries.get("brush")
        eases, prompt = entries.get("ease"), entries.get("prompt")
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(expected) from error
    for key, value in (("traj_key_points", tracks), ("times", times), ("ease", eases), ("brush", ids)):
        if not isinstance(value, list) and (key == "traj_key_points" or value is not None):
            raise UserError(f"{name}: {key}: expected a list, got {brief(value)}")
    if prompt is not None and (not isinstance(prompt, str) or len(prompt) > MOST_PROMPT):
        raise UserError(f"{name}: prompt: expected a text of at most {MOST_PROMPT} characters, got {brief(prompt)}")
    backdrop = backdrop_from_json(entries, beside, name)
    if not tracks and backdrop is None:
        raise UserError(f"{name}: traj_key_points: expected at least one track, got none")
    if len(tracks) > MAX_TRACKS:
        raise UserError(f"{name}: traj_key_points: expected at most {MAX_TRACKS} tracks, got {len(tracks)}")
    names = [f"{name}: traj_key_points[{index}]" for index in range(len(tracks))]
    tracks, times = checked_tracks(tracks, times, image.shape[:2], names, f"{name}: times")
    eases = checked_eases(eases, len(tracks), times, f"{name}: ease")
    if isinstance(brush, (str, Path, bytes)):
        brush = fitting_brush(brush, image, ids is not None)
    if ids is not None:
        values = set() if brush is None else set(np.unique(brush).tolist()) - {0}
        ids = checked_ids(ids, len(tracks), values, f"{name}: brush")
    return Drawing(image, tracks, brush, times, ids, backdrop, eases, prompt)


def write_drawing(folder: str | Path, drawing: Drawing) -> None:
    """Write a drawing in the benchmark's layout, each file whole or not at all, tracks last; the folder is made.

    Raises:
        UserError: it has a stack of brushes; a file holds one mask with a value for each.
    """
    brush = np.zeros(drawing.size, np.uint8) if drawing.brush is None else drawing.brush
    if brush.ndim == 3:
        raise UserError(
            f"brush: {brush.shape}, expected (H, W) with a value for each brush, which is what a file holds"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / IMAGE, _png(Image.fromarray(drawing.image)))
    if drawing.brush_ids is None:
        mask = Image.fromarray((brush > 0).astype(np.uint8) * 255)
    else:
        mask = Image.fromarray(brush)
        mask.putpalette([part for index in range(256) for part in colour(index)])
    write_atomic(folder / MASK, _png(mask))
    for name, source in (drawing.backdrop.files() if drawing.backdrop else {}).items():
        write_atomic(folder / name, data_of(source))
    write_atomic(folder / META[0], json.dumps(drawing.json(), allow_nan=False).encode())


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


def _from_arrays(image: np.ndarray, tracks: Path, visibility: list[Path], brush: str | Path | None) -> Drawing:
    """A drawing of a file of points, with the first of these that is there."""
    beside = next((path for path in visibility if path.is_file()), None)
    seen = None if beside is None else (read_bytes(beside), str(beside))
    points = read_points(read_bytes(tracks), str(tracks), seen)
    return drawing_of_points(image, points, None if brush is None else fitting_brush(brush, image), str(tracks))


def drawing_of_points(image: np.ndarray, points: Points, brush: np.ndarray | None, name: str) -> Drawing:
    """A drawing of points, for example a tracker's: frames in which one is hidden are bridged by those around them, and
    after the last one in which it is seen it stays. Points that the first frame hides start nowhere and are left out.

    Raises:
        UserError: one starts outside the image, or is somewhere not finite.
    """
    places, seen = points
    starts = np.flatnonzero(seen[:, 0])
    knots = np.linspace(0, 1, places.shape[1])
    kept = [places[index][seen[index]].astype(np.float64) for index in starts]
    times = [None if seen[index].all() else knots[seen[index]] for index in starts]
    names = [f"{name}: track {index}" for index in starts]
    kept, checked = checked_tracks(kept, times, image.shape[:2], names, f"{name}: times")
    return Drawing(image, kept, brush, checked)


def fitting_brush(brush: Source, image: np.ndarray, labelled: bool = False, name: str | None = None) -> np.ndarray:
    """(H, W) uint8 of a mask of the image's size; `labelled` as in `read_mask`, `name` is what errors call it."""
    mask = read_mask(brush, name, labelled)
    if mask.shape != image.shape[:2]:
        raise UserError(
            f"{name or name_of(brush)}: {sides(mask.shape)}, expected the size of the image, {sides(image.shape[:2])}"
        )
    return mask


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()
