"""What the browser sends and gets, as JSON: files to drawings, drawings to inputs, paths and zips. Nothing is kept.

A drawing is `{"image": "data:image/png;base64,...", "runs": [value, count, ...], "meta": {...}, "files": {...}}`: the
image, the brush row by row as runs of equal values, the benchmark's `meta_data.json`, and base64 of the files it names.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import tempfile
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from PIL import Image

from datamodules.drawings import Drawing, Framing, drawing_from_json, read_drawing, write_drawing
from datamodules.drawings.files import IMAGE, MASK, META, drawing_of_points, fitting_brush
from datamodules.drawings.other_tools import fewer_points, is_points, read_points
from datamodules.scenes.plain import plain_scene
from datamodules.scenes.scene import render, tracks
from metrics import moving_object
from remoco.common.errors import UserError
from remoco.common.picture_files import check_size, data_of, read_image
from remoco.common.pictures import WHITE
from remoco.embedded import PHOTOGRAPH
from remoco.page import backdrops
from remoco.page.archives import first_sample, named_in

MAX_UPLOAD = 32 * 2**20  # bytes of all files that are opened together
MAX_SIDE = 2048  # pixels of an image on the page; larger ones are scaled down to it
MAX_POINTS = 1000  # of all tracks together
MAX_RUNS = 2**18  # of a brush: two numbers each of the 2**20 that a request may have
PNG = "data:image/png;base64,"
WORDS = {str: "a text", int: "a whole number", list: "a list", dict: "an object"}  # of JSON

TAKEN = ("brush", "camera")
"""What a drawing may have beside tracks; another system takes less."""


def number(value: Any, name: str, least: float, most: float, whole: bool = False) -> Any:
    """A number of the browser within its bounds, as int where it is to be whole; UserError otherwise."""
    right = isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value <= most
    if not right or (whole and value != int(value)):
        wanted = f"{'a whole number' if whole else 'a number'} from {least:g} to {most:g}"
        wanted = f"{least:g}, which does not change here" if least == most else wanted
        raise UserError(f"{name}: expected {wanted}, got {str(value)[:40]}")
    return int(value) if whole else float(value)


def field(body: Any, name: str, kind: type) -> Any:
    """An entry of a JSON object; UserError where it is missing or of another type."""
    if not isinstance(body, Mapping) or not isinstance(body.get(name), kind):
        raise UserError(f"{name}: expected {WORDS[kind]} of that name in the request")
    return body[name]


def parsed(sent: Any, takes: Collection[str] = TAKEN) -> Drawing:
    """The drawing that the browser sent.

    Args:
        sent: as the text above says.
        takes: those of TAKEN that it may have.

    Raises:
        UserError: one line that names what does not fit.
    """
    image = picture_in(sent)
    meta = field(sent, "meta", dict)
    if not (meta.get("traj_key_points") or meta.get("camera") or meta.get("driving")):
        more = ", or let the camera move; a single point keeps its place still" if "camera" in takes else ""
        raise UserError(f"draw at least one track{more}")
    _check_count(meta.get("traj_key_points"))
    brush = brush_in(sent, image)
    files = sent.get("files") or {}
    if not isinstance(files, dict) or len(files) > 2:
        raise UserError("files: expected an object of at most 2 files")
    beside = {name: _decoded(field(files, name, str), name[:40]) for name in files}
    drawing = drawing_from_json(json.dumps(meta), image, brush, "drawing", beside)
    drawing.backdrop = backdrops.checked(drawing.backdrop, drawing.size)
    if refused := without(drawing, takes)[1]:
        raise UserError(f"{refused[0]}: this system takes none")
    return drawing


def picture_in(sent: Any) -> np.ndarray:
    """(H, W, 3) uint8 of the `image` that the browser sent; UserError where it is none."""
    text = field(sent, "image", str)
    if not text.startswith(PNG):
        raise UserError(f"image: expected {PNG}...")
    data = _decoded(text.removeprefix(PNG), "image")
    backdrops.check_side(data, "image", MAX_SIDE)
    return read_image(data, "image")


def brush_in(sent: Any, image: np.ndarray) -> np.ndarray:
    """(H, W) uint8 of the `runs` that the browser sent; UserError where they do not fill the image."""
    return _brush(field(sent, "runs", list), image.shape[0], image.shape[1])


def without(drawing: Drawing, takes: Collection[str]) -> tuple[Drawing, list[str]]:
    """A drawing without what a system does not take, and the names of what that leaves out."""
    has = {"brush": drawing.brushed() is not None, "camera": drawing.backdrop is not None}
    left_out = [name for name, there in has.items() if there and name not in takes]
    if "brush" in left_out:
        drawing = replace(drawing, brush=None, brush_ids=None)
    if "camera" in left_out:
        drawing = replace(drawing, backdrop=None)
    return drawing, left_out


def drawing_in(body: Any, takes: Collection[str] = TAKEN) -> Drawing:
    """The drawing of a request; see `parsed`."""
    return parsed(field(body, "drawing", dict), takes)


def shown(drawing: Drawing) -> dict[str, Any]:
    """A drawing as the browser gets it."""
    brush = np.zeros(drawing.size, np.uint8) if drawing.brush is None else drawing.brush
    file = io.BytesIO()
    Image.fromarray(drawing.image).save(file, "PNG", compress_level=1)
    files = drawing.backdrop.files() if drawing.backdrop else {}
    return {
        "image": PNG + _text(file.getvalue()),
        "runs": runs_of(brush if drawing.brush_ids is not None else (brush > 0).astype(np.uint8)),
        "meta": drawing.json(),
        "files": {name: _text(data_of(source)) for name, source in files.items()},
    }


def opened(body: Any, background: tuple[int, int, int] = WHITE, takes: Collection[str] = TAKEN) -> dict[str, Any]:
    """The drawing of files: an image; or a zip of inputs in the benchmark's layout, or its files as they are; or an
    image and the tracks that another tool wrote (`datamodules.drawings.other_tools`).

    Args:
        body: `{"files": [{"name": ..., "data": base64}, ...]}`.
        background: R, G, B of what transparent parts of the image show.
        takes: those of TAKEN that it may have; the others are left out, and a note says so.

    Returns:
        The drawing, with a `note` where it is not quite what the files hold.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    files = {}
    for entry in field(body, "files", list)[:8]:
        name = PurePosixPath(field(entry, "name", str)).name[:100]
        if name in files:
            raise UserError(f"{name}: is there twice")
        files[name] = _decoded(field(entry, "data", str), name)
    if sum(map(len, files.values())) > MAX_UPLOAD:
        raise UserError(f"the files: expected at most {MAX_UPLOAD // 2**20} MB")
    notes = []
    zips = [name for name, data in files.items() if name.lower().endswith(".zip") or data[:4] == b"PK\3\4"]
    for name in (name for name in zips if not is_points(name)):
        sample, count = first_sample(files.pop(name), name, MAX_UPLOAD - sum(map(len, files.values())))
        files.update(sample)
        if count > 1:
            notes.append(f"{name} holds {count} images with tracks; this is the first.")
    drawing, note = _assembled(files, background)
    notes += note
    if max(drawing.size) > MAX_SIDE:
        height, width = (max(1, side * MAX_SIDE // max(drawing.size)) for side in drawing.size)
        notes.append(f"The image was {drawing.size[1]} x {drawing.size[0]}; here it is {width} x {height}.")
        drawing = drawing.framed(Framing.of(drawing.size, (height, width), starts=drawing.starts))
    drawing, left_out = without(drawing, takes)
    if left_out:
        notes.append(f"This system takes no {' and no '.join(left_out)}: left out.")
    drawing.backdrop = backdrops.checked(drawing.backdrop, drawing.size)
    _check_count(drawing.tracks)
    return shown(drawing) | ({"note": " ".join(notes)} if notes else {})


def attached(body: Any, takes: Collection[str] = TAKEN) -> dict[str, str]:
    """A file of what moves the scene, as a drawing holds it.

    Args:
        body: `kind` (`poses`, `depth`, `driving`), the file's `name` and `data` in base64, `width` and `height` of the
            image.
        takes: those of TAKEN that a drawing may have.

    Returns:
        `name` and `data` of the file among the inputs, and `about`, a few words on it.

    Raises:
        UserError: one line that names the file and what is wrong with it.
    """
    if "camera" not in takes:
        raise UserError("camera: this system takes none")
    name = PurePosixPath(field(body, "name", str)).name[:100]
    size = (
        number(body.get("height"), "height", 1, MAX_SIDE, True),
        number(body.get("width"), "width", 1, MAX_SIDE, True),
    )
    data = _decoded(field(body, "data", str), name)
    stored_name, data, about = backdrops.attached(field(body, "kind", str), data, name, size)
    return {"name": stored_name, "data": _text(data), "about": about}


def paths(body: Any, frames: int) -> dict[str, Any]:
    """Where the points of tracks are over the clip.

    Args:
        body: `width`, `height`, `tracks`, `times`, perhaps `eases`, and `fine`, the samples for each frame.
        frames: length of the clip.

    Returns:
        `paths`: for each track [x, y] at (frames - 1) * fine + 1 moments.

    Raises:
        UserError: one line that names what does not fit.
    """
    height, width, fine = (
        number(field(body, name, int), name, 1, MAX_SIDE, True) for name in ("height", "width", "fine")
    )
    drawn = field(body, "tracks", list)
    _check_count(drawn)
    blank = np.broadcast_to(np.uint8(0), (height, width, 3))
    times = field(body, "times", list) if drawn else None
    eases = field(body, "eases", list) if drawn and "eases" in body else None
    drawing = Drawing(blank, drawn, times=times, eases=eases)
    moments = (frames - 1) * min(fine, 8) + 1
    return {"paths": [path.round(3).tolist() for path in drawing.paths(moments)]}


def zipped(drawing: Drawing) -> bytes:
    """A zip of a drawing in the benchmark's layout."""
    file = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        write_drawing(folder, drawing)
        for path in sorted(Path(folder).iterdir()):
            archive.write(path, path.name)
    return file.getvalue()


def first_examples(unseen: Callable[[np.ndarray], str | None]) -> list[dict[str, Any]]:
    """The examples of a model: it opens with a photograph, unless it never saw any.

    Args:
        unseen: A line where a picture (H, W, 3) uint8 is of a kind that the model never saw, else None.
    """
    drawing = read_drawing(PHOTOGRAPH)
    if unseen(drawing.image) is not None:
        return examples()
    return [{"name": "a photograph", "drawing": shown(drawing), "opens": True}, *examples()]


@functools.cache
def examples(brushes: bool = True) -> list[dict[str, Any]]:
    """First frames of plain sprites that no model was trained on, with the track of what moves there, and its brush."""
    entries = []
    for scene in (3, 5, 8, 11):
        sprites = plain_scene([0, 2, scene], [0, 2, scene, 1], 8, 64, 64)
        image = render(sprites)[0].transpose(1, 2, 0)
        masks, ways = moving_object(torch.from_numpy(tracks(sprites)[0])[None])
        brush = masks[0].numpy()
        centre = np.argwhere(brush).mean(0)[::-1]
        times = np.array([0, 2, 5, 7]) / 7
        track = np.clip(centre + ways[0].numpy()[[0, 2, 5, 7]], 0, 63).astype(np.float64).round(2)
        drawing = Drawing(np.ascontiguousarray(image), [track], brush if brushes else None, [times])
        entries.append({"name": sprites.caption, "drawing": shown(drawing)})
    return entries


def _assembled(files: dict[str, bytes], background: tuple[int, int, int]) -> tuple[Drawing, list[str]]:
    """A drawing of named files, and notes on it. Tracks are the JSON or a file of points, which may have another with
    `visib` in its name beside it; the brush is the picture with `mask` or `brush` in its name.
    """
    texts = [name for name in files if name.lower().endswith(".json")]
    named = named_in(files[texts[0]]) if texts else []
    points = [name for name in files if is_points(name) and name not in named]
    pictures = [name for name in files if name not in (*texts, *named, *points)]
    masks = [name for name in pictures if any(word in name.lower() for word in ("mask", "brush"))]
    images = [name for name in pictures if name not in masks]
    if not images and len(masks) == 1:
        images, masks = masks, []
    seen = [name for name in points if "visib" in name.lower()]
    tracks = [name for name in points if name not in seen]
    too_many = len(texts) + len(tracks) > 1 or len(masks) > 1 or len(seen) > len(tracks)
    if len(images) != 1 or too_many:
        raise UserError(
            f"expected an image, or {IMAGE}, {MASK} and {META[0]} of one sample, got {', '.join(files) or 'nothing'}"
        )
    image = read_image(files[images[0]], images[0], background)
    ids = bool(texts) and b'"brush"' in files[texts[0]]
    brush = fitting_brush(files[masks[0]], image, ids, masks[0]) if masks else None
    if tracks:
        visibility = (files[seen[0]], seen[0]) if seen else None
        drawing = drawing_of_points(image, read_points(files[tracks[0]], tracks[0], visibility), brush, tracks[0])
        return _fewer(drawing)
    if not texts:
        return Drawing(image, [], brush), []
    beside = {name: files[name] for name in named if name in files}
    drawing = drawing_from_json(files[texts[0]], image, brush, texts[0], beside)
    return _fewer(drawing) if files[texts[0]].lstrip()[:1] == b"[" else (drawing, [])


def _fewer(drawing: Drawing) -> tuple[Drawing, list[str]]:
    """Another tool's drawing with as many points as the page holds, and a note where it had more."""
    count = sum(map(len, drawing.tracks))
    drawing = fewer_points(drawing, MAX_POINTS)
    left = sum(map(len, drawing.tracks))
    return drawing, [] if left == count else [f"The tracks had {count} points; here they have {left} of them."]


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decoded(text: str, name: str) -> bytes:
    try:
        data = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise UserError(f"{name}: not base64 ({error})") from None
    if not data:
        raise UserError(f"{name}: the file is empty")
    return data


def _check_count(drawn: Any) -> None:
    if not isinstance(drawn, list):
        raise UserError("tracks: expected a list")
    points = sum(len(track) if isinstance(track, (list, np.ndarray)) else 1 for track in drawn)
    if points > MAX_POINTS:
        raise UserError(f"tracks: {points} points, expected at most {MAX_POINTS} on the page")


def _brush(runs: Sequence[Any], height: int, width: int) -> np.ndarray:
    check_size((height, width), "image")
    try:
        whole = all(type(each) is int for each in runs)
        pairs = np.asarray(runs if whole else ["no number"], dtype=np.int64).reshape(-1, 2)
    except (TypeError, ValueError, OverflowError):
        raise UserError("runs: expected [value, count, ...]") from None
    values, counts = pairs.T
    fits = len(pairs) <= height * width and ((counts > 0) & (counts <= height * width)).all()
    if not fits or counts.sum() != height * width or not ((values >= 0) & (values <= 255)).all():
        raise UserError(f"runs: expected values from 0 to 255, {height * width} of them for {height} x {width} pixels")
    return np.repeat(values.astype(np.uint8), counts).reshape(height, width)


def runs_of(brush: np.ndarray) -> list[int]:
    """[value, count, ...] of a brush, row by row; UserError where they are more than MAX_RUNS."""
    flat = brush.ravel()
    starts = np.flatnonzero(np.r_[True, flat[1:] != flat[:-1]])
    if len(starts) > MAX_RUNS:
        raise UserError(f"the brush: {len(starts)} runs of equal pixels, expected at most {MAX_RUNS} on the page")
    return [int(n) for start, end in pairwise([*starts, flat.size]) for n in (flat[start], end - start)]
