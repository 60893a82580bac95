"""How the help of `remoco` and of its commands looks: groups, plain kinds instead of Python's types, one example."""

from __future__ import annotations

import re
import shutil
import textwrap
from argparse import SUPPRESS, Action, _HelpAction
from collections.abc import Mapping

from jsonargparse import DefaultHelpFormatter

KINDS = {"int": "whole number", "float": "number", "dict[str, Any]": "mapping", "str": "text"}
SILENT = ("text", "null", "bool")  # the sentence says what it is
NAMES = 14  # columns of the commands' names in a menu


class Formatter(DefaultHelpFormatter):
    """The sentence of a flag, then its kind and its default in brackets, where these say more than the sentence."""

    def _get_help_string(self, action: Action) -> str:
        if isinstance(action, _HelpAction):
            return super()._get_help_string(action)
        text = action.help or ""
        notes = [] if action.choices or self._chosen(action) else [_kind(self._get_type_str(action))]
        shown = action.option_strings or action.nargs == "?"
        if shown and action.default is not False and action.default not in (None, SUPPRESS, "", [], {}):
            notes += [] if "Default:" in text else ["default: %(default)s"]
        notes = [note for note in notes if note]
        return f"{text} ({', '.join(notes)})" if notes else text

    def _chosen(self, action: Action) -> bool:
        """Whether the flag's own line shows the values, as in `--fit {crop,pad,stretch}`."""
        return str(action.metavar or "").startswith("{")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        """Paragraphs are filled, indented lines are commands and stay as they are."""
        filled = [
            each if each.startswith(" ") else textwrap.fill(each, width, break_long_words=False, break_on_hyphens=False)
            for each in text.splitlines()
        ]
        return "\n".join(filled)


def _kind(kind: str | None) -> str:
    """A type as jsonargparse writes it, in the words of a sentence; nothing where it is any text."""
    if kind is None:
        return ""
    values = [value for each in re.findall(r"Literal\[(.*?)\]", kind) for value in re.findall(r"'([^']*)'", each)]
    inner = re.fullmatch(r"(?:Union|Optional)\[(.*)\]", kind)
    members = re.sub(r"Literal\[.*?\]", "", inner[1]).split(", ") if inner else kind.split(" | ")
    words = [KINDS.get(member, member) for member in members if member and not member.startswith("Literal[")]
    return " or ".join([*(word for word in words if word not in SILENT), *values])


def menu(name: str, about: str, groups: Mapping[str, Mapping[str, str]], example: str) -> str:
    """The help of a menu of commands.

    Args:
        name: Words of the menu, `remoco` or `remoco sweep`.
        about: What the commands are for.
        groups: Title -> command -> its sentence.
        example: A command line.
    """
    width = shutil.get_terminal_size().columns - 2
    lines = [f"usage: {name} COMMAND ...", "", *textwrap.wrap(about, width), ""]
    for title, entries in groups.items():
        lines.append(f"{title}:")
        for command, text in entries.items():
            lines += textwrap.wrap(
                text, width, initial_indent=f"  {command:<{NAMES}}", subsequent_indent=" " * (NAMES + 2)
            )
        lines.append("")
    lines += ["Example:", f"  {example}", "", *textwrap.wrap(f"Run `{name} COMMAND --help` for its flags.", width)]
    return "\n".join(lines) + "\n"
