"""What `remoco generate` is to do: of one image or of a folder of them, all of it read once before the work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from datamodules.drawings import Backdrop, Drawing, find_drawings, read_drawing
from datamodules.drawings.motion import SceneMotion, scene_motion
from datamodules.trackers import Tracker
from remoco.common.errors import UserError
from remoco.common.json_files import read_json
from remoco.common.videos.masters import check_sequence
from remoco.generate import Format

SUFFIX: dict[Format, str] = {"mp4": ".mp4", "mov": ".mov", "png": ""}
"""Of a video's name; PNGs are in a folder."""


@dataclass(frozen=True)
class Job:
    """One clip to generate: its name, where its inputs are, the file of the video (a folder of PNGs) and of its strip,
    the inputs' fingerprint, and their prompt.
    """

    name: str
    read: Callable[[], tuple[Drawing, SceneMotion]]
    video: Path
    strip: Path
    fingerprint: str
    prompt: str | None = None

    @property
    def files(self) -> tuple[Path, Path, Path]:
        """What it writes: the video, its strip, and the strip as a picture."""
        return self.video, self.strip, self.strip.with_suffix(".png")

    @property
    def record(self) -> Path:
        """What the video was made of, beside its strip."""
        return self.strip.with_suffix(".json")

    def state(self) -> Literal["done", "edited", "missing"]:
        """Whether both files are there, and whether of these inputs."""
        if not (self.video.exists() and self.strip.is_file() and self.record.is_file()):
            return "missing"
        try:
            same = read_json(self.record)["inputs"] == self.fingerprint
        except (OSError, ValueError, TypeError, KeyError):
            same = False
        return "done" if same else "edited"


def read_inputs(
    source: Path,
    tracks: str | None = None,
    brush: str | None = None,
    *,
    backdrop: Backdrop | None,
    tracker: Callable[[], Tracker],
    background: tuple[int, int, int],
    matted: bool,
) -> tuple[Drawing, SceneMotion]:
    """A drawing and how its scene moves: as the flags say, or where they are silent as the drawing does.

    Where no matte is written, the drawing holds none: a picture's transparent parts are its background.
    """
    inputs = read_drawing(source, tracks, brush, background)
    if not matted:
        inputs.alpha = None
    inputs.backdrop = backdrop or inputs.backdrop
    return inputs, scene_motion(inputs.backdrop, tracker, inputs.size, background)


def jobs_of(
    image: str,
    tracks: str | None,
    brush: str | None,
    out: str | None,
    form: Format,
    read: Callable[..., tuple[Drawing, SceneMotion]],
) -> tuple[list[Job], Path | None, int]:
    """What is to be done, all of it read once; the folder to write to, None for a file; how many cannot be used."""
    source = Path(image)
    if not source.is_dir():
        path = Path(out or f"clip{SUFFIX[form]}")
        _check_file(path, form)
        one = partial(read, source, tracks, brush)
        inputs = one()[0]
        if not inputs.tracks and inputs.brush is None and inputs.backdrop is None:
            raise UserError("--tracks: expected tracks, or --brush, --camera, --poses or --driving: nothing would move")
        return [_single(source.name, one, path, inputs)], None, 0
    for name, value in (("--tracks", tracks), ("--brush", brush)):
        if value is not None:
            raise UserError(f"{name}: expected none with a folder of inputs, which holds its own")
    drawings = find_drawings(source)
    if list(drawings.values()) == [source] and out is not None and SUFFIX[form] and out.endswith(SUFFIX[form]):
        one = partial(read, source)
        return [_single(source.name, one, Path(out), one()[0])], None, 0
    folder = Path(out or "generated")
    if folder.suffix in (".mp4", ".mov") or folder.is_file():
        raise UserError(f"--out {folder}: expected a folder for the videos of the inputs in {source}")
    jobs, left_out = [], 0
    for name, path in drawings.items():
        try:
            inputs, _ = read(path)
        except UserError as error:
            print(f"left out: {error}", file=sys.stderr)
            left_out += 1
            continue
        video, strip_file = folder / "videos" / f"{name}{SUFFIX[form]}", folder / "strips" / f"{name}.mp4"
        jobs.append(Job(name, partial(read, path), video, strip_file, inputs.fingerprint(), inputs.prompt))
    if not jobs:
        raise UserError(f"{source}: none of its {left_out} inputs can be used")
    return jobs, folder, left_out


def _single(name: str, read: Callable[[], tuple[Drawing, SceneMotion]], path: Path, inputs: Drawing) -> Job:
    stem = path.stem if path.suffix in SUFFIX.values() else path.name  # a folder's name may have a point in it
    return Job(name, read, path, path.with_name(f"{stem}-strip.mp4"), inputs.fingerprint(), inputs.prompt)


def _check_file(path: Path, form: Format) -> None:
    other = path.suffix.removeprefix(".")
    hint = f"; for .{other} give --format {other}" if other in SUFFIX else ""
    if form == "png":
        if path.suffix in (".mp4", ".mov", ".png") or path.name in ("", ".."):
            raise UserError(f"--out {path}: expected the name of a folder for the pictures")
        check_sequence(path, "--out")
    elif path.suffix != SUFFIX[form]:
        raise UserError(f"--out {path}: expected the name of {'an .mp4' if form == 'mp4' else 'a .mov'} file{hint}")
