"""Curves as inline SVG, in the page's own colours, so that they follow its light and dark."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping

import numpy as np

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 14, 30
LETTER = 7  # pixels of a digit's width at most
POINTS = 160  # most points of a drawn curve


def chart(
    title: str,
    curves: dict[str, tuple[list[int], list[float]]],
    colours: dict[str, int],
    constants: Mapping[str, float] | None = None,
) -> str:
    """One figure: a curve per system, and a dashed line across it for each constant.

    Args:
        title: over the figure.
        curves: system -> (steps, values), all finite.
        colours: system -> number of its colour.
        constants: label -> value.
    """
    constants = constants or {}
    values = np.concatenate([np.asarray(v, dtype=float) for _, v in curves.values()])
    steps = np.concatenate([np.asarray(s, dtype=float) for s, _ in curves.values()])
    # one early spike must not flatten the rest
    low, high = float(values.min()), float(np.quantile(values, 0.99) if len(values) > 50 else values.max())
    low, high = min([low, *constants.values()]), max([high, *constants.values()])
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    left = max(LEFT, 12 + LETTER * max(len(f"{tick:.10g}") for tick in ticks))
    first, last = float(steps.min()), float(steps.max())

    def place(step: float, value: float) -> str:
        x = left + (step - first) / max(last - first, 1e-9) * (WIDTH - left - RIGHT)
        y = TOP + (high - min(value, high)) / max(high - low, 1e-12) * (HEIGHT - TOP - BOTTOM)
        return f"{x:.1f},{y:.1f}"

    parts = []
    for tick in ticks:
        y = place(first, tick).split(",")[1]
        parts.append(f'<line class="grid" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{left - 6}" y="{y}" text-anchor="end" dominant-baseline="middle">{tick:.10g}</text>')
    for tick in nice_ticks(first, last, 4):
        if first <= tick <= last:
            x, text = float(place(tick, low).split(",")[0]), f"{tick:.10g}"
            x = min(x, WIDTH - LETTER * len(text) / 2 - 1)  # whole at the right edge too
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{text}</text>')
    for label, constant in constants.items():
        y = place(first, constant).split(",")[1]
        parts.append(f'<line class="constant" x1="{left}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        text, y = html.escape(f"{label} {constant:.3g}"), f"{float(y) - 4:.1f}"
        parts.append(f'<text x="{WIDTH - RIGHT}" y="{y}" text-anchor="end">{text}</text>')
    for system, (at, value) in curves.items():
        line = " ".join(place(s, v) for s, v in zip(*thinned(at, value)))
        parts.append(
            f'<polyline class="line c{colours[system]}" points="{line}"><title>{html.escape(system)}</title></polyline>'
        )
    label = html.escape(title)
    return (
        f'<figure class="chart"><figcaption>{label}</figcaption><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{label} over steps">{"".join(parts)}</svg></figure>'
    )


def thinned(steps: list[int], values: list[float]) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal runs of points, so that at most `POINTS` are left."""
    size = math.ceil(len(steps) / POINTS)
    starts = range(0, len(steps), size)
    x, y = (np.array([np.mean(part[i : i + size]) for i in starts]) for part in (steps, values))
    return x, y


def nice_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that cover a range."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # a constant: a line in the middle
        low, high = low - (abs(low) / 2 or 1), high + (abs(high) / 2 or 1)
    span = high - low
    size = 10 ** math.floor(math.log10(span / count))
    step = next(size * m for m in (1, 2, 5, 10, 20) if span / (size * m) <= count)
    start, stop = math.floor(low / step), math.ceil(high / step)
    return [round(i * step, 12) for i in range(start, stop + 1)]
