"""Scores of each system's videos, at its own size and over all its frames; lengths in pixels of one width."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from datamodules.bench import LEVELS, find_pairs, is_published, named, scoring
from metrics import VideoMetric
from metrics.published import COLUMNS, cells, latex, level_of, numbers_of, quoted, tables
from remoco.common.errors import UserError
from remoco.common.whole_files import read_object, write_json
from remoco.compare.rows import Row, called
from remoco.compare.sampling import ABOUT

SCORES, SCORED = "scores.json", "scored.json"


def score_row(
    row: Row,
    out: Path,
    metrics: list[VideoMetric],
    refused: Mapping[str, str],
    width: int,
    device: torch.device,
    reference: Path | None,
) -> dict[str, dict[str, Any]]:
    """Metric -> result of a system's videos; with a benchmark alone `<level>/<metric>`. Kept until a video changes.
    Nothing of a system that takes none of the samples.

    Args:
        row: the system.
        out: folder of the comparison, with the cropped benchmark in `bench`.
        metrics: what is measured.
        refused: samples that the system does not take.
        width: of the clips in whose pixels lengths are given.
        device: where the metrics' networks run.
        reference: folder of the cropped real clips, where there are some: table 1's numbers are added.

    Raises:
        UserError: a video is missing, or a metric cannot be computed.
    """
    folder = row.folder(out)
    about = read_object(folder / ABOUT)
    if refused.keys() >= set(find_pairs(out / "bench")):
        return {}
    asked = [metric.name for metric in metrics], width, reference is not None, sorted(refused)
    state = hashlib.sha256(repr(asked).encode())
    videos = sorted(path for level in LEVELS for path in (folder / level).glob("*.mp4"))
    for path in videos:
        state.update(f"{path.parent.name}/{path.name}".encode() + hashlib.sha256(path.read_bytes()).digest())
    if (folder / SCORED).is_file() and (folder / SCORES).is_file():
        if read_object(folder / SCORED).get("videos") == state.hexdigest():
            return read_object(folder / SCORES)
    frames, (height, own_width) = about["frames"], about["size"]
    found = scoring.for_bench(folder, out / "bench", frames, bool(refused), fit="stretch")
    if lost := sorted({key for key in find_pairs(out / "bench")} - found.videos.keys() - refused.keys()):
        raise UserError(f"{folder}: {lost[0]}.mp4 is missing or does not read; the same command samples it again")
    results = scoring.score_folder(found, metrics, device)
    if reference is not None:
        found = scoring.for_reference(folder, reference, frames, bool(refused))
        results |= scoring.score_folder(found, metrics, device)
    by_name = {metric.name: metric for metric in metrics}
    for name, result in results.items():
        result["protocol"] = f"{about['protocol']}; {result['protocol']}; all {frames} frames at {height} x {own_width}"
        if by_name[name.rpartition("/")[2]].in_pixels:
            in_width(result, width / own_width)
            result["protocol"] += f", lengths scaled to {width} px of width"
    write_json(folder / SCORES, results)
    write_json(folder / SCORED, {"videos": state.hexdigest()})
    return results


def in_width(result: dict[str, Any], scale: float) -> None:
    """Give a length in pixels of clips of another width, in place."""
    for name in ("value", "micro", "narrowest", "widest"):
        if name in result:
            result[name] *= scale


def grouped(
    rows: Mapping[str, Mapping[str, Any]], stand_ins: set[str], bench: Path, count: int
) -> dict[str | None, dict[str, Mapping[str, Any]]]:
    """Rows by the data that their tables are titled by; None is the paper's set, where no stand-in may stand."""
    name = named(bench, count)
    data = None if is_published(bench) else name
    own = {row: results for row, results in rows.items() if row not in stand_ins}
    others = {called(row, stand_ins): results for row, results in rows.items() if row in stand_ins}
    groups: dict[str | None, dict[str, Mapping[str, Any]]] = {}
    for title, group in ((data, own), (name, others)):
        if group:
            groups.setdefault(title, {}).update(group)
    return groups


def shown_tables(groups: Mapping[str | None, Mapping[str, Mapping[str, Any]]]) -> tuple[str, str, str]:
    """The tables as text, as CSV and as LaTeX; table 1 beside 2 and 3 where real clips were compared."""
    texts, latexes = [], []
    rows = [["data", "table", "system", "kind", "metric", "value", "protocol"]]
    for data, group in groups.items():
        for part in (of_levels(group, True), of_levels(group, False)):
            if not any(part.values()):
                continue
            levels = any("/" in name for results in part.values() for name in results)
            # table 1's set is WebVid-10M's clips, and these are a benchmark's
            about = data if levels else f"videos beside real clips of {data or 'the benchmark'}"
            texts.append(tables(part, about))
            latexes.append(latex(part, about))
            for number, level in numbers_of(part).items():
                for system, results in part.items():
                    own = level_of(results, level)
                    for cell in cells(own, number):
                        if cell is not None:
                            result, where = own[cell[0]], data or "published"
                            value, protocol = str(result["value"]), result["protocol"]
                            rows.append([where, str(number), system, "measured", cell[0], value, protocol])
                rows += _quoted([level_of(results, level) for results in part.values()], number, about)
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    return "\n\n".join(texts), written.getvalue(), "\n".join(latexes)


def _quoted(measured: list[dict[str, Any]], number: int, data: str | None) -> list[list[str]]:
    """The paper's rows that stand in a table, as lines of the CSV."""
    return [
        ["published", str(number), system, "quoted", column, str(value), "as published"]
        for system, values in quoted(measured, number, data).items()
        for column, value in zip(COLUMNS[number], values, strict=True)
        if value is not None
    ]


def of_levels(group: Mapping[str, Mapping[str, Any]], levels: bool) -> dict[str, dict[str, Any]]:
    """The results with a level (tables 2 and 3), or those without (table 1)."""
    return {row: {n: r for n, r in results.items() if ("/" in n) == levels} for row, results in group.items()}
