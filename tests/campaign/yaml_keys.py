"""Every key of every shipped YAML: of another type, 0, below 0, null, huge, nested, gone, twice."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
GONE, TWICE, TAG, BOMB, DEEP = "gone", "twice", "tag", "bomb", "deep"
BOMBS = ", ".join(f"&{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefghij", "bcdefghijk"))
WRITTEN = {  # what no dumper writes, in the value's place
    TAG: "!!python/object/apply:os.system ['touch ran']",
    BOMB: f"[&a [x, x, x, x, x, x, x, x, x], {BOMBS}]",
    DEEP: "[" * 3000 + "]" * 3000,
    "include": "!include /etc/passwd",
    "date": "2020-99-99",
    "digits": "9" * 5000,
}  # fmt: skip
VALUES = [
    None, True, 0, -1, 1, 0.5, -0.5, 1e-300, 2**31, 2**70, 1e30, float("inf"), float("nan"), "", "x", "0", "a\nb",
    "é" * 300, [], {}, [1], [[]], {"a": 1}, {"class_path": "x"}, {"class_path": "builtins.print"}, {1: 2},
]  # fmt: skip
WEBVID = ("own_videos", "motionpro_released", "remoco_svd")
BASES = {"own_videos": "quickstart", "motionpro_released": "remoco_svd", "base": "quickstart"}


class Change(NamedTuple):
    """One key of one shipped YAML, and what stands there instead."""

    file: str
    place: tuple[str | int, ...]
    value: Any

    @property
    def name(self) -> str:
        """For a reader."""
        shown = (
            self.value if isinstance(self.value, str) and self.value in (GONE, TWICE, *WRITTEN) else repr(self.value)
        )
        return f"{self.file} {'.'.join(map(str, self.place))} = {shown:.60}"


def changes() -> list[Change]:
    """All of them, in an order that does not change; a place that several overlays share comes once."""
    found, seen = [], set()
    for path in sorted(CONFIGS.rglob("*.yaml")):
        file = path.relative_to(CONFIGS).as_posix()
        for place in places(yaml.safe_load(path.read_text())):
            key = Path(file).parent, place, Path(file).stem if Path(file).stem in (*WEBVID, "metrics") else None
            if key in seen:
                continue
            seen.add(key)
            found += [Change(file, place, value) for value in [*VALUES, GONE, TWICE, *WRITTEN]]
    return found


def places(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every key and list entry, from outside inwards."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*at, key)
        yield from places(below, (*at, key))


def write(change: Change, path: Path) -> None:
    """The YAML with its change, over the same YAML as before."""
    found = yaml.safe_load((CONFIGS / change.file).read_text())
    if isinstance(found, dict) and "config" in found:
        found["config"] = str(CONFIGS / found["config"])
    parent = found
    for key in change.place[:-1]:
        parent = parent[key]
    last = change.place[-1]
    if isinstance(change.value, str) and change.value == GONE:
        del parent[last]
        path.write_text(yaml.safe_dump(found, sort_keys=False))
        return
    mark = "XmarkX"
    marked = copy.deepcopy(parent[last])
    parent[last] = mark
    text = yaml.safe_dump(found, sort_keys=False)
    if isinstance(change.value, str) and change.value == TWICE:
        parent[last] = marked
        text = yaml.safe_dump(found, sort_keys=False)
        if isinstance(last, str):
            line = next(line for line in text.splitlines() if line.strip(" -").startswith(f"{last}:"))
            text = text.replace(line, f"{line}\n{' ' * (len(line) - len(line.lstrip(' -')))}{last}: 7", 1)
    elif isinstance(change.value, str) and change.value in WRITTEN:
        text = text.replace(mark, WRITTEN[change.value], 1)
    else:
        parent[last] = change.value
        text = yaml.safe_dump(found, sort_keys=False)
    path.write_text(text)


def arguments(change: Change, path: str, data: str) -> list[str]:
    """How a YAML is used: subcommand and options of `python -m lightning`, or a name of its own and the file."""
    file = Path(change.file)
    if file.parts[0] == "sweep":
        return ["sweep", path]
    if file.stem == "metrics":
        return ["metrics", path]
    base = None if file.parent.name == "" and file.stem not in BASES else BASES.get(file.stem, "quickstart")
    configs = [f"--config={CONFIGS / base}.yaml"] if base else []
    words = ["test" if file.parts[0] == "eval" else "fit", *configs, f"--config={path}"]
    webvid = {"shards": data, "val_shards": data, "frames": 4, "height": 64, "width": 64, "fps": 8}
    key = ".".join(map(str, change.place))
    if file.stem in WEBVID:
        words += [
            f"--data.init_args.{name}={value}"
            for name, value in webvid.items()
            if not f"data.init_args.{name}".startswith(key)
        ]
    return words


def draw(rng: random.Random) -> Change:
    """One of them."""
    return rng.choice(ALL)


ALL = changes()
