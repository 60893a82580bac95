"""Where the processes of a pool or a loader come from."""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running


def context(*modules: str) -> ForkServerContext:
    """Processes forked from a clean server: forking this process, with its threads, can deadlock.

    The server does not look into the working folder, where a file of the user's may have the name of a package of ours.
    Its processes look where this one does.

    Args:
        modules: Modules that the server imports, once for all of its processes.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(list(modules))
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        ensure_running()
    finally:
        os.environ.pop("PYTHONSAFEPATH")
        if before is not None:
            os.environ["PYTHONSAFEPATH"] = before
    return processes
