"""Flags of a command from its function: names and types from the signature, help from the docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import typing
from collections.abc import Callable
from typing import Any, NoReturn

from docstring_parser import parse
from jsonargparse import Namespace

from remoco.near import Hinting

LONGEST = 800  # characters of a line of the parser's: it may hold a value of any length
KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "str": "a text", "list": "a list",
    "dict": "a mapping", "tuple": "a list", "Iterable": "a list", "NoneType": "null",
}  # fmt: skip


class Parser(Hinting):
    """Reports a mistake as one line and exits with 2."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the cause with the flag as it is typed."""
        line = re.sub(
            r"Parser key \"([\w.]+)\":", lambda key: f"--{key[1].replace('_', '-')}:", self.hinted(cause(message))
        )
        print(f"{self.prog}: error: {line}", file=sys.stderr)
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
    text = parse(inspect.getdoc(function) or "")
    helps = {entry.arg_name: _sentence(entry.description) for entry in text.params}
    built = Parser(prog=name, description=_sentence(text.short_description))
    for parameter in inspect.signature(function, eval_str=True).parameters.values():
        kind, default = parameter.annotation, parameter.default
        if parameter.kind is parameter.POSITIONAL_ONLY and default is not parameter.empty:
            built.add_argument(
                parameter.name,
                nargs="?",
                type=kind,
                default=default,
                help=helps.get(parameter.name),
                metavar=parameter.name.upper(),
            )
        elif default is parameter.empty:
            many = (
                {"nargs": "+", "type": typing.get_args(kind)[0]} if typing.get_origin(kind) is list else {"type": kind}
            )
            built.add_argument(parameter.name, help=helps.get(parameter.name), **many)
        elif dataclasses.is_dataclass(default):
            fields = {
                entry.arg_name: _sentence(entry.description) for entry in parse(type(default).__doc__ or "").params
            }
            types = typing.get_type_hints(type(default))
            for field in dataclasses.fields(default):
                _add(
                    built,
                    f"{parameter.name}_{field.name}",
                    types[field.name],
                    getattr(default, field.name),
                    fields.get(field.name),
                )
        else:
            _add(built, parameter.name, kind, default, helps.get(parameter.name))
    return built


def values(function: Callable[..., Any], parsed: Namespace) -> dict[str, Any]:
    """What was parsed as keyword arguments of the function, dataclasses put together."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        default: Any = parameter.default
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            fields = dataclasses.fields(default)
            settings = {field.name: parsed[f"{parameter.name}_{field.name}"] for field in fields}
            arguments[parameter.name] = dataclasses.replace(default, **settings)
        else:
            arguments[parameter.name] = parsed[parameter.name]
    return arguments


def positional_only(function: Callable[..., Any]) -> list[str]:
    """Names of the parameters before a `/`, which Python takes by their place alone."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind is parameter.POSITIONAL_ONLY]


def menu(name: str, entries: dict[str, str]) -> Parser:
    """A parser that knows the names of the commands alone, for help and for errors."""
    built = Parser(prog=name, description=f"Run `{name} COMMAND --help` for the flags of a command.")
    commands = built.add_subcommands(required=True, dest="command")
    for word, text in entries.items():
        commands.add_subcommand(word, Parser(), help=text)
    return built


def _add(built: Parser, name: str, kind: Any, default: Any, text: str | None) -> None:
    flag = f"--{name.replace('_', '-')}"
    if kind is bool and default is False:
        built.add_argument(flag, action="store_true", help=text)
    elif typing.get_origin(kind) is list or (isinstance(default, (list, tuple)) and not default):
        element = next(iter(typing.get_args(kind)), str)
        built.add_argument(flag, action="append", type=element, default=[], help=text)
    else:
        built.add_argument(flag, type=kind, default=default, help=text)


def _sentence(text: str | None) -> str | None:
    """With a capital and a full stop, so that help reads as text; `%` is argparse's own sign."""
    if not text:
        return text
    text = " ".join(text.split()).replace("%", "%%")
    return text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")
