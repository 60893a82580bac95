"""Where a `--config` is found, which configs it brings along, and what of it is refused before it is parsed.

A wheel carries `configs/`, so `--config configs/quickstart.yaml` works in any folder; a file of that name in the
working folder comes first. `config: base.yaml` at the top of a YAML stands for `--config base.yaml` before it. A YAML's
aliases may stand for billions of values in a few lines: they are counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import SafeConstructor

from remoco.common.errors import UserError
from remoco.common.json_files import read_regular

FLAGS = ("--config", "-c")
BELOW = "config"  # key of a YAML: the one below it
MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
LONGEST_PATH = 200  # characters; longer names of files are errors of the system's own
YAML_TAG = "tag:yaml.org,2002:"
TAGS = ("null", "bool", "int", "float", "str", "timestamp", "merge", "value", "seq", "map")


def resolved(arguments: list[str]) -> list[str]:
    """The command line with the paths of its configs as they are found; each is checked, and those below it.

    Raises:
        UserError: A config that is no YAML of a sane size, or names one below it that is not there.
    """
    words = list(arguments)
    for place, flag, name in _configs(arguments):
        if len(name) > LONGEST_PATH:
            raise UserError(f"--config {name[:80]}...: no such file")
        path = _found(name)
        layers(path)
        words[place] = f"{flag}{path if path.exists() else name}"
    return words


def stacked(arguments: list[str]) -> list[str]:
    """The command line with the configs that its configs name below themselves, each before the one that names it.

    Args:
        arguments: A command line as `resolved` gives it.
    """
    places = {place - (not flag): name for place, flag, name in _configs(arguments)}
    words = []
    for place, word in enumerate(arguments):
        if place in places:
            words += [f"--config={path}" for path in layers(places[place])[:-1]]
        words.append(word)
    return words


def layers(config: str | Path) -> list[Path]:
    """A config and those below it, the lowest first; what is no file has none.

    A YAML names the one below it under `config`, relative to its own folder; a name that begins with `configs/` is also
    found as on a command line.

    Raises:
        UserError: One of them is no YAML of a sane size, names one that is not there, or leads back to itself.
    """
    found = [Path(config)]
    while found[0].exists():
        values = load(found[0])
        if not isinstance(values, dict) or BELOW not in values:
            break
        at, name = f"--config {found[0]}: {BELOW}", values[BELOW]
        if not isinstance(name, str) or not name or len(name) > LONGEST_PATH:
            raise UserError(f"{at}: expected the name of the YAML below this one, got {str(name)[:80]!r}")
        below = found[0].parent / name
        if not below.exists() and Path(name).parts[:1] == ("configs",):
            below = _found(name)
        if not below.exists():
            raise UserError(f"{at}: no file {below}; expected a path from this YAML's folder, or configs/NAME")
        if any(below.samefile(above) for above in found):
            raise UserError(f"{at}: {name} leads back to this YAML")
        found.insert(0, below)
    return found


def alone(text: str) -> str:
    """A YAML without the name of the one below it, which `stacked` has put before it."""
    values = yaml.safe_load(text)
    if not isinstance(values, dict) or BELOW not in values:
        return text
    return yaml.safe_dump({name: value for name, value in values.items() if name != BELOW}, sort_keys=False)


def _configs(arguments: list[str]) -> Iterator[tuple[int, str, str]]:
    """Place, what stands before it in its word, and name of each config of a command line."""
    for place, word in enumerate(arguments):
        flag, equals, value = word.partition("=")
        if flag in FLAGS and equals:
            yield place, f"{flag}=", value
        elif flag in FLAGS and place + 1 < len(arguments):
            yield place + 1, "", arguments[place + 1]


def _found(name: str) -> Path:
    """Of a command line; what is not there may be YAML itself, and the parser says so."""
    path = Path(name)
    if not path.exists() and path.parts[:1] == ("configs",) and ".." not in path.parts:
        path = packaged(Path(*path.parts[1:])) or path
    return path


def packaged(name: Path) -> Path | None:
    """A config of this package, by its path in `configs/`; None where there is none."""
    here = Path(__file__).parent
    return next((root / name for root in (here / "packaged", here.parent / "configs") if (root / name).is_file()), None)


def holding(arguments: list[str], keys: list[str]) -> str | None:
    """The config of a command line that an error is about; None where the command line itself has the key.

    Args:
        arguments: Of a command line as `resolved` gives it.
        keys: Of the error, each inside the one before it, the first one dotted.
    """
    if any(word.startswith((f"--{keys[0]}", f"--{keys[0].split('.')[0]}=")) for word in arguments):
        return None
    names = [name for _, _, name in _configs(stacked(arguments)) if Path(name).is_file()]
    for name in reversed(names):
        value = load(Path(name))
        for part in keys[0].split("."):
            value = value.get(part, value.get(f"{part}+")) if isinstance(value, dict) else None
        if value is not None and f"{keys[-1].split('.')[-1]}:" in Path(name).read_text().replace("+:", ":"):
            return name
    return None


def load(path: Path, option: str = "--config") -> Any:
    """What a YAML says; of the tags only YAML's own are known, and no key is there twice.

    Args:
        path: Of a file of at most MAX_BYTES that stands for at most MAX_VALUES values, its aliases written out.
        option: What errors call it.

    Raises:
        UserError: It is not such a YAML; the line names the file, and the key or the line in it.
    """
    try:
        node = yaml.compose(read_regular(path, MAX_BYTES).decode(), Loader=yaml.SafeLoader)
        values = _values(node, "", {})
        if values > MAX_VALUES:
            raise UserError(f"its aliases stand for {values} values, more than {MAX_VALUES}")
        return None if node is None else SafeConstructor().construct_document(node)
    except RecursionError:
        raise UserError(f"{option} {path}: nested too deeply, or an alias holds itself") from None
    except UnicodeDecodeError:
        raise UserError(f"{option} {path}: expected a YAML, got no text in UTF-8") from None
    except (ValueError, yaml.YAMLError) as error:
        raise UserError(f"{option} {path}: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None


def _values(node: yaml.Node | None, name: str, known: dict[int, int]) -> int:
    """How many values a node stands for, its aliases written out.

    Raises:
        UserError: What no configuration has: a tag, a zero byte, a key twice, a class that is no name, arguments that
            have none.
    """
    if node is None:
        return 1
    if node.tag.removeprefix(YAML_TAG) not in TAGS:
        tag = node.tag.replace(YAML_TAG, "!!")[:80]
        raise UserError(f"{_at(node, name)}: the tag {tag}: expected plain YAML, which has no tags")
    if isinstance(node, yaml.ScalarNode):
        if "\0" in node.value:  # no path and no name may have one
            raise UserError(f"{_at(node, name)}: {node.value[:80]!r} holds a zero byte")
        try:
            if node.tag.removeprefix(YAML_TAG) in ("int", "float", "timestamp"):
                SafeConstructor().construct_document(node)
        except ValueError:  # a date or an integer that Python has no room for
            raise UserError(f"{_at(node, name)}: not a value: {node.value[:40]}") from None
        return 1
    if id(node) in known:
        return known[id(node)]
    count = 1
    if isinstance(node, yaml.SequenceNode):
        count += sum(_values(each, f"{name}.{place}".lstrip("."), known) for place, each in enumerate(node.value))
    else:
        keys: set[tuple[str, str]] = set()
        for key, below in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise UserError(f"{_at(key, name)}: expected a name as key, got a list or a mapping")
            inner = f"{name}.{key.value[:80]}".lstrip(".")
            if (key.tag, key.value) in keys:
                raise UserError(f"{_at(key, inner)}: is there twice in one mapping")
            keys.add((key.tag, key.value))
            _check_class(key.value, below, inner)
            count += _values(key, inner, known) + _values(below, inner, known)
    known[id(node)] = count
    return count


def _check_class(key: str, node: yaml.Node, name: str) -> None:
    if key == "class_path" and node.tag != YAML_TAG + "str":
        raise UserError(f"{_at(node, name)}: expected the name of a class, as package.Class")
    if key in ("init_args", "dict_kwargs") and not isinstance(node, yaml.MappingNode):
        raise UserError(f"{_at(node, name)}: expected a mapping of names to values")


def _at(node: yaml.Node, name: str) -> str:
    return f"line {node.start_mark.line + 1}{': ' if name else ''}{name}"
