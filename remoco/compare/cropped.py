"""The benchmark as all systems get it: each first frame, its tracks, its brush and its real clip through one crop."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datamodules.bench import read_pair, usable_samples
from datamodules.drawings import Framing, write_drawing
from remoco.common.errors import BadClip, UserError
from remoco.common.videos.files import read_video, video_files, write_video
from remoco.common.whole_files import clear_leftovers, read_object, write_json

RECORD = "cropped.json"
CLIPS = "reference"  # folder of the real clips, beside the cropped benchmark


def crop_of(size: tuple[int, int], aspect: tuple[int, int], starts: np.ndarray | None = None) -> Framing:
    """The largest part of a picture with a shape, in the picture's own pixels; tracks' starts stay in it.

    Args:
        size: (height, width) of the picture.
        aspect: width and height of the shape.
        starts: (N, 2) x, y.
    """
    (height, width), (across, down) = size, aspect
    frame = min(height, round(width * down / across)), min(width, round(height * across / down))
    return Framing.of(size, frame, "crop", starts)


def write_cropped(bench: str, out: Path, aspect: tuple[int, int]) -> tuple[dict[str, str], list[str]]:
    """Write the cropped benchmark, or what of it has changed; the cropped real clip of a changed sample is deleted.

    Args:
        bench: Root of the benchmark.
        out: Folder for the cropped one.
        aspect: Width and height of the crop's shape.

    Returns:
        Key -> fingerprint of each usable sample as it was before the crop, and a line for each that is not usable.

    Raises:
        UserError: no benchmark there, or another crop of it was written before.
    """
    samples, broken = usable_samples(bench)
    record = out / RECORD
    done: dict[str, str] = {}
    if record.is_file():
        stored = read_object(record)
        if stored.get("aspect") != list(aspect):
            raise UserError(f"{out}: holds another crop; give another --out, or the --aspect of before")
        done = stored.get("samples") or {}
    for key, fingerprint in tqdm(samples.items(), desc="cropping", unit="sample", delay=1):
        if done.get(key) == fingerprint and (out / key).is_dir():
            continue
        for clip in (out.parent / CLIPS).glob(f"*/{key}.mp4"):
            clip.unlink()
        drawing = read_pair(bench, key).drawing
        write_drawing(out / key, drawing.framed(crop_of(drawing.size, aspect, drawing.starts)))
    for key in done.keys() - samples.keys():  # no longer in the benchmark
        shutil.rmtree(out / key, ignore_errors=True)
    write_json(record, {"bench": str(Path(bench).resolve()), "aspect": list(aspect), "samples": samples})
    return samples, broken


def write_cropped_clips(
    reference: str, bench: str, samples: dict[str, str], out: Path, aspect: tuple[int, int], frames: int
) -> None:
    """Write the real clips of a benchmark's samples through the crop of their first frames.

    Of a clip as many frames are taken as a system generates, evenly over all of it: the drawn tracks are so as well.

    Args:
        reference: Folder with `<level>/<sample>.mp4`.
        bench: Root of the benchmark before the crop.
        samples: As `write_cropped` returns them.
        out: Folder for the clips.
        aspect: Width and height of the crop's shape.
        frames: Number of frames of a written clip.

    Raises:
        UserError: a sample has no clip, or one that does not read.
    """
    try:
        clips = video_files(reference)
    except BadClip as error:
        raise UserError(f"--reference: {error}") from error
    if missing := [key for key in samples if key not in clips]:
        raise UserError(f"--reference {reference}: {len(missing)} samples have no clip, the first is {missing[0]}")
    for key in tqdm(samples, desc="cropping clips", unit="clip", delay=1):
        target = out / f"{key}.mp4"
        if target.is_file():
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        clear_leftovers(target.parent)
        drawing = read_pair(bench, key).drawing
        try:
            video, fps = read_video(clips[key])
        except BadClip as error:
            raise UserError(f"--reference: {error}") from error
        crop = crop_of(drawing.size, aspect, drawing.starts).at((video.shape[1], video.shape[2]))
        height, width = (n - n % 2 for n in crop.frame)
        shown = Framing(crop.size, (height, width), crop.box)
        times = np.linspace(0, len(video) - 1, frames).round().astype(int)
        write_video(target, np.stack([shown.image(video[time]) for time in times]), fps, crf=4)
