"""The bytes of a caption to text, in whatever encoding an editor saved it."""

from __future__ import annotations

import codecs
from pathlib import Path

from datamodules.prepare.source import printable
from remoco.common.errors import escaped
from remoco.common.json_files import read_regular

CAPTION_BYTES = {"txt": 1 << 16, "json": 1 << 20}  # more than this is no caption, nor what describes a video
_MARKS = (  # UTF-32's begins with UTF-16's
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip


def marked(data: bytes) -> tuple[str, int] | None:
    """Encoding that a byte order mark at the beginning names, and the bytes of the mark; None where there is none."""
    return next(((name, len(mark)) for mark, name in _MARKS if data.startswith(mark)), None)


def wide(data: bytes) -> str | None:
    """The encoding of UTF-16 without a byte order mark, recognised by the zeros of Latin letters; else None."""
    zeros = [data[side::2].count(0) for side in (0, 1)]
    if max(zeros) * 4 < len(data) // 2 or not any(zeros) or min(zeros) * 4 > max(zeros):
        return None
    return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"


def decoded(data: bytes) -> tuple[str, str]:
    """Text without what surrounds it, and its encoding where that is a guess, else an empty one.

    A byte order mark decides; without one it is UTF-8 where it can be, else Windows' cp1252, which is a guess, as
    UTF-16 without a mark is. Bytes without a meaning become U+FFFD.
    """
    mark, guess = marked(data), ""
    if mark is not None:
        text = data[mark[1] :].decode(mark[0], "replace")
    elif guess := wide(data) or "":
        text = data.decode(guess, "replace")
    else:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text, guess = data.decode("cp1252", "replace"), "cp1252"
    return text.replace("\r\n", "\n").strip(), guess


def read_caption(path: Path) -> tuple[str, str]:
    """A `.txt` that may be there; and why it is left out where there is one that cannot be used, or how it was read."""
    try:
        data = read_regular(path, CAPTION_BYTES["txt"])
    except FileNotFoundError:
        return "", ""
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        return "", f"its caption {escaped(printable(path.name))} is left out: {reason}"
    text, guess = decoded(data)
    return text, guessed(guess)


def guessed(encoding: str) -> str:
    """The note of a caption whose encoding is a guess; empty where it is known."""
    return f"caption read as {encoding}, a guess, for it is no UTF-8" if encoding else ""
