"""The inputs in a zip that the browser sent: the files of its first sample."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from datamodules.drawings.backdrop import file_names
from datamodules.drawings.files import IMAGE, MASK, META
from remoco.common.errors import UserError, readable
from remoco.common.json_files import parse_json
from remoco.common.zip_files import Archive


def first_sample(data: bytes, name: str, most: int) -> tuple[dict[str, bytes], int]:
    """The files of the first sample in a zip, `most` bytes together at most, and how many samples it holds.

    Raises:
        UserError: one line that names the zip and what is wrong with it.
    """
    archive = Archive(data, name, most)
    images = sorted(entry for entry in archive.entries if PurePosixPath(entry).name == IMAGE)
    if not images:
        raise UserError(f"{name}: no {IMAGE} in it")
    folder = PurePosixPath(images[0]).parent
    files: dict[str, bytes] = {}

    def read(wanted: Sequence[str]) -> None:
        for entry in archive.entries:
            path = PurePosixPath(entry)
            if path.parent == folder and path.name in wanted and len(files) < 8:
                if path.name in files:  # under a/b and a/./b
                    raise UserError(f"{name}: {readable(path.name, 100)} is there twice")
                files[path.name] = archive.read(entry)

    read((IMAGE, MASK, *META))
    read([other for text in META if text in files for other in named_in(files[text]) if other not in files])
    return files, len(images)


def named_in(text: bytes) -> list[str]:
    """Files that a `meta_data.json` names; errors in the text are reported where it is read."""
    try:
        return file_names(parse_json(text))
    except UserError:
        return []
