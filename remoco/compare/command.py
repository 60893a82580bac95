"""The command: crop once, sample with each system, score, tables, report, study pages."""

from __future__ import annotations

import re
import shutil
import sys
from functools import partial
from itertools import islice
from pathlib import Path

from remoco.common.errors import UserError
from remoco.common.whole_files import held, read_object, write_atomic
from remoco.compare.cropped import CLIPS, write_cropped, write_cropped_clips
from remoco.compare.rows import Row, called, read_rows
from remoco.report.command import write_report
from remoco.score import read_metrics
from remoco.study import pages

LEAST_WIDTH, MOST_WIDTH = 64, 8192


def compare(
    bench: str,
    systems: str = "systems.yaml",
    out: str = "comparison",
    reference: str | None = None,
    metrics: str | None = None,
    seed: int = 2025,
    aspect: str = "5:3",
    width: int = 512,
    ray: str | None = None,
    device: str | None = None,
) -> int:
    """Sample every system on one benchmark, score the videos alike, and write tables, report and study pages.

    The same command resumes after a kill: no video is sampled twice. The exit code is 1 where a sample was left out.

    Args:
        bench: Root of a benchmark in the layout of ReMoCo-Bench.
        systems: YAML file with the list of systems, see docs/systems.md.
        out: Folder for videos, scores, tables.txt, tables.csv, tables.tex, the report and the study pages.
        reference: Folder with the samples' real clips, `<level>/<sample>.mp4`, for the columns of table 1.
        metrics: YAML file with a list of metrics (configs/eval/metrics.yaml). Default: stand-ins that need no weights.
        seed: Seed of the noise; each pair has its own, the same for every system.
        aspect: Width and height of the shape that first frames are cropped to. Each system gets that crop, stretched to
            its own size.
        width: Width in pixels of the clips that lengths are given for.
        ray: Address of a Ray cluster whose GPUs share the work: `auto`, HOST:PORT, or `local`. Default: one device.
        device: Torch device, for example `cuda:0` or `cpu`. Default: the GPU if there is one.

    Example:
        remoco compare bench --systems systems.yaml --out comparison
    """
    from datamodules.bench import scoring
    from remoco.compare.sampling import ABOUT, check_folder, check_loads, sample_on_ray, videos_of
    from remoco.compare.scores import grouped, score_row, shown_tables
    from remoco.devices import usable_device

    shape = _aspect(aspect)
    if not LEAST_WIDTH <= width <= MOST_WIDTH:
        raise UserError(f"--width is {width}, expected {LEAST_WIDTH} to {MOST_WIDTH}")
    rows, place, folder = read_rows(systems), usable_device(device), Path(out)
    judges = scoring.offline_metrics() if metrics is None else read_metrics(metrics)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder / ".lock") as alone:
        if not alone:
            raise UserError(f"--out {out}: another process writes there")
        cropped = folder / "bench"
        samples, broken = write_cropped(bench, cropped, shape)
        clips = None if reference is None else partial(_clips, reference, bench, samples, folder, shape)
        for row in rows:
            check_folder(row, folder, seed, samples)
        keys = list(samples)
        for row in rows if len(rows) > 1 else []:
            check_loads(row, folder, keys, str(place))
        work = partial(_part, out=folder, bench=cropped, keys=keys, seed=seed, device=None if ray else str(place))
        if ray is None:
            refused = {row.name: work(row, 0, 1) for row in rows}
        else:
            count = partial(videos_of, rows, folder, samples)
            refused = sample_on_ray(rows, work, ray, count, len(rows) * len(samples))
        results, stand_ins = {}, set()
        for row in rows:
            about = read_object(row.folder(folder) / ABOUT)
            real = None if clips is None else clips(about["frames"])
            results[row.name] = score_row(row, folder, judges, refused[row.name], width, place, real)
            if about["stand_in"]:
                stand_ins.add(row.name)
            print(f"{row.name}: {about['protocol']}")
        groups = grouped(results, stand_ins, Path(bench), len(samples))
        text, table, latex = shown_tables(groups)
        for name, content in (("tables.txt", f"{text}\n"), ("tables.csv", table), ("tables.tex", latex)):
            write_atomic(folder / name, content.encode())
        print(f"\n{text}\n\nEach number's protocol: {folder / 'tables.csv'}")
        _show([row for row in rows if results[row.name]], stand_ins, folder, cropped)
    left_out = [*broken, *(f"{row}: {key}: {why}" for row, keys_of in refused.items() for key, why in keys_of.items())]
    for line in left_out:
        print(f"left out: {line}", file=sys.stderr)
    return 1 if left_out else 0


def _part(row: Row, part: int, parts: int, *, out: Path, bench: Path, keys: list[str], seed: int, device: str | None):
    """A row's part of the samples; on a cluster the device is the one that Ray gave."""
    import torch

    from remoco.compare.sampling import sample

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return sample(row, out, bench, list(islice(keys, part, None, parts)), seed, device)


def _clips(
    reference: str, bench: str, samples: dict[str, str], out: Path, aspect: tuple[int, int], frames: int
) -> Path:
    """The folder of the real clips with a system's number of frames, written unless they are there."""
    folder = out / CLIPS / str(frames)
    write_cropped_clips(reference, bench, samples, folder, aspect, frames)
    return folder


def _show(rows: list[Row], stand_ins: set[str], out: Path, bench: Path) -> None:
    """The page with all systems, and blind pairs of the first system and each other: anew, from what is there now."""
    for name in ("report", "study"):
        shutil.rmtree(out / name, ignore_errors=True)
    if not rows:
        return
    names = [called(row.name, stand_ins) for row in rows]
    folders = {name: str(row.folder(out)) for name, row in zip(names, rows)}
    write_report(folders, str(out / "report"), str(bench), quoting=not any(row.name in stand_ins for row in rows))
    first, *others = rows
    for other in others:
        target = out / "study" / f"{first.name} - {other.name}"
        pages(str(first.folder(out)), str(other.folder(out)), str(target), str(bench))


def _aspect(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,3}):([1-9]\d{0,3})", text)
    if not match or not 0.2 <= int(match[1]) / int(match[2]) <= 5:
        raise UserError(f"--aspect {text[:40]}: expected WIDTH:HEIGHT, for example 5:3, neither over 5 times the other")
    return int(match[1]), int(match[2])
