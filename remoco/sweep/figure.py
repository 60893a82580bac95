"""Figures 7 and 9 of the paper: what a result does over a swept value, with the seeds as error bars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from remoco.common.errors import UserError
from remoco.common.whole_files import naming
from remoco.sweep.results import Row, chosen

UNITS = {"control_error": "px", "md_img": "px", "md_vid": "px", "flow_magnitude": "px"}
LEVELS = {"fine": "fine-grained", "object": "object-level"}


def draw(
    rows: Sequence[Row],
    wanted: Sequence[str],
    files: Sequence[Path],
    label: str | None = None,
    drawn: str | None = None,
) -> None:
    """One panel for each metric, over the first swept key; levels of a benchmark and other keys are lines of their own.

    Numbers are points with a line, as in figure 7; names are bars, as in figure 9. What a search drew from a range are
    points alone, where they are. A point whose trials did not finish is left out.

    Args:
        rows: with a mean each.
        wanted: the sweep's metrics.
        files: to write; their suffixes are formats.
        label: of the first swept key; its name by default.
        drawn: kind of the range that the first key's values were drawn from; None where they are listed.

    Raises:
        UserError: matplotlib is missing, or nothing has finished.
    """
    try:
        import matplotlib
    except ImportError:
        raise UserError("`sweep plot` needs matplotlib: pip install -e '.[plots]' -c constraints.txt") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in rows if row.seeds]
    names = chosen(list(dict.fromkeys(name for row in rows for name in row.mean)), wanted)
    if not names:
        raise UserError(f"no trial has finished with a result named {', '.join(wanted)}, so there is nothing to plot")
    metrics = list(dict.fromkeys(name.split("/")[-1] for name in names))
    figure, panels = pyplot.subplots(1, len(metrics), figsize=(4.4 * len(metrics), 3.3), squeeze=False, dpi=150)
    for metric, panel in zip(metrics, panels[0]):
        _panel(panel, rows, [name for name in names if name.split("/")[-1] == metric], label, drawn)
        unit = next((unit for prefix, unit in UNITS.items() if metric.startswith(prefix)), None)
        panel.set_ylabel(f"{metric} ({unit})" if unit else metric)
    figure.tight_layout()
    for file in files:
        with naming(Path(file)) as path:
            figure.savefig(path)
    pyplot.close(figure)


def _panel(panel: Any, rows: Sequence[Row], names: Sequence[str], title: str | None, drawn: str | None) -> None:
    key, *others = rows[0].point
    if drawn:  # every point has other values of all keys
        others = []
    values = list(dict.fromkeys(row.point[key] for row in rows))
    numeric = _numbers(values)
    lines = [(name, rest) for name in names for rest in dict.fromkeys(_rest(row, others) for row in rows)]
    width = 0.8 / len(lines)
    for number, (name, rest) in enumerate(lines):
        plotted = [row for row in rows if _rest(row, others) == rest and name in row.mean]
        heights = [row.mean[name] for row in plotted]
        errors = np.nan_to_num([row.std[name] for row in plotted])
        places = [float(row.point[key]) if drawn else values.index(row.point[key]) for row in plotted]
        level = LEVELS.get(name.split("/")[0], "") if "/" in name else ""
        label = ", ".join(part for part in (level, *rest) if part) or None
        if numeric:
            line = "none" if drawn else "-"
            panel.errorbar(places, heights, errors, marker="o", linestyle=line, capsize=3, label=label)
        else:
            shift = (number - (len(lines) - 1) / 2) * width
            panel.bar(np.add(places, shift), heights, width, yerr=errors, capsize=3, label=label)
    if drawn:
        panel.set_xscale("log" if drawn == "log_uniform" else "linear")
    else:
        panel.set_xticks(range(len(values)), values)
    seeds = {row.seeds for row in rows}
    spread = f"n = {seeds.pop()}" if len(seeds) == 1 else f"n = {min(seeds)} to {max(seeds)}"
    panel.set_xlabel(f"{title or key.split('.')[-1]}  (mean and deviation of seeds, {spread})", fontsize=8)
    panel.grid(axis="y", alpha=0.3)
    panel.set_axisbelow(True)
    if len(lines) > 1:
        panel.legend(fontsize=8)


def _rest(row: Row, others: Sequence[str]) -> tuple[str, ...]:
    return tuple(f"{key.split('.')[-1]} {row.point[key]}" for key in others)


def _numbers(values: Sequence[str]) -> bool:
    try:
        [float(value) for value in values]
    except ValueError:
        return False
    return True
