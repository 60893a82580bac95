"""What can go wrong, reported to the person who can fix it. Imports nothing: a loader's workers start fast."""

import errno

DISK_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EMFILE,
    errno.ENFILE,
}  # nobody's data's fault


class UserError(ValueError):
    """What a person gave or asked for cannot be used. The message is one line: file or option, field, and the cure."""


class BadClip(Exception):
    """One clip or video cannot be used. Training replaces it, preparation lists it; the message is one line."""


def brief(value: object) -> str:
    """A value of JSON in a few words, whatever it is: of a text or a number the first 40 characters."""
    if isinstance(value, (list, tuple, dict)):
        return f"{'a mapping' if isinstance(value, dict) else 'a list'} of {len(value)}"
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)[:40]


def one_line(error: BaseException) -> str:
    """`Type: message` of any exception, on one line: codecs raise messages of every shape. Ours are their message."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (BadClip, UserError)) else f"{type(error).__name__}: {text}"


def escaped(name: str) -> str:
    """A name from a file system or a file, for a line of text: what does not print is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def readable(text: str, most: int = 500) -> str:
    """Untrusted text as an error shows it: one line, without what would steer a terminal or cannot be written."""
    line = "".join(c if c.isprintable() else " " if c.isspace() else ascii(c)[1:-1] for c in text[: most + 1])
    return line if len(line) <= most else f"{line[:most]}..."
