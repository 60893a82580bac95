"""What a report shows of one system: its results, curves and videos, read from a run's folder or a folder of videos."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from datamodules.errors import BadClip, BadShards
from datamodules.storage import read_object
from datamodules.videos import video_files

CURVES = ("train/loss", "val/loss", "val/control_error", "val/fvd_", "val/fid_", "throughput/clips_per_s")


@dataclass
class System:
    """One row of the tables.

    Attributes:
        name: the folder's.
        results: metric -> result of the run itself (`metrics.json`).
        bench: metric -> result on a benchmark, `<level>/<metric>`.
        bench_root: the benchmark's folder, or None.
        videos: `<level>/<sample>` -> file, or the names of the folder's videos.
        strips: the last samples of training, as strips.
        step: at which they were made.
        curves: tag -> (steps, values).
    """

    name: str
    results: dict[str, Any] = field(default_factory=dict)
    bench: dict[str, Any] = field(default_factory=dict)
    bench_root: Path | None = None
    videos: dict[str, Path] = field(default_factory=dict)
    strips: list[Path] = field(default_factory=list)
    step: int | None = None
    curves: dict[str, tuple[list[int], list[float]]] = field(default_factory=dict)


def read_system(folder: str | Path, bench: str | Path | None = None) -> System:
    """A run's folder, or a folder of any system's videos with the `scores.json` that `remoco score --json` wrote there.

    Args:
        folder: it.
        bench: root of the benchmark that is meant, where the run has videos of several.

    Raises:
        BadShards: neither of the two, or a run with videos of several benchmarks and none of them named.
    """
    path = Path(folder)
    if not path.is_dir():
        raise BadShards(f"{folder}: no such folder")
    system = System(path.resolve().name)
    if (
        not (path / "config.yaml").is_file()
        and not (path / "benchmark").is_dir()
        and not (path / "metrics.json").is_file()
    ):
        return _read_videos(path, system)
    system.results = _results(path / "metrics.json")
    system.curves = _curves(path)
    found = sorted((path / "benchmark").glob("*/"))
    if bench is not None:
        found = [own for own in found if own.name == Path(bench).resolve().name]
    if len(found) > 1:
        names = ", ".join(own.name for own in found)
        raise BadShards(f"{path}: has videos of several benchmarks ({names}); --bench ROOT says which is meant")
    for own in found:
        system.bench = _results(own / "scores.json")
        root = _json(own / "generated.json").get("root")
        system.bench_root = Path(root) if root and Path(root).is_dir() else None
        system.videos = _videos(own / "videos")
    steps = sorted(step for step in (path / "samples").glob("step-*") if any(step.glob("clip-*.mp4")))
    if steps:
        system.strips = sorted(steps[-1].glob("clip-*.mp4"))
        system.step = int(steps[-1].name.removeprefix("step-"))
    return system


def _read_videos(path: Path, system: System) -> System:
    system.videos = _videos(path)
    if not system.videos:
        raise BadShards(f"{path}: neither a run's folder nor a folder of videos")
    results = _results(path / "scores.json")
    levels = any("/" in name for name in results)
    system.bench, system.results = (results, {}) if levels else ({}, results)
    return system


def _videos(path: Path) -> dict[str, Path]:
    try:
        return video_files(path)
    except BadClip as error:
        raise BadShards(str(error)) from None


def _results(path: Path) -> dict[str, Any]:
    """Metric -> its result: what `remoco score --json` and a run write."""
    found = _json(path)
    for name, entry in found.items():
        kinds: tuple[tuple[str, type], ...] = (("value", Real), ("protocol", str), ("seconds", Real))
        if not isinstance(entry, dict) or not all(isinstance(entry.get(key), kind) for key, kind in kinds):
            raise BadShards(f"{path}: {name}: expected {{value, protocol, n, seconds}}, as `score --json` writes")
    return found


def _json(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def _curves(folder: Path) -> dict[str, tuple[list[int], list[float]]]:
    """The curves that a report draws, of all event files of the run."""
    if not any(folder.glob("events.out.tfevents.*")):
        return {}
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(CURVES) and not tag.startswith("val/loss_")]
    curves = {}
    for tag in sorted(tags, key=lambda tag: [tag.startswith(c) for c in CURVES].index(True)):
        # a resumed run's later value counts; what is not finite has no place on a curve
        points = {event.step: event.value for event in events.Scalars(tag) if math.isfinite(event.value)}
        if len(points) > 1:
            curves[tag] = (sorted(points), [points[step] for step in sorted(points)])
    return curves
