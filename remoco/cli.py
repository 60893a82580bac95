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

from remoco import __version__, flags
from remoco.command_help import menu
from remoco.common.errors import UserError, one_line


class Command(NamedTuple):
    """Where a command's function is, `module:name`, imported when it is called, and its line in `remoco --help`."""

    function: str
    help: str


class Menu(NamedTuple):
    """Commands below a word, as `remoco sweep run`; what they are for, and a command line of one of them."""

    about: str
    example: str
    groups: dict[str, dict[str, Command | Menu]]

    @property
    def entries(self) -> dict[str, Command | Menu]:
        """Word -> command, of all groups."""
        return {word: entry for group in self.groups.values() for word, entry in group.items()}


STUDY = Menu(
    "Ask people which of two systems' videos is better, blind and offline.",
    "remoco study pages videos/ours videos/theirs --out study",
    {
        "commands": {
            "pages": Command("remoco.study.pages:pages", "Make an offline page of blind pairs of two systems' videos."),
            "ratios": Command("remoco.study.ratios:ratios", "Turn answers into preference ratios with 95 % intervals."),
        }
    },
)
SWEEP = Menu(
    "Train and test the points of a grid or a search, and compare them.",
    "remoco sweep run configs/sweep/region_size.yaml",
    {
        "commands": {
            "run": Command(
                "remoco.sweep.command:run", "Run the trials: each is a fit and a test in its own run folder."
            ),
            "table": Command("remoco.sweep.command:table", "Print the results, with seeds as a spread, and write CSV."),
            "plot": Command("remoco.sweep.command:plot", "Draw the results, with seeds as error bars."),
        }
    },
)
TOP = Menu(
    "Region-wise motion control of image-to-video diffusion. `python -m lightning fit --config CONFIG` trains; "
    "these are the other commands.",
    "remoco demo",
    {
        "draw and generate": {
            "demo": Command("remoco.embedded:demo", "Move a flower in a photograph along one stroke."),
            "page": Command("remoco.page:page", "Serve a page to draw on an image and generate from it."),
            "generate": Command("remoco.generate:generate", "Turn an image and drawn tracks into a video."),
        },
        "data to train on": {
            "prepare": Command("datamodules.prepare.command:prepare", "Turn videos into shards with tracks."),
            "verify": Command(
                "datamodules.prepare.command:verify", "Read all of a set of shards and list what is bad."
            ),
            "captions": Command(
                "remoco.captions:captions", "Embed the captions of shards, for a base that takes text."
            ),
            "cache": Command("remoco.cache:cache", "Copy shards with the frozen networks' work beside each clip."),
            "holes": Command(
                "remoco.photos_command:holes", "Fill the holes that things leave in photographs, to train on."
            ),
        },
        "experiments": {"sweep": SWEEP},
        "measure and compare": {
            "score": Command("remoco.score:score", "Score any system's videos with the paper's metrics."),
            "compare": Command("remoco.compare.command:compare", "Sample and score several systems on one benchmark."),
            "report": Command("remoco.report.command:report", "Turn runs and scores into an offline page."),
            "study": STUDY,
            "sprite-bench": Command("remoco.score:sprite_bench", "Write a small benchmark with known answers."),
            "photos": Command("remoco.photos_command:photos", "Measure a model of photographs beside moved pixels."),
        },
        "weights in other formats": {
            "convert": Command("remoco.released:convert", "Turn a released weights file into our adapter file."),
            "export": Command("remoco.released:export", "Write a trained controller in the released layout."),
            "export-base": Command(
                "remoco.export_base:export_base", "Write a trained base as the diffusers folders of SVD."
            ),
            "card": Command("remoco.card:card", "Write a controller with its card, or upload it to the hub."),
            "pack": Command("remoco.embedded:pack", "Put a whole small model into one half-precision file."),
        },
    },
)


RENAMED = {"latents": "it is `remoco cache` now, for every base, and its --svd is --base"}  # command -> what it became


def main(arguments: list[str] | None = None) -> int:
    """Run a command; a user's mistake is one line on stderr and exit code 2.

    Args:
        arguments: The command line after `remoco`; that of the process by default.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    logging.getLogger("libav").setLevel(logging.CRITICAL)  # broken videos are reported, not shouted about
    if arguments and arguments[0] in RENAMED:
        print(f"remoco {arguments[0]}: error: {RENAMED[arguments[0]]}", file=sys.stderr)
        return 2
    path, entry = _find(arguments)
    name = " ".join(["remoco", *path])
    if isinstance(entry, Menu):
        _menu(name, entry, None if path else __version__).parse_args(arguments[len(path) :])
        return 0
    function = _imported(entry)
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


def _find(arguments: list[str]) -> tuple[list[str], Command | Menu]:
    """The words that name a command or a menu, and what they name."""
    entry: Command | Menu = TOP
    path: list[str] = []
    for word in arguments:
        if not isinstance(entry, Menu) or word not in entry.entries:
            break
        entry = entry.entries[word]
        path.append(word)
    return path, entry


def _imported(command: Command) -> Callable[..., Any]:
    module, _, name = command.function.partition(":")
    return getattr(import_module(module), name)


def _menu(name: str, entry: Menu, version: str | None) -> flags.Parser:
    sentences = {
        title: {word: each.help if isinstance(each, Command) else each.about for word, each in group.items()}
        for title, group in entry.groups.items()
    }
    words = {word: text for group in sentences.values() for word, text in group.items()}
    return flags.menu(name, words, menu(name, entry.about, sentences, entry.example), version)
