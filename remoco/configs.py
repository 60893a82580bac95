"""Where a `--config` is found, and what of it is refused before it is parsed.

A wheel carries `configs/`, so `--config configs/quickstart.yaml` works in any folder; a file of that name in the
working folder comes first. A YAML's aliases may stand for billions of values in a few lines: they are counted.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from datamodules.errors import UsageError
from datamodules.storage import read_regular

FLAGS = ("--config", "-c")
MAX_BYTES = 1 << 20
MAX_VALUES = 100_000


def resolved(arguments: list[str]) -> list[str]:
    """The command line with the paths of its configs as they are found, each checked.

    Raises:
        UsageError: a config that is no YAML of a sane size.
    """
    found = list(arguments)
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in FLAGS and equals:
            found[place] = f"{flag}={_found(value)}"
        elif flag in FLAGS and place + 1 < len(arguments):
            found[place + 1] = _found(arguments[place + 1])
    return found


def _found(name: str) -> str:
    path = Path(name)
    if not path.exists() and path.parts[:1] == ("configs",) and ".." not in path.parts:
        path = packaged(Path(*path.parts[1:])) or path
    if path.exists():
        check(path)
    return str(path) if path.exists() else name  # what is not there may be YAML itself; the parser says so


def packaged(name: Path) -> Path | None:
    """A config of this package, by its path in `configs/`; None where there is none."""
    here = Path(__file__).parent
    return next((root / name for root in (here / "packaged", here.parent / "configs") if (root / name).is_file()), None)


def check(path: Path) -> None:
    """Raise UsageError unless a file is YAML, of at most MAX_BYTES, that stands for at most MAX_VALUES values."""
    try:
        values = _values(yaml.compose(read_regular(path, MAX_BYTES).decode(), Loader=yaml.SafeLoader), {})
    except RecursionError:
        raise UsageError(f"--config {path}: nested too deeply, or an alias holds itself") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UsageError(f"--config {path}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from None
    if values > MAX_VALUES:
        raise UsageError(f"--config {path}: its aliases stand for {values} values, more than {MAX_VALUES}")


def _values(node: yaml.Node | None, known: dict[int, int]) -> int:
    """How many values a node stands for, its aliases written out.

    Raises:
        ValueError: a text with a zero byte, which no path and no name may have.
    """
    if isinstance(node, yaml.ScalarNode) and "\0" in node.value:
        raise ValueError(f"line {node.start_mark.line + 1}: {node.value[:80]!r} holds a zero byte")
    if node is None or isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        below = node.value if isinstance(node, yaml.SequenceNode) else [each for pair in node.value for each in pair]
        known[id(node)] = 1 + sum(_values(each, known) for each in below)
    return known[id(node)]
