"""A run's default name: its base configuration's, and what differs from it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml

from remoco.configs import layers

NAME = "trainer.logger.init_args.name"
LONGEST = 100
# what changes where or how fast, not what comes out; paths are left out by their slashes
SILENT = ("num_workers", "val_batch_size", "decoder", "root", "shards", "val_shards", "path", "revision", "file",
          "recompute")  # fmt: skip
SPEAKING = ("model", "data", "optimizer", "lr_scheduler", "seed_everything")


def options(words: list[str]) -> list[tuple[str, str]]:
    """(key, value) of every `--key value` and `--key=value` of a command line, in order."""
    pairs = []
    for index, word in enumerate(words):
        if word.startswith("--"):
            key, equals, value = word[2:].partition("=")
            following = words[index + 1] if index + 1 < len(words) else ""
            pairs.append((key, value if equals or following.startswith("--") else following))
        elif word == "-c" and index + 1 < len(words):
            pairs.append(("config", words[index + 1]))
    return pairs


def base_name(words: list[str]) -> str:
    """The name in the first configuration file, or in what lies below it, or the file's own, or `run`."""
    configs = [value for key, value in options(words) if key == "config"]
    if not configs:
        return "run"
    first = _naming(configs[0])[0]
    return _named(first) or first.stem


def run_name(words: list[str], configured: str | None, fit: bool = True) -> str | None:
    """The name of a fit: from the command line, else made of base, overlays and the options that differ.

    The base is always in it: the same overlay over two bases makes two folders.

    >>> run_name(["fit", "--model.init_args.control.rank", "8", "--data.init_args.num_workers=2"], "quickstart")
    'quickstart-rank_8'

    Args:
        words: the command line.
        configured: the name in the parsed configuration.
        fit: whether a run begins or resumes. Others look for one: configurations without a name of their own, and
            options, then say how it is evaluated, not which it is.
    """
    pairs = options(words)
    if any(key == NAME or (key.startswith("trainer.logger") and "name" in key + value) for key, value in pairs):
        return configured
    configs = [path for key, value in pairs if key == "config" for path in _naming(value)]
    parts = [configured] if configured else []
    if len(configs) > 1:
        parts = list(dict.fromkeys(name for path in configs if (name := _named(path) or (path.stem if fit else ""))))
    last = {}
    for key, value in pairs if fit else []:
        field = re.sub(r"\.(init_args|class_path|dict_kwargs)\b", "", key)
        tail = field.split(".")[-1]
        if field.split(".")[0] in SPEAKING and tail not in SILENT and "/" not in value:
            shown = value.split(".")[-1] if re.fullmatch(r"[A-Za-z_][\w.]*", value) else value
            last[field] = f"{'data_' if field.startswith('data.') else ''}{tail}_{shown}"
    return shortened("-".join([*parts, *last.values()])) or configured


def shortened(name: str) -> str:
    """A name of plain characters, of a length that every file system takes."""
    name = re.sub(r"[^A-Za-z0-9._+-]+", "_", name).strip("_.")
    if len(name) > LONGEST:
        name = f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name


def _naming(config: str) -> list[Path]:
    """A configuration file, and before it, where it has no name, the nearest below it that has one."""
    *below, own = layers(config)
    nearest = [] if _named(own) else [path for path in below if _named(path)][-1:]
    return [*nearest, own]


def _named(path: Path) -> str | None:
    """The logger's name in a configuration file; the parser reports what is wrong with the file."""
    try:
        value: Any = yaml.safe_load(path.read_text())
        for key in NAME.split("."):
            value = value[0] if isinstance(value, list) else value
            value = value.get(key)
    except (OSError, ValueError, AttributeError, yaml.YAMLError, IndexError):
        return None
    return value if isinstance(value, str) and value else None
