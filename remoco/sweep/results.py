"""Results of a sweep's trials, read from its folder, by point, with the seeds as a spread."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from remoco import result_files
from remoco.common.errors import UserError, readable
from remoco.common.whole_files import read_object
from remoco.result_files import is_name
from remoco.sweep.plan import named
from remoco.sweep.trial import read_record, record_file

PLAN = "sweep.json"


@dataclass(frozen=True)
class Result:
    """A trial's record and, where it finished, its numbers.

    Attributes:
        name: name of its folder.
        point: key -> value, as text.
        seed: number of the seed.
        state: waiting, started, finished or failed.
        error: what it said last, where it failed.
        metrics: name -> value; empty unless it finished.
        protocols: name -> how it was computed.
    """

    name: str
    point: dict[str, str]
    seed: int
    state: str
    error: str | None
    metrics: dict[str, float]
    protocols: dict[str, str]


@dataclass(frozen=True)
class Row:
    """A point: the mean over the seeds that finished, and their standard deviation (n - 1; NaN for one seed)."""

    point: dict[str, str]
    seeds: int
    failed: int
    mean: dict[str, float]
    std: dict[str, float]


def read_plan(folder: Path) -> dict[str, Any]:
    """The record of the plan in a sweep's folder.

    Raises:
        UserError: not the folder of a sweep, or a field that cannot be; one line that names it.
    """
    path = folder / PLAN
    if not os.path.lexists(path):
        raise UserError(f"{folder}: expected the folder of a `remoco sweep run`, with its {PLAN}")
    plan = read_object(path)
    values, metrics, label = (plan.get(name) for name in ("values", "metrics", "label"))
    if not isinstance(values, dict) or not values or not all(map(is_name, values)):
        raise UserError(f"{path}: values: expected keys with their values")
    for key, listed in values.items():
        try:
            if not isinstance(listed, (list, dict)) or not named(listed):
                raise UserError("expected values")
        except UserError as error:
            raise UserError(f"{path}: values.{key}: {readable(str(error))}") from None
    if not isinstance(metrics, list) or not metrics or not all(map(is_name, metrics)):
        raise UserError(f"{path}: metrics: expected names of results")
    if label is not None and not is_name(label):
        raise UserError(f"{path}: label: expected a text or null")
    return {**plan, "values": values, "metrics": metrics, "label": label}


def read_results(folder: Path, problems: list[str]) -> list[Result]:
    """All trials, in the order of their points; what of them cannot be used is a line in `problems`."""
    plan = read_plan(folder)
    results = []
    for name in sorted(path.stem for path in (folder / "trials").glob("*.json")):
        try:
            result = read_result(folder, name, problems)
        except UserError as error:
            problems.append(readable(str(error)))
            continue
        if result is not None and list(result.point) != list(plan["values"]):
            problems.append(f"{readable(str(record_file(folder, name)))}: point: expected {', '.join(plan['values'])}")
        elif result is not None:
            results.append(result)
    order = {key: [*_names(values)] for key, values in plan["values"].items()}
    return sorted(results, key=lambda each: [*(_rank(order[k], v) for k, v in each.point.items()), (each.seed, "")])


def read_result(folder: Path, name: str, problems: list[str]) -> Result | None:
    """One trial; None where there is no record of it.

    Args:
        folder: folder of the sweep.
        name: name of the trial.
        problems: gets a line for each of its results that cannot be used.

    Raises:
        UserError: its record cannot be used; one line that names the file and the field.
    """
    if (record := read_record(folder, name)) is None:
        return None
    entries = _metrics(folder / name, problems) if record["state"] == "finished" else {}
    values = {key: float(entry["value"]) for key, entry in entries.items()}
    protocols = {key: entry["protocol"] for key, entry in entries.items()}
    return Result(name, record["point"], record["seed"], record["state"], record["error"], values, protocols)


def rows_of(results: Sequence[Result]) -> list[Row]:
    """One row for each point; trials that did not finish are counted, never averaged in."""
    rows = []
    for point in [dict(key) for key in dict.fromkeys(tuple(result.point.items()) for result in results)]:
        at_point = [result for result in results if result.point == point]
        done = [result for result in at_point if result.state == "finished"]
        mean, std = {}, {}
        for name in dict.fromkeys(name for result in done for name in result.metrics):
            values = [result.metrics[name] for result in done if name in result.metrics]
            mean[name] = float(np.mean(values))
            std[name] = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
        failed = sum(result.state == "failed" for result in at_point)
        rows.append(Row(point, len(done), failed, mean, std))
    return rows


def chosen(names: Sequence[str], wanted: Sequence[str]) -> list[str]:
    """The results that a sweep's `metrics` mean: by their name, or of several levels or stand-ins by its beginning."""
    picked = []
    for want in wanted:
        exact = [name for name in names if name.split("/")[-1] == want]
        picked += exact or [name for name in names if name.split("/")[-1].startswith(want + "_")]
    return list(dict.fromkeys(picked))


def trials_csv(results: Sequence[Result]) -> str:
    """One line for each trial."""
    keys = list(results[0].point) if results else []
    names = list(dict.fromkeys(name for result in results for name in result.metrics))
    lines: list[list[Any]] = [["trial", *keys, "seed", "state", "error", *names]]
    for result in results:
        values = [result.metrics.get(name, "") for name in names]
        lines.append([result.name, *result.point.values(), result.seed, result.state, result.error or "", *values])
    return _csv(lines)


def points_csv(rows: Sequence[Row]) -> str:
    """One line for each point, with mean and standard deviation of all results."""
    keys = list(rows[0].point) if rows else []
    names = list(dict.fromkeys(name for row in rows for name in row.mean))
    lines: list[list[Any]] = [[*keys, "seeds", "failed", *(f"{n} {kind}" for n in names for kind in ("mean", "std"))]]
    for row in rows:
        spread = [each.get(name, float("nan")) for name in names for each in (row.mean, row.std)]
        lines.append([*row.point.values(), row.seeds, row.failed, *("" if np.isnan(v) else v for v in spread)])
    return _csv(lines)


def terminal_table(rows: Sequence[Row], wanted: Sequence[str]) -> str:
    """The points with the sweep's metrics as `mean ± standard deviation`."""
    from metrics import shown  # torch takes seconds, and `--help` does without

    keys = [key.split(".")[-1] for key in (rows[0].point if rows else {})]
    names = chosen(list(dict.fromkeys(name for row in rows for name in row.mean)), wanted)
    lines = [[*keys, "seeds", "failed", *names]]
    for row in rows:
        cells = [f"{shown(row.mean[n])} ± {shown(row.std[n])}" if n in row.mean else "-" for n in names]
        cells = [cell.removesuffix(" ± nan") for cell in cells]
        lines.append([*row.point.values(), str(row.seeds), str(row.failed), *cells])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines)


def _metrics(folder: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Results of the run itself, and of its benchmarks as `<level>/<metric>`."""
    entries: dict[str, dict[str, Any]] = {}
    for path in (folder / "metrics.json", *sorted((folder / "benchmark").glob("*/scores.json"))):
        entries |= result_files.read_results(path, problems)
    return entries


def _names(values: Any) -> list[str]:
    return [each if isinstance(each, str) else json.dumps(each) for each in values]


def _rank(order: list[str], value: str) -> tuple[float, str]:
    """Place in the YAML's list, or size of a drawn number."""
    if value in order:
        return order.index(value), ""
    try:
        return float(value), ""
    except ValueError:
        return float("inf"), value


def _csv(lines: list[list[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()
