"""Tables 1 to 3 of the paper: their columns, the published rows, and your own row beside them."""

from collections.abc import Iterable, Mapping
from typing import Any

from metrics.base import shown

COLUMNS = {
    1: ("FVD", "FID", "Frame Consis."),
    2: ("MD-Img", "MD-Vid", "Frame Consis."),
    3: ("MD-Img", "MD-Vid", "Frame Consis."),
}
TITLES = {
    1: "Table 1: fine-grained motion control on WebVid-10M",
    2: "Table 2: fine-grained motion control on the benchmark",
    3: "Table 3: object-level motion control on the benchmark",
}
# ReMoCo, tables 1 to 3; MotionPro (CVPR 2025) reports the same numbers
PUBLISHED: dict[int, dict[str, tuple[float, float, float]]] = {
    1: {
        "DragNUWA": (96.65, 13.19, 0.9888),
        "MOFA-Video": (87.70, 12.18, 0.9895),
        "ReMoCo": (59.88, 10.40, 0.9895),
    },
    2: {
        "DragDiffusion": (14.70, 13.84, 0.9947),
        "MOFA-Video": (13.94, 10.50, 0.9972),
        "ReMoCo": (10.56, 8.34, 0.9962),
    },
    3: {
        "MOFA-Video": (15.56, 12.04, 0.9951),
        "DragAnything": (12.30, 11.37, 0.9917),
        "ReMoCo": (10.48, 8.59, 0.9943),
    },
}
# which metric fills a column: by the beginning of its name, so that a stand-in does, under its own name
PREFIX = {"FVD": "fvd", "FID": "fid", "MD-Img": "md_img", "MD-Vid": "md_vid", "Frame Consis.": "frame_consistency"}
WEBVID = "WebVid-10M"  # the set of table 1
FLOW = "flow_magnitude"  # always read beside frame consistency, which rewards stillness
# the names that the published numbers have here; FVD may be either I3D, the paper does not say which
REAL = ("fvd_i3d_disco", "fvd_i3d_styleganv", "fid_inception", "md_img", "md_vid", "frame_consistency")


def level_of(results: Mapping[str, Any], level: str) -> dict[str, Any]:
    """The results of one level of the benchmark: `fine/md_vid` -> `md_vid`; all of them where there are no levels."""
    if not any("/" in name for name in results):
        return dict(results)
    return {name.split("/", 1)[1]: entry for name, entry in results.items() if name.startswith(f"{level}/")}


def cells(results: Mapping[str, Any], number: int) -> list[tuple[str, str] | None]:
    """For each column, the metric's name and its value, with at least the paper's decimals; None where nothing was
    measured.
    """
    texts: list[tuple[str, str] | None] = []
    for column in COLUMNS[number]:
        names = [n for n in results if n == PREFIX[column] or n.startswith(f"{PREFIX[column]}_")]
        name = next((n for n in (*REAL, *names) if n in names), None)  # before a stand-in, where both were measured
        digits = 4 if column == "Frame Consis." else 2
        texts.append(None if name is None else (name, shown(results[name]["value"], digits)))
    return texts


def flow_cell(results: Mapping[str, Any]) -> str | None:
    """The mean flow magnitude and the width of the clips whose pixels it counts; None where it was not measured."""
    entry = next((entry for name, entry in results.items() if name.startswith(FLOW)), None)
    if entry is None:
        return None
    widths = [f"{entry[name]:g}" for name in ("narrowest", "widest") if name in entry]
    return shown(entry["value"], 2) + (f" ({' to '.join(dict.fromkeys(widths))} wide)" if widths else "")


def numbers_of(rows: Mapping[str, Mapping[str, Any]]) -> dict[int, str]:
    """The tables that the rows' results fill, and of which level: 2 and 3, or 1 where there are no levels."""
    levels = {name.split("/", 1)[0] for results in rows.values() for name in results if "/" in name}
    return {number: level for number, level in {2: "fine", 3: "object"}.items() if level in levels} or {1: ""}


def tables(rows: Mapping[str, Mapping[str, Any]], data: str | None) -> str:
    """The tables that the rows' results fill, as text; see `lines`."""
    found = []
    for number, level in numbers_of(rows).items():
        found.append(table({system: level_of(results, level) for system, results in rows.items()}, number, data))
    return "\n\n".join(found)


