"""A command's parser: jsonargparse reads the function's signature and docstrings, this gives flags flat names.

A dataclass is a group of the help, titled by its docstring; the example under a function's `Example:` ends the help.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace, set_parsing_settings

from remoco.command_help import Formatter
from remoco.near import Hinting

LONGEST = 800  # characters of a line of the parser's: it may hold a value of any length
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
    "dict": "a mapping", "tuple": "a list", "Iterable": "a list", "NoneType": "null",
}  # fmt: skip

# what stands under a field of a dataclass is its help
set_parsing_settings(docstring_parse_attribute_docstrings=True)


class Parser(Hinting):
    """The parser of a function. It reports a mistake as one line and exits with 2."""

    parameters: Mapping[str, inspect.Parameter] = {}
    group: Any = None  # of the help, that what is added belongs to
    text: str | None = None  # the whole help, of a menu

    def format_help(self, *args: Any, **options: Any) -> str:
        return super().format_help(*args, **options) if self.text is None else self.text

    def add_argument(self, *names: str, **options: Any) -> Any:
        """As jsonargparse reads it from the signature, with the name and the form that a command line has."""
        path = names[0].removeprefix("--")
        parameter = self.parameters.get(path.partition(".")[0])
        if parameter is None:
            return super().add_argument(*names, **options)
        if dataclasses.is_dataclass(options.get("type")):
            title = inspect.cleandoc(options["type"].__doc__ or "").partition("\n\n")[0]
            outer, self.group = (
                self.group,
                self.add_argument_group(" ".join(title.split()).partition(". ")[0].rstrip(".")),
            )
            self.add_class_arguments(options["type"], path, as_group=False)
            self.group = outer
            return None
        flag = "--" + "-".join(path.split(".")[1:] or [path]).replace("_", "-")
        if typing.get_origin(parameter.annotation) in (list, Sequence):
            options = {"type": typing.get_args(parameter.annotation)[0], "help": options["help"]}
            options |= {"nargs": "+"} if parameter.default is parameter.empty else {"action": "append", "default": []}
        elif options.get("type") is bool and options.get("default") is False:
            options = {"action": "store_true", "help": options["help"]}
        if parameter.default is parameter.empty:
            return super().add_argument(path, **options)
        if parameter.kind is parameter.POSITIONAL_ONLY:
            options |= {"nargs": "?", "default": parameter.default, "metavar": path.upper()}
            return super().add_argument(path, **options)
        added = super().add_argument(flag, dest=path, **options)
        if self.group is not None:  # jsonargparse's groups would call this method with themselves as the parser
            self._optionals._group_actions.remove(added)
            self.group._group_actions.append(added)
        return added

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause with the flag as it is typed."""
        flags = {action.dest: (*action.option_strings, action.dest)[0] for action in self._actions}
        line = re.sub(r"Parser key \"([\w.]+)\":", lambda key: f"{flags.get(key[1], key[1])}:", cause(message))
        print(f"{self.prog}: error: {self.hinted(line)}", file=sys.stderr)
        sys.exit(2)


class Unparsed(Exception):
    """What a parser does not take, in one line. The caller of the parser makes it a UserError.

    It is not a UserError itself, since that is a ValueError: among the types that a value may have, jsonargparse takes
    a ValueError for "not of this type".
    """


class Raising(Hinting):
    """A parser that raises Unparsed instead of leaving the program."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        raise Unparsed(self.hinted(cause(message)))


def cause(message: Any) -> str:
    """One line of a parser's message: jsonargparse adds the members of a Union and the whole value."""
    line = " ".join(str(message).split())
    line = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: - ", "", line)
    line = re.sub(r"( - Expected a <class 'NoneType'>)? Given value type: .*", "", line)
    line = re.sub(
        r"Not of type ((?:whole )?number [^:]+): (?:got|.*?:) '?(.*?)'?(?= - |$)", r"Expected a \1. Got value: \2", line
    )
    line = re.sub(
        r"(?:- )?Expected a path but (.*?) either not accessible or invalid - Expected a dot import path string: .*",
        r"Expected the path of a YAML, or a class path such as package.Class. Got value: \1", line,
    )  # fmt: skip
    line = re.sub(r"(?:- )?Expected a path but .*? either not accessible or invalid - (?=Problem|Import)", "", line)
    line = re.sub(r" Subclass types expect one of: - a class path .*? \(implicit class_path\)", "", line)
    line = re.sub(r"(?<=.) - Not a valid subclass of \w+", "", line)
    line = re.sub(r"Not a valid subclass of (\w+)\.?", r"Expected the class path of a \1, and init_args.", line)
    line = re.sub(
        r"Expected an? <class '(?:[\w.]+\.)?(\w+)'>", lambda kind: f"Expected {KINDS.get(kind[1], kind[1])}", line
    )
    line = re.sub(r"Expected a typing\.Literal\[(.*?)\]", r"Expected one of \1", line)
    line = " - ".join(dict.fromkeys(line.split(" - ")))  # members of a Union that say the same
    return line if len(line) <= LONGEST else f"{line[:LONGEST]} ..."


def parser(name: str, function: Callable[..., Any]) -> Parser:
    """The parser of one command.

    Args:
        name: The command's words, as the help and errors show them.
        function: What it runs.
    """
    text = inspect.getdoc(function) or ""
    built = Parser(prog=name, description=" ".join(text.partition("\n\n")[0].split()), formatter_class=Formatter)
    built.epilog = "Example:\n" + "\n".join(f"  {line}" for line in example(text)) if example(text) else None
    built.parameters = inspect.signature(function, eval_str=True).parameters
    built.add_function_arguments(function, as_group=False, as_positional=True)
    places = [_place(action) for action in built._actions if not action.option_strings]
    built.usage = " ".join(filter(None, [name, *places, "[options]"]))
    built._positionals.title = "arguments"
    return built


def example(text: str) -> list[str]:
    """The command lines under `Example:` of a docstring."""
    return [line.strip() for line in text.partition("\nExample:\n")[2].partition("\n\n")[0].splitlines()]


def _place(action: argparse.Action) -> str:
    name = str(action.metavar or action.dest)
    return {"+": f"{name} [{name} ...]", "?": f"[{name}]"}.get(str(action.nargs), name)


def bound(function: Callable[..., Any], parsed: Namespace) -> inspect.BoundArguments:
    """What was parsed as arguments of the function, its dataclasses put together.

    Raises:
        UserError: a dataclass refuses its values.
    """
    signature = inspect.signature(function, eval_str=True)
    values = {name: _value(each.annotation, parsed[name]) for name, each in signature.parameters.items()}
    return inspect.BoundArguments(signature, values)


def _value(kind: Any, parsed: Any) -> Any:
    if not dataclasses.is_dataclass(kind):
        return parsed
    hints = typing.get_type_hints(kind)
    return kind(**{name: _value(hints[name], value) for name, value in vars(parsed).items()})  # type: ignore[operator]


def menu(name: str, entries: dict[str, str], text: str | None = None, version: str | None = None) -> Parser:
    """A parser that knows the names of the commands alone, for help and for errors.

    Args:
        name: Words of the menu, as the help and errors show them.
        entries: Command -> its sentence.
        text: The whole help.
        version: What `--version` says after the name.
    """
    built = Parser(prog=name, version=version)
    built.text = text
    commands = built.add_subcommands(required=True, dest="command")
    for word, text in entries.items():
        commands.add_subcommand(word, Parser(), help=text)
    return built
