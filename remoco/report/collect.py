"""What a report shows of one system: its results, curves and videos, read from a run's folder or a folder of videos."""

from __future__ import annotations

import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remoco.common.errors import BadClip, UserError, one_line, readable
from remoco.common.json_files import open_regular
from remoco.common.videos.files import video_files
from remoco.result_files import read_part, read_results

CURVES = (
    "train/loss",
    "val/loss",
    "val/control_error",
    "val/fvd_",
    "val/fid_",
    "usage/clips_per_s",
    "throughput/clips_per_s",
)  # the last is what earlier versions called the one before it
CONSTANT = ("_standing_still", "_real")  # of the validation clips, whatever the model: measured once a run
MAX_CURVES = 60
MAX_EVENTS = 1 << 30  # bytes of an event file
MAX_STRIP = 1 << 28  # bytes of a video of samples


@dataclass
class System:
    """One row of the tables.

    Attributes:
        name: what the page calls it.
        results: metric -> result of the run itself (`metrics.json`).
        bench: metric -> result on a benchmark, `<level>/<metric>`.
        bench_root: the benchmark's folder, or None.
        videos: `<level>/<sample>` -> file, or the names of the folder's videos.
        strips: the last samples of training, as strips.
        step: at which they were made.
        curves: tag -> (steps, values).
        constants: tag -> value of what no training changes.
        problems: a line for each part of the folder that cannot be used.
    """

    name: str
    results: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)
    bench_root: Path | None = None
    videos: dict[str, Path] = field(default_factory=dict)
    strips: list[Path] = field(default_factory=list)
    step: int | None = None
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)
    constants: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def is_run(path: Path) -> bool:
    """Whether a folder is a run's, and not one of videos alone."""
    return (path / "config.yaml").is_file() or (path / "benchmark").is_dir() or os.path.lexists(path / "metrics.json")


def read_system(folder: str | Path, bench: str | Path | None = None, name: str | None = None) -> System:
    """A run's folder, or a folder of any system's videos with the `scores.json` that `remoco score --json` wrote there.

    They may be untrusted: each part that cannot be used is a line in `problems`, and the rest is read.

    Args:
        folder: Folder of the run or of the videos.
        bench: Root of the benchmark to read, where the run has videos of several.
        name: What it is called. Default: the folder's name.

    Raises:
        UserError: neither of the two, or a run with videos of several benchmarks and none of them named.
    """
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"{folder}: no such folder")
    system = System(name or path.resolve().name)
    if not is_run(path):
        return _read_videos(path, system)
    system.results = read_results(path / "metrics.json", system.problems)
    curves = _curves(path, system.problems)
    system.constants = {tag: values[-1] for tag, (_, values) in curves.items() if tag.endswith(CONSTANT)}
    system.curves = {tag: c for tag, c in curves.items() if not tag.endswith(CONSTANT) and len(c[0]) > 1}
    benchmarks = sorted((path / "benchmark").glob("*/"))
    if bench is not None:
        benchmarks = [inner for inner in benchmarks if inner.name == Path(bench).resolve().name]
    if len(benchmarks) > 1:
        names = ", ".join(inner.name for inner in benchmarks)
        raise UserError(f"{path}: has videos of several benchmarks ({names}); --bench ROOT names the one to read")
    for inner in benchmarks:
        system.bench = read_results(inner / "scores.json", system.problems)
        system.bench_root = _root(inner / "generated.json", system.problems)
        system.videos = _videos(inner / "videos", system.problems)
    system.strips, system.step = last_strips(path / "samples", system.problems)
    return system


def _read_videos(path: Path, system: System) -> System:
    system.videos = _videos(path, system.problems)
    if not system.videos and not system.problems:
        raise UserError(f"{path}: neither a run's folder nor a folder of videos")
    results = read_results(path / "scores.json", system.problems)
    levels = any("/" in name for name in results)
    system.bench, system.results = (results, {}) if levels else ({}, results)
    return system


def _videos(path: Path, problems: list[str]) -> dict[str, Path]:
    try:
        return video_files(path)
    except BadClip as error:
        problems.append(readable(str(error)))
        return {}


def _curves(folder: Path, problems: list[str]) -> dict[str, tuple[list[int], list[float]]]:
    """The curves that a report draws, of all event files of the run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    points: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("events.out.tfevents.*")):
        try:
            with open_regular(path) as file:
                if os.fstat(file.fileno()).st_size > MAX_EVENTS:
                    raise UserError(f"more than {MAX_EVENTS >> 30} GiB")
            events = EventAccumulator(str(path), size_guidance={"scalars": 0}).Reload()
            for tag in events.Tags()["scalars"]:
                if tag.startswith(CURVES) and not tag.startswith("val/loss_"):
                    # a resumed run's later value counts; what is not finite has no place on a curve
                    scalars = ((event.step, event.value) for event in events.Scalars(tag))
                    points.setdefault(tag, {}).update({step: value for step, value in scalars if math.isfinite(value)})
        except Exception as error:  # a reader of records raises exceptions of many types for broken bytes
            reason = error.strerror if isinstance(error, OSError) else one_line(error)
            problems.append(f"{readable(str(path))}: does not read: {readable(str(reason))}")
    tags = sorted(points, key=lambda tag: [tag.startswith(c) for c in CURVES].index(True))
    if len(tags) > MAX_CURVES:
        problems.append(
            f"{readable(str(folder))}: {len(tags)} curves in its event files, the first {MAX_CURVES} are shown"
        )
    drawn = {tag: points[tag] for tag in tags[:MAX_CURVES] if points[tag]}
    return {tag: (sorted(curve), [curve[step] for step in sorted(curve)]) for tag, curve in drawn.items()}


def last_strips(folder: Path, problems: list[str]) -> tuple[list[Path], int | None]:
    """The last samples of training and the step at which they were made; neither where there are none.

    Args:
        folder: The run's `samples`.
        problems: Gets a line for each file that is left out.
    """
    steps = {}
    for path in folder.glob("step-*"):
        if re.fullmatch("step-[0-9]{1,15}", path.name) and path.is_dir():
            steps[int(path.name.removeprefix("step-"))] = path
    for step in sorted(steps, reverse=True):
        strips = []
        for path in sorted(steps[step].glob("clip-*.mp4")):
            if path.is_file() and path.stat().st_size <= MAX_STRIP:
                strips.append(path)
            else:
                problems.append(f"{readable(str(path))}: expected a file of at most {MAX_STRIP >> 20} MB")
        if strips:
            return strips, step
    return [], None


def _root(generated: Path, problems: list[str]) -> Path | None:
    """The benchmark that a run's videos answer to, where it is on this machine."""
    root = read_part(generated, problems).get("root")
    if root is None:
        return None
    if isinstance(root, str) and "\0" not in root:
        with suppress(OSError):  # longer than a name may be
            return Path(root) if Path(root).is_dir() else None
    problems.append(f"{readable(str(generated))}: root: expected the folder of a benchmark")
    return None
