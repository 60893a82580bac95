"""The name that a mistyped one is near to, in a parser's errors."""

from __future__ import annotations

import re
import sys
from argparse import SUPPRESS
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentParser

MOST = 5  # names of which one is given the beginning
OF_A_CLASS = ("class_path", "init_args", "dict_kwargs")  # beside a class's own arguments


def hint(name: str, names: Iterable[str], dashes: str = "") -> str:
    """`; did you mean NAME?`, or nothing where no name is near. Names that begin with the given one are nearest.

    >>> hint("trainer.max_step", ["trainer.max_steps", "trainer.max_epochs"])
    '; did you mean trainer.max_steps?'
    >>> hint("max_steps", ["trainer.max_steps"]), hint("xyzzy", ["trainer.max_steps"])
    ('; did you mean trainer.max_steps?', '')
    >>> hint("num", ["num_frames", "num_steps", "seed"])
    '; did you mean num_frames or num_steps?'

    Args:
        name: What was given; the parts of a nested key are joined by dots.
        names: The names that there are.
        dashes: What the names are typed with.
    """
    known = [each.split(".") for each in names]
    parts = name.split(".")
    for depth, part in enumerate(parts):
        siblings = {each[depth] for each in known if len(each) > depth and each[:depth] == parts[:depth]}
        if part in siblings:
            continue
        longer = sorted(each for each in siblings if part and each.startswith(part))
        close = longer if 0 < len(longer) <= MOST else get_close_matches(part, sorted(siblings), 1)
        if close:
            *others, last = (dashes + ".".join([*parts[:depth], each, *parts[depth + 1 :]]) for each in close)
            return f"; did you mean {' or '.join(filter(None, [', '.join(others), last]))}?"
        elsewhere = sorted(".".join(each) for each in known if each[-1] == parts[-1])
        return f"; did you mean {dashes}{elsewhere[0]}?" if elsewhere else ""
    return ""


class Hinting(ArgumentParser):
    """A parser whose errors about keys, flags and commands that it does not know offer a near one.

    A flag has its whole name: an abbreviation that works today means another flag, or none, in a later version.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False} | options)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            text = str(error)
            if match := re.search(r"^(?:Group '([\w.]+)' does not accept option|.*[Oo]ption) '([\w.]+)'", text):
                key = ".".join(filter(None, match.groups()))
                error.args = (text + hint(key, _names(self)),)
            raise

    def hinted(self, message: str) -> str:
        """The message of `error`, with a name near to the flag, command or class that is unknown."""
        if match := re.search(r"unrecognized arguments: .*?--([\w.-]+)", message):
            places = {action.dest for action in self._actions if not action.option_strings} - {SUPPRESS}
            bare = next((name for name in sorted(places) if name.replace("_", "-").startswith(match[1])), None)
            near = hint(match[1], _names(self) - places, "--")
            return message + (near or (f"; {bare} is given without a flag" if bare else ""))
        if match := re.search(r"invalid choice: '([^']*)' \(choose from (.*)\)", message):
            return message + hint(match[1], re.findall(r"[\w-]+", match[2]))
        if (match := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message)) and match[1] in sys.modules:
            module = sys.modules[match[1]]
            # what is imported only when it is asked for is not in `dir`
            names = {*dir(module), *getattr(module, "__all__", ())}
            return message + hint(match[2], (name for name in names if name[0] != "_"))
        return message


def _names(parser: ArgumentParser) -> set[str]:
    """Long flags of a parser and its commands without their dashes, positional arguments, and keys beside a class's."""
    names = set(OF_A_CLASS)
    for action in parser._actions:
        names |= {flag[2:] for flag in action.option_strings if flag.startswith("--")}
        if not action.option_strings and action.dest != SUPPRESS:
            names.add(action.dest)
        for command in (getattr(action, "_name_parser_map", None) or {}).values():
            names |= _names(command)
    return {name for name in names if not name.endswith("+") and name not in ("help", "print_config")}
