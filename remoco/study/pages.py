"""`remoco study pages`: an offline page on which people compare two systems without knowing which is which."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from tqdm import tqdm

from datamodules.bench import find_pairs, read_pair
from datamodules.drawings import Drawing
from remoco.common.errors import BadClip, UserError
from remoco.common.videos.files import read_video, video_files, write_video
from remoco.common.whole_files import naming, new_folder, write_atomic

# the questions of table 4
QUESTIONS = {
    "motion_quality": "Which motion looks better?",
    "temporal_coherence": "Which video is more coherent over time?",
    "trajectory_alignment": "Which follows the drawn arrows better?",
}
NEEDS_TRACKS = "trajectory_alignment"


def pages(
    a: str, b: str, out: str = "study", bench: str | None = None, pairs: int | None = None, seed: int = 0
) -> None:
    """Make an offline page of blind side-by-side pairs of two systems' videos.

    Args:
        a: Folder of the first system's videos; its name is the system's name.
        b: Folder of the second system's videos, with the same file names.
        out: New folder for the page.
        bench: Root of the benchmark that the videos answer to. The page shows its drawn tracks and asks about them.
        pairs: Number of pairs, drawn by the seed. Default: all.
        seed: Seed of the order, and of which system is left and which is right.

    Example:
        remoco study pages videos/ours videos/theirs --bench bench --out study
    """
    systems = (Path(a).resolve().name, Path(b).resolve().name)
    if systems[0] == systems[1]:
        raise UserError(f"{a}, {b}: the folders must have different names, which are the systems' names")
    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"--out {out}: holds files already; expected a new or empty folder")
    if seed < 0:
        raise UserError(f"--seed is {seed}, expected at least 0")
    names, videos = _same_names(a, b)
    rng = np.random.default_rng(seed)
    order = [names[i] for i in rng.permutation(len(names))]
    if pairs is not None:
        if not 1 <= pairs <= len(order):
            raise UserError(f"--pairs is {pairs}, expected 1 to {len(order)}, the number of videos")
        order = order[:pairs]
    drawn = set() if bench is None else set(find_pairs(bench))
    if bench is not None and (unknown := [name for name in order if name not in drawn]):
        raise UserError(f"--bench {bench}: no sample for the video {unknown[0]}")
    with new_folder(out) as folder:
        with tqdm(order, desc="pairs", unit="pair") as bar:
            rows = [
                _write_pair(folder / "videos", number, name, systems, videos, bool(rng.integers(2)), bench)
                for number, name in enumerate(bar)
            ]
        questions = {key: text for key, text in QUESTIONS.items() if bench is not None or key != NEEDS_TRACKS}
        study = {"systems": systems, "seed": seed, "questions": questions, "pairs": rows}
        # not for secrecy: so that nobody reads a name by accident
        hidden = base64.b64encode(json.dumps(study).encode()).decode()
        identity = study_id(hidden)
        page = files("remoco.study").joinpath("page.html").read_text()
        page = page.replace("{{STUDY}}", hidden).replace("{{ID}}", html.escape(identity))
        write_atomic(folder / "index.html", page.encode())
    print(f"wrote {out}: {len(order)} pairs; open {Path(out) / 'index.html'}")


def study_id(hidden: str) -> str:
    """What a study's answers call it, of what its page holds."""
    return hashlib.sha256(hidden.encode()).hexdigest()[:12]


def _write_pair(
    folder: Path,
    number: int,
    name: str,
    systems: tuple[str, str],
    videos: list[dict[str, Path]],
    flipped: bool,
    bench: str | None,
) -> dict[str, Any]:
    """Write the two videos of a pair, and its tracks; what the page has to know of it."""
    folder.mkdir(exist_ok=True)
    for side, system in zip(("left", "right"), (1, 0) if flipped else (0, 1)):
        # written anew, the same way for both: a browser plays few codecs, and a file says who wrote it
        try:
            video, fps = read_video(videos[system][name])
        except BadClip as error:
            raise UserError(str(error)) from error
        write_video(folder / f"{number:04d}-{side}.mp4", video, fps)
    row = {"id": number, "left": systems[flipped], "right": systems[not flipped], "name": name}
    if bench is None:
        return row
    with naming(folder / f"{number:04d}-tracks.png") as path:
        Image.fromarray(_drawn(bench, name)).save(path)
    return row | {"tracks": True}


def _same_names(a: str, b: str) -> tuple[list[str], list[dict[str, Path]]]:
    """Names of the videos, and name -> file of each folder."""
    videos = []
    for folder in (a, b):
        if not Path(folder).is_dir():
            raise UserError(f"{folder}: no such folder of videos")
        try:
            videos.append(video_files(folder))
        except BadClip as error:
            raise UserError(str(error)) from None
        if not videos[-1]:
            raise UserError(f"{folder}: no videos in it")
    for (folder, names), other in zip(((a, videos[0]), (b, videos[1])), (videos[1], videos[0])):
        if missing := sorted(set(other) - set(names)):
            raise UserError(
                f"{folder}: {len(missing)} videos of the other system are missing, for instance {missing[0]}"
            )
    return sorted(videos[0]), videos


def _drawn(bench: str, name: str) -> np.ndarray:
    """(H, W, 3) uint8: the first frame with the brush and the drawn tracks."""
    try:
        return draw_tracks(read_pair(bench, name).drawing)
    except BadClip as error:
        raise UserError(f"--bench {bench}: no sample for the video {name} ({error})") from error


def draw_tracks(inputs: Drawing, tracks: list[np.ndarray] | None = None) -> np.ndarray:
    """(H, W, 3) uint8: the first frame, its brush lightened, its tracks, or these in their place, as arrows."""
    scale = max(1, round(512 / inputs.image.shape[1]))
    brushed = np.zeros(inputs.size, dtype=bool) if inputs.brush is None else inputs.brush > 0
    image: np.ndarray = np.where(brushed[..., None], 0.75 * inputs.image + 64, 0.8 * inputs.image).astype(np.uint8)
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    for track in inputs.tracks if tracks is None else tracks:
        points = ((track + 0.5) * scale).round().astype(np.int32)
        for colour, width in (((20, 20, 20), 5), ((255, 214, 80), 3)):
            cv2.polylines(image, [points], False, colour, width, cv2.LINE_AA)
            if len(points) > 1:
                behind = next((p for p in points[::-1] if np.hypot(*(points[-1] - p)) >= 8), points[0])
                ahead = points[-1] + (points[-1] - behind) * 6 // max(1, int(np.hypot(*(points[-1] - behind))))
                cv2.arrowedLine(image, behind.tolist(), ahead.tolist(), colour, width, cv2.LINE_AA, tipLength=0.8)
            cv2.circle(image, points[0].tolist(), 3 + width // 2, colour, -1, cv2.LINE_AA)
    return image
