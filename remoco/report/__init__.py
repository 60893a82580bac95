"""`remoco report`: runs and scores as an offline page, like the paper's project page."""

from remoco.report.command import report

__all__ = ["report"]
