"""`remoco report`: collect, copy the videos, write the page."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules.bench import find_pairs, read_pair
from datamodules.drawings import Drawing
from remoco.common.errors import DISK_ERRORS, BadClip, UserError, readable
from remoco.common.videos.files import read_video, write_video
from remoco.common.whole_files import naming, new_folder, write_atomic
from remoco.report.collect import System, read_system
from remoco.study.pages import draw_tracks

MAX_FPS = 240.0  # of a video on the page


def report(runs: list[str], out: str = "report", bench: str | None = None, clips: int = 24) -> int:
    """Turn runs and scores into an offline page: tables, curves and videos side by side.

    The exit code is 1 where a part was left out.

    Args:
        runs: Run folders, and folders of other systems' videos with the scores.json of `remoco score --json`. Each
            needs another name.
        out: New folder for the page.
        bench: Root of the benchmark whose drawn tracks are shown. Default: the one that the runs record.
        clips: Largest number of samples that are shown side by side, spread evenly over all.

    Example:
        remoco report runs/quickstart --out report
    """
    from remoco.report.page import page

    if Path(out).exists() and any(Path(out).iterdir()):
        raise UserError(f"--out {out}: holds files already; expected a new or empty folder")
    if clips < 1:
        raise UserError(f"--clips is {clips}, expected at least 1")
    if bench is not None:
        find_pairs(bench)
    systems = [read_system(run, bench) for run in runs]
    if len({system.name for system in systems}) < len(systems):
        raise UserError(
            "runs: two folders have the same name; rename one, since the page names systems by their folders"
        )
    roots = [Path(bench)] if bench is not None else [s.bench_root for s in systems if s.bench_root is not None]
    problems = [problem for system in systems for problem in system.problems]
    with new_folder(out) as folder:
        gallery = _gallery(systems, roots[0] if roots else None, folder, clips, problems)
        if problems and not gallery and not any(s.results or s.bench or s.curves or s.strips for s in systems):
            raise UserError(problems[0])
        strips: dict[str, list[Any]] = {}
        for number, system in enumerate(systems):
            strips[system.name] = []
            for path in system.strips:
                target = f"videos/samples/{number}-{_plain(system.name)}-{_plain(path.name)}"
                (folder / target).parent.mkdir(parents=True, exist_ok=True)
                with naming(folder / target) as copy:
                    shutil.copyfile(path, copy)
                strips[system.name].append(target)
        text = page(systems, gallery, strips, problems)
        write_atomic(folder / "index.html", text.encode(errors="backslashreplace"))  # names need not be UTF-8
    for problem in problems:
        print(f"left out: {problem}", file=sys.stderr)
    print(f"wrote {out}: open {Path(out) / 'index.html'}")
    return 1 if problems else 0


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
    return re.sub(r"[^\w.-]+", "_", name)
