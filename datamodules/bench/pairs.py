"""Benchmarks in the layout of ReMoCo-Bench (MC-Bench): a first frame, a brush and drawn tracks per sample."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from datamodules.drawings import Drawing, read_drawing
from remoco.common.errors import BadClip, UserError

LEVELS = {"Fine_grained_control": "fine", "object_control": "object"}  # folder -> what we call it

PUBLISHED_IMAGES, PUBLISHED_TRACKS = 412, {"fine": 460, "object": 680}  # of ReMoCo-Bench


class Pair(NamedTuple):
    """One sample of a benchmark.

    Attributes:
        key: `<level folder>/<sample>`, the name of its video without `.mp4`.
        level: `fine` or `object`.
        drawing: first frame, brush and drawn tracks.
    """

    key: str
    level: str
    drawing: Drawing


def find_pairs(root: str | Path) -> list[str]:
    """Keys of all samples of a benchmark, in order of level and name.

    Raises:
        UserError: no such folder, or none of the levels in it.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"benchmark {root}: no such folder")
    keys = [
        f"{level}/{sample.name}"
        for level in LEVELS
        if (root / level).is_dir()
        for sample in sorted((root / level).iterdir())
        if sample.is_dir() and not sample.name.startswith(".")
    ]
    if not keys:
        raise UserError(f"benchmark {root}: no samples, expected {root}/{{{','.join(LEVELS)}}}/SAMPLE/first_frame.png")
    return keys


def read_pair(root: str | Path, key: str) -> Pair:
    """Read and check one sample.

    Raises:
        BadClip: one line that names the file and what is wrong with it.
    """
    try:
        drawing = read_drawing(Path(root) / key)
    except UserError as error:
        raise BadClip(str(error)) from error
    if drawing.backdrop is not None:
        raise BadClip(f"{Path(root) / key}: a camera or a driving video, expected tracks and a brush alone")
    return Pair(key, LEVELS[key.split("/")[0]], drawing)


def usable_samples(
    root: str | Path, check: Callable[[Drawing], object] | None = None
) -> tuple[dict[str, str], list[str]]:
    """Key -> fingerprint of the drawing of each sample that can be used, and one line for each that cannot.

    Args:
        root: folder of the benchmark.
        check: raises UserError for a drawing that cannot be used.

    Raises:
        UserError: no benchmark there, or no sample of it can be used.
    """
    usable, broken = {}, []
    for key in tqdm(find_pairs(root), desc="samples", unit="sample", leave=False, delay=1):
        try:
            drawing = read_pair(root, key).drawing
            if check is not None:
                check(drawing)
            usable[key] = drawing.fingerprint()
        except BadClip as error:
            broken.append(str(error))
        except UserError as error:
            broken.append(f"{Path(root) / key}: {error}")
    if not usable:
        raise UserError(f"benchmark {root}: none of its {len(broken)} samples can be used; the first: {broken[0]}")
    return usable, broken


def is_published(root: str | Path) -> bool:
    """Whether a benchmark has as many images and tracks as ReMoCo-Bench."""
    keys = find_pairs(root)
    if len(keys) != PUBLISHED_IMAGES:
        return False
    counts = dict.fromkeys(PUBLISHED_TRACKS, 0)
    for key in keys:
        try:
            pair = read_pair(root, key)
        except BadClip:
            return False
        counts[pair.level] += len(pair.drawing.tracks)
    return counts == PUBLISHED_TRACKS


def named(root: str | Path, count: int) -> str:
    """What tables call a benchmark of which so many pairs are used."""
    return f"{Path(root).resolve().name} ({count} pairs)"


def data_of(root: str | Path) -> str | None:
    """What a table is titled by: None for ReMoCo-Bench itself, else the benchmark's name and size."""
    return None if is_published(root) else named(root, len(find_pairs(root)))
