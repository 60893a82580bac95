"""What `shards:` names: folders, globs and brace patterns, paths or URLs."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from datamodules.shards.remote import Remote, is_remote
from remoco.common.errors import UserError

MOST_NAMES = 1_000_000  # of a brace pattern


def expand(pattern: str | Path | Sequence[str]) -> list[Path | Remote]:
    """A folder, a glob or a brace pattern (or a list of them), local or URLs, to the folders and tars it names.

    Raises:
        UserError: nothing matches; the message names the pattern.
    """
    import braceexpand

    patterns = [str(pattern)] if isinstance(pattern, (str, Path)) else [str(item) for item in pattern]
    files: list[Path | Remote] = []
    for text in patterns:
        matches: list[Path | Remote] = []
        names = [text] if os.path.exists(text) else list(islice(braceexpand.braceexpand(text), MOST_NAMES + 1))
        if len(names) > MOST_NAMES:
            raise UserError(f"shards: {text!r} stands for more than {MOST_NAMES} names")
        for plain in names:
            if is_remote(plain):
                matches += Remote(plain).glob() if set(plain) & set("*?[") else [Remote(plain)]
                continue
            found_here = [plain] if os.path.exists(plain) else sorted(glob.glob(plain))
            matches += [Path(name) for name in found_here if os.path.isdir(name) or name.endswith(".tar")]
        if not matches:
            raise UserError(
                f"shards: nothing matches {text!r}, expected a folder of shards, or a glob or brace pattern of .tar"
            )
        files += matches
    return list(dict.fromkeys(files))
