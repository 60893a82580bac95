"""What a terminal shows of warnings and of Lightning's log: one line each, above a progress bar, not in it."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

from tqdm import tqdm

DEVELOPERS = (
    DeprecationWarning, PendingDeprecationWarning, FutureWarning, ImportWarning, ResourceWarning, SyntaxWarning,
)  # fmt: skip
"""Warnings of libraries' own use of each other: a user can do nothing about them."""
SAYS_NOTHING = ("litlogger", "litmodels", "tpu available: false")
"""Lightning's advertisement, and the device that is not there."""


def one_line_warnings(command: str) -> None:
    """Show a warning as one line, without a library's path and source; and none that is meant for developers.

    Args:
        command: What the user ran, as the line begins.
    """
    seen: set[str] = set()

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        text = " ".join(str(message).split())
        if not issubclass(category, DEVELOPERS) and text not in seen:  # each validation warns anew
            seen.add(text)
            tqdm.write(f"{command}: warning: {text}", file=sys.stderr)

    warnings.showwarning = show


class Quiet(logging.Filter):
    """Leaves out what says nothing."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(words in record.getMessage().lower() for words in SAYS_NOTHING)


class AboveBars(logging.StreamHandler):
    """A handler for stderr that clears progress bars while it writes."""

    def __init__(self, level: int) -> None:
        super().__init__()
        self.setLevel(level)

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def quiet_log() -> None:
    """Have Lightning's log above the bars, without what says nothing."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.pytorch", "lightning.fabric", "lightning"):
        logger = logging.getLogger(name)
        if not any(isinstance(each, Quiet) for each in logger.filters):
            logger.addFilter(Quiet())
        logger.handlers = [_above(each) if type(each) is logging.StreamHandler else each for each in logger.handlers]


def _above(handler: logging.Handler) -> AboveBars:
    above = AboveBars(level=handler.level)
    above.setFormatter(handler.formatter)
    return above
