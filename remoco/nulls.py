"""Values of null where a class takes none, which the parser lets through below a `class_path`."""

from __future__ import annotations

import inspect
import pkgutil
import re
from collections.abc import Iterator, Mapping
from typing import Any, get_type_hints

from jsonargparse import Namespace

from datamodules.errors import UsageError

OPTIONAL = re.compile(r"\b(None|NoneType|Optional|Any)\b")


def refuse_nulls(config: Any, place: str = "") -> None:
    """Raise UsageError at the first null that the class it is for has no use for.

    Args:
        config: as parsed; every `class_path` with `init_args` in it is looked at, at any depth.
        place: where it stands in the configuration, for the message.
    """
    for name, value in _items(config):
        refuse_nulls(value, f"{place}.{name}" if place else name)
    parts = dict(_items(config))
    arguments = parts.get("init_args")
    if not isinstance(parts.get("class_path"), str) or not isinstance(arguments, (Namespace, Mapping)):
        return
    nulls = [name for name, value in _items(arguments) if value is None]
    expected = _expected(pkgutil.resolve_name(parts["class_path"])) if nulls else {}
    for name in nulls:
        if name in expected and not OPTIONAL.search(expected[name]):
            raise UsageError(f"{place}.init_args.{name} is null, expected {expected[name]}")


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list):
        yield from ((str(number), each) for number, each in enumerate(value))


def _expected(kind: type) -> dict[str, str]:
    """Argument -> its type, as text, of those that are neither untyped nor null by default."""
    try:
        hints = get_type_hints(kind.__init__)  # type: ignore[misc]  # of the class itself
    except (NameError, TypeError):  # a name that only type checkers import
        hints = {}
    found = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        hint = hints.get(name, parameter.annotation)
        if hint is not inspect.Parameter.empty and parameter.default is not None:
            found[name] = hint.__name__ if isinstance(hint, type) else str(hint)
    return found
