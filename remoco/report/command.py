"""`remoco report`: collect, copy the videos, write the page."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datamodules.bench import data_of, find_pairs, named, read_pair
from datamodules.drawings import Drawing
from remoco.common.errors import DISK_ERRORS, BadClip, UserError, readable
from remoco.common.videos.files import read_video, write_video
from remoco.common.whole_files import atomic_path, naming, new_folder, write_atomic
from remoco.report.collect import System, is_run, read_system
from remoco.study.pages import draw_tracks

MAX_FPS = 240.0  # of a video on the page


def report(runs: list[str], out: str = "report", bench: str | None = None, clips: int = 24) -> int:
    """Turn runs and scores into an offline page: tables, curves and videos side by side.

    The exit code is 1 where a part was left out.

    Args:
        runs: Run folders, and folders of other systems' videos with the scores.json of `remoco score --json`. The page
            calls a run by its name and a folder of videos by its path.
        out: New folder for the page.
        bench: Root of the benchmark whose drawn tracks are shown. Default: the one that the runs record.
        clips: Largest number of samples that are shown side by side, spread evenly over all.

    Example:
        remoco report runs/quickstart --out report
    """
    return write_report(_named(runs), out, bench, clips)


def _named(runs: list[str]) -> dict[str, str]:
    """Name on the page -> folder: a run's own name, a folder of videos by its path; a name of two, by their paths."""
    names = [Path(run).resolve().name if is_run(Path(run)) else os.path.normpath(run) for run in runs]
    names = [name if names.count(name) == 1 else os.path.normpath(run) for name, run in zip(names, runs)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"runs: {readable(twice)} is there twice, give each folder once")
    return dict(zip(names, runs))


def write_report(
    folders: Mapping[str, str], out: str, bench: str | None = None, clips: int = 24, quoting: bool = True
) -> int:
    """`report` of folders under these names; `quoting` allows published rows, on the paper's benchmark."""
    from remoco.report.page import page

    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"--out {out}: holds files already; expected a new or empty folder")
    if clips < 1:
        raise UserError(f"--clips is {clips}, expected at least 1")
    if bench is not None:
        find_pairs(bench)
    systems = [read_system(folder, bench, name) for name, folder in folders.items()]
    roots = [Path(bench)] if bench is not None else [s.bench_root for s in systems if s.bench_root is not None]
    problems = [problem for system in systems for problem in system.problems]
    with new_folder(out) as folder:
        gallery = _gallery(systems, roots[0] if roots else None, folder, clips, problems)
        if problems and not gallery and not any(s.results or s.bench or s.curves or s.strips for s in systems):
            raise UserError(problems[0])
        strips = {system.name: _copied(system, number, folder) for number, system in enumerate(systems)}
        text = page(systems, gallery, strips, problems, _benchmark(roots, quoting))
        write_atomic(folder / "index.html", text.encode(errors="backslashreplace"))  # names need not be UTF-8
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"wrote {out}: open {Path(out) / 'index.html'}")
    return 1 if problems else 0


def _benchmark(roots: list[Path], quoting: bool) -> str | None:
    """What tables 2 and 3 are titled by; None where all that are known are the paper's benchmark."""
    try:
        if roots and not quoting:
            return named(roots[0], len(find_pairs(roots[0])))
        return next(filter(None, map(data_of, roots)), None) if roots else "a benchmark that is not here"
    except UserError:  # no longer a benchmark, which is a line of its own
        return "a benchmark that is not here"


def _copied(system: System, number: int, folder: Path) -> list[str]:
    """Copy a system's strips, each with its poster; their names on the page."""
    targets = []
    for path in system.strips:
        target = f"videos/samples/{number}-{_plain(system.name)}-{_plain(path.name)}"
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        with naming(folder / target) as copy:
            shutil.copyfile(path, copy)
        with suppress(BadClip):  # a browser may play what does not read here
            write_poster(folder / target, read_video(path)[0][0])
        targets.append(target)
    return targets


def write_poster(video: Path, frame: np.ndarray) -> None:
    """The first frame (H, W, 3) uint8 beside a video: what a page shows before it plays, and where it cannot."""
    with atomic_path(video.with_suffix(".jpg")) as path:
        Image.fromarray(frame).save(path, format="JPEG", quality=85)


def _gallery(
    systems: list[System], bench: Path | None, folder: Path, clips: int, problems: list[str]
) -> list[tuple[str, dict[str, str]]]:
    """Write the videos of the samples that any system has; caption, and panel -> file."""
    keys = sorted({key for system in systems for key in system.videos})
    if len(keys) > clips:
        keys = [keys[i] for i in np.linspace(0, len(keys) - 1, clips).round().astype(int)]
    drawn = _drawn(bench, problems)
    rows = []
    for number, key in enumerate(tqdm(keys, desc="gallery", unit="sample", disable=not keys)):
        videos, panels = {}, {}
        for system in systems:
            if key in system.videos:
                try:
                    videos[system.name] = read_video(system.videos[key])
                except BadClip as error:
                    problems.append(readable(str(error)))
        if videos and bench is not None and key in drawn:
            try:
                length = max(len(video) for video, _ in videos.values())
                control = control_frames(read_pair(bench, key).drawing, length), next(iter(videos.values()))[1]
                videos = {"control (drawn)" if "control" in videos else "control": control, **videos}
            except BadClip as error:
                problems.append(readable(str(error)))
        for place, (name, (video, fps)) in enumerate(videos.items()):
            target = f"videos/{number:03d}-{place}-{_plain(name)}.mp4"
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            try:
                write_video(
                    folder / target, video, min(max(fps, 0.1), MAX_FPS)
                )  # written anew: browsers play few codecs
            except OSError as error:
                if error.errno in DISK_ERRORS:
                    raise
                problems.append(f"{readable(name)}: {readable(key)}: cannot be written as a video that browsers play")
                continue
            write_poster(folder / target, video[0])
            panels[name] = target
        if panels:
            rows.append((key.replace("_", " ").replace("/", " · "), panels))
    return rows


def _drawn(bench: Path | None, problems: list[str]) -> set[str]:
    """Keys of a benchmark's samples; a run may name a folder that is no longer a benchmark."""
    try:
        return set() if bench is None else set(find_pairs(bench))
    except UserError as error:
        problems.append(readable(str(error)))
        return set()


def control_frames(inputs: Drawing, frames: int) -> np.ndarray:
    """(L, H, W, 3) uint8: the first frame with brush, and the drawn tracks growing from frame to frame."""
    paths = inputs.paths(frames)
    return np.stack([draw_tracks(inputs, [path[: t + 1] for path in paths]) for t in range(frames)])


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]+", "_", name)[-80:]
