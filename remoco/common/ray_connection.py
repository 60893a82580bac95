"""The connection to a Ray cluster, which a preparation and a sweep share: reached first, and no open port here.

Ray is imported when it is asked for: it is an extra.
"""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from remoco.common.errors import UserError, one_line


@contextmanager
def connected(address: str, workers: int) -> Iterator[Any]:
    """Ray, connected to a cluster for the block, or one that already is; SIGTERM raises KeyboardInterrupt there.

    Args:
        address: address of the cluster: `auto` for this machine's, HOST:PORT, or `local` to start one here.
        workers: CPUs of a cluster started here.

    Raises:
        UserError: Ray is not installed, or the cluster is not reached.
    """
    ray = load(address)
    if ray.is_initialized():
        yield ray
        return
    handled = threading.current_thread() is threading.main_thread()  # Ray sets no handlers in other threads
    before = signal.getsignal(signal.SIGTERM)
    _connect(ray, address, workers)
    try:
        if handled:  # as Ctrl-C, of which Ray knows; its own handler kills its processes, and aborts
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        yield ray
    finally:
        ray.shutdown()
        if handled:
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def load(address: str) -> Any:
    """Ray, with the settings that count when it is first imported.

    Where it is started here it listens on 127.0.0.1 alone: it takes the machine's own address otherwise, and its ports
    run any client's code, so that who reaches one owns the machine.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local":
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # on every system: no cluster of machines
        # 15 by default, for workers that share a machine with services
        os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        import ray
    except ImportError:
        raise UserError("Ray is not installed: pip install -e '.[ray]' -c constraints.txt") from None
    return ray


def _connect(ray: Any, address: str, workers: int) -> None:
    options = {"num_cpus": workers, "include_dashboard": False} if address == "local" else {}
    try:
        _reach(address)
    except (OSError, ValueError) as error:
        raise UserError(f"--ray {address}: no cluster there: {one_line(error)}") from error
    try:
        environment = {"worker_process_setup_hook": _ours_first()}
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", runtime_env=environment, **options)
    except Exception as error:  # of a machine that is too busy to start it within 30 s Ray raises a bare one
        if address == "local":
            raise UserError(f"--ray local: Ray did not start: {one_line(error)}") from error
        # since Ray 2.60 `ray start` asks for a token where one lies in ~/.ray, and HOST:PORT does not send it unasked
        hint = "" if "RAY_AUTH_MODE" in os.environ else " (if it asks for a token: RAY_AUTH_MODE=token)"
        raise UserError(f"--ray {address}: no cluster there{hint}: {one_line(error)}") from error
    if address == "local" and not ray.util.get_node_ip_address().startswith("127."):
        ray.shutdown()
        raise UserError(
            "--ray local: Ray would listen to other machines; "
            "expected RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 in the environment"
        )


def _ours_first() -> Callable[[], None]:
    """What a Ray worker calls before Ray puts the driver's working folder first in its search.

    A function within a function: Ray sends its code, and not a name to import it by.
    """

    def hook() -> None:
        try:
            from remoco.common import rooms
        except ImportError:  # the task says that this node lacks the package
            return
        rooms.first()

    return hook


def _reach(address: str) -> None:
    """Knock at HOST:PORT first: Ray tries for many minutes where nobody answers."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=10).close()
