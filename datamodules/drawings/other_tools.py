"""Tracks that other tools wrote, as points over time.

Their conventions, as their code has them:

- **ATI** (bytedance/ATI, wan/utils/motion.py and tools/trajectory_editor): a `.pth` of `torch.save` holds the bytes of
  an .npz with `array` (N, 121, 1, 3), or (121, N, M, 3): x, y in pixels of the image and whether the point is seen, all
  times 8. The 121 moments are spread evenly over the clip; a shorter track is unseen at its end.
- **Wan-Move** (ali-vilab/Wan-Move, generate.py): `NAME_tracks.npy` (1, L, N, 2), x, y in pixels of the image, and
  `NAME_visibility.npy` (1, L, N).
- **CoTracker** (facebookresearch/co-tracker, cotracker/predictor.py): `pred_tracks` (1, L, N, 2), x, y in pixels of the
  video, whose first picture is the image, and `pred_visibility` (1, L, N), seen above 0.9. It writes no files itself.
- **KJNodes** (kijai/ComfyUI-KJNodes, web/js/editors/spline_editor_canvas.js): `coordinates`, a list of {"x", "y"} or of
  such lists, in pixels of the mask, which has the image's size: a place for each frame. `points_store`: splines with
  `points`, through which their curve goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np

from datamodules.drawings.checked import MAX_TRACKS
from datamodules.drawings.drawing import Drawing
from remoco.common.errors import UserError, brief, readable
from remoco.common.picture_files import MAX_BYTES, read_array
from remoco.common.zip_files import Archive

SUFFIXES = (".npy", ".npz", ".pth")
ATI_MOMENTS, ATI_SCALE = 121, 8
SURE = 0.9  # CoTracker's visibility above which it calls a point seen
TRACKS, SEEN = ("pred_tracks", "tracks"), ("pred_visibility", "visibility", "visibles")  # names in an .npz
_SHAPES = "(N, L, 2) numbers, or (1, L, N, 2) as CoTracker and Wan-Move have them"


class Points(NamedTuple):
    """Points over time: places (N, L, 2) x, y in pixels of the image, and seen (N, L) bool."""

    places: np.ndarray
    seen: np.ndarray


def is_points(name: str) -> bool:
    """Whether a file of this name holds points over time."""
    return PurePath(name).suffix.lower() in SUFFIXES


def visibility_names(name: str) -> list[str]:
    """Names that the visibility of a file of tracks may have, the likelier first."""
    stem = PurePath(name).stem
    own = [f"{stem.removesuffix('tracks')}visibility.npy"] if stem.endswith("_tracks") else []
    return [*own, "visibility.npy"] if PurePath(name).suffix.lower() == ".npy" else []


def read_points(data: bytes, name: str, seen: tuple[bytes, str] | None = None) -> Points:
    """The points of a file of one of SUFFIXES.

    Args:
        data: the file.
        name: what errors call it, with its suffix.
        seen: of an .npy, bytes and name of the file with its visibility.

    Raises:
        UserError: one line that names the file, and what was expected.
    """
    suffix = PurePath(name).suffix.lower()
    if suffix == ".pth":
        return _ati(data, name)
    if suffix == ".npz":
        return _npz(data, name)
    return _points(data, name, seen, batched=False)


def _points(data: bytes, name: str, seen: tuple[bytes, str] | None, batched: bool) -> Points:
    """Points of an array; `batched`: an array of three axes is (L, N, 2), a clip of a batch."""
    places = read_array(data, _SHAPES, (3, 4), name)
    if places.shape[-1] != 2:
        raise UserError(f"{name}: expected shape {_SHAPES}, x and y in pixels, got {places.shape}")
    batched |= places.ndim == 4
    if places.ndim == 4:
        places = _first(places, name)
    visible = np.ones(places.shape[:2], bool)
    if seen is not None:
        values = read_array(seen[0], "a truth value for each point", (2, 3, 4), seen[1], kinds="biuf")
        if values.ndim == 4 and values.shape[-1] == 1:
            values = values[..., 0]
        if values.ndim == 3:
            values = _first(values, seen[1])
        if values.shape != visible.shape:
            raise UserError(f"{seen[1]}: expected shape {visible.shape} as {PurePath(name).name}, got {values.shape}")
        visible = values > (SURE if batched else 0)
    if batched:
        places, visible = places.transpose(1, 0, 2), visible.T
    return _bounded(Points(places, visible), name, name if seen is None else seen[1])


def _first(array: np.ndarray, name: str) -> np.ndarray:
    if len(array) != 1:
        raise UserError(f"{name}: holds {len(array)} clips of a batch, expected 1")
    return array[0]


def _bounded(points: Points, name: str, seen_name: str) -> Points:
    if len(points.places) > MAX_TRACKS:
        raise UserError(f"{name}: expected at most {MAX_TRACKS} tracks, got {len(points.places)}")
    if not points.seen[:, 0].any():
        raise UserError(f"{seen_name}: no point is visible in the first frame, where tracks start")
    return points


def _npz(data: bytes, name: str) -> Points:
    archive = Archive(data, name, MAX_BYTES)
    keys = {entry.removesuffix(".npy") for entry in archive.entries}
    tracks, seen = (next((key for key in known if key in keys), None) for known in (TRACKS, SEEN))
    if tracks is None:
        held = readable(", ".join(sorted(keys)), 80) or "nothing"
        raise UserError(f"{name}: expected {' or '.join(TRACKS)} in it, got {held}")
    visible = None if seen is None else (archive.read(_entry(archive, seen)), f"{name}: {seen}")
    return _points(archive.read(_entry(archive, tracks)), f"{name}: {tracks}", visible, tracks == "pred_tracks")


def _entry(archive: Archive, key: str) -> str:
    return key if key in archive.entries else f"{key}.npy"


def _ati(data: bytes, name: str) -> Points:
    from remoco.common.pickles import read_pickle  # needs torch

    archive = Archive(data, name, MAX_BYTES)
    pickles = [entry for entry in archive.entries if PurePath(entry).name == "data.pkl"]
    if len(pickles) != 1:
        raise UserError(f"{name}: expected ATI's tracks, which torch.save wrote as a zip with data.pkl")
    try:
        value, _ = read_pickle(archive.read(pickles[0]))
    except UserError as error:
        raise UserError(f"{name}: {error}") from error
    if not isinstance(value, bytes) or not value.startswith(b"PK"):
        raise UserError(f"{name}: expected ATI's tracks, the bytes of an .npz, and nothing else")
    inner = Archive(value, name, MAX_BYTES)
    if "array.npy" not in inner.entries:
        held = readable(", ".join(sorted(inner.entries)), 80) or "nothing"
        raise UserError(f"{name}: expected array.npy in ATI's tracks, got {held}")
    array = read_array(inner.read("array.npy"), "(N, 121, 1, 3) numbers", 4, f"{name}: array")
    if array.shape[1] != ATI_MOMENTS and array.shape[0] == ATI_MOMENTS:  # the order in which ATI asks
        array = array.transpose(1, 0, 2, 3)
    if array.shape[1] != ATI_MOMENTS or array.shape[3] not in (3, 4):
        raise UserError(f"{name}: array: expected (N, 121, 1, 3), x, y and whether it is seen, got {array.shape}")
    rows = array.transpose(0, 2, 1, 3).reshape(-1, ATI_MOMENTS, array.shape[3])
    rows = rows[..., :3].astype(np.float64) / ATI_SCALE
    return _bounded(Points(rows[..., :2], rows[..., 2] > 0.5), name, name)


# KJNodes


def from_splines(entries: list[Any], name: str) -> dict[str, Any]:
    """What KJNodes' spline editor holds, as `traj_key_points` and `times` of a drawing.

    Raises:
        UserError: it is something else.
    """
    splines = entries if any(isinstance(entry, list) for entry in entries) else [entries]
    stored = all(isinstance(entry, dict) and "points" in entry for entry in entries) and bool(entries)
    splines = [entry["points"] for entry in entries] if stored else splines
    tracks = []
    for index, points in enumerate(splines):
        where = f"{name}: spline {index}"
        if not isinstance(points, list) or not points:
            raise UserError(f'{where}: expected a list of {{"x", "y"}}, got {brief(points)}')
        for point in points:
            if not (isinstance(point, dict) and {"x", "y"} <= point.keys()):
                raise UserError(f'{where}: expected points {{"x", "y"}} of KJNodes\' spline editor, got {brief(point)}')
        tracks.append([[point["x"], point["y"]] for point in points])
    if not stored:
        return {"traj_key_points": tracks}
    paced = [_at_one_speed(track, f"{name}: spline {index}") for index, track in enumerate(tracks)]
    return {"traj_key_points": [track for track, _ in paced], "times": [times for _, times in paced]}


def _at_one_speed(points: list[list[Any]], name: str) -> tuple[list[list[float]], list[float] | None]:
    """Control points without repeated ones, and the times at which one speed from the first to the last is there."""
    from conditions.strokes import track_points

    path = track_points(points, name)
    way = np.r_[0.0, np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()]
    if way[-1] <= 0:
        return path[:1].tolist(), None
    grows = np.r_[True, np.diff(way / way[-1]) > 1e-9]
    return path[grows].tolist(), (way[grows] / way[-1]).tolist()


def fewer_points(drawing: Drawing, most: int) -> Drawing:
    """A drawing whose tracks have `most` points together, or as many as two for each: those spread evenly over each."""
    if sum(map(len, drawing.tracks)) <= most:
        return drawing
    each = max(2, most // len(drawing.tracks))
    times: Sequence[Any] = drawing.times or [None] * len(drawing.tracks)
    tracks, moments = [], []
    for track, when in zip(drawing.tracks, times, strict=True):
        knots = np.linspace(0, 1, len(track)) if when is None else np.asarray(when)
        kept = np.unique(np.linspace(0, len(track) - 1, min(each, len(track))).round().astype(int))
        tracks.append(track[kept])
        moments.append(knots[kept])
    return replace(drawing, tracks=tracks, times=moments)


def double_quoted(data: bytes | str) -> bytes | str:
    """A text of KJNodes, whose nodes also take what Python prints: a list of which ' quotes the names."""
    text = data.encode() if isinstance(data, str) else data
    return text.replace(b"'", b'"') if text.lstrip()[:1] == b"[" and b'"' not in text else data