def title(number: int, data: str | None) -> str:
    """The paper's title of a table on the paper's set (None); of other data what was measured there, and on what."""
    if data is None:
        return TITLES[number]
    if number == 1:
        return data[:1].upper() + data[1:]
    return f"{TITLES[number].partition(': ')[2].partition(' on ')[0].capitalize()} on {data}"


def quoted(rows: Iterable[Mapping[str, Any]], number: int, data: str | None) -> dict[str, list[float | None]]:
    """The published rows that may stand under these: on the paper's set, and in each column whose published metric was
    measured there; None elsewhere.

    Args:
        rows: results of each system.
        number: of the table.
        data: what was generated from; None is the paper's set.
    """
    measured = [any(cell and cell[0] in REAL for cell in column) for column in zip(*(cells(r, number) for r in rows))]
    if data is not None or not any(measured):
        return {}
    published = PUBLISHED[number].items()
    return {name: [v if there else None for v, there in zip(values, measured)] for name, values in published}


def quoted_cell(value: float | None) -> str:
    """A quoted number as published."""
    return "-" if value is None else f"{value:.4f}" if value < 1 else f"{value:.2f}"


def with_data(protocol: str, data: str) -> str:
    """A protocol that says what was generated from, where `data_said` finds it."""
    return f"{protocol}; data: {data}"


def data_said(rows: Iterable[Mapping[str, Any]]) -> str | None:
    """What the protocols of table 1's results say was generated from: one text, or None for the paper's set."""
    results = [entry for row in rows for name, entry in row.items() if name.startswith(tuple(PREFIX.values()))]
    said = {entry.get("protocol", "").rpartition("; data: ")[2] if "; data: " in entry.get("protocol", "") else ""
            for entry in results}  # fmt: skip
    if said == {WEBVID}:
        return None
    return said.pop() if len(said) == 1 and said != {""} else "videos beside real clips"


def lines(rows: Mapping[str, Mapping[str, Any]], number: int, data: str | None) -> tuple[list[list[str]], list[str]]:
    """The lines of a table, its head first, and the names of the stand-ins in it, which have a `*`.

    Args:
        rows: name of the system -> metric -> result (`value`, `protocol`, `n`, `seconds`).
        number: 1, 2 or 3.
        data: what was generated from; None is the paper's set, and the only one with quoted rows, see `quoted`.
    """
    text, notes = [["", *COLUMNS[number], "flow magnitude, px"]], set()
    for system, results in rows.items():
        line = [system]
        for cell in cells(results, number):
            line.append("-" if cell is None else cell[1] + ("" if cell[0] in REAL else " *"))
            if cell is not None and cell[0] not in REAL:
                notes.add(cell[0])
        text.append([*line, flow_cell(results) or "-"])
    for system, values in quoted(rows.values(), number, data).items():
        text.append([f"{system} (quoted)", *map(quoted_cell, values), "-"])
    return text, sorted(notes)


def table(rows: Mapping[str, Mapping[str, Any]], number: int, data: str | None) -> str:
    """A table of the paper as text: your own rows, then the published ones, marked as quoted; see `lines`."""
    text, notes = lines(rows, number, data)
    widths = [max(len(line[i]) for line in text) for i in range(len(text[0]))]
    aligned = [title(number, data)]
    for name, *values in text:
        padded = [value.rjust(width) for value, width in zip(values, widths[1:], strict=True)]
        aligned.append("  ".join([name.ljust(widths[0]), *padded]).rstrip())
    if notes:
        aligned.append(f"* a stand-in, not comparable with published numbers: {', '.join(notes)}")
    return "\n".join(aligned)


def latex(rows: Mapping[str, Mapping[str, Any]], data: str | None) -> str:
    """The tables that the rows' results fill, for LaTeX with the package booktabs; see `lines`."""
    found = []
    for number, level in numbers_of(rows).items():
        (head, *body), notes = lines({name: level_of(row, level) for name, row in rows.items()}, number, data)
        note = f" * not the published metric: {', '.join(notes)}." if notes else ""
        found.append(
            "\n".join(
                [
                    r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * (len(head) - 1) + "}", r"\toprule",
                    _latex_row(head), r"\midrule", *map(_latex_row, body), r"\bottomrule", r"\end{tabular}",
                    r"\caption{" + _escaped(f"{title(number, data)}.{note}") + "}", r"\end{table}",
                ]
            )
        )  # fmt: skip
    return "\n\n".join(found) + "\n"


def _latex_row(line: list[str]) -> str:
    return " & ".join(map(_escaped, line)) + r" \\"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)
