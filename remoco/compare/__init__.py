"""`remoco compare`: every system of the paper's tables on one benchmark, sampled, scored and shown in one run."""

from remoco.compare.command import compare

__all__ = ["compare"]
