"""Run somebody else's checkout without it leaving traces in this process."""

from __future__ import annotations

import contextlib
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np


@contextlib.contextmanager
def contained(root: Path, modules: dict[str, ModuleType]) -> Iterator[None]:
    """Import and call code under `root` as if started there; afterwards everything is as it was.

    That is `sys.path`, the working folder, the environment, both standard streams (what is printed goes nowhere), the
    random generators of Python, numpy and torch, and the names of the checkout's modules: our own of the same name
    are hidden while it runs. torch runs on one thread and with deterministic convolutions, so that the bits do not
    depend on the number of processes.

    Args:
        root: of the checkout.
        modules: keeps the checkout's modules from one call to the next.
    """
    import torch

    with contextlib.ExitStack() as stack:
        stack.enter_context(_silent())
        stack.enter_context(_folder(root))
        stack.enter_context(_importable(root, modules))
        stack.enter_context(torch.random.fork_rng())
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(1)
        cudnn = torch.backends.cudnn
        stack.enter_context(cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=cudnn.allow_tf32))
        yield


@contextlib.contextmanager
def _folder(root: Path) -> Iterator[None]:
    before, environment = os.getcwd(), dict(os.environ)
    os.chdir(root)
    try:
        yield
    finally:
        os.chdir(before)
        if dict(os.environ) != environment:
            os.environ.clear()
            os.environ.update(environment)


@contextlib.contextmanager
def _importable(root: Path, modules: dict[str, ModuleType]) -> Iterator[None]:
    names = {path.stem for path in root.iterdir() if path.is_dir() or path.suffix == ".py"}
    path, path_object = list(sys.path), sys.path
    hidden = {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(modules)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.path = path_object
        sys.path[:] = path
        for name, module in list(sys.modules.items()):
            if name.partition(".")[0] in names or _lies_under(module, root):
                modules[name] = sys.modules.pop(name)
        sys.modules.update(hidden)


def _lies_under(module: ModuleType, root: Path) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and os.path.realpath(file).startswith(os.path.realpath(root) + os.sep)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Both standard streams to nowhere, for Python and for compiled code."""
    streams = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        for descriptor, stream in zip((1, 2), streams):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
            with contextlib.suppress(OSError):
                kept = os.dup(descriptor)
                stack.callback(os.close, kept)
                stack.callback(os.dup2, kept, descriptor)
                os.dup2(nowhere.fileno(), descriptor)
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = streams
