"""Folders of videos to score: beside the drawn tracks of a benchmark, or beside reference videos of the same names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm import tqdm

from datamodules.bench.pairs import LEVELS, Pair, read_pair, usable_samples
from datamodules.drawings import Fit, Framing
from remoco.common.errors import BadClip, UserError
from remoco.common.videos.files import read_frames, video_files

if TYPE_CHECKING:
    from metrics import Clip, VideoMetric

NAMED = 5  # this many files are named in an error


@dataclass
class VideoFolder:
    """Videos that were all looked at, and what each is compared with.

    Attributes:
        videos: key -> file, of those that can be scored.
        frames: how many of each video's first frames are.
        bench: root of the benchmark, or None.
        references: key -> reference video, or empty.
        left_out: a line for each that cannot be scored.
        fit: how the benchmark's images were brought to the videos' shapes.
    """

    videos: dict[str, Path]
    frames: int
    bench: Path | None = None
    references: dict[str, Path] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    fit: Fit = "crop"

    def keys(self, level: str | None = None) -> list[str]:
        """Keys in order; of one level of the benchmark."""
        return [key for key in self.videos if level is None or LEVELS[key.split("/")[0]] == level]

    def levels(self) -> list[str]:
        """Levels of the benchmark that have videos."""
        return [level for level in LEVELS.values() if self.bench is not None and self.keys(level)]

    def clips(self, keys: list[str], device: str | torch.device = "cpu") -> Iterator[Clip]:
        """The clips, read one by one, on a device."""
        from metrics import Clip

        for key in keys:
            video = read_frames(self.videos[key], self.frames).to(device)
            if self.bench is not None:
                yield Clip(key, video, tracks=drawn_tracks(read_pair(self.bench, key), video, self.fit).to(device))
            else:
                yield Clip(key, video, reference=read_frames(self.references[key], self.frames).to(device))

    def note(self) -> str:
        """What the protocol says about the videos."""
        note = f"the first {self.frames} frames of each video file at its own size"
        if self.bench is not None:
            note += f", tracks rescaled to it (fit: {self.fit})"
        return note + (f"; {len(self.left_out)} videos left out" if self.left_out else "")


def drawn_tracks(pair: Pair, video: torch.Tensor, fit: Fit = "crop") -> torch.Tensor:
    """(N, L, 2) float64: the drawn tracks in each frame of a video (L, 3, H, W), in its pixels.

    Raises:
        BadClip: a track starts where the video does not show the image.
    """
    height, width = video.shape[-2:]
    drawing = pair.drawing
    try:
        paths = drawing.paths(len(video), Framing.of(drawing.size, (height, width), fit, drawing.starts))
    except UserError as error:
        raise BadClip(f"{pair.key}: {error}") from error
    return torch.from_numpy(np.stack(paths))


def for_bench(
    videos: str | Path, bench: str | Path, frames: int = 16, skip_unreadable: bool = False, fit: Fit = "crop"
) -> VideoFolder:
    """The videos `<level>/<sample>.mp4` of a benchmark's samples.

    Args:
        videos: their folder.
        bench: root of the benchmark.
        frames: how many of each video's first frames are judged.
        skip_unreadable: leave out what cannot be scored.
        fit: how the benchmark's images were brought to the videos' shapes.

    Raises:
        UserError: no benchmark there; or a video missing, too short or not readable, or without a place where a track
            starts, unless those are skipped.
    """
    samples, broken = usable_samples(bench)
    files = _files(videos)
    left_out = [f"benchmark sample: {line}" for line in broken]
    folder = VideoFolder({}, frames, bench=Path(bench), left_out=left_out, fit=fit)
    wanted = {key: files.get(key) for key in samples}
    _check(folder, wanted, str(videos), f"the benchmark {bench}", skip_unreadable)
    return folder


def for_reference(
    videos: str | Path, reference: str | Path, frames: int = 16, skip_unreadable: bool = False
) -> VideoFolder:
    """Videos beside reference videos of the same names.

    Raises:
        UserError: as `for_bench`.
    """
    references, files = _files(reference), _files(videos)
    folder = VideoFolder({}, frames, references=references)
    wanted = {key: files.get(key) for key in references}
    unknown = sorted(set(files) - set(references))
    if unknown and not skip_unreadable:
        raise UserError(f"{videos}: {_some(unknown)} have no reference of that name in {reference}")
    folder.left_out += [f"{name}: no reference of that name" for name in unknown]
    _check(folder, wanted, str(videos), f"the reference {reference}", skip_unreadable)
    return folder


def score_folder(
    folder: VideoFolder, metrics: list[VideoMetric], device: torch.device, rank: int = 0, world_size: int = 1
) -> dict[str, dict[str, Any]]:
    """Metric -> result; with a benchmark, `<level>/<metric>` for each of its levels.

    Args:
        folder: the videos.
        metrics: those that can be computed here are.
        device: where the networks run.
        rank: rank of this process; each of several judges its share of the clips, and all get the result.
        world_size: number of processes.

    Raises:
        UserError: no metric that can be computed, or one that cannot.
    """
    from metrics import applicable, evaluate

    judges = applicable(metrics, {"tracks"} if folder.bench is not None else {"reference"})
    if not judges:
        needs = ", ".join(sorted({need for metric in metrics for need in metric.needs}))
        raise UserError(f"metrics: none of them can be computed here, they need {needs}")
    if twice := [name for name, count in Counter(metric.name for metric in judges).items() if count > 1]:
        raise UserError(f"metrics: {twice[0]} is there twice, and one result would hide the other")
    results = {}
    try:
        for metric in judges:
            metric.load()
            metric.to(device)
        levels: list[str | None] = [*folder.levels()] or [None]
        for level in levels:
            keys = folder.keys(level)[rank::world_size]
            bar = tqdm(
                folder.clips(keys, device), total=len(keys), desc=level or "scoring", unit="video", disable=rank > 0
            )
            scores = evaluate(judges, bar, folder.note())
            results.update({f"{level}/{name}" if level else name: result for name, result in scores.items()})
    except torch.OutOfMemoryError:
        raise
    except (ValueError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from error
    return results


def offline_metrics() -> list[VideoMetric]:
    """Every metric with its stand-in: no weights, and names of their own."""
    from datamodules.trackers import DIS
    from datamodules.trackers.points import LucasKanade
    from metrics import FrameConsistency, FrechetImageDistance, FrechetVideoDistance, MDImg, MDVid, MeanFlowMagnitude

    tracker = LucasKanade(fallback="dis")
    judges = [FrechetVideoDistance(), FrechetImageDistance(), MDImg(), MDVid(tracker), FrameConsistency()]
    return [*judges, MeanFlowMagnitude(DIS())]


def _files(folder: str | Path) -> dict[str, Path]:
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder of videos")
    try:
        files = video_files(folder)
    except BadClip as error:
        raise UserError(str(error)) from None
    if not files:
        raise UserError(f"{folder}: no videos in it")
    return files


def _check(
    folder: VideoFolder, wanted: dict[str, Path | None], videos: str, against: str, skip_unreadable: bool
) -> None:
    """Decode everything once, so that what is wrong is known before the first network runs."""
    missing = [key for key, path in wanted.items() if path is None]
    if missing and not skip_unreadable:
        raise UserError(
            f"{videos}: {len(missing)} of the {len(wanted)} videos of {against} are missing: {_some(missing)}"
        )
    folder.left_out += [f"{key}: no such video" for key in missing]
    problems = []
    for key, path in tqdm([entry for entry in wanted.items() if entry[1]], desc="reading", unit="video"):
        try:
            video = read_frames(path, folder.frames)
            if folder.bench is not None:
                drawn_tracks(read_pair(folder.bench, key), video, folder.fit)
            if key in folder.references:
                read_frames(folder.references[key], folder.frames)
            folder.videos[key] = path
        except BadClip as error:
            problems.append(str(error))
    if problems and not skip_unreadable:
        rest = f" (and {len(problems) - 1} more; --skip-unreadable leaves them out)" if len(problems) > 1 else ""
        raise UserError(f"{problems[0]}{rest}")
    folder.left_out += problems
    if not folder.videos:
        raise UserError(f"{videos}: none of its videos can be scored; the first: {folder.left_out[0]}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
