"""The commands' names, and what all of them share: flags from a function's signature, and errors of one line.

A command is a function. Its parameters without a default are positional, those with one before a `/` are positional and
may be left out, the others are flags: `clips_per_shard` is `--clips-per-shard`, a bool is a switch, a list of texts
takes one each time. A parameter that is a dataclass is a flag for each field, under the field's own name; the fields of
a dataclass in it have its name before theirs. Types come from the annotations, help from the docstring and from what
stands under a field. What it returns is the exit code, nothing is 0.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from remoco import flags
from remoco.common.errors import UserError, one_line


class Command(NamedTuple):
    """Where a command's function is, `module:name`, imported when it is called, and its line in `remoco --help`."""

    function: str
    help: str


COMMANDS: dict[str, Command | dict[str, Command]] = {
    "prepare": Command("datamodules.prepare.command:prepare", "Turn videos into shards with tracks."),
    "verify": Command("datamodules.prepare.command:verify", "Read all of a set of shards and list what is bad."),
    "latents": Command("remoco.latents:latents", "Copy shards with the frozen networks' work cached."),
    "generate": Command("remoco.generate:generate", "Turn an image and drawn tracks into a video."),
    "score": Command("remoco.score:score", "Score any system's videos with the paper's metrics."),
    "compare": Command("remoco.compare:compare", "Sample and score several systems on one benchmark."),
    "report": Command("remoco.report:report", "Turn runs and scores into an offline page."),
    "study": {
        "pages": Command("remoco.study:pages", "Make an offline page of blind pairs of two systems' videos."),
        "ratios": Command("remoco.study:ratios", "Turn answers into preference ratios with 95 % intervals."),
    },
    "sweep": {
        "run": Command(
            "remoco.sweep.command:run", "Run a sweep's trials, each a fit and a test in a run folder of its own."
        ),
        "table": Command(
            "remoco.sweep.command:table", "Print a sweep's results, with seeds as a spread, and write CSV."
        ),
        "plot": Command("remoco.sweep.command:plot", "Draw a sweep's results, with seeds as error bars."),
    },
    "sprite-bench": Command("remoco.score:sprite_bench", "Write a small benchmark with known answers."),
    "convert": Command("remoco.released:convert", "Turn a released weights file into our adapter file."),
    "pack": Command("remoco.embedded:pack", "Put a whole small model into one half-precision file."),
    "demo": Command("remoco.embedded:demo", "Draw one stroke on a held-out frame and generate the clip."),
    "photos": Command(
        "remoco.photos_command:photos", "Measure a model of photographs beside pixels moved without a network."
    ),
    "page": Command("remoco.page:page", "Serve a page to draw on an image and generate from it."),
    "export-base": Command("remoco.export_base:export_base", "Write a trained base as the diffusers folders of SVD."),
    "export": Command("remoco.released:export", "Write a trained controller in the released layout."),
}


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2.

    Args:
        arguments: The command line after `remoco`; that of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # broken videos are reported, not shouted about
    path, function = _find(arguments)
    name = " ".join(["remoco", *path])
    if function is None:
        parser = flags.menu(name, _menu(path))
        parser.parse_args(arguments[len(path) :])
        return 0
    parser = flags.parser(name, function)
    parsed = parser.parse_args(arguments[len(path) :])
    try:
        values = flags.bound(function, parsed)
        return int(function(*values.args, **values.kwargs) or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes from here", file=sys.stderr)
        return 130
    except (UserError, OSError) as error:  # an OSError: a file that is not there or not writable
        text = one_line(error)
        if isinstance(error, OSError) and error.filename and error.strerror:
            text = f"{os.fsdecode(error.filename)}: {error.strerror}"
        print(f"{name}: error: {text}", file=sys.stderr)
        return 2


def _find(arguments: list[str]) -> tuple[list[str], Callable[..., Any] | None]:
    """The words that name the command, and its function; None where they name a menu or nothing."""
    entry: Any = COMMANDS
    path: list[str] = []
    for word in arguments:
        if not isinstance(entry, dict) or word not in entry:
            break
        entry = entry[word]
        path.append(word)
    if isinstance(entry, dict):
        return path, None
    module, _, name = entry.function.partition(":")
    return path, getattr(import_module(module), name)


def _menu(path: list[str]) -> dict[str, str]:
    entries: Any = COMMANDS
    for word in path:
        entries = entries[word]
    return {
        name: entry.help if isinstance(entry, Command) else f"One of: {', '.join(entry)}."
        for name, entry in entries.items()
    }
