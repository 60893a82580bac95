"""The report's HTML, from what was collected and where its videos lie. Text in, text out."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from metrics import shown
from metrics.published import COLUMNS, PREFIX, REAL, cells, data_said, flow_cell, level_of, quoted, quoted_cell, title
from remoco.report.charts import chart
from remoco.report.collect import System

LEVELS = {2: "fine", 3: "object"}
BETTER = dict.fromkeys(PREFIX, "↓") | {"Frame Consis.": "↑"}
COLOURS = 6


def page(
    systems: list[System],
    gallery: list[tuple[str, dict[str, str]]],
    strips: dict[str, list[str]],
    problems: list[str] | None = None,
    benchmark: str | None = "",
) -> str:
    """The whole page.

    Args:
        systems: in the order of the rows.
        gallery: caption and name of a panel -> its video, relative to the page.
        strips: system -> its strips, relative to the page.
        problems: a line for each part that was left out.
        benchmark: what tables 2 and 3 are titled by; None is the paper's benchmark.
    """
    colours = {system.name: number % COLOURS for number, system in enumerate(systems)}
    legend = "".join(f'<li><span class="dot c{colours[s.name]}"></span>{html.escape(s.name)}</li>' for s in systems)
    sections = [
        _section("Tables", _tables(systems, benchmark)),
        _section("What was measured", _measured(systems)),
        _section("Curves", _curves(systems, colours)),
        _section("Side by side", _gallery(gallery)),
        _section("Samples of training", _strips(systems, strips)),
        _section("Left out", "".join(f'<p class="note">{html.escape(problem)}</p>' for problem in problems or [])),
    ]
    title = " · ".join(system.name for system in systems)
    template = files("remoco.report").joinpath("page.html").read_text()
    parts = {"TITLE": html.escape(title), "LEGEND": legend, "BODY": "\n".join(filter(None, sections))}
    # in one go: a name that holds such a mark stays as it is
    return re.sub(r"{{(\w+)}}", lambda mark: parts[mark[1]], template)


def _section(title: str, body: str) -> str:
    anchor = title.lower().replace(" ", "-")
    return f'<section id="{anchor}"><h2>{title}</h2>{body}</section>' if body else ""


def _tables(systems: list[System], benchmark: str | None) -> str:
    """Tables 1 to 3, where a system has something for them; on the paper's sets with published rows, marked so."""
    built = []
    for number, columns in COLUMNS.items():
        level = LEVELS.get(number)
        rows = {s.name: level_of(s.bench, level) if level else s.results for s in systems}
        rows = {name: scores for name, scores in rows.items() if any(cells(scores, number)[:2])}
        if not rows:
            continue
        head = "".join(f"<th>{column}&nbsp;{BETTER[column]}</th>" for column in columns) + "<th>Flow magnitude, px</th>"
        body = "".join(_row(name, scores, number) for name, scores in rows.items())
        data = benchmark if level else data_said(rows.values())
        for name, values in quoted(rows.values(), number, data).items():
            numbers = "".join(f"<td>{quoted_cell(value)}</td>" for value in values)
            body += (
                f'<tr class="quoted"><th scope="row">{html.escape(name)} <em>quoted</em></th>{numbers}<td></td></tr>'
            )
        note = ""
        if any(cell and cell[0] not in REAL for scores in rows.values() for cell in cells(scores, number)):
            note = '<p class="note">* a stand-in that needs no weights: not comparable with published numbers.</p>'
        built.append(
            f'<h3 class="table" id="table-{number}">{html.escape(title(number, data))}</h3><div class="scroll">'
            f'<table aria-labelledby="table-{number}"><thead><tr><th></th>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{note}"
        )
    return "".join(built)


def _row(name: str, scores: Mapping[str, Any], number: int) -> str:
    row = f'<tr><th scope="row">{html.escape(name)}</th>'
    for cell in cells(scores, number):
        if cell is None:
            row += "<td>–</td>"
            continue
        star = "" if cell[0] in REAL else '<sup title="a stand-in">*</sup>'
        row += f'<td title="{html.escape(scores[cell[0]]["protocol"])}">{cell[1]}{star}</td>'
    return f"{row}<td>{flow_cell(scores) or '–'}</td></tr>"


def _measured(systems: list[System]) -> str:
    """Every number with its protocol; a system a column."""
    results = {s.name: s.results | s.bench for s in systems}
    names = list(dict.fromkeys(name for scores in results.values() for name in scores))
    if not names:
        return ""
    head = "".join(f"<th>{_breakable(s.name)}</th>" for s in systems)
    body = ""
    for name in names:
        protocol = next(scores[name]["protocol"] for scores in results.values() if name in scores)
        digits = _digits([scores[name]["value"] for scores in results.values() if name in scores])
        numbers = "".join(
            f'<td title="{html.escape(scores[name]["protocol"])}; {scores[name]["seconds"]:g} s">{shown(scores[name]["value"], digits)}</td>'  # noqa: E501
            if name in scores
            else "<td>–</td>"
            for scores in results.values()
        )
        body += (
            f'<tr><th scope="row"><details><summary>{_breakable(name)}</summary><p>{html.escape(protocol)}</p></details></th>'  # noqa: E501
            f"{numbers}</tr>"
        )
    return f'<div class="scroll"><table class="all"><thead><tr><th>metric</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'  # noqa: E501


def _breakable(name: str) -> str:
    """A name that a narrow screen may break at its joints."""
    return re.sub(r"([/_])", r"\1<wbr>", html.escape(name))


def _digits(values: list[float]) -> int:
    """Decimals that all numbers of a row have at least."""
    largest = max(map(abs, values))
    return 4 if largest < 1 else 2 if largest < 1000 else 0


def _curves(systems: list[System], colours: dict[str, int]) -> str:
    tags = list(dict.fromkeys(tag for system in systems for tag in system.curves))
    drawn = []
    for tag in tags:
        constants: dict[str, float] = {}  # the clips' own: those of the first system that has them
        for system in systems:
            for name, value in system.constants.items():
                if name.startswith(f"{tag}_"):
                    constants.setdefault(name.removeprefix(f"{tag}_").replace("_", " "), value)
        drawn.append(chart(tag, {s.name: s.curves[tag] for s in systems if tag in s.curves}, colours, constants))
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _gallery(gallery: list[tuple[str, dict[str, str]]]) -> str:
    strips = []
    for caption, panels in gallery:
        videos = "".join(
            f"<figure>{_video(source)}<figcaption>{html.escape(name)}</figcaption></figure>"
            for name, source in panels.items()
        )
        strips.append(
            f'<article class="strip"><h3>{html.escape(caption)}</h3><div class="panels">{videos}</div></article>'
        )
    return "".join(strips)


def _video(source: str) -> str:
    poster = html.escape(source.removesuffix(".mp4") + ".jpg")
    return f'<video muted playsinline preload="metadata" poster="{poster}" src="{html.escape(source)}"></video>'


def _strips(systems: list[System], strips: dict[str, list[str]]) -> str:
    built = []
    for system in systems:
        if sources := strips.get(system.name):
            videos = "".join(f'<figure class="wide">{_video(source)}</figure>' for source in sources)
            title = f"{html.escape(system.name)}, step {system.step}"
            built.append(f'<article class="strip"><h3>{title}</h3>{videos}</article>')
    return "".join(built)
